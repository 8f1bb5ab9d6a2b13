"""The same mathematics: the loss of each of 20 steps, headway's and TRL's SFTTrainer's.

    python benchmarks/losses_vs_trl.py --model DIR [--peer-python PYTHON] [--cases CASE ...]

headway trains in one process and leaves what it trained on: the adapter before step 1, and the
token ids and supervised tokens of each step's rows, in its order. TRL trains in another process
from that adapter on those rows, in fp32, with the same AdamW and clipping. Two further parts give
TRL the same examples as messages, to see which tokens and masks it makes of them by itself, and
pack them its way, to see what a row loses when others lie beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from sides import DATA, needed

STEPS, ROWS_A_STEP, ROWS_OF_FILE = 20, 8, 400
LONGEST_CHARACTERS = 300
RANK, PEAK, WARMUP_STEPS = 16, 1e-3, 4
BETAS, EPSILON = (0.9, 0.999), 1e-8
PACKED_TOKENS, PACKED_ROWS_COMPARED = 512, 8


@dataclass(frozen=True)
class Case:
    """One comparison: headway's schedule, and what TRL is told beyond the shared settings."""

    schedule: str
    warmup_steps: int = 0
    accumulation: int = 1
    own_rates: bool = False
    """TRL follows its own schedule of that name, not headway's rates."""
    own_tokens: str = ""
    """TRL makes its own tokens and labels of the same examples, given in this form."""
    train_on: str = "assistant"
    """headway's ``data.train_on``."""


CASES = {
    "constant": Case("constant"),
    "accumulated": Case("constant", accumulation=4),
    "cosine": Case("cosine", WARMUP_STEPS),
    "linear": Case("linear", WARMUP_STEPS),
    "cosine-own": Case("cosine", WARMUP_STEPS, own_rates=True),
    "messages": Case("constant", own_tokens="messages, as it is", train_on="all"),
    "pairs": Case("constant", own_tokens="prompt and completion, as messages"),
}

# ---------------------------------------------------------------- headway's side


def short_rows(data: Path, to: Path) -> None:
    """The first GSM8K rows that are short, as headway's file of questions and answers."""
    kept = []
    with data.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if len(row["question"]) + len(row["answer"]) <= LONGEST_CHARACTERS:
                kept.append(json.dumps({k: row[k] for k in ("question", "answer")}) + "\n")
    to.write_text("".join(kept[:ROWS_OF_FILE]), encoding="utf-8")


def run_headway(model: str, folder: Path, case: Case) -> dict[str, Any]:
    """Train; leave the first adapter in ``folder``; every step's loss, rate, norm and rows."""
    from headway import RunConfig
    from headway.journal import read, timeline
    from headway.opening import opened
    from headway.run import train

    config = RunConfig(
        recipe="sft",
        run={"name": "run", "root": folder, "seed": 17},
        train={
            "horizon": {"steps": STEPS}, "batch_size": ROWS_A_STEP, "learning_rate": PEAK,
            "schedule": case.schedule, "warmup": case.warmup_steps, "weight_decay": 0.01,
            "betas": BETAS, "eps": EPSILON, "max_grad_norm": 1.0,
        },
        hardware={"device": "cpu", "precision": "fp32", "threads": 1},
        checkpoint={"every_minutes": None},
        task={
            "base_model": model, "max_tokens": PACKED_TOKENS,
            "tuning": {"kind": "lora", "rank": RANK, "alpha": 2 * RANK},
            "data": {"train": {"path": str(folder / "rows.jsonl")}, "train_on": case.train_on},
        },
    )  # fmt: skip
    with opened(config) as run:
        save_adapter(run.task.saved(), folder / "adapter")
        rows = [
            [as_given(run.task.train, row) for m in run.task.batch_at(step) for row in m.rows]
            for step in range(STEPS)
        ]
        train(run)
    lines = timeline(read(folder / "run/journal.jsonl"))
    return {
        "loss": [line["loss"] for line in lines],
        "grad_norm": [line["grad_norm"] for line in lines],
        "rate": [line["learning_rate"] for line in lines],
        "rows": rows,
    }


