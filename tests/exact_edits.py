"""Edits whose latents say the part outright, and an autoencoder that reads them without error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cases import tiny_base
from headway.data.cad import FAMILIES, EditRows, edits
from headway.data.cad.families import normalised
from headway.data.cad.rows import arrays_of
from headway.recipes.edit_rows import EditText, WrittenEdits


def exact_rows(count: int, seed: int = 0) -> EditRows:
    """Edits whose latents are the family, one of six, and the shares of the dimensions."""
    made = edits(seed, 0, count)
    arrays = arrays_of(made)
    family = arrays["family"].astype(np.int64)

    def latent(values: np.ndarray) -> np.ndarray:
        z = np.zeros((count, 15), np.float32)
        z[np.arange(count), family] = 1
        for index, kind in enumerate(FAMILIES):
            mine = family == index
            z[mine, 6:] = normalised(kind, values[mine])
        return z

    return EditRows(
        instructions=tuple(e.instruction for e in made),
        z_src=latent(arrays["values"]),
        z_tgt=latent(arrays["target"]),
        changes=tuple(e.changes for e in made),
        kinds=tuple(e.kind for e in made),
        family=family,
        values=arrays["values"],
        vae_sha256=None,
    )


class Exact(torch.nn.Module):
    """An autoencoder without an error: reads what ``exact_rows`` wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def read(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return z[:, :6], z[:, None, 6:].expand(-1, 6, -1)


def written(rows: EditRows, folder: Path) -> WrittenEdits:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base(folder))
    return WrittenEdits(rows, EditText(tokenizer, "{instruction}\n", 1, 128))
