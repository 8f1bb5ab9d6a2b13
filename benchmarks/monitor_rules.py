"""How often the monitor's rules are wrong on clean runs, and what they find of planted faults.

    python benchmarks/monitor_rules.py [--seeds 400] [--trained] [--journals FOLDER ...] [--to PAGE]

Clean: simulated curves of several kinds over many seeds; with ``--trained`` the full runs of
configs/tiny/*.yaml; with ``--journals`` the journals of real runs. Planted: faults put into the
simulated curves, and with ``--trained`` into real runs of the tiny pretrain config.
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headway.config import Monitor as Section
from headway.journal import read, timeline
from headway.machine import cpu_name
from headway.monitor import Alert, Gauges, Monitor
from headway.monitor.watch import report_of
from headway.records import Refusal, StepReport

ROOT = Path(__file__).parent.parent
STEPS = 1000
FAULT_AT = 500
Curve = list[StepReport]


def report(step: int, loss: float, **changes: Any) -> StepReport:
    given: dict[str, Any] = dict(
        step=step, loss=loss, learning_rate=1e-3, grad_norm=1.0, weight=100.0, rows=8, tokens=1000,
        seconds=1.0, memory_bytes=10**9,
    )  # fmt: skip
    return StepReport(**given | changes)


# ------------------------------------------------------------------ clean curves


def curve(seed: int, loss_at: Callable[[int, random.Random], float]) -> Curve:
    """A clean run: gradient norms and speeds vary as they do, memory reaches its peak early."""
    draw = random.Random(seed)
    peak, made = 10**9, []
    for step in range(1, STEPS + 1):
        if draw.random() < 2 / step:
            peak = int(peak * 1.02)
        made.append(
            report(
                step,
                loss_at(step, draw),
                grad_norm=math.exp(draw.gauss(0, 0.4)) * (1 + 3 * math.exp(-step / 20)),
                tokens=int(1000 * draw.lognormvariate(0, 0.3)),
                seconds=draw.lognormvariate(0, 0.15),
                memory_bytes=peak,
                learning_rate=1e-3 * max(1e-3, 0.5 * (1 + math.cos(math.pi * step / STEPS))),
            )
        )
    return made


def trend(step: int) -> float:
    return 1.5 + 1.5 * math.exp(-step / 150)


def wandering(seed: int) -> Curve:
    """Neighbouring batches are alike (correlation 0.8), as in data that is not well mixed."""
    state = 0.0

    def loss_at(step: int, draw: random.Random) -> float:
        nonlocal state
        state = 0.8 * state + draw.gauss(0, 0.06)
        return trend(step) + state

    return curve(seed, loss_at)


CLEAN: dict[str, Callable[[int], Curve]] = {
    "falling, normal noise (0.1)": lambda seed: curve(
        seed, lambda step, draw: trend(step) + draw.gauss(0, 0.1)
    ),
    "falling, strong noise (0.4)": lambda seed: curve(
        seed, lambda step, draw: trend(step) + draw.gauss(0, 0.4)
    ),
    "falling, log-normal losses of small batches (0.5)": lambda seed: curve(
        seed, lambda step, draw: trend(step) * draw.lognormvariate(0, 0.5)
    ),
    "falling, Student t noise with 3 degrees": lambda seed: curve(
        seed,
        lambda step, draw: (
            trend(step) + 0.1 * draw.gauss(0, 1) / math.sqrt(draw.gammavariate(1.5, 2) / 3)
        ),
    ),
    "falling, neighbours alike (0.8)": wandering,
    "steps down at each of four epochs": lambda seed: curve(
        seed, lambda step, draw: 2.0 - 0.2 * (step // 250) + draw.gauss(0, 0.1)
    ),
    "falls and then stays": lambda seed: curve(
        seed, lambda step, draw: 1.5 + 1.5 * math.exp(-step / 30) + draw.gauss(0, 0.1)
    ),
}

# ------------------------------------------------------------------ planted faults


def changed(steps: Curve, first: int, change: Callable[[StepReport], StepReport]) -> Curve:
    return [change(step) if step.step >= first else step for step in steps]


def nan(step: StepReport) -> StepReport:
    refused = Refusal(why="loss nan, gradient norm nan", rows=(step.step,))
    return replace(step, loss=math.nan, grad_norm=math.nan, refused=refused)


def at_one(steps: Curve, change: Callable[[StepReport], StepReport]) -> Curve:
    return [change(step) if step.step == FAULT_AT else step for step in steps]


FAULTS: dict[str, tuple[str, int, Callable[[Curve], Curve]]] = {
    # name: (kind that must be said, within so many steps, what is done to the curve)
    "NaN in one batch": ("non_finite", 0, lambda c: at_one(c, nan)),
    "one poisoned row, loss + 2": (
        "loss_spike", 0, lambda c: at_one(c, lambda s: replace(s, loss=s.loss + 2)),
    ),
    "one poisoned row, loss × 10": (
        "loss_spike", 0, lambda c: at_one(c, lambda s: replace(s, loss=s.loss * 10)),
    ),
    "divergence, + 0.01 a step": (
        "loss_rising", 150,
        lambda c: changed(c, FAULT_AT, lambda s: replace(s, loss=s.loss + (s.step - 500) * 0.01)),
    ),
    "divergence, + 0.002 a step": (
        "loss_rising", 400,
        lambda c: changed(c, FAULT_AT, lambda s: replace(s, loss=s.loss + (s.step - 500) * 0.002)),
    ),
    "nothing is learned": (
        "loss_flat", STEPS,
        lambda c: [replace(s, loss=s.loss - trend(s.step) + 3) for s in c],
    ),
    "gradients × 50": (
        "gradient_exploding", 10,
        lambda c: changed(c, FAULT_AT, lambda s: replace(s, grad_norm=50 * s.grad_norm)),
    ),
    "gradients × 1e-5": (
        "gradient_vanishing", 50,
        lambda c: changed(c, FAULT_AT, lambda s: replace(s, grad_norm=1e-5 * s.grad_norm)),
    ),
    "gradients exactly 0": (
        "gradient_zero", 3, lambda c: changed(c, FAULT_AT, lambda s: replace(s, grad_norm=0.0)),
    ),
    "learning rate 0": (
        "learning_rate_zero", 0,
        lambda c: changed(c, FAULT_AT, lambda s: replace(s, learning_rate=0.0)),
    ),
    "throughput halved": (
        "throughput_drop", 50,
        lambda c: changed(c, FAULT_AT, lambda s: replace(s, seconds=2 * s.seconds)),
    ),
    "memory grows by 10 MB a step": (
        "memory_growing", 400,
        lambda c: changed(
            c, FAULT_AT,
            lambda s: replace(s, memory_bytes=s.memory_bytes + (s.step - 499) * 10**7),
        ),
    ),
}  # fmt: skip
LIMIT_BYTES = 4 * 10**9


def said(steps: Iterable[StepReport], evaluations: Sequence[tuple[int, float]] = ()) -> list[Alert]:
    """The alerts of a run that is seen from its first step to its last."""
    held_out = dict(evaluations)
    monitor, found = Monitor(Section(), num_steps=STEPS, memory_limit_bytes=LIMIT_BYTES), []
    for step in steps:
        found += monitor.step(step)
        if step.step in held_out:
            found += monitor.evaluation(step.step, held_out[step.step])
    return [one for one in found if isinstance(one, Alert)]


def of_journal(path: Path) -> tuple[int, list[str]]:
    """Steps of a real run, and what the rules say of it: each alert's kind and step."""
    events = read(path)
    plan = next((e for e in events if e["event"] == "plan"), {})
    monitor, found = Monitor(Section(), num_steps=plan.get("steps") or 0), []
    lines = [*timeline(events, "step"), *timeline(events, "evaluation")]
    lines.sort(key=lambda e: (e["step"], e["event"] != "step"))
    for line in lines:
        if line["event"] == "evaluation":
            found += monitor.evaluation(line["step"], line["metrics"]["loss"])
        else:
            refused = line.get("refused")
            step = report_of(line | {"loss": float(line["loss"])})
            found += monitor.step(replace(step, refused=Refusal(**refused) if refused else None))
    alerts = [f"{one.kind} at {one.step}" for one in found if isinstance(one, Alert)]
    return sum(line["event"] == "step" for line in lines), alerts