def save_adapter(saved: Any, to: Path) -> None:
    """PEFT's layout, as a checkpoint would hold it."""
    from safetensors.torch import save_file

    to.mkdir()
    for name, data in saved.files.items():
        (to / name).write_bytes(data)
    for name, tensors in saved.tensors.items():
        save_file({k: t.detach().contiguous() for k, t in tensors.items()}, to / name)


def as_given(rows: Any, row: int) -> dict[str, Any]:
    """A training row as TRL reads prepared ones, and where its example stands."""
    found = rows[row]
    mask = [0] * len(found.ids)
    for at in found.at.tolist():
        mask[at + 1] = 1
    line = rows.shown(row)["where"].rpartition(":")[2]
    return {"input_ids": found.ids.tolist(), "completion_mask": mask, "line": int(line)}


# ---------------------------------------------------------------- TRL's side


def trainer_for(model: str, adapter: Path, rows: Any, to: str, case: Case, **own: Any) -> Any:
    """SFTTrainer over ``rows`` in their order, in fp32, from the given adapter."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    base = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    options = SFTConfig(**{
        "output_dir": to, "use_cpu": True, "bf16": False, "seed": 17,
        "per_device_train_batch_size": ROWS_A_STEP // case.accumulation,
        "gradient_accumulation_steps": case.accumulation,
        "max_steps": STEPS, "learning_rate": PEAK, "weight_decay": 0.01, "max_grad_norm": 1.0,
        "adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "adam_epsilon": EPSILON,
        "optim": "adamw_torch_fused",
        "lr_scheduler_type": case.schedule, "warmup_steps": case.warmup_steps,
        "gradient_checkpointing": False, "max_length": 1024, "dataloader_num_workers": 0,
        "train_sampling_strategy": "sequential", "shuffle_dataset": False,
        "logging_steps": 1, "logging_first_step": True, "report_to": "none",
        "save_strategy": "no", "disable_tqdm": True,
        **own,
    })  # fmt: skip
    return SFTTrainer(
        model=PeftModel.from_pretrained(base, str(adapter), is_trainable=True),
        args=options,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
    )


def run_trl(model: str, folder: Path, *, ours: Mapping[str, Any], case: Case) -> dict[str, Any]:
    """TRL on headway's rows: each step's loss, norm and rate as its own log says."""
    import torch

    rows, own = prepared(ours), {"completion_only_loss": True}
    if case.own_tokens:
        rows, own = ways_of_giving(folder, ours)[case.own_tokens]
    with tempfile.TemporaryDirectory() as to:
        trainer = trainer_for(model, folder / "adapter", rows, to, case, **own)
        if not case.own_rates:
            trainer.create_optimizer()
            for group in trainer.optimizer.param_groups:
                group["lr"] = group["initial_lr"] = 1.0
            trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                trainer.optimizer, lambda step: [*ours["rate"], 0.0][step]
            )
        trainer.train()
        log = [line for line in trainer.state.log_history if "loss" in line]
    return {"loss": [x["loss"] for x in log], "grad_norm": [x["grad_norm"] for x in log],
            "rate": [x["learning_rate"] for x in log]}  # fmt: skip


def prepared(ours: Mapping[str, Any]) -> list[dict[str, Any]]:
    """headway's rows in its order, as a tokenised data set."""
    kept = ("input_ids", "completion_mask")
    return [{key: row[key] for key in kept} for step in ours["rows"] for row in step]


def ways_of_giving(
    folder: Path, ours: Mapping[str, Any]
) -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """The same examples in the same order as a user of TRL would give them, with its options."""
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [json.loads(lines[row["line"] - 1]) for step in ours["rows"] for row in step]
    asked = [[{"role": "user", "content": e["question"]}] for e in examples]
    said = [[{"role": "assistant", "content": e["answer"]}] for e in examples]
    messages = [{"messages": a + b} for a, b in zip(asked, said, strict=True)]
    pairs = [{"prompt": a, "completion": b} for a, b in zip(asked, said, strict=True)]
    texts = [{"prompt": e["question"], "completion": e["answer"]} for e in examples]
    return {
        "messages, as it is": (messages, {}),
        "messages, assistant_only_loss": (messages, {"assistant_only_loss": True}),
        "prompt and completion, as messages": (pairs, {}),
        "prompt and completion, as text": (texts, {}),
    }


