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
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROWS_A_STEP = 4
SIDES = ("trl", "trl-no-checkpointing", "trl-packing", "plain", "headway")
ADAPTER = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
LEARNING_RATE = 2e-4


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


def timed(steps, step_once) -> list[dict[str, float]]:
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


def run_plain(model: str, steps) -> list[dict[str, float]]:
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


def run_headway(model: str, data: Path, count: int, threads: int) -> list[dict[str, float]]:
    """headway as a user runs it: config, data, journal and all; seconds between its steps."""
    import tempfile

    from headway import RunConfig
    from headway.opening import opened
    from headway.run import train
    from headway.show import Quiet

    report: list[dict[str, float]] = []

    class Clock(Quiet):
        def step(self, step, plan, cost_usd) -> None:
            now = time.perf_counter()
            report.append({"seconds": now - self.at, "tokens": step.tokens, "loss": step.loss})
            report[-1]["supervised"] = step.weight
            self.at = now

    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            recipe="sft",
            run={"name": "bench", "root": folder},
            train={
                "horizon": {"steps": count // ROWS_A_STEP},
                "batch_size": ROWS_A_STEP,
                "learning_rate": LEARNING_RATE,
                "schedule": "constant",
                "max_grad_norm": 0.0,
            },
            hardware={"device": "cpu", "precision": "bf16", "threads": threads},
            checkpoint={"every_minutes": None},
            task={
                "base_model": model,
                "tuning": {"kind": "lora", "rank": 16, "alpha": 32},
                "max_tokens": 1024,
                "data": {"train": {"path": str(data), "limit": count}},
            },
        )
        clock = Clock()
        with opened(config, show=clock) as run:
            clock.at = time.perf_counter()
            train(run)
    return report


def run_trl(model: str, steps, side: str) -> list[dict[str, float]]:
    """TRL's SFTTrainer as a user configures it; seconds between its own step callbacks."""
    import tempfile

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
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=0.0,
            num_train_epochs=1,
            bf16=True,
            use_cpu=True,
            packing=packing,
            **faster,
            max_length=1024,
            completion_only_loss=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            train_sampling_strategy="sequential",
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


def work(side: str, arguments: argparse.Namespace) -> None:
    """One side in this process; prints a JSON line."""
    import torch

    torch.set_num_threads(arguments.threads)
    rows = rows_of(arguments.data, arguments.model, (arguments.steps + 1) * ROWS_A_STEP)
    steps = [rows[i : i + ROWS_A_STEP] for i in range(0, len(rows), ROWS_A_STEP)]
    if side.startswith("trl"):
        report = run_trl(arguments.model, steps, side)
    elif side == "plain":
        report = run_plain(arguments.model, steps)
    else:
        report = run_headway(arguments.model, arguments.data, len(rows), arguments.threads)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("RESULT " + json.dumps({"side": side, "steps": report[1:], "peak_bytes": peak}))


def run_side(side: str, arguments: argparse.Namespace) -> dict:
    python = arguments.peer_python if side.startswith("trl") else sys.executable
    command = [python, __file__, "--side", side, "--model", arguments.model]
    command += ["--data", str(arguments.data), "--steps", str(arguments.steps)]
    command += ["--threads", str(arguments.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[0][len("RESULT ") :])


def table(results: list[dict], busy: list[float]) -> str:
    """A markdown table; ratios are against TRL's default."""
    speeds, lines = {}, []
    for side in dict.fromkeys(result["side"] for result in results):
        own = [r for r in results if r["side"] == side]
        runs = [[s["tokens"] / s["seconds"] for s in r["steps"]] for r in own]
        speeds[side] = {
            "all": sum(s["tokens"] for r in own for s in r["steps"])
            / sum(s["seconds"] for r in own for s in r["steps"]),
            "median": statistics.median(s for run in runs for s in run),
            "runs": [statistics.median(run) for run in runs],
            "supervised": sum(s["supervised"] for r in own for s in r["steps"])
            / sum(s["tokens"] for r in own for s in r["steps"]),
            "peak": statistics.median(r["peak_bytes"] for r in own),
        }
    first = next(iter(speeds.values()))
    lines.append(
        "| side | real tokens/s, median (runs) | supervised share | peak GB | speed | memory |"
    )
    lines.append("|---|---|---|---|---|---|")
    for side, s in speeds.items():
        spread = ", ".join(f"{run:.0f}" for run in s["runs"])
        lines.append(
            f"| {side} | {s['median']:.0f} ({spread}) | {s['supervised']:.2f} "
            f"| {s['peak'] / 1e9:.2f} | {s['median'] / first['median']:.2f}x "
            f"| {s['peak'] / first['peak']:.2f}x |"
        )
    lines.append(f"\nLoad of the machine before each process: {[round(b, 1) for b in busy]}")
    return "\n".join(lines)


def main() -> None:
    here = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, default=here / "../shared/data/gsm8k/train.jsonl")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has TRL")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return work(arguments.side, arguments)
    results, busy = [], []
    for _ in range(arguments.repeats):
        for side in arguments.sides:
            busy.append(os.getloadavg()[0])
            results.append(run_side(side, arguments))
    print(table(results, busy))


if __name__ == "__main__":
    main()
