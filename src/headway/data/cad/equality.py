"""Whether the graphs computed here are those of the CAD kernel: face by face, edge by edge.

A kernel names faces in its own order; what is compared is also put into the computed order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headway.data.cad.faces import Graphs, graphs_of
from headway.data.cad.families import FAMILIES
from headway.data.cad.sampling import parts
from headway.errors import DataError

TOLERANCE = 1e-5
"""Largest difference of a number, over the largest of its kind on the part."""


def compare_with_kernel(seed: int, count: int) -> int:
    """Build the first parts of a seed with the kernel; how many. DataError where one differs."""
    kernel_graphs(seed, 0, count)
    return count


def kernel_graphs(seed: int, first: int, count: int) -> Graphs:
    """Parts ``first`` to ``first + count - 1`` of a seed as solids, their graphs read from these.

    Faces and edges stand in the order of the computed graphs, which no kernel keeps. Raises
    DataError where a solid has another volume, face or edge than its dimensions say.
    """
    from headway.data.cad.kernel import build, graph_of

    family, values = parts(seed, np.arange(first, first + count))
    found = graphs_of(family, values)
    for row in range(count):
        kind = FAMILIES[family[row]]
        dimensions = values[row, : len(kind.parameters)].tolist()
        read = graph_of(build(kind, dimensions))
        problem = difference(found, row, read, 0)
        if problem:
            raise DataError(
                f"part {first + row} of seed {seed}, a {kind.name} of {dimensions}: {problem}"
            )
        take_numbers(found, row, read, 0)
    return found


def take_numbers(into: Graphs, row: int, other: Graphs, at: int) -> None:
    """Put the faces and edges of an equal graph into the places of a row's own."""
    match, _ = _matched(into, row, other, at)
    into.faces[row, : len(match)] = other.faces[at, match]
    theirs = edges_of(other, at)
    for place in np.flatnonzero(into.ends[row, :, 0] >= 0):
        one, two = into.ends[row, place]
        into.edges[row, place] = theirs[int(match[one]), int(match[two])]


def _matched(
    one: Graphs, row: int, other: Graphs, at: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(the nearest face of ``other``, how far off it is) for each face of a row."""
    types, theirs = one.types[row], other.types[at]
    n = int((types >= 0).sum())
    scale = np.maximum(np.abs(one.faces[row, :n]).max(0), 1.0)
    far = np.abs(one.faces[row, :n, None] - other.faces[at, None, :n]) / scale
    apart = far.max(-1) + np.where(types[:n, None] == theirs[None, :n], 0.0, 1e9)
    return apart.argmin(1), apart.min(1)


def difference(one: Graphs, row: int, other: Graphs, at: int) -> str:
    """In what two graphs differ, whatever the order of their faces; empty where in nothing."""
    types, theirs = one.types[row], other.types[at]
    n = int((types >= 0).sum())
    if n != int((theirs >= 0).sum()):
        return f"{n} faces and {int((theirs >= 0).sum())}"
    match, apart = _matched(one, row, other, at)
    if len(set(match.tolist())) != n or apart.max() > TOLERANCE:
        worst = int(apart.argmax())
        return (
            f"face {worst} (type {types[worst]}) has no equal: "
            f"{one.faces[row, worst].round(4).tolist()}, nearest "
            f"{other.faces[at, match[worst]].round(4).tolist()}"
        )
    mine, yours = edges_of(one, row), edges_of(other, at)
    moved = {(int(match[a]), int(match[b])): v for (a, b), v in mine.items()}
    if moved.keys() != yours.keys():
        return f"edges {sorted(moved.keys() ^ yours.keys())} are in one of them only"
    for ends, numbers in moved.items():
        off = np.abs(numbers - yours[ends]) / np.maximum(np.abs(numbers), 1.0)
        if off.max() > TOLERANCE:
            return f"edge {ends}: {numbers.tolist()} and {yours[ends].tolist()}"
    return ""


def edges_of(graphs: Graphs, row: int) -> dict[tuple[int, int], NDArray[np.float64]]:
    """(face, face) -> numbers of each edge, both directions."""
    there = graphs.ends[row, :, 0] >= 0
    pairs = zip(graphs.ends[row, there].tolist(), graphs.edges[row, there], strict=True)
    return {(a, b): numbers for (a, b), numbers in pairs}


def shuffled(graphs: Graphs, order: NDArray[np.int64]) -> Graphs:
    """The same graphs, their faces in another order [faces]; padding stays at the end."""
    place = np.argsort(order)
    ends = np.where(graphs.ends >= 0, place[graphs.ends.clip(0)], -1)
    return Graphs(
        graphs.family, graphs.values, graphs.types[:, order], graphs.faces[:, order], ends,
        graphs.edges.copy(),
    )  # fmt: skip
