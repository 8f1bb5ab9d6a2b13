"""What suits the GPUs of the seed documents, as a table that a person can read and supersede.

A preset fills in `hardware` keys that the config leaves out; it never touches what is learned. The
figures are the documents' own, so they are for the models the documents train: `suits` says which.
What this run needs, `headway plan` computes from the model itself.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """The hardware keys for one kind of GPU."""

    microbatch_size: int
    activation_checkpointing: bool
    precision: str
    suits: str
    """What the document trains with it."""
    source: str

    def hardware(self) -> dict[str, Any]:
        """As they stand in a config."""
        return {
            "microbatch_size": self.microbatch_size,
            "activation_checkpointing": self.activation_checkpointing,
            "precision": self.precision,
        }


# name: rows at once, recompute, precision, what for, who says so
_ROWS = {
    "8gb": (1, True, "bf16", "1.2 B by LoRA", "seed document 004: 8 GB+, per device 1"),
    "rtx3090": (2, True, "bf16", "7 B by QLoRA at 2048 tokens", "as the RTX 4090: 24 GB too"),
    "rtx4090": (2, True, "bf16", "7 B by QLoRA at 2048 tokens", "seed document 001, step 2"),
    "a10g": (4, True, "bf16", "a 7 B editor in 4 bits", "seed document 003, section 7"),
    "a40": (4, True, "bf16", "7 B by LoRA at 2048 tokens", "seed document 001, step 2"),
    "a100-40gb": (4, False, "bf16", "a small model whole", "seed document 002, Batch Size"),
    "a100-80gb": (8, False, "bf16", "7 B by LoRA at 4096 tokens", "seed documents 001 and 002"),
    "h100": (8, False, "bf16", "what an A100 80GB takes", "as the A100 80GB: 80 GB too"),
}


def presets() -> dict[str, Preset]:
    """Every preset by its name."""
    return {
        name: Preset(
            microbatch_size=rows,
            activation_checkpointing=recompute,
            precision=precision,
            suits=suits,
            source=source,
        )
        for name, (rows, recompute, precision, suits, source) in _ROWS.items()
    }


def find_preset(name: str) -> Preset:
    """The preset of this name, written in any way (``RTX 4090``). Raises ValueError: none such."""
    known = {_key(each): each for each in _ROWS}
    key = _key(name)
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {known[near[0]]}?" if near else ""
        raise ValueError(f"there is no preset {name!r}{hint} (there are {', '.join(_ROWS)})")
    return presets()[known[key]]


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