def tokens_of_trl(model: str, folder: Path, ours: Mapping[str, Any]) -> dict[str, Any]:
    """What TRL's own preparation makes of the same examples, for each way of giving them."""
    given, ways = prepared(ours), ways_of_giving(folder, ours)
    return {name: compared(model, folder, given, *way) for name, way in ways.items()}


def compared(model: str, folder: Path, given: Any, rows: Any, own: dict[str, Any]) -> Any:
    """Counts of rows with other tokens or another mask than headway's, and one of each."""
    with tempfile.TemporaryDirectory() as to:
        try:
            trainer = trainer_for(model, folder / "adapter", rows, to, CASES["constant"], **own)
        except (ValueError, RuntimeError) as error:
            return {"refused": str(error).splitlines()[0]}
    decode = trainer.processing_class.decode
    found: dict[str, Any] = {"rows": len(given), "other_tokens": 0, "other_mask": 0}
    masks: dict[str, int] = {}
    for row, theirs in zip(given, trainer.train_dataset, strict=True):
        ids = row["input_ids"]
        mine = [i if on else -100 for i, on in zip(ids, row["completion_mask"], strict=True)]
        labels = [-100, *theirs["labels"][1:]]  # nothing predicts a first token
        found["other_tokens"] += ids != theirs["input_ids"]
        if ids != theirs["input_ids"]:
            found.setdefault("their_text", decode(theirs["input_ids"]))
            found.setdefault("our_text", decode(ids))
        elif mine != labels:
            found["other_mask"] += 1
            for where in differing(mine, labels, ids, decode):
                masks[where] = masks.get(where, 0) + 1
    return {**found, "masks": masks}


def differing(
    mine: Sequence[int], theirs: Sequence[int], ids: Sequence[int], decode: Any
) -> Iterator[str]:
    """Each token that one side supervises alone; the whole prompt counts as one."""
    answer = next(i for i, label in enumerate(mine) if label != -100)
    at = [i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b]
    if at[: answer - 1] == list(range(1, answer)):
        yield "TRL alone supervises the whole prompt"
        at = at[answer - 1 :]
    for i in at:
        side = "TRL" if mine[i] == -100 else "headway"
        yield f"{side} alone supervises {decode([ids[i]])!r} after {decode([ids[i - 1]])!r}"


def packed_by_trl(model: str, folder: Path, ours: Mapping[str, Any]) -> dict[str, Any]:
    """TRL's packing of the same rows: where they went, and what each loses by its neighbours."""
    import torch

    given = prepared(ours)
    with tempfile.TemporaryDirectory() as to:
        trainer = trainer_for(
            model, folder / "adapter", given, to, CASES["constant"], completion_only_loss=True,
            packing=True, max_length=PACKED_TOKENS, per_device_train_batch_size=1,
        )  # fmt: skip
        rows, collate = list(trainer.train_dataset), trainer.data_collator
        keys = [tuple(row["input_ids"]) for row in given]
        pieces = [p for row in rows for p in cut(row["input_ids"], row["seq_lengths"])]
        trainer.model.eval()
        shared = [row for row in rows if len(row["seq_lengths"]) > 1][:PACKED_ROWS_COMPARED]
        with torch.no_grad():
            apart = [by_itself(trainer.model, collate([row])) for row in shared]
            beside = [losses(trainer.model, collate([row])) for row in shared]
            cached = [losses(trainer.model, collate([row]), use_cache=True) for row in shared]

    def largest(found: list[Any]) -> Any:
        return max((a - b).abs().max().item() for a, b in zip(found, apart, strict=True))

    return {
        "attention": trainer.model.config._attn_implementation,
        "rows": len(rows),
        "examples": len(pieces),
        "whole": sum(piece in set(keys) for piece in pieces),
        "in_order": pieces == keys,
        "rows_compared": len(shared),
        "tokens_compared": sum(len(row) for row in apart),
        "largest_change_of_a_token": largest(beside),
        "the_same_with_use_cache": largest(cached),
    }


