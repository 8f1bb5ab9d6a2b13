"""How well edits are made, each figure beside trivial answers to the same edits.

Of latents: ``delta_mse``, ``delta_mae``: mean over edits and dimensions of the error of the change.
``amount_mae_mm``: mean error of how much each dimension that the label names changes.
``direction_accuracy``: share of edits with one direction whose head says it.

Of parts, where the autoencoder is there: the edited latent and the one before are read by it. Moved
is the difference of the two readings, in the dimensions of the family that the part is of.
``moved_right``: share of changing edits that are read as that family and all of whose named
dimensions moved the way that was asked; ``signed/moved_right`` of those whose text has a number
with a sign, ``unsigned/moved_right`` of the others. ``noop_stability``: share of the edits that
ask for nothing that are read as that family and whose dimensions all moved by less than NOOP_MM.
``dimension_mae_mm``: mean over edits of the mean error of all dimensions after the edit.
``drift_mm``: mean movement of the dimensions that the label does not name. ``type_accuracy``: share
of edited latents read as the family the part is of. ``NAME/magnitude``: mean over edits of NAME of
movement over what was asked. ``NAME/moved_right`` likewise.

Beside them: no change; a ridge regression from the latent and the numbers that ``data.cad.reading``
finds in the text, and their products, fitted to the same training edits; the same with the numbers'
squares; the same from the labels;
and, for ``dimension_mae_mm``, what the autoencoder reads from the true latent: its own error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headway.data.cad.families import FAMILIES, Values, in_mm
from headway.engine.task import Inputs
from headway.models.graph_vae import GraphVae
from headway.models.latent_editor import Told
from headway.recipes.edit_rows import NAMES, WrittenEdits
from headway.recipes.graph_use import read_latents

NOOP_MM = 1.0
SIGNED = re.compile(r"[+-]\s*\d")
RIDGE = 1e-3
"""Of each squared coefficient, for features of unit deviation and targets in the latent's unit, per
training edit."""
NO_CHANGE, PARSED, LABELS = "no change", "parsed number + ridge", "true amounts + ridge"
SQUARED = "parsed number and square + ridge"
TRUE_LATENT = "true latent"


def figures_of(inputs: Inputs, told: Told) -> Tensor:
    """[n, 2 + NAMES + latent] of each edit: number, direction, amounts in mm, change of the
    latent."""
    columns = [
        inputs["number"][:, None].double(),
        told.direction.double()[:, None],
        told.amounts.double(),
        told.delta.double(),
    ]
    return torch.cat(columns, 1)


Measured = tuple[dict[str, float], dict[str, float], dict[int, dict[str, Any]]]


def measure(
    held: WrittenEdits,
    train: WrittenEdits,
    observed: Sequence[tuple[float, ...]],
    vae: GraphVae | None,
) -> Measured:
    """(metrics, baselines, what was said of each edit by its number)."""
    table = np.array(observed, dtype=np.float64)
    rows = table[:, 0].astype(np.int64)
    direction, amounts = table[:, 1], table[:, 2 : 2 + len(NAMES)]
    delta = table[:, 2 + len(NAMES) :]
    truth = (held.edits.z_tgt - held.edits.z_src)[rows].astype(np.float64)
    answers = {
        NO_CHANGE: np.zeros_like(truth),
        PARSED: ridge(train, train.parsed, held, held.parsed, rows),
        SQUARED: ridge(train, train.parsed, held, held.parsed, rows, squares=True),
        LABELS: ridge(train, train.amounts, held, held.amounts, rows),
    }
    metrics = {**errors(delta, truth), **of_texts(held, rows, direction, amounts)}
    baselines = {
        f"{name}/{who}": value
        for who, answer in answers.items()
        for name, value in errors(answer, truth).items()
    }
    baselines |= of_parsing(held, rows)
    if vae is not None and (held.edits.family[rows] >= 0).all():
        metrics |= of_parts(held, rows, vae, delta)
        for who, answer in {**answers, TRUE_LATENT: truth}.items():
            beside = of_parts(held, rows, vae, answer)
            baselines |= {f"{name}/{who}": v for name, v in beside.items() if name in SHOWN}
    by_row = {
        int(row): {
            "amounts": dict(zip(NAMES, amounts[at].tolist(), strict=True)),
            "direction": float(direction[at]),
            "delta": delta[at],
        }
        for at, row in enumerate(rows)
    }
    return {**metrics, "n": float(len(rows))}, baselines, by_row


SHOWN = ("dimension_mae_mm", "drift_mm", "moved_right", "type_accuracy", "noop_stability")
"""Figures of parts that baselines have too."""


def errors(delta: Values, truth: Values) -> dict[str, float]:
    """Of a change of latents [n, latent]."""
    off = delta - truth
    return {
        "delta_mse": float(np.square(off).mean()),
        "delta_mae": float(np.abs(off).mean()),
    }


def of_texts(
    held: WrittenEdits, rows: NDArray[np.int64], direction: Values, amounts: Values
) -> dict[str, float]:
    """What the model has understood, without a look at the latent."""
    truth = held.amounts[rows]
    named = truth != 0
    found = {}
    if named.any():
        found["amount_mae_mm"] = float(np.abs(amounts - truth)[named].mean())
    way = np.sign(truth)
    decided = (way != 0).any(1) & ~((way > 0).any(1) & (way < 0).any(1))
    if decided.any():
        right = (direction > 0) == (way.sum(1) > 0)
        found["direction_accuracy"] = float(right[decided].mean())
        found["n_directed"] = float(decided.sum())
    return found


def of_parsing(held: WrittenEdits, rows: NDArray[np.int64]) -> dict[str, float]:
    """How well a reader without a model does, on the same edits."""
    truth, parsed = held.amounts[rows], held.parsed[rows]
    named = truth != 0
    if not named.any():
        return {}
    return {"amount_mae_mm/parsed number": float(np.abs(parsed - truth)[named].mean())}


def ridge(
    train: WrittenEdits,
    known: NDArray[np.float32],
    held: WrittenEdits,
    asked: NDArray[np.float32],
    rows: NDArray[np.int64],
    squares: bool = False,
) -> Values:
    """[n, latent]: linear in latent, amounts [.., NAMES] and their products, in closed form.

    ``squares``: the amounts' squares, and their products with the latent, too.
    """
    used = np.flatnonzero((known != 0).any(0))
    mean, scale = train.edits.z_src.mean(0), train.edits.z_src.std(0) + 1e-8
    size = np.abs(known[:, used]).max(0, initial=1e-8)

    def features(z: NDArray[np.float32], amounts: NDArray[np.float32]) -> Values:
        latent = (z - mean) / scale
        share = amounts[:, used] / size
        share = np.concatenate([share, np.square(share)], 1) if squares else share
        products = (share[:, :, None] * latent[:, None]).reshape(len(z), -1)
        return np.concatenate([np.ones((len(z), 1)), latent, share, products], 1).astype(float)

    x = features(train.edits.z_src, known)
    y = (train.edits.z_tgt - train.edits.z_src).astype(np.float64)
    gram = x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]) * np.square(x).mean(0)
    weights = np.linalg.lstsq(gram, x.T @ y, rcond=None)[0]
    return np.asarray(features(held.edits.z_src[rows], asked[rows]) @ weights)


# ------------------------------------------------------------------ parts


def of_parts(
    held: WrittenEdits, rows: NDArray[np.int64], vae: GraphVae, delta: Values
) -> dict[str, float]:
    """Figures of the parts that edited latents are read as."""
    edits, family = held.edits, held.edits.family[rows]
    z = edits.z_src[rows]
    told, after = read_latents(vae, (z + delta).astype(np.float32), family)
    _, before = read_latents(vae, z, family)
    moved, wanted = np.full((2, len(rows), len(NAMES)), np.nan)
    mae = np.zeros(len(rows))
    for at, row in enumerate(rows.tolist()):
        kind = FAMILIES[family[at]]
        places = [NAMES.index(name) for name in kind.names]
        moved[at, places] = after[at] - before[at]
        wanted[at, places] = held.amounts[row, places]
        target = in_mm(kind, held.targets[row][None].astype(np.float64))[0]
        mae[at] = np.abs(after[at] - target).mean()
    asked = np.isfinite(wanted) & (wanted != 0)
    changing = asked.any(1)
    right = (np.sign(moved) == np.sign(wanted)) | ~asked
    right[told != family] = False
    still = np.abs(np.where(asked, np.nan, moved))
    found = {
        "type_accuracy": float((told == family).mean()),
        "dimension_mae_mm": float(mae.mean()),
        "drift_mm": float(np.nanmean(still)) if np.isfinite(still).any() else 0.0,
        "n_changing": float(changing.sum()),
    }
    if changing.any():
        found["moved_right"] = float(right[changing].all(1).mean())
    signed = np.array([bool(SIGNED.search(edits.instructions[row])) for row in rows.tolist()])
    for name, chosen in (("signed", changing & signed), ("unsigned", changing & ~signed)):
        if chosen.any():
            found[f"{name}/moved_right"] = float(right[chosen].all(1).mean())
            found[f"{name}/n"] = float(chosen.sum())
    if not changing.all():
        steady = np.nanmax(np.abs(moved[~changing]), axis=1) < NOOP_MM
        steady &= (told == family)[~changing]
        found["noop_stability"] = float(steady.mean())
    for place, name in enumerate(NAMES):
        mine = asked[:, place]
        if mine.any():
            ratio = moved[mine, place] / wanted[mine, place]
            found[f"{name}/magnitude"] = float(ratio.mean())
            found[f"{name}/moved_right"] = float((ratio > 0).mean())
            found[f"{name}/n"] = float(mine.sum())
    return found
