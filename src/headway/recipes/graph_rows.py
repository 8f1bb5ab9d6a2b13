"""Face graphs as the model reads them: dense, padded, and in microbatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headway.data.cad.faces import EDGE_FEATURES, MOST_FACES, Graphs
from headway.data.cad.families import FAMILIES, MOST_PARAMETERS, normalised
from headway.engine.task import BuildContext, Microbatch
from headway.recipes.batching import pieces

TOGETHER = 512
"""Graphs in a microbatch where ``microbatch_size`` is auto: some 10 MB of activations a layer."""


@dataclass(frozen=True)
class GraphRows:
    """Graphs ready for the model, by number."""

    graphs: Graphs
    shares: NDArray[np.float64]
    """[n, MOST_PARAMETERS]: dimensions as shares of their ranges."""

    @classmethod
    def of(cls, graphs: Graphs) -> GraphRows:
        """With each dimension scaled by its family's range."""
        shares = np.zeros((len(graphs), MOST_PARAMETERS))
        for index, family in enumerate(FAMILIES):
            mine = graphs.family == index
            shares[mine] = normalised(family, graphs.values[mine])
        return cls(graphs, shares)

    def __len__(self) -> int:
        return len(self.graphs)

    @property
    def faces(self) -> int:
        """Of all graphs."""
        return int((self.graphs.types >= 0).sum())

    def tensors(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, Tensor]:
        """What ``GraphVae`` reads of these rows, and the answers: see ``microbatch``."""
        at, graphs = np.asarray(rows, dtype=np.int64), self.graphs
        return {
            "types": torch.from_numpy(graphs.types[at]),
            "faces": torch.from_numpy(graphs.faces[at].astype(np.float32)),
            "pairs": torch.from_numpy(pairs_of(graphs.ends[at], graphs.edges[at])),
            "family": torch.from_numpy(graphs.family[at]),
            "shares": torch.from_numpy(self.shares[at].astype(np.float32)),
            "number": torch.from_numpy(at),
        }

    def microbatch(self, rows: Sequence[int], kl_weight: float) -> Microbatch:
        """Graphs together, one loss unit each; ``tokens`` counts their faces.

        Inputs: ``types`` [n, f], ``faces`` [n, f, features] in mm, ``pairs`` [n, f, f, 3] (whether
        there is an edge, its length, its dihedral), ``family`` [n], ``shares`` [n, parameters],
        ``number`` [n], and ``kl_weight`` [n]: what the step weighs the KL divergence with.
        """
        inputs: dict[str, Any] = self.tensors(rows)
        inputs["kl_weight"] = torch.full((len(rows),), kl_weight)
        return Microbatch(
            inputs=inputs,
            rows=tuple(int(row) for row in rows),
            weights=(1.0,) * len(rows),
            tokens=int((self.graphs.types[np.asarray(rows, dtype=np.int64)] >= 0).sum()),
        )


def pairs_of(ends: NDArray[np.int64], edges: NDArray[np.float64]) -> NDArray[np.float32]:
    """Edge lists [n, e, 2] and [n, e, features] as [n, f, f, 1 + features] with 1 where one is.

    Padded edges, whose ends are -1, are nowhere.
    """
    n = len(ends)
    found = np.zeros((n, MOST_FACES, MOST_FACES, 1 + len(EDGE_FEATURES)), dtype=np.float32)
    graph, edge = np.nonzero(ends[..., 0] >= 0)
    one, other = ends[graph, edge, 0], ends[graph, edge, 1]
    found[graph, one, other, 0] = 1.0
    found[graph, one, other, 1:] = edges[graph, edge]
    return found


def groups(rows: Sequence[int], context: BuildContext, halvings: int = 0) -> Iterator[list[int]]:
    """``rows`` in parts of ``microbatch_size``, or as many as the plan says fit, or TOGETHER.

    Cut in two ``halvings`` times. Every graph takes the room of one with MOST_FACES.
    """
    planned = context.tokens_at_once and max(1, context.tokens_at_once // MOST_FACES)
    size = context.microbatch_size or planned or TOGETHER
    for start in range(0, len(rows), size):
        yield from pieces(list(rows[start : start + size]), halvings)
