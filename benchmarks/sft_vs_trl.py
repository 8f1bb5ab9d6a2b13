"""LoRA fine-tuning, side by side: headway, a plain loop, and TRL's SFTTrainer.

    python benchmarks/sft_vs_trl.py --model DIR [--steps 6] [--repeats 3] [--peer-python PYTHON]

Every side runs alone in its own process, in turns (A B C D A B C D …), over the same GSM8K rows
with the same adapter (rank 16, all linear layers), optimizer and bf16 autocast on the same threads.
A token is counted once if it is real and once more if it is supervised, alike for all sides.
Printed: medians over all timed steps of all repeats, their spread, peak memory of the process, and
ratios, which are what counts. The first step of each process is not timed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from sides import (
    DATA,
    LEARNING_RATE,
    TRL_SAME,
    Step,
    headway_steps,
    in_turns,
    needed,
    parser_of,
    table,
    work,
)

ROWS_A_STEP = 4
SIDES = ("trl", "trl-no-checkpointing", "trl-packing", "plain", "headway")
ADAPTER = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}


def rows_of(data: Path, model: str, count: int) -> list[dict[str, list[int]]]:
    """GSM8K rows through the model's chat template: token ids and which of them are supervised."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = []
    with data.open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines, strict=False):
            example = json.loads(line)
            asked = [{"role": "user", "content": example["question"]}]
            prompt = tokenizer.apply_chat_template(
                asked, tokenize=False, add_generation_prompt=True
            )
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            answer = tokenizer(f"{example['answer']}<|im_end|>\n", add_special_tokens=False)
            mask = [0] * len(ids) + [1] * len(answer["input_ids"])
            rows.append({"input_ids": ids + answer["input_ids"], "completion_mask": mask})
    return rows


def counted(rows: list[dict[str, list[int]]]) -> dict[str, int]:
    """Real tokens, and supervised ones: the first token of a row is never predicted."""
    return {
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "supervised": sum(sum(row["completion_mask"][1:]) for row in rows),
    }


def adapted(model: str):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **ADAPTER)).train()


def timed(steps, step_once) -> list[Step]:
    """Run ``step_once`` over batches of rows; seconds and counts of each."""
    report = []
    for rows in steps:
        start = time.perf_counter()
        loss = step_once(rows)
        seconds = time.perf_counter() - start
        report.append({"seconds": seconds, "loss": loss, **counted(rows)})
    return report


def optimizer_of(model):
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)


def run_plain(model: str, steps) -> list[Step]:
    """The floor: unpadded rows one at a time, logits for supervised positions only."""
    import torch
    import torch.nn.functional as F

    peft_model = adapted(model)
    base = peft_model.get_base_model()
    optimizer = optimizer_of(peft_model)

    def step_once(rows) -> float:
        weight, total = counted(rows)["supervised"], 0.0
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            at = torch.tensor([i - 1 for i, on in enumerate(row["completion_mask"]) if on and i])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = base.model(input_ids=ids, use_cache=False).last_hidden_state[0]
                logits = base.lm_head(hidden[at])
            loss = F.cross_entropy(logits.float(), ids[0, at + 1], reduction="sum") / weight
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return timed(steps, step_once)


def run_headway(model: str, data: Path, count: int, threads: int) -> list[Step]:
    """headway's recipe sft."""
    task = {
        "base_model": model,
        "tuning": {"kind": "lora", "rank": 16, "alpha": 32},
        "max_tokens": 1024,
        "data": {"train": {"path": str(data), "limit": count}},
    }
    steps = count // ROWS_A_STEP
    return headway_steps("sft", task, steps=steps, batch=ROWS_A_STEP, threads=threads)


def run_trl(model: str, steps, side: str) -> list[Step]:
    """TRL's SFTTrainer as a user configures it; seconds between its own step callbacks."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = [row for step in steps for row in step]
    seconds: list[float] = []
    packing = side == "trl-packing"
    # TRL recomputes activations unless told otherwise; "trl" leaves that as it is.
    faster = {} if side == "trl" else {"gradient_checkpointing": False}

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            seconds.append(time.perf_counter() - self.start)

    with tempfile.TemporaryDirectory() as folder:
        options = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=1 if packing else ROWS_A_STEP,
            packing=packing,
            max_length=1024,
            **TRL_SAME,
            **faster,
        )
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
            args=options,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model),
            peft_config=LoraConfig(task_type="CAUSAL_LM", **ADAPTER),
            callbacks=[Clock()],
        )
        seen = []
        compute = trainer.compute_loss

        def compute_and_count(wrapped, inputs, *args, **kwargs):
            labels = inputs["labels"]
            mask = inputs.get("attention_mask")
            real = labels.numel() if mask is None else int(mask.sum())
            starts = inputs["position_ids"] == 0 if "position_ids" in inputs else None
            on = labels != -100
            on = on & ~starts if starts is not None else on[:, 1:]
            seen.append({"tokens": real, "supervised": int(on.sum())})
            return compute(wrapped, inputs, *args, **kwargs)

        trainer.compute_loss = compute_and_count
        trainer.train()
    return [{"seconds": s, "loss": float("nan"), **n} for s, n in zip(seconds, seen, strict=True)]


def steps_of(side: str, options: argparse.Namespace) -> list[Step]:
    """One side's, in this process."""
    rows = rows_of(options.data, options.model, (options.steps + 1) * ROWS_A_STEP)
    steps = [rows[i : i + ROWS_A_STEP] for i in range(0, len(rows), ROWS_A_STEP)]
    if side.startswith("trl"):
        return run_trl(options.model, steps, side)
    if side == "plain":
        return run_plain(options.model, steps)
    return run_headway(options.model, options.data, len(rows), options.threads)


def main() -> None:
    parser = parser_of(__doc__, SIDES, steps=6)
    parser.add_argument("--model", required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, default=DATA / "gsm8k/train.jsonl")
    options = parser.parse_args()
    if options.side:
        return work(options.side, lambda: steps_of(options.side, options), options.threads)
    needed(options.data)
    print(table(*in_turns(__file__, options)))


if __name__ == "__main__":
    main()
