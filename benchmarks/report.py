"""How long a report takes, how large it is and what memory it needs, for a run of 100,000 steps.

    python benchmarks/report.py [--steps 100000] [--runs 5] [--repeat 3]

Makes run folders without training: a journal line per step, an evaluation with 20 worst rows every
1,000 steps, 20 pictures of 150 kB beside the newest. Then it runs ``headway report`` of one of them
and of all, each in its own process, and prints the median wall time, the highest resident memory
and the file's size. Start of Python and imports are counted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PICTURE_BYTES, WORST_ROWS, EVERY = 150_000, 20, 1_000
CONFIG = """recipe: sft
run: {{name: {name}, root: runs, seed: {seed}}}
train: {{horizon: {{steps: {steps}}}, batch_size: 16, learning_rate: {rate}}}
task: {{base_model: some/model}}
"""


def events(steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """A journal with three attempts; loss, norm and speed as noisy as they are."""
    noise = random.Random(seed)
    hardware = {"gpu": "NVIDIA RTX 4090"}
    begins = [0, steps // 3, 2 * steps // 3]
    for attempt, begin in enumerate(begins, 1):
        head = {"at": "2026-11-20T08:00:00.000+00:00", "attempt": attempt}
        yield {"event": "attempt", **head, "restored_step": begin, "hardware": hardware}
        yield {"event": "plan", **head, "steps": steps, "batch_size": 16, "rows_per_epoch": 50_000}
        end = [*begins[1:], steps][attempt - 1]
        for step in range(begin + 1, end + 1):
            loss = 1.2 + 2 * math.exp(-5 * step / steps) + noise.gauss(0, 0.1)
            yield {
                "event": "step", **head, "step": step, "loss": loss,
                "learning_rate": 2e-4 * (1 - step / steps), "grad_norm": abs(noise.gauss(0.6, 0.3)),
                "weight": 1630.0, "rows": 16, "tokens": 4096 - noise.randrange(400),
                "seconds": 1.1 + noise.random() / 5, "memory_bytes": 9_800_000_000, "also": {},
                "refused": None, "cost_usd": step * 1.2e-4,
            }  # fmt: skip
            if step % EVERY == 0:
                yield {"event": "evaluation", **head, **evaluation(step, loss)}
                yield {"event": "save", **head, "step": step, "bytes": 78_000_000}
    yield {"event": "stop", "attempt": 3, "reason": "finished", "step": steps}


def evaluation(step: int, loss: float) -> dict[str, Any]:
    """With worst rows as the journal has them."""
    shown = {
        "where": "data/eval.jsonl:7",
        "prompt": "What is this? " * 20,
        "reference": "It. " * 40,
    }
    worst = [
        {"row": row, "loss": 6 - row / 10, "weight": 30.0, "shown": shown}
        for row in range(WORST_ROWS)
    ]
    metrics = {"loss": loss, "perplexity": math.exp(loss)}
    return {
        "step": step, "rows": 500, "weight": 81_234.0, "metrics": metrics,
        "baselines": {"loss/untrained": 3.2}, "seconds": 20.0, "worst": worst,
    }  # fmt: skip


def make(root: Path, name: str, steps: int, seed: int) -> Path:
    """A run folder."""
    run = root / name
    newest = run / "evals" / f"step-{steps // EVERY * EVERY:08d}"
    (newest / "pictures").mkdir(parents=True)
    (run / "config.yaml").write_text(
        CONFIG.format(name=name, seed=seed, steps=steps, rate=1e-4 * seed)
    )
    with (run / "journal.jsonl").open("w") as file:
        file.writelines(json.dumps(event) + "\n" for event in events(steps, seed))
    with (newest / "worst.jsonl").open("w") as file:
        for row in evaluation(steps, 1.2)["worst"]:
            picture = f"pictures/row-{row['row']}-1.png"
            data = b"\x89PNG\r\n\x1a\n" + os.urandom(PICTURE_BYTES - 8)
            (newest / picture).write_bytes(data)
            pieces = [["token ", 0.01 * n] for n in range(400)]
            row["shown"] |= {"page": {"picture": picture, "says": "a page"}, "tokens": pieces}
            file.write(json.dumps(row) + "\n")
    return run


def measured(runs: list[Path], to: Path) -> dict[str, float]:
    """One ``headway report`` in its own process."""
    command = [sys.executable, "-m", "headway.cli", "report", *map(str, runs), "--to", str(to)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return {
        "seconds": seconds,
        "memory_bytes": usage.ru_maxrss * 1024.0,
        "file_bytes": float(to.stat().st_size),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        runs = [make(root, f"run-{n}", asked.steps, n) for n in range(1, asked.runs + 1)]
        journal_bytes = (runs[0] / "journal.jsonl").stat().st_size
        print(f"{asked.steps:,} steps, a journal of {journal_bytes / 1e6:.1f} MB")
        for what, chosen in (("one run", runs[:1]), (f"{asked.runs} runs", runs)):
            tries = [measured(chosen, root / "page.html") for _ in range(asked.repeat)]
            seconds = statistics.median(each["seconds"] for each in tries)
            memory = max(each["memory_bytes"] for each in tries)
            size = tries[-1]["file_bytes"]
            print(f"{what}: {seconds:.2f} s, {memory / 1e6:.0f} MB, page {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
