"""What headway adds to a step, to a save and to a command, as shares measured in one run.

    python benchmarks/rooms.py [--threads 2]

Engine overhead: everything in a step but forward, backward, clipping and optimizer, on a model
whose step takes about 100 ms. Save: the stall (snapshot) against the time of the write, and steps
beside a write against steps without one. Seek: position 1e9 in an order of 1e9 rows. Start:
``--help``, ``status``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "plugins"))


def config(root: str, width: int, steps: int, **sections: Any) -> Any:
    from headway import RunConfig

    return RunConfig(
        recipe="toy",
        run={"name": "bench", "root": root},
        train={"horizon": {"steps": steps}, "batch_size": 64, "learning_rate": 1e-3},
        hardware={"device": "cpu", "precision": "fp32"},
        task={"width": width, "dropout": 0.0, **sections.pop("task", {})},
        **sections,
    )


def made_heavy(run: Any) -> None:
    """Give the run a model whose forward and backward take about 100 ms on two cores."""
    import torch
    from torch import nn

    class Heavy(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.work = inner, nn.Linear(1024, 1024, bias=False)

        def forward(self, x):
            y = torch.ones(1024, 1024)
            for _ in range(3):
                y = self.work(y) * 1e-3
            return self.inner(x) + 0 * y.sum()

    run.task.model = Heavy(run.task.model)
    run.state.optimizer = torch.optim.AdamW(run.task.model.parameters(), fused=True)


def overhead(threads: int, steps: int = 120) -> dict[str, float]:
    """Seconds a step spends outside forward, backward and optimizer, and the whole step's."""
    import torch

    import headway.engine.steps as steps_module
    from headway.opening import opened
    from headway.run import train
    from headway.show import Quiet

    torch.set_num_threads(threads)
    inside: list[float] = []
    outside: list[float] = []
    whole: list[float] = []

    class Clock(Quiet):
        def step(self, step, plan, cost_usd) -> None:
            now = time.perf_counter()
            outside.append(now - self.at - sum(inside))
            whole.append(now - self.at)
            inside.clear()
            self.at = now

    def timed(function):
        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside.append(time.perf_counter() - start)

        return call

    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        plain = {"every_minutes": None}
        with opened(config(folder, 8, steps, checkpoint=plain), show=clock) as run:
            made_heavy(run)
            run.task.loss = timed(run.task.loss)
            torch.Tensor.backward = timed(torch.Tensor.backward)
            run.state.optimizer.step = timed(run.state.optimizer.step)
            steps_module.clip = timed(steps_module.clip)  # counted with the optimizer
            clock.at = time.perf_counter()
            train(run)
    ours, step = statistics.median(outside[20:]), statistics.median(whole[20:])
    return {"step_ms": 1e3 * step, "overhead_ms": 1e3 * ours, "overhead_share": ours / step}


def saving(threads: int, megabytes: int = 600) -> dict[str, float]:
    """A run whose checkpoint is large: stall, write, and the step beside a write."""
    import torch

    from headway.journal import read_events
    from headway.opening import opened
    from headway.run import train
    from headway.show import Quiet

    torch.set_num_threads(threads)
    alone: list[float] = []
    beside: list[float] = []

    class Clock(Quiet):
        def step(self, step, plan, cost_usd) -> None:
            now = time.perf_counter()
            writing = run.saves.saver._thread is not None and run.saves.saver._thread.is_alive()
            (beside if self.writing and writing else alone).append(now - self.at)
            self.writing = writing
            self.at = time.perf_counter()

    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DISK")) as folder:
        clock = Clock()
        clock.writing = False
        values = {"buffer_values": megabytes * 250_000}
        tree = config(folder, 8, 400, checkpoint={"every_steps": 130, "keep_last": 1}, task=values)
        with opened(tree, show=clock) as run:
            made_heavy(run)
            clock.at = time.perf_counter()
            train(run)
        saves = read_events(Path(folder) / "bench" / "journal.jsonl", {"save"})
    later = saves[1:3]  # the first save also touches its buffers for the first time
    return {
        "save_megabytes": later[0]["bytes"] / 1e6,
        "first_stall_ms": 1e3 * saves[0]["stall_seconds"],
        "stall_ms": 1e3 * statistics.median(s["stall_seconds"] for s in later),
        "write_seconds": statistics.median(s["write_seconds"] for s in later),
        "step_alone_ms": 1e3 * statistics.median(alone[5:]),
        "step_beside_ms": 1e3 * statistics.median(beside),
        "mean_alone_ms": 1e3 * statistics.mean(alone[5:]),
        "mean_beside_ms": 1e3 * statistics.mean(beside),
        "steps_beside": len(beside),
    }


def seek() -> dict[str, float]:
    """Milliseconds to find the row at position 1e9 of a billion rows, in a fresh order."""
    from headway.data.order import row_at

    row_at(0, 5, 1000)
    start = time.perf_counter()
    row_at(17, 10**9, 10**9)
    return {"seek_ms": 1e3 * (time.perf_counter() - start)}


def starting(repeats: int = 7) -> dict[str, float]:
    """Wall seconds of whole commands, median."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in (("help", ["--help"]), ("status", ["status", folder])):
            seconds = []
            for _ in range(repeats):
                start = time.perf_counter()
                command = [sys.executable, "-m", "headway.cli", *arguments]
                subprocess.run(command, capture_output=True)
                seconds.append(time.perf_counter() - start)
            found[f"{name}_seconds"] = statistics.median(seconds)
    return found


PARTS = {"overhead": overhead, "saving": saving, "seek": seek, "starting": starting}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        function = PARTS[arguments.part]
        takes = arguments.part in ("overhead", "saving")
        print("RESULT " + json.dumps(function(arguments.threads) if takes else function()))
        return
    print(f"Load before: {os.getloadavg()[0]:.1f}\n\n| figure | median | runs |\n|---|---|---|")
    for part in PARTS:
        runs = []
        for _ in range(arguments.repeats):
            command = [sys.executable, __file__, "--part", part]
            command += ["--threads", str(arguments.threads)]
            done = subprocess.run(command, capture_output=True, text=True)
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                raise SystemExit(f"{part} failed:\n{done.stderr[-3000:]}")
            runs.append(json.loads(lines[0][7:]))
        for key in runs[0]:
            each = [run[key] for run in runs]
            shown = ", ".join(f"{value:.3g}" for value in each)
            print(f"| {key} | {statistics.median(each):.3g} | {shown} |")


if __name__ == "__main__":
    main()
