"""The plan's memory of a training step beside what a real step allocates, on this machine's CPU.

    PYTHONPATH=src:. python3 benchmarks/plan_memory.py [--only NAME]

For each config and microbatch: the step traced without numbers (``headway.engine.fit``), and the
same step done for real, every allocation and release of torch's CPU allocator seen by
``torch.profiler`` (which also sees what a kernel allocates for itself). Rows are the longest
training rows. The real step is the engine's own loop: a step before it has made the optimizer's
state; it has two microbatches, so that the second finds the first's gradients.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headway.building import build_context, make_plan, optimizer_of
from headway.config import RunConfig, find_recipe, load_config
from headway.engine.fake import weightless
from headway.engine.fit import bytes_of
from headway.engine.fit.footprint import state_of
from headway.engine.state import TrainState
from headway.engine.steps import train_steps
from headway.engine.world import World
from headway.machine import prepare_torch
from headway.planning.memory import context_of, traced

CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "tiny pretrain": ("configs/tiny/pretrain.yaml", ()),
    "tiny sft (135M LoRA)": ("configs/tiny/sft.yaml", ()),
    "tiny regression (135M LoRA)": ("configs/tiny/regression.yaml", ()),
    "tiny graph_vae": ("configs/tiny/graph_vae.yaml", ()),
    "tiny latent_editor (135M LoRA)": ("configs/tiny/latent_editor.yaml", ()),
    "tiny vision": ("configs/tiny/vision.yaml", ()),
    "sft 135M full": ("configs/tiny/sft.yaml", ("task.tuning={kind: full}",)),
    "sft 135M QLoRA": ("configs/tiny/sft.yaml", ("task.tuning={kind: qlora, rank: 8, alpha: 16}",)),
    "sft 135M LoRA, recompute": (
        "configs/tiny/sft.yaml",
        ("hardware.activation_checkpointing=true",),
    ),
    "sft 135M full, fp32": (
        "configs/tiny/sft.yaml",
        ("task.tuning={kind: full}", "hardware.precision=fp32"),
    ),
}
"""Name -> (config, overrides)."""
MICROBATCHES = (1, 2, 4)


@dataclass
class Longest:
    """A task whose every batch is two microbatches of its longest rows."""

    task: Any
    rows: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def batch_at(self, step: int, halvings: int = 0) -> list[Any]:
        return [self.task.longest(self.rows), self.task.longest(self.rows)]


class Measured:
    """Real steps of a config, and what they allocate."""

    def __init__(self, config: RunConfig) -> None:
        world = World(torch.device("cpu"))
        prepare_torch(config)
        self.config, self.world = config, world
        self.task = find_recipe(config.recipe).build(config.task, build_context(config, world))
        self.optimizer = optimizer_of(config, self.task)
        self.plan = replace(make_plan(config, self.task), num_steps=10**6)

    def held_bytes(self) -> int:
        """Weights and optimizer state; 4-bit layers keep scales beside the parameter."""
        model = self.task.model
        scales = []
        for parameter in model.parameters():
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                scales += [state.absmax, state.code, state.offset, state.state2.absmax]
                scales += [state.state2.code]
        tensors = [*model.parameters(), *model.buffers(), *scales, *state_of(self.optimizer)]
        return bytes_of(tensors)

    def peak_bytes(self, rows: int) -> int:
        """Highest sum of live allocations during one step, with what is held."""
        state = TrainState(self.task, self.optimizer)
        steps = train_steps(Longest(self.task, rows), state, self.plan, self.world)
        next(steps)  # makes the optimizer's state, and compiles what a shape needs
        held = self.held_bytes()
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiled:
            next(steps)
        steps.close()  # type: ignore[attr-defined]
        return held + highest(profiled) + given_bytes(self.task.longest(rows))


def given_bytes(microbatch: Any) -> int:
    """A microbatch's inputs: on a CPU they stay where NumPy made them, which no profiler sees."""
    return bytes_of(x for x in microbatch.inputs.values() if isinstance(x, torch.Tensor))


def highest(profiled: Any) -> int:
    """The highest running sum of the allocator's events, in bytes above the start."""
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def predicted(config: RunConfig, rows: tuple[int, ...]) -> list[int]:
    """The plan's peak for each microbatch, on a CPU."""
    recompute = config.hardware.activation_checkpointing is True
    with weightless("cpu"):
        context = context_of(config, activation_checkpointing=recompute)
        way, _ = traced(config, context, list(rows))
    return [step.peak_bytes for step in way.steps]


def table(names: list[str]) -> str:
    """Markdown, a row for each config and microbatch."""
    lines = [
        "| config | microbatch | plan MB | measured MB | plan / measured |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in names:
        file, overrides = CASES[name]
        with tempfile.TemporaryDirectory() as root:
            config = load_config(file, [*overrides, f"run.root={root}", "hardware.device=cpu"])
            plan = predicted(config, MICROBATCHES)
            real = Measured(config)
            for rows, peak in zip(MICROBATCHES, plan, strict=True):
                seen = real.peak_bytes(rows)
                line = f"| {name} | {rows} | {peak / 1e6:,.2f} | {seen / 1e6:,.2f} | "
                lines.append(f"{line}{peak / seen:.3f} |")
                print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=tuple(CASES))
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    print(table([arguments.only] if arguments.only else list(CASES)))


if __name__ == "__main__":
    main()
