"""Whether a part is what its dimensions say: faces are counted, the volume is computed twice.

The volume that the faces enclose (the divergence theorem over each of them) must be the one that
an engineer's formula gives. A hole beside the part, or a face that was forgotten, shows in either.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from headway.data.cad.faces import FACE_TYPES, FILLET, HOLE, PLANE, ROUND, Graphs
from headway.data.cad.families import FAMILIES, Family, Values
from headway.errors import DataError

FACES = {"bracket": 10, "tube": 4, "channel": 10, "block": 6, "cylinder": 3, "blockhole": 7}
"""Faces of each family; a fillet is one more."""


def enclosed_volume(graphs: Graphs) -> Values:
    """mm³ [n] that the faces enclose: a third of the integral of position times outward normal.

    A full cylinder's normals cancel but for its radius. A fillet's do not: its quarter of a circle
    lies towards -x and -z of its axis, as a bracket's inner corner does.
    """
    area, normal = graphs.faces[..., 0], graphs.faces[..., 1:4]
    centroid, curvature = graphs.faces[..., 4:7], graphs.faces[..., 7]
    with np.errstate(divide="ignore"):
        radius = np.where(curvature != 0, 1 / np.abs(curvature), 0.0)
    flat = area * (centroid * normal).sum(-1)
    axis = centroid[..., 0] + centroid[..., 2] + 2 * 2 * radius / math.pi
    quarter = area * (2 / math.pi * axis - radius)
    kinds = [graphs.types == kind for kind in (PLANE, ROUND, HOLE, FILLET)]
    parts = np.select(kinds, [flat, radius * area, -radius * area, quarter], 0.0)
    return np.asarray(parts.sum(-1) / 3)


def stated_volume(family: NDArray[np.int64], values: Values) -> Values:
    """mm³ [n] by each family's formula."""
    found = np.zeros(len(family))
    for index, kind in enumerate(FAMILIES):
        mine = family == index
        if mine.any():
            found[mine] = kind.volume(kind.by_name(values[mine]))
    return found


def face_count(family: Family, values: Values) -> int:
    """How many faces a part [parameters] has."""
    rounded = "fillet" in family.names and values[family.place("fillet")] > 0
    return FACES[family.name] + int(rounded)


def refuse_inconsistent(graphs: Graphs) -> None:
    """Raise DataError for the first part whose faces are not those of its dimensions."""
    stated = stated_volume(graphs.family, graphs.values)
    enclosed = enclosed_volume(graphs)
    counts = (graphs.types >= 0).sum(1)
    wrong = (np.abs(enclosed - stated) > 1e-9 * stated) | (graphs.faces[..., 0].min(1) < 0)
    for row in range(len(graphs)):
        family = FAMILIES[graphs.family[row]]
        expected = face_count(family, graphs.values[row])
        if not wrong[row] and counts[row] == expected:
            continue
        there = [FACE_TYPES[kind] for kind in graphs.types[row] if kind >= 0]
        raise DataError(
            f"a {family.name} of {graphs.values[row].tolist()} mm encloses {enclosed[row]:g} mm³ "
            f"in {counts[row]} faces {there}, not {stated[row]:g} mm³ in {expected}"
        )
