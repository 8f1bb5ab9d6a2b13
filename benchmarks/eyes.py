"""How long looking takes, and what tracking costs: run on an otherwise idle machine.

    python benchmarks/eyes.py [--repeat 5] [--steps 100000] [--runs 200]
    python benchmarks/eyes.py --track [--repeat 5]

Without ``--track``: seconds and peak memory of ``headway watch --once`` on a made-up journal of
100,000 steps, of taking in what it has grown by, and of ``headway status`` over 200 runs. With it:
tokens/s of a small training (recipe toy) whose W&B server does not answer, over the same training
untracked, runs taken in turn.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEADWAY = [sys.executable, "-m", "headway.cli"]


def events(steps: int, attempts: int = 4, every: int = 500) -> Iterator[dict[str, Any]]:
    """A run's journal as headway writes it: restarts, evaluations with worst rows, saves."""
    seconds, saved, attempt = 0.0, 0, 0
    worst = [
        {
            "row": n,
            "loss": 5.0,
            "weight": 30.0,
            "shown": {"prompt": "p" * 300, "reference": "r" * 90},
        }
        for n in range(20)
    ]

    def line(event: str, **facts: Any) -> dict[str, Any]:
        at = datetime(2026, 11, 20, tzinfo=UTC) + timedelta(seconds=seconds)
        stamp = at.isoformat(timespec="milliseconds")
        return {"event": event, "at": stamp, "attempt": attempt, **facts}

    hardware = {"cpu": "x", "gpu": "NVIDIA GeForce RTX 4090", "ranks": 1, "memory_bytes": 10**11}
    for part in range(attempts):
        attempt += 1
        yield line("opening", pid=1, host="elsewhere")
        yield line("attempt", restored_step=saved, pid=1, host="elsewhere", hardware=hardware)
        yield line("plan", steps=steps, batch_size=16, parameters=135e6, trainable=135e6, facts={})
        for step in range(saved + 1, steps * (part + 1) // attempts + 1):
            seconds += 1.1
            facts = {"loss": 1.3 + math.exp(-6 * step / steps) + random.gauss(0, 0.1)}
            facts |= {"learning_rate": 2e-4, "grad_norm": 0.7, "weight": 1600.0, "rows": 16}
            facts |= {"tokens": 4096, "seconds": 1.1, "memory_bytes": 9_800_000_000, "also": {}}
            facts |= {"refused": None, "cost_usd": seconds / 9000, "run_seconds": seconds}
            yield line("step", step=step, **facts)
            if step % every == 0:
                saved = step
                yield line("save", step=step, bytes=78_400_000, stall_seconds=0.2, write_seconds=3)
                metrics = {"loss": 1.4, "perplexity": 4.1}
                yield line("evaluation", step=step, rows=500, metrics=metrics, worst=worst)


def write(run: Path, steps: int) -> Path:
    run.mkdir(parents=True)
    path = run / "journal.jsonl"
    with path.open("w") as file:
        for event in events(steps):
            file.write(json.dumps(event, separators=(",", ":")) + "\n")
    (run / "config.yaml").write_text("recipe: sft\ncost: {usd_per_hour: 0.4, budget_usd: 20}\n")
    return path


def measured(command: list[str], repeat: int) -> tuple[float, float]:
    """Median seconds, and the highest memory of any such process in MB."""
    taken, peak = [], 0.0
    for _ in range(repeat):
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment())
        _, status, used = os.wait4(child.pid, 0)
        taken.append(time.perf_counter() - began)
        peak = max(peak, used.ru_maxrss / 1000)
        assert status == 0, command
        child.returncode = 0
    return statistics.median(taken), peak


def environment(**more: str) -> dict[str, str]:
    places = [str(ROOT / "src"), str(ROOT / "tests" / "plugins"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), **more}


def looking(folder: Path, steps: int, runs: int, repeat: int) -> None:
    from headway.following import Following

    path = write(folder / "long" / "run", steps)
    size = path.stat().st_size / 1e6
    print(f"journal: {steps:,} steps, {size:.0f} MB")
    seconds, peak = measured([*HEADWAY, "watch", "--once", str(path.parent)], repeat)
    print(f"watch --once: {seconds:.2f} s, {peak:.0f} MB")
    following = Following(path.parent)
    following.look()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = []
    for _ in range(20):
        with path.open("a") as file:
            file.writelines(json.dumps(e) + "\n" for e in events(40, attempts=1))
        began = time.perf_counter()
        following.look()
        following.view()
        taken.append(time.perf_counter() - began)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    print(f"a look at 40 new steps: {1000 * statistics.median(taken):.1f} ms, {grown:.0f} MB more")
    for n in range(runs):
        write(folder / "many" / f"run-{n:03}", 2000 if n % 10 == 0 else 200)
    seconds, peak = measured([*HEADWAY, "status", str(folder / "many")], repeat)
    print(f"status over {runs} runs: {seconds:.2f} s, {peak:.0f} MB")


TRAIN = """
import json, sys
from headway import RunConfig, train
given = json.loads(sys.argv[1])
train(RunConfig(**given))
"""
NOWHERE = {"WANDB_BASE_URL": "http://localhost:9", "WANDB_API_KEY": "0" * 40}
"""A port at which nobody answers."""


def tokens_per_second(folder: Path, name: str, steps: int, width: int, track: list[str]) -> float:
    """Of a run's steps after the first tenth."""
    config = {
        "recipe": "toy",
        "run": {"name": name, "root": str(folder)},
        "train": {"horizon": {"steps": steps}, "batch_size": 64, "learning_rate": 1e-3},
        "hardware": {"device": "cpu", "precision": "fp32"},
        "task": {"width": width, "dropout": 0.0},
        **({"track": track} if track else {}),
    }
    subprocess.run(
        [sys.executable, "-c", TRAIN, json.dumps(config)], check=True, env=environment(**NOWHERE)
    )
    lines = (folder / name / "journal.jsonl").read_text().splitlines()
    found = [e for line in lines if (e := json.loads(line))["event"] == "step"][steps // 10 :]
    began, ended = (datetime.fromisoformat(found[n]["at"]) for n in (0, -1))
    return sum(e["tokens"] for e in found[1:]) / (ended - began).total_seconds()


def tracking(folder: Path, repeat: int, steps: int, width: int) -> None:
    rates: dict[str, list[float]] = {"untracked": [], "unreachable": []}
    for n in range(repeat):
        for kind, track in (("untracked", []), ("unreachable", ["wandb"])):
            rate = tokens_per_second(folder, f"{kind}-{n}", steps, width, track)
            rates[kind].append(rate)
            print(f"{kind} {n}: {rate:,.0f} tokens/s", flush=True)
    pairs = [b / a for a, b in zip(rates["untracked"], rates["unreachable"], strict=True)]
    medians = {kind: statistics.median(found) for kind, found in rates.items()}
    print(f"ratio of medians {medians['unreachable'] / medians['untracked']:.4f}")
    print(f"ratio by pair: median {statistics.median(pairs):.4f}, lowest {min(pairs):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--track", action="store_true")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--train-steps", type=int, default=2000)
    parser.add_argument("--width", type=int, default=1024)
    given = parser.parse_args()
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "plugins")]
    with tempfile.TemporaryDirectory() as place:
        if given.track:
            tracking(Path(place), given.repeat, given.train_steps, given.width)
        else:
            looking(Path(place), given.steps, given.runs, given.repeat)


if __name__ == "__main__":
    main()
