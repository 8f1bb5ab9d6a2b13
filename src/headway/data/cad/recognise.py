"""Which part a solid is: its family and dimensions, read off its faces, whichever way it lies.

How many faces of each kind there are tells the family, a few of their numbers the dimensions. Both
are then made a graph again and compared with the one that was read, every face and edge: a slot
more, or a corner that is rounded, is no part of the family, however alike it looks.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headway.data.cad.equality import difference
from headway.data.cad.faces import FACE_TYPES, FILLET, HOLE, PLANE, ROUND, Graphs, one_part
from headway.data.cad.families import (
    FAMILIES,
    Family,
    Values,
    find_family,
    nearest_valid,
    refuse_invalid,
)
from headway.errors import DataError

NOISE_MM = 1e-4
"""What a file's figures may be off by, and be taken for the limit of a range."""
KINDS = {
    "bracket": {PLANE: 8, HOLE: 2}, "tube": {PLANE: 2, ROUND: 1, HOLE: 1}, "channel": {PLANE: 10},
    "block": {PLANE: 6}, "cylinder": {PLANE: 2, ROUND: 1}, "blockhole": {PLANE: 6, HOLE: 1},
}  # fmt: skip
"""Faces of each family; a bracket's fillet is one more."""


@dataclass(frozen=True, slots=True)
class Recognised:
    """A part that was read off a solid."""

    family: Family
    values: tuple[float, ...]
    """In mm."""
    turned: bool
    """Whether it lay another way than parts do here."""


def recognised(graphs: Graphs, row: int = 0) -> Recognised:
    """The part whose graph this is. Raises DataError where it is none."""
    count = Counter(graphs.types[row][graphs.types[row] >= 0].tolist())
    rounded = count.pop(FILLET, 0)
    name = next((name for name, kinds in KINDS.items() if kinds == count), None)
    if name is None or rounded > (name == "bracket"):
        there = Counter(FACE_TYPES[k] for k in graphs.types[row] if k >= 0)
        raise DataError(
            f"no family has faces like these: {', '.join(f'{n} {k}' for k, n in there.items())}"
        )
    family, first = find_family(name), ""
    refuse_askew(graphs, row)
    for number, rotation in enumerate(rotations()):
        lying = rotated(graphs, row, rotation)
        read = dimensions_read(family, lying)
        try:
            near = nearest_valid(family, [read])[0]
            read = near if np.abs(near - read).max() < NOISE_MM else read
            values = tuple(np.round(read, 6).tolist())
            refuse_invalid(family, values)
            problem = difference(one_part(family, values), 0, lying, 0)
        except DataError as error:
            problem = str(error)
        if not problem:
            return Recognised(family, values, number > 0)
        first = first or problem
    raise DataError(f"it has the faces of a {name}, and is none: {first}")


def part_of_step(path: Path) -> Recognised:
    """The part in a STEP file. Raises DataError, and ConfigError without a kernel."""
    from headway.data.cad.kernel import graph_of_step

    graph = graph_of_step(path)
    try:
        return recognised(graph)
    except DataError as error:
        known = ", ".join(family.name for family in FAMILIES)
        raise DataError(f"{path}: {error}. Parts that are known: {known}") from error


def refuse_askew(graphs: Graphs, row: int) -> None:
    """Raise DataError for a part whose faces do not lie along the axes."""
    directions = graphs.faces[row, graphs.types[row] >= 0, 1:4]
    if np.abs(np.abs(directions).max(-1) - 1).max() > 1e-5:
        raise DataError("its faces do not lie along x, y and z; turn it so that they do")


def rotations() -> Iterator[NDArray[np.float64]]:
    """The 24 ways in which a box can lie along the axes [3, 3], as it is first."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            found = np.eye(3)[list(order)] * np.array(signs)[:, None]
            if np.linalg.det(found) > 0:
                yield found


def rotated(graphs: Graphs, row: int, rotation: NDArray[np.float64]) -> Graphs:
    """One row as the part would be read after it was turned."""
    found = Graphs(
        **{n: getattr(graphs, n)[row : row + 1].copy() for n in Graphs.__dataclass_fields__}
    )
    faces, axial = found.faces[0], (found.types[0] != PLANE)[:, None]
    direction = faces[:, 1:4] @ rotation.T
    faces[:, 1:4] = np.where(axial, np.abs(direction), direction)
    faces[:, 4:7] = faces[:, 4:7] @ rotation.T
    faces[:, 9:12] = faces[:, 9:12] @ np.abs(rotation).T
    return replace(found, faces=faces[None])


# ------------------------------------------------------------------ dimensions


def dimensions_read(family: Family, graph: Graphs) -> Values:
    """What the faces of a family's part say of its dimensions, in the table's order."""
    faces, types = graph.faces[0], graph.types[0]
    length_x, length_y, length_z = faces[:, 9:12].max(0)
    diameter = 2 / np.maximum(np.abs(faces[:, 7]), 1e-9)
    around = diameter[types == ROUND]
    holes, bores = faces[types == HOLE], diameter[types == HOLE]
    if family.name == "bracket":
        tip = faces[(types == PLANE) & (faces[:, 1] > 0.5)]
        through = np.argsort(-holes[:, 3], kind="stable")  # hole 1 stands along z
        places = (length_x / 2 - holes[through[0], 4], length_z / 2 - holes[through[1], 6])
        found = [
            length_x, length_z, length_y, tip[:, 11].min(initial=length_z),
            diameter[types == FILLET].sum() / 2,
            bores[through[0]], places[0], bores[through[1]], places[1],
        ]  # fmt: skip
    elif family.name == "channel":
        rim = faces[(types == PLANE) & (faces[:, 3] > 0.5)]
        found = [length_x, length_z, length_y, rim[:, 9].min(initial=length_x)]
    elif family.name in ("tube", "cylinder"):
        found = [length_z, around[0], *bores]
    else:
        found = [length_x, length_y, length_z]
        found += [bores[0], *holes[0, 4:6]] if len(holes) else []
    return np.array(found, dtype=np.float64)
