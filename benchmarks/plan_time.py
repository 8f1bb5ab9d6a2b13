"""The time that ``headway plan --calibrate`` foresees beside what the run then takes, here.

    PYTHONPATH=src:. python3 benchmarks/plan_time.py [--only NAME] [--repeats 3]

For each config, in turns: the calibrated plan's hours (a few real steps, thrown away), and a whole
run, of which the seconds of its steps and evaluations are added up. Opening, saving and reading
aloud are in neither. What lies between the two is what a person is told before paying.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from headway.journal import read_events

CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "tiny sft (135M LoRA), 24 steps": ("configs/tiny/sft.yaml", ()),
    "tiny regression (135M LoRA), 24 steps": ("configs/tiny/regression.yaml", ()),
    "tiny pretrain": ("configs/tiny/pretrain.yaml", ()),
    "tiny graph_vae": ("configs/tiny/graph_vae.yaml", ()),
    "tiny latent_editor (135M LoRA)": ("configs/tiny/latent_editor.yaml", ()),
    "tiny vision": ("configs/tiny/vision.yaml", ("task.read_rows=0",)),
    "shakespeare, 600 steps": ("configs/shakespeare.yaml", ("train.horizon={steps: 600}",)),
    "gsm8k (135M LoRA), 60 steps": ("configs/gsm8k_lora.yaml", ("train.horizon={steps: 60}",)),
}
"""Name -> (config, overrides)."""


def headway(*words: str) -> str:
    """The verb in a process of its own; what it printed."""
    command = [sys.executable, "-m", "headway.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        raise SystemExit(f"headway {' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def foreseen_seconds(config: str, overrides: list[str]) -> float:
    """What the calibrated plan says of this machine."""
    mine = json.loads(headway("plan", config, *overrides, "--calibrate", "--json"))["offers"][0]
    assert mine["gpu"].startswith("this machine"), mine
    return 3600 * float(mine["hours"])


def taken_seconds(config: str, overrides: list[str]) -> float:
    """What the steps and evaluations of a whole run took."""
    with tempfile.TemporaryDirectory() as root:
        headway("train", config, *overrides, f"run.root={root}", "run.name=run")
        lines = read_events(Path(root, "run/journal.jsonl"), {"step", "evaluation"})
    return sum(line["seconds"] for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"Load before: {os.getloadavg()[0]:.1f}\n")
    print("| run | plan s (each) | taken s (each) | plan / taken |\n| --- | --- | --- | ---: |")
    for name, (config, overrides) in CASES.items():
        if arguments.only not in name:
            continue
        pairs = [
            (foreseen_seconds(config, [*overrides]), taken_seconds(config, [*overrides]))
            for _ in range(arguments.repeats)
        ]
        plan, taken = (statistics.median(kind) for kind in zip(*pairs, strict=True))
        each = [", ".join(f"{s:.1f}" for s in kind) for kind in zip(*pairs, strict=True)]
        print(
            f"| {name} | {plan:.1f} ({each[0]}) | {taken:.1f} ({each[1]}) | {plan / taken:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
