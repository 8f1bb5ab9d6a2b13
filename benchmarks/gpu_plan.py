"""What ``benchmarks/gpu.py`` will measure: shapes, sizes, and every row of its table."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEEDS = {
    "headway": ("torch", "transformers", "peft", "safetensors", "pydantic", "ruamel.yaml"),
    "trl": ("torch", "transformers", "peft", "trl", "datasets"),
    "qlora": ("bitsandbytes",),
}
TUNINGS = ("lora", "full", "qlora")
WARM_STEPS, LEAST_STEPS, SECONDS_A_CELL = 2, 3, 4.0
RANK, LEARNING_RATE, RESUME_STEPS = 16, 1e-4, 3


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    row_tokens: int
    rows_a_step: int
    microbatches: tuple[int, int, int]
    matrix: int
    most_steps: int
    """Timed steps of a cell; fewer when they last longer than ``SECONDS_A_CELL``."""


REAL = Sizes(2048, 16, (1, 4, 8), 8192, most_steps=10)
TINY = Sizes(64, 4, (1, 2, 4), 256, most_steps=3)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "0.5B": ("qwen2", {
        "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
        "tie_word_embeddings": True,
    }),
    "1.2B": ("gpt_neox", {
        "hidden_size": 2048, "num_hidden_layers": 20, "num_attention_heads": 16,
        "intermediate_size": 8192, "vocab_size": 50304,
    }),
}  # fmt: skip
TINY_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "intermediate_size": 64, "vocab_size": 96}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    side: str
    shape: str
    tuning: str
    microbatch: int
    recompute: bool = False
    deterministic: bool = True
    resume: bool = False

    @property
    def name(self) -> str:
        """What the table shows of it, unique."""
        what = "resume" if self.resume else f"{self.microbatch} rows"
        what += ", recompute" if self.recompute else ""
        what += "" if self.deterministic or self.side == "trl" else ", any kernel"
        return f"{self.side} | {self.shape} | {self.tuning} | {what}"


def planned(sizes: Sizes) -> list[Cell]:
    """Every row the table will have; of one side and shape, what matters most runs first."""
    small, middle, large = sizes.microbatches
    cells: list[Cell] = []
    for shape in SHAPES:
        mine = [Cell("headway", shape, tuning, middle) for tuning in TUNINGS]
        for tuning in TUNINGS[:2]:
            if shape == "0.5B":
                mine.append(Cell("headway", shape, tuning, middle, resume=True))
            mine.append(Cell("headway", shape, tuning, large))
        for tuning in TUNINGS[:2]:
            mine.append(Cell("headway", shape, tuning, large, recompute=True))
            mine.append(Cell("headway", shape, tuning, middle, deterministic=False))
            mine.append(Cell("headway", shape, tuning, small))
        mine += [Cell("trl", shape, tuning, middle) for tuning in TUNINGS]
        mine += [Cell("trl", shape, tuning, large, recompute=True) for tuning in TUNINGS[:2]]
        cells += mine
    return cells


def absent(cell: Cell) -> list[str]:
    """Packages this cell needs that this Python does not have."""
    names = NEEDS[cell.side] + (NEEDS["qlora"] if cell.tuning == "qlora" else ())
    return [name for name in names if not importable(name)]


def importable(name: str) -> bool:
    """Whether a module of this name could be imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


@dataclass(frozen=True)
class Place:
    """Where cells run."""

    sizes: Sizes
    tiny: bool
    device: str
    folder: Path

    def model(self, shape: str) -> Path:
        """The folder of the shape's random weights."""
        return self.folder / shape