def by_itself(model: Any, batch: Mapping[str, Any]) -> Any:
    """The losses of a packed batch with every document in a forward pass of its own."""
    import torch

    return torch.cat([losses(model, one) for one in singles(batch)])


def cut(ids: Sequence[int], lengths: Iterable[int]) -> list[tuple[int, ...]]:
    pieces, start = [], 0
    for length in lengths:
        pieces.append(tuple(ids[start : start + length]))
        start += length
    return pieces


def singles(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The documents of a packed batch, each as a batch of its own."""
    ends = batch["cu_seq_lens_q"].tolist()
    return [
        {"input_ids": batch["input_ids"][:, a:b], "labels": batch["labels"][:, a:b]}
        for a, b in pairwise(ends)
    ]


def losses(model: Any, batch: Mapping[str, Any], *, use_cache: bool = False) -> Any:
    """-log p of each supervised token of one row; TRL's trainer sets ``use_cache`` to False."""
    import torch.nn.functional as F

    inputs = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**inputs, use_cache=use_cache).logits[0, :-1]
    labels = batch["labels"][0, 1:]
    on = labels != -100
    return F.cross_entropy(logits[on].float(), labels[on], reduction="none")


# ---------------------------------------------------------------- both, and what they say


def table(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """A markdown table of every step; the last line is the largest difference."""
    lines = [
        "| step | headway | TRL | relative difference | gradient norms | learning rates |",
        "|---|---|---|---|---|---|",
    ]
    worst = 0.0
    for step, (a, b) in enumerate(zip(ours["loss"], theirs["loss"], strict=True)):
        off = abs(a - b) / abs(b)
        worst = max(worst, off)
        norms = " ".join(f"{side['grad_norm'][step]:.5f}" for side in (ours, theirs))
        rates = " ".join(f"{side['rate'][step]:.2e}" for side in (ours, theirs))
        lines.append(f"| {step + 1} | {a:.7f} | {b:.7f} | {off:.1e} | {norms} | {rates} |")
    return "\n".join([*lines, f"\nLargest relative difference: {worst:.1e}"])


def in_own_process(python: str, side: str, folder: Path, arguments: argparse.Namespace) -> Any:
    """One side alone: headway and TRL need not share an environment."""
    out = folder / f"{side}.json"
    command = [python, __file__, "--model", arguments.model, "--side", side]
    command += ["--folder", str(folder), "--case", arguments.case, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode or not out.exists():
        raise SystemExit(f"{side} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    return json.loads(out.read_text(encoding="utf-8"))


def work(arguments: argparse.Namespace) -> None:
    """One side in this process; leaves JSON in ``--out``."""
    model, folder, case = arguments.model, arguments.folder, CASES[arguments.case]
    if arguments.side == "headway":
        found = run_headway(model, folder, case)
    else:
        ours = json.loads((folder / "headway.json").read_text(encoding="utf-8"))
        sides: dict[str, Any] = {"tokens": tokens_of_trl, "packed": packed_by_trl}
        side = sides.get(arguments.side) or partial(run_trl, case=case)
        found = side(model, folder, ours=ours)
    arguments.out.write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a causal LM with chat template")
    parser.add_argument("--data", type=Path, default=DATA / "gsm8k/train.jsonl")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has TRL")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["constant", "cosine"])
    parser.add_argument("--case", choices=CASES, default="constant", help=argparse.SUPPRESS)
    for name, kind in (("--side", str), ("--folder", Path), ("--out", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return work(arguments)
    needed(arguments.data)
    for name in arguments.cases:
        arguments.case = name
        with tempfile.TemporaryDirectory() as to:
            folder = Path(to)
            short_rows(arguments.data, folder / "rows.jsonl")
            ours = in_own_process(sys.executable, "headway", folder, arguments)
            theirs = in_own_process(arguments.peer_python, "trl", folder, arguments)
            print(f"\n## {name}\n\n{table(ours, theirs)}", flush=True)
            for side in ("tokens", "packed") if name == "constant" else ():
                found = in_own_process(arguments.peer_python, side, folder, arguments)
                print(f"\n## {side}\n\n{json.dumps(found, indent=1)}", flush=True)


if __name__ == "__main__":
    main()