# ------------------------------------------------------------------ real runs

PLANTED_RUN = """
import sys
from pathlib import Path
import torch
from headway.api import train
from headway.config import load_config
from headway.recipes.text import TextTask
fault, folder = sys.argv[1], sys.argv[2]
overrides = [f"run.root={folder}", f"run.name={fault}", "train.horizon.steps=200",
             "evaluate.every_steps=25", *sys.argv[3:]]
config = load_config("configs/tiny/pretrain.yaml", overrides)
whole = TextTask.loss
calls = {"train": 0}
def loss(self, model, inputs):
    sums = whole(self, model, inputs)
    if model.training:
        calls["train"] += 1
        if fault == "nan" and calls["train"] == 100:
            sums["loss"] = sums["loss"] + float("nan")
        if fault == "poisoned-row" and calls["train"] == 100:
            added = torch.zeros_like(sums["loss"])
            added[0] = 59 * sums["loss"][0].detach()
            sums["loss"] = sums["loss"] + added
        if fault == "nothing-trains" and calls["train"] == 1:
            for parameter in model.parameters():
                parameter.register_hook(torch.zeros_like)
    return sums
TextTask.loss = loss
if fault == "slow":
    import time
    def slowed(self, model, inputs):
        if model.training:
            calls["train"] += 1
            if calls["train"] > 130:
                time.sleep(0.5)
        return whole(self, model, inputs)
    TextTask.loss = slowed
if fault == "repeated":
    one = TextTask.batch_at
    TextTask.batch_at = lambda self, step, halvings=0: one(self, step % 2, halvings)
train(config)
"""
REAL_FAULTS: dict[str, tuple[str, tuple[str, ...], str]] = {
    # fault: (kind, overrides, in words)
    "nan": ("non_finite", (), "the loss of batch 100 is NaN"),
    "poisoned-row": ("loss_spike", (), "one row's loss of batch 100 is 60 times what it was"),
    "nothing-trains": ("gradient_zero", (), "every gradient is 0"),
    "slow": ("throughput_drop", (), "steps after 130 take 0.5 s longer"),
    "repeated": ("evaluation_gap", (), "two batches are repeated for ever"),
    "rate-too-high": (
        "loss_rising", ("train.learning_rate=0.3", "train.max_grad_norm=0"),
        "learning rate 0.3 without clipping",
    ),
    "rate-too-low": ("loss_flat", ("train.learning_rate=1e-9", "train.horizon.steps=400"),
                     "learning rate 1e-9"),
}  # fmt: skip


