"""How well parts come back from their latents, and whether the latent is used at all.

``type_accuracy``: share of parts whose family is read right. ``dimension_mae_mm``: mean over parts
of the mean error of a part's dimensions, in mm. ``face_type_accuracy``: share of slots whose face
(or absence of one) is right. ``face_mse``: mean squared error of the faces' numbers, each over its
deviation among the training parts. ``edge_accuracy``: share of pairs of slots of which it is right
whether they meet. ``active_dimensions``: how many dimensions of the posterior mean vary by more
than 0.01 over the parts (Burda et al., arXiv:1509.00519); ``kl_nats``: the mean KL divergence, free
bits not taken off.

Beside them: a constant, which is each family's mean over the training parts, and for accuracies
the most frequent answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headway.data.cad.faces import MOST_FACES
from headway.data.cad.families import FAMILIES, MOST_PARAMETERS, Values, in_mm
from headway.engine.task import Inputs
from headway.models.graph_vae import FACE_TYPES, Decoded, GraphVae, kl_nats
from headway.recipes.graph_rows import GraphRows

ACTIVE_VARIANCE = 0.01
HEAD = ("number", "family", "slots_right", "face_error", "faces", "pairs_right")
"""The first columns of a graph's figures; then the shares read, then mean and KL by dimension."""
CONSTANT, MAJORITY = "constant mean", "majority answer"
PAIRS = MOST_FACES * MOST_FACES


def figures_of(
    model: GraphVae, inputs: Inputs, mu: Tensor, log_sigma: Tensor, decoded: Decoded
) -> Tensor:
    """[n, k] of each graph, in the columns of HEAD and what follows."""
    types = inputs["types"]
    there = types >= 0
    slots = decoded.types.argmax(-1) == torch.where(there, types, FACE_TYPES)
    rows, _ = model.scaled(inputs["faces"], inputs["pairs"])
    wrong = (decoded.faces - rows[..., : decoded.faces.shape[-1]]).square().mean(-1)
    meet = (decoded.joined > 0) == (inputs["pairs"][..., 0] > 0)
    family = decoded.family.argmax(-1)
    shares = decoded.shares[torch.arange(len(family), device=family.device), inputs["family"]]
    columns = [
        inputs["number"],
        family,
        slots.sum(1),
        (wrong * there).sum(1),
        there.sum(1),
        meet.sum((1, 2)),
    ]
    head = torch.stack([column.double() for column in columns], 1)
    tail = [part.double() for part in (shares, mu, kl_nats(mu, log_sigma))]
    return torch.cat([head, *tail], 1)


Measured = tuple[dict[str, float], dict[str, float], dict[int, dict[str, Any]]]


def measure(held: GraphRows, train: GraphRows, observed: Sequence[tuple[float, ...]]) -> Measured:
    """(metrics, baselines, each part's latent and error in mm by its number)."""
    table = np.array(observed, dtype=np.float64)
    column = {name: table[:, at] for at, name in enumerate(HEAD)}
    rest = table[:, len(HEAD) :]
    shares, latent = rest[:, :MOST_PARAMETERS], rest[:, MOST_PARAMETERS:]
    mu, kl = np.split(latent, 2, axis=1)
    rows = column["number"].astype(np.int64)
    family, told = held.graphs.family[rows], column["family"].astype(np.int64)
    errors, flat = dimension_errors(held, train, rows, shares)
    active = mu.var(0) > ACTIVE_VARIANCE if len(mu) > 1 else np.zeros(mu.shape[1], bool)
    metrics = {
        "type_accuracy": float((family == told).mean()),
        "dimension_mae_mm": float(errors.mean()),
        "active_dimensions": float(active.sum()),
        "face_type_accuracy": float((column["slots_right"] / MOST_FACES).mean()),
        "face_mse": float(column["face_error"].sum() / column["faces"].sum()),
        "edge_accuracy": float((column["pairs_right"] / PAIRS).mean()),
        "kl_nats": float(kl.sum(1).mean()),
        "n": float(len(table)),
    }
    baselines = {
        f"type_accuracy/{MAJORITY}": float((family == _majority(train)).mean()),
        f"dimension_mae_mm/{CONSTANT}": float(flat.mean()),
        f"face_mse/{CONSTANT}": 1.0,
    }
    for index, kind in enumerate(FAMILIES):
        mine = family == index
        if mine.any():
            metrics[f"{kind.name}/dimension_mae_mm"] = float(errors[mine].mean())
            metrics[f"{kind.name}/n"] = float(mine.sum())
            baselines[f"{kind.name}/dimension_mae_mm/{CONSTANT}"] = float(flat[mine].mean())
    by_row = {
        int(row): {"latent": mu[at], "error_mm": float(errors[at])} for at, row in enumerate(rows)
    }
    return metrics, baselines, by_row


def dimension_errors(
    held: GraphRows, train: GraphRows, rows: NDArray[np.int64], shares: Values
) -> tuple[Values, Values]:
    """[n] each: a part's mean absolute error in mm, and that of its family's mean."""
    errors, flat = np.zeros(len(rows)), np.zeros(len(rows))
    family = held.graphs.family[rows]
    for index, kind in enumerate(FAMILIES):
        mine = np.flatnonzero(family == index)
        if not len(mine):
            continue
        n = len(kind.parameters)
        found, truth = in_mm(kind, shares[mine]), held.graphs.values[rows[mine], :n]
        known = train.graphs.values[train.graphs.family == index, :n]
        mean = known.mean(0) if len(known) else truth.mean(0)
        errors[mine] = np.abs(found - truth).mean(1)
        flat[mine] = np.abs(mean - truth).mean(1)
    return errors, flat


def _majority(train: GraphRows) -> int:
    return int(np.bincount(train.graphs.family, minlength=len(FAMILIES)).argmax())
