"""What side-by-side benchmarks share: each side alone in its own process, in turns, timed alike.

A peer's Python need not have headway: it is imported where it is run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("HEADWAY_DATA") or ROOT.parent / "shared" / "data")
"""Real rows that are no part of the project."""
LEARNING_RATE = 2e-4
TRL_SAME = {
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "num_train_epochs": 1,
    "bf16": True,
    "use_cpu": True,
    "completion_only_loss": True,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_strategy": "no",
    "train_sampling_strategy": "sequential",
}
"""TRL's SFTConfig, as far as it makes both sides do the same."""

Step = dict[str, float]
"""``seconds``, and what was in it: ``tokens``, ``supervised`` …"""


def needed(file: Path) -> Path:
    """The file, or the end of the benchmark in words."""
    if not file.is_file():
        raise SystemExit(f"no {file}: set HEADWAY_DATA to the folder of shared data")
    return file


def headway_steps(
    recipe: str, task: dict[str, Any], *, steps: int, batch: int, threads: int
) -> list[Step]:
    """headway as a user runs it: config, data, journal and all; seconds between its steps."""
    from headway import RunConfig
    from headway.opening import opened
    from headway.run import train
    from headway.show import Quiet

    report: list[Step] = []

    class Clock(Quiet):
        def step(self, step, plan, cost_usd) -> None:
            now = time.perf_counter()
            seen = {"tokens": step.tokens, "supervised": step.weight, "rows": step.rows}
            report.append({"seconds": now - self.at, "loss": step.loss, **seen})
            self.at = now

    with tempfile.TemporaryDirectory() as runs:
        config = RunConfig(
            recipe=recipe,
            run={"name": "bench", "root": runs},
            train={
                "horizon": {"steps": steps},
                "batch_size": batch,
                "learning_rate": LEARNING_RATE,
                "schedule": "constant",
                "max_grad_norm": 0.0,
            },
            hardware={"device": "cpu", "precision": "bf16", "threads": threads},
            checkpoint={"every_minutes": None},
            task=task,
        )
        clock = Clock()
        with opened(config, show=clock) as run:
            clock.at = time.perf_counter()
            train(run)
    return report


def parser_of(doc: str, sides: Sequence[str], steps: int) -> argparse.ArgumentParser:
    """The options that every such benchmark has."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has TRL")
    parser.add_argument("--sides", nargs="+", default=list(sides), choices=sides)
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    return parser


def work(side: str, steps: Callable[[], list[Step]], threads: int) -> None:
    """One side in this process; prints a JSON line. The first step is not counted."""
    import torch

    torch.set_num_threads(threads)
    report = steps()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("RESULT " + json.dumps({"side": side, "steps": report[1:], "peak_bytes": peak}))


def in_turns(file: str, options: argparse.Namespace, *more: str) -> tuple[list[dict], list[float]]:
    """Every side in its own process, in turns; the load of the machine before each.

    The process is given the options of this one, and ``more``.
    """
    results, busy = [], []
    for side in [side for _ in range(options.repeats) for side in options.sides]:
        busy.append(os.getloadavg()[0])
        python = options.peer_python if side.startswith("trl") else sys.executable
        command = [python, file, *sys.argv[1:], "--side", side, *more]
        threads = str(options.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if done.returncode or not lines:
            raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
        results.append(json.loads(lines[0][len("RESULT ") :]))
    return results, busy


def table(results: list[dict], busy: list[float], unit: str | None = None) -> str:
    """A markdown table; ratios are against the first side. ``unit``: also counted in a second."""
    beside = f" {unit}/s |" if unit else ""
    lines = [
        f"| side | real tokens/s, median (runs) |{beside} tokens a step | supervised share "
        "| peak GB | speed | memory |",
        "|---|" + "---|" * (7 if unit else 6),
    ]
    first: tuple[float, float] | None = None
    for side in dict.fromkeys(result["side"] for result in results):
        own = [r for r in results if r["side"] == side]
        steps = [s for r in own for s in r["steps"]]
        runs = [per_second(r["steps"], "tokens") for r in own]
        speed, peak = per_second(steps, "tokens"), statistics.median(r["peak_bytes"] for r in own)
        first = first or (speed, peak)
        tokens = sum(s["tokens"] for s in steps)
        counted = f" {per_second(steps, unit):.1f} |" if unit else ""
        lines.append(
            f"| {side} | {speed:.0f} ({', '.join(f'{run:.0f}' for run in runs)}) |{counted} "
            f"{tokens / len(steps):.0f} | {sum(s['supervised'] for s in steps) / tokens:.2f} "
            f"| {peak / 1e9:.2f} | {speed / first[0]:.2f}x | {peak / first[1]:.2f}x |"
        )
    lines.append(f"\nLoad of the machine before each process: {[round(b, 1) for b in busy]}")
    return "\n".join(lines)


def per_second(steps: list[Step], unit: str) -> float:
    """Median over the steps."""
    return statistics.median(step[unit] / step["seconds"] for step in steps)
