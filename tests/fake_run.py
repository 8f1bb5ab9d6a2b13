"""A run directory like a real one, made without training."""

from __future__ import annotations

import json
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from headway.checkpoint import CheckpointStore

BEGAN = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
HARDWARE = {
    "gpu": "NVIDIA RTX 4090",
    "gpus": 1,
    "memory_bytes": 25_300_000_000,
    "cpu": "AMD EPYC 7B13",
    "cores": 16,
}
VERSIONS = {"headway": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"}
CONFIG = """recipe: sft
run: {name: support-bot, root: runs, seed: 17}
train:
  horizon: {steps: %(steps)d}
  batch_size: 16
  learning_rate: 2.0e-4
  schedule: cosine
  warmup: 0.03
hardware: {precision: bf16}
evaluate: {every_steps: %(every)d, worst_rows: 3}
checkpoint: {every_steps: %(every)d, keep_last: 3}
cost: {gpu: RTX 4090, usd_per_hour: 0.4}
task: {base_model: HuggingFaceTB/SmolLM2-135M-Instruct}
"""
WORST = [
    {
        "row": 412,
        "loss": 5.81,
        "weight": 37.0,
        "shown": {
            "where": "data/eval.jsonl:413",
            "prompt": "How do I cancel a delivery that has already left the warehouse?",
            "reference": "Call the courier with your tracking number & ask for <return to sender>.",
            "prediction": "You can cancel it in your account under “Orders”.",
        },
    },
    {
        "row": 17,
        "loss": 4.402,
        "weight": 12.0,
        "shown": {"prompt": "<script>alert('x')</script>", "reference": "", "prediction": "a\nb"},
    },
    {"row": 3, "loss": 3.9, "weight": 210.0, "shown": {"prompt": "x" * 5000, "reference": "ok"}},
]


def journal(
    *, steps: int = 600, cut: int | None = None, end: str | None = "finished", every: int = 100
) -> list[dict[str, Any]]:
    """Events of a run that was killed at step ``cut`` (at 0.58 of the run by default) and resumed.

    The second attempt goes back to the last multiple of ``every``. ``end``: how it stopped, None:
    not at all.
    """
    cut = int(steps * 0.58) if cut is None else cut
    restored = cut // every * every
    clock = _Clock()
    events = [_attempt(clock, 1, 0), _plan(clock, steps), _evaluation(clock, 0, steps)]
    for step in range(1, cut + 1):
        events += _at_step(clock, step, steps, every)
    clock.pass_by(1800)
    events += [_attempt(clock, 2, restored), _plan(clock, steps)]
    events.append({"event": "warning", "at": clock.at(), "what": "12 of 4,200 rows were truncated"})
    for step in range(restored + 1, steps + 1):
        events += _at_step(clock, step, steps, every)
    if end is not None:
        events.append(
            {"event": "stop", "at": clock.at(), "reason": end, "step": steps, "message": ""}
        )
    attempt = 0
    for event in events:  # every line of a journal carries its attempt's number
        attempt = event.setdefault("attempt", attempt)
    return events


def write_journal(run: Path, events: list[dict[str, Any]]) -> Path:
    """``run/journal.jsonl`` as the journal room writes it: one JSON object a line."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / "journal.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def make_run(
    root: Path, *, name: str = "support-bot", steps: int = 600, every: int = 100, **more: Any
) -> Path:
    """A whole run directory under ``root``, its last three checkpoints real and verifiable."""
    run = root / name
    events = journal(steps=steps, every=every, **more)
    write_journal(run, events)
    (run / "config.yaml").write_text(CONFIG % {"steps": steps, "every": every})
    store = CheckpointStore(run, attempt="2", reserve_bytes=0)
    for step in range(every, steps + 1, every)[-3:]:
        save_checkpoint(store, step, events)
    return run


def save_checkpoint(store: CheckpointStore, step: int, events: list[dict[str, Any]]) -> None:
    """A checkpoint with a tiny adapter (one bf16 tensor, one f32) that moves with the step."""
    rng = np.random.default_rng(7)
    start = {"layers.0.q_proj": rng.normal(size=(8, 4)), "layers.0.v_proj": rng.normal(size=(4, 8))}
    drift = np.random.default_rng(11).normal(size=(8, 4)) * step / 1000
    tensors = {
        "base.layers.0.q_proj.lora_A.weight": ("F32", start["layers.0.q_proj"] + drift),
        "base.layers.0.v_proj.lora_A.weight": ("BF16", start["layers.0.v_proj"]),
    }
    report = next(e for e in reversed(events) if e["event"] == "step" and e["step"] == step)
    partial = store.open(step, 10_000)
    partial.write("model/adapter_model.safetensors", [safetensors_bytes(tensors)])
    partial.write("model/adapter_config.json", [b'{"r": 4}'])
    partial.write("optimizer.safetensors", [bytes(2000)])
    partial.write("state.json", [json.dumps({"step": step}).encode()])
    partial.commit({"loss": report["loss"], "tokens": step * 4096, "fingerprint": "ab12" * 4})


def safetensors_bytes(tensors: dict[str, tuple[str, np.ndarray]]) -> bytes:
    """A safetensors file; bf16 by cutting float32 in half."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, (dtype, array) in tensors.items():
        single = array.astype("<f4")
        data = single.tobytes()
        if dtype == "BF16":
            data = (single.view("<u4") >> 16).astype("<u2").tobytes()
        begin = len(body)
        body += data
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [begin, len(body)],
        }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