def planted_run(fault: str, folder: Path, overrides: Sequence[str]) -> Path:
    """A real run of the tiny pretrain config with a fault in it; its journal."""
    command = [sys.executable, "-c", PLANTED_RUN, fault, str(folder), *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 65):
        raise SystemExit(f"{fault}: {done.stderr[-2000:]}")
    return folder / fault / "journal.jsonl"


def clean_run(config: Path, folder: Path) -> Path:
    """The full run of a tiny config; its journal."""
    name = f"tiny-{config.stem.replace('_', '-')}"
    command = [sys.executable, "-m", "headway.cli", "train", str(config)]
    subprocess.run([*command, f"run.root={folder}"], cwd=ROOT, check=True, capture_output=True)
    return folder / name / "journal.jsonl"


# ------------------------------------------------------------------ the page


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def clean_rows(seeds: int) -> list[tuple[object, ...]]:
    rows = []
    for name, make in CLEAN.items():
        runs = [said(make(seed)) for seed in range(seeds)]
        kinds = Counter(alert.kind for run in runs for alert in run)
        words = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()) or "none"
        rows.append((name, seeds, sum(bool(run) for run in runs), words))
    return rows


def fault_rows(seeds: int) -> list[tuple[object, ...]]:
    rows = []
    for name, (kind, within, plant) in FAULTS.items():
        for noise in ("falling, normal noise (0.1)", "falling, strong noise (0.4)"):
            found = [said(plant(CLEAN[noise](seed))) for seed in range(seeds)]
            begins = 0 if within == STEPS else FAULT_AT
            delays = sorted(
                min((a.step for a in run if a.kind == kind), default=math.inf) - begins
                for run in found
            )
            in_time = sum(0 <= delay <= within for delay in delays)
            others = Counter(a.kind for run in found for a in run if a.kind != kind)
            median = delays[len(delays) // 2]
            words = ", ".join(f"{k} {n}" for k, n in others.most_common()) or "none"
            rows.append((
                name, noise.split("(")[1].rstrip(")"), f"`{kind}`", f"{in_time} of {seeds}",
                f"{median:.0f}" if math.isfinite(median) else "–", words,
            ))  # fmt: skip
    return rows


def gauge_rows() -> list[tuple[object, ...]]:
    """Faults of the machine, as gauges; and the same gauges in health."""

    def kinds(look: Callable[[int], Gauges]) -> str:
        monitor = Monitor(Section(), num_steps=STEPS)
        monitor.step(report(1, 2.0))
        found = [one for n in range(120) for one in monitor.gauges(look(n))]
        return ", ".join(f"`{a.kind}`" for a in found if isinstance(a, Alert)) or "none"

    def at(n: int, **values: Any) -> Gauges:
        return Gauges(at_seconds=30.0 * n, **values)

    draw = random.Random(1)
    return [
        ("GPU 97 %, now and then 0 % (saves)",
         kinds(lambda n: at(n, gpu_share=0.0 if n % 10 == 0 else 0.97))),
        ("GPU 35 to 45 %", kinds(lambda n: at(n, gpu_share=draw.uniform(0.35, 0.45)))),
        ("disk: saves of 10 GB, the oldest deleted each time, 40 GB free",
         kinds(lambda n: at(n, disk_free_bytes=4 * 10**10 - (n % 12) * 8 * 10**8))),
        ("disk: 1 GB a minute, 50 GB free",
         kinds(lambda n: at(n, disk_free_bytes=5 * 10**10 - n * 5 * 10**8))),
        ("disk: 1 GB free, a checkpoint takes 2 GB",
         kinds(lambda n: at(n, disk_free_bytes=10**9, save_bytes=2 * 10**9))),
        ("bucket: one checkpoint at a time", kinds(lambda n: at(n, waiting_checkpoints=n % 2))),
        ("bucket: four wait", kinds(lambda n: at(n, waiting_checkpoints=4))),
    ]  # fmt: skip


def real_rows(journals: Sequence[Path]) -> list[tuple[object, ...]]:
    rows = []
    for path in journals:
        steps, alerts = of_journal(path)
        rows.append((path.parent.name, steps, ", ".join(alerts) or "none"))
    return rows


HEAD = """\
# Warning signs: how often they are wrong, and what they find

<!-- Written by benchmarks/monitor_rules.py. -->

`python benchmarks/monitor_rules.py --seeds 400 --trained --journals runs/*/journal.jsonl --to
docs/results/monitor.md` writes this page; the number of runs behind each line stands in it. What
the rules are is in [alerts](../alerts.md)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument("--trained", action="store_true", help="train the tiny configs too")
    parser.add_argument("--journals", type=Path, nargs="*", default=[])
    parser.add_argument("--to", type=Path)
    given = parser.parse_args()
    began = time.perf_counter()
    clean, faults = clean_rows(given.seeds), fault_rows(given.seeds // 4)
    parts = [
        "## Clean simulated runs",
        f"{STEPS} steps each; every rule looks at every run.",
        table(("curve", "runs", "runs with an alert", "alerts"), clean),
        "## Planted faults in simulated runs",
        f"From step {FAULT_AT}; *in time* is within the steps that the script names for each.",
        table(("fault", "noise", "must be said", "in time", "median delay, steps", "also said"),
              faults),
        "## The machine",
        "120 looks, one every 30 seconds.",
        table(("gauges", "said"), gauge_rows()),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        folder, journals = Path(place), [*given.journals]
        if given.trained:
            journals += [
                clean_run(c, folder) for c in sorted((ROOT / "configs/tiny").glob("*.yaml"))
            ]
        parts += ["## Clean real runs", table(("run", "steps", "alerts"), real_rows(journals))]
        if given.trained:
            rows = []
            for fault, (kind, overrides, what) in REAL_FAULTS.items():
                steps, alerts = of_journal(planted_run(fault, folder, overrides))
                rows.append((what, f"`{kind}`", ", ".join(alerts) or "none", steps))
            parts += [
                "## Planted faults in real runs of configs/tiny/pretrain.yaml",
                table(("fault", "must be said", "said", "steps"), rows),
            ]
    seconds = time.perf_counter() - began
    parts.append(f"{cpu_name()}, {seconds:.0f} s in all.")
    page = "\n\n".join([HEAD, *parts]) + "\n"
    print(page)
    if given.to:
        given.to.write_text(page)


if __name__ == "__main__":
    main()