class _Clock:
    """Time and money that pass only when told to."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.billed_seconds = 0.0

    def at(self) -> str:
        return (BEGAN + timedelta(seconds=self.seconds)).isoformat()

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds

    def bill(self, seconds: float) -> float:
        self.pass_by(seconds)
        self.billed_seconds += seconds
        return round(self.billed_seconds / 3600 * 0.4, 6)


def _attempt(clock: _Clock, number: int, restored_step: int) -> dict[str, Any]:
    return {
        "event": "attempt",
        "at": clock.at(),
        "attempt": number,
        "restored_step": restored_step,
        "hardware": HARDWARE,
        "versions": VERSIONS,
        "pid": 1000 + number,
        "host": "pod-7f3a",
    }


def _plan(clock: _Clock, steps: int) -> dict[str, Any]:
    return {
        "event": "plan",
        "at": clock.at(),
        "steps": steps,
        "batch_size": 16,
        "rows_per_epoch": 4188,
        "parameters": 139_400_000,
        "trainable": 4_884_480,
        "facts": {"supervised tokens": 812_345, "rows truncated": 12},
    }


def _at_step(clock: _Clock, step: int, steps: int, every: int) -> list[dict[str, Any]]:
    events = [_step(clock, step, steps)]
    if step % every == 0 or step == steps:
        events.append(_evaluation(clock, step, steps))
        events.append(
            {
                "event": "save",
                "at": clock.at(),
                "step": step,
                "bytes": 78_400_000,
                "stall_seconds": 0.21,
                "write_seconds": 3.4,
            }
        )
    return events


def _loss(step: int, steps: int) -> float:
    return 1.35 + 1.1 * math.exp(-6 * step / steps)


def _step(clock: _Clock, step: int, steps: int) -> dict[str, Any]:
    noise = random.Random(step)
    seconds = 1.1 + 0.15 * noise.random() + (2.5 if step % 97 == 0 else 0)
    tokens = 4096 - noise.randrange(400)
    warm = min(1.0, step / (0.03 * steps))
    return {
        "event": "step",
        "at": clock.at(),
        "step": step,
        "loss": _loss(step, steps) + noise.gauss(0, 0.12),
        "learning_rate": 2e-4 * warm * 0.5 * (1 + math.cos(math.pi * step / steps)),
        "grad_norm": 0.6 + abs(noise.gauss(0, 0.2)) + (40 if step == steps // 3 else 0),
        "weight": tokens * 0.4,
        "rows": 16,
        "tokens": tokens,
        "seconds": seconds,
        "memory_bytes": 9_800_000_000 + (1_200_000_000 if step > steps // 2 else 0),
        "also": {},
        "cost_usd": clock.bill(seconds),
    }


def _evaluation(clock: _Clock, step: int, steps: int) -> dict[str, Any]:
    loss = _loss(step, steps) + 0.08 + max(0.0, step / steps - 0.7) * 0.3
    clock.pass_by(20)
    return {
        "event": "evaluation",
        "at": clock.at(),
        "step": step,
        "rows": 500,
        "weight": 81_234.0,
        "metrics": {"loss": loss, "perplexity": math.exp(loss)},
        "baselines": {"loss/untrained": 2.53, "perplexity/untrained": math.exp(2.53)},
        "seconds": 19.4,
        "worst": WORST,
    }
