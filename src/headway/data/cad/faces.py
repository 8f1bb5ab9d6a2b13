"""Face graphs of parts, computed from their dimensions alone: exact, without a CAD kernel.

A part is a profile drawn out straight, or turned, with holes and a fillet; each of these changes
the list of faces and edges in a way that can be written down. All parts of one shape are built at
once: numbers are arrays [n]. Lengths in mm, angles in rad; x and z span a bracket's or channel's
profile, y is its width or length; turned parts and a block's hole stand along z. Centroids are
relative to the middle of the part's bounding box, so where a part lies does not matter; how it is
turned does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headway.data.cad.families import (
    FAMILIES,
    MOST_PARAMETERS,
    ByName,
    Family,
    Values,
    are_valid,
    refuse_invalid,
)
from headway.errors import DataError

PLANE, ROUND, HOLE, FILLET = range(4)
"""Types of faces: flat; a turned outside; a full concave cylinder; part of a concave one."""
FACE_TYPES = ("plane", "round", "hole", "fillet")
FEATURES = (
    "area", "direction_x", "direction_y", "direction_z", "centroid_x", "centroid_y", "centroid_z",
    "curvature_1", "curvature_2", "extent_x", "extent_y", "extent_z",
)  # fmt: skip
"""Area in mm². Direction: the outward normal of a plane, the axis of a cylinder. Curvatures in
1/mm, positive where the part is convex. Extents of the face's bounding box in mm."""
EDGE_FEATURES = ("length", "dihedral")
"""Length in mm; the angle through the material in rad: pi/2 at an outer corner, 3 pi/2 at an inner
one, pi where faces are tangent."""
MOST_FACES, MOST_EDGES = 11, 50
"""A bracket with its fillet; each edge counts twice, once from either face."""
X, Y, Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)

Number = Values | float
Point = Sequence[Number]


@dataclass(frozen=True, slots=True)
class Graphs:
    """Many parts of any family as graphs, padded; a padded place has the type or end -1."""

    family: NDArray[np.int64]
    """[n] index into FAMILIES."""
    values: Values
    """[n, MOST_PARAMETERS] in mm, padded with 0."""
    types: NDArray[np.int64]
    """[n, MOST_FACES]"""
    faces: Values
    """[n, MOST_FACES, FEATURES]"""
    ends: NDArray[np.int64]
    """[n, MOST_EDGES, 2]: each edge in both directions."""
    edges: Values
    """[n, MOST_EDGES, EDGE_FEATURES]"""

    def __len__(self) -> int:
        return len(self.family)


@dataclass
class Solid:
    """Faces and edges while parts are being built; every number is an array [n] or one for all."""

    types: list[int] = field(default_factory=list)
    area: list[Number] = field(default_factory=list)
    direction: list[Point] = field(default_factory=list)
    centroid: list[list[Number]] = field(default_factory=list)
    curvature: list[Point] = field(default_factory=list)
    extents: list[list[Number]] = field(default_factory=list)
    edges: dict[tuple[int, int], tuple[Number, float]] = field(default_factory=dict)
    """(face, face), the lower first -> (length, dihedral). No two faces here share two edges."""

    def add(
        self,
        kind: int,
        area: Number,
        direction: Point,
        centroid: Sequence[Number],
        extents: Sequence[Number],
        curvature: Point = (0.0, 0.0),
    ) -> int:
        """A new face; its number."""
        self.types.append(kind)
        self.area.append(area)
        self.direction.append(direction)
        self.centroid.append(list(centroid))
        self.curvature.append(curvature)
        self.extents.append(list(extents))
        return len(self.types) - 1

    def join(self, one: int, other: int, length: Number, dihedral: float) -> None:
        """A new edge, or the same edge with another length."""
        self.edges[min(one, other), max(one, other)] = (length, dihedral)


# ------------------------------------------------------------------ shapes


def prism(profile: Sequence[tuple[Number, Number]], depth: Number) -> Solid:
    """A profile of right angles in (x, z), counter-clockwise, drawn out along y from its middle.

    Faces: one for each side of the profile, then the end at -y, then the end at +y.
    """
    solid, sides = Solid(), len(profile)
    steps = [
        (profile[(k + 1) % sides][0] - profile[k][0], profile[(k + 1) % sides][1] - profile[k][1])
        for k in range(sides)
    ]
    for (x, z), (dx, dz) in zip(profile, steps, strict=True):
        length = np.abs(dx) + np.abs(dz)
        normal = (np.sign(np.mean(dz)), 0.0, -np.sign(np.mean(dx)))
        middle = [x + dx / 2, 0.0, z + dz / 2]
        solid.add(PLANE, length * depth, normal, middle, [np.abs(dx), depth, np.abs(dz)])
    area, middle_x, middle_z = _centre(profile)
    tall = [_span(profile, 0), 0.0, _span(profile, 1)]
    for sign in (-1.0, 1.0):
        solid.add(PLANE, area, (0.0, sign, 0.0), [middle_x, sign * depth / 2, middle_z], tall)
    for k, (dx, dz) in enumerate(steps):
        before = steps[k - 1]
        turn = float(np.mean(before[0] * dz - before[1] * dx))
        solid.join((k - 1) % sides, k, depth, math.pi / 2 if turn > 0 else 3 * math.pi / 2)
        for end in (sides, sides + 1):
            solid.join(k, end, np.abs(dx) + np.abs(dz), math.pi / 2)
    return solid


def _span(profile: Sequence[tuple[Number, Number]], axis: int) -> Number:
    along = np.stack(np.broadcast_arrays(*(point[axis] for point in profile)))
    return np.asarray(along.max(0) - along.min(0))


def _centre(profile: Sequence[tuple[Number, Number]]) -> tuple[Number, Number, Number]:
    """(area, x, z) of the centroid: the shoelace formula."""
    area: Number = 0.0
    first: Number = 0.0
    second: Number = 0.0
    for k, (x, z) in enumerate(profile):
        next_x, next_z = profile[(k + 1) % len(profile)]
        cross = x * next_z - next_x * z
        area = area + cross / 2
        first = first + (x + next_x) * cross / 6
        second = second + (z + next_z) * cross / 6
    return area, first / area, second / area


def drill(solid: Solid, entry: int, exit: int, axis: int, centre: Point, diameter: Number) -> None:
    """A round hole from one flat face to the one behind it, along an axis (0, 1, 2)."""
    disc = math.pi / 4 * diameter**2
    depth = np.abs(solid.centroid[entry][axis] - solid.centroid[exit][axis])
    extents: list[Number] = [diameter, diameter, diameter]
    extents[axis] = depth
    middle = list(centre)
    middle[axis] = (solid.centroid[entry][axis] + solid.centroid[exit][axis]) / 2
    hole = solid.add(
        HOLE, math.pi * diameter * depth, (X, Y, Z)[axis], middle, extents, (-2 / diameter, 0.0)
    )
    for face in (entry, exit):
        whole = solid.area[face]
        left = whole - disc
        for k in range(3):
            if k != axis:
                solid.centroid[face][k] = (
                    solid.centroid[face][k] * whole - centre[k] * disc
                ) / left
        solid.area[face] = left
        solid.join(face, hole, math.pi * diameter, math.pi / 2)


def round_inner_corner(
    solid: Solid, sides: tuple[int, int], ends: tuple[int, int], corner: Point, radius: Number
) -> None:
    """A fillet in the inner corner (x, z) of a prism, between a side that faces +z and one that
    faces +x; the ends are those at -y and +y."""
    flat, upright = sides
    depth = solid.extents[flat][1]
    x, z = corner
    for face, along in ((flat, 0), (upright, 2)):
        whole = solid.area[face]
        strip = radius * depth
        at = corner[0 if along == 0 else 1] + radius / 2
        solid.centroid[face][along] = (solid.centroid[face][along] * whole - at * strip) / (
            whole - strip
        )
        solid.area[face] = whole - strip
        solid.extents[face][along] = solid.extents[face][along] - radius
        for end in ends:
            solid.join(face, end, solid.extents[face][along], math.pi / 2)
    # What is added to the ends: a square less a quarter disc about its far corner.
    web = (1 - math.pi / 4) * radius**2
    arm = radius * (0.5 - math.pi / 4 * (1 - 4 / (3 * math.pi))) / (1 - math.pi / 4)
    for end in ends:
        whole = solid.area[end]
        for along, at in ((0, x + arm), (2, z + arm)):
            solid.centroid[end][along] = (solid.centroid[end][along] * whole + at * web) / (
                whole + web
            )
        solid.area[end] = whole + web
    out = radius * (1 - 2 / math.pi)
    fillet = solid.add(
        FILLET, math.pi / 2 * radius * depth, Y, [x + out, 0.0, z + out], [radius, depth, radius],
        (-1 / radius, 0.0),
    )  # fmt: skip
    del solid.edges[min(sides), max(sides)]
    for side in sides:
        solid.join(side, fillet, depth, math.pi)
    for end in ends:
        solid.join(end, fillet, math.pi / 2 * radius, math.pi / 2)


def turned(length: Number, outer: Number, inner: Number | None) -> Solid:
    """A cylinder along z, with a bore if ``inner`` is given: ends at -z and +z, outside, bore."""
    solid = Solid()
    bore = 0.0 if inner is None else inner
    area = math.pi / 4 * (outer**2 - bore**2)
    for sign in (-1.0, 1.0):
        middle = [0.0, 0.0, sign * length / 2]
        solid.add(PLANE, area, (0.0, 0.0, sign), middle, [outer, outer, 0.0])
    around = [(ROUND, outer, 2 / outer)]
    around += [] if inner is None else [(HOLE, inner, -2 / inner)]
    for kind, diameter, curvature in around:
        face = solid.add(
            kind, math.pi * diameter * length, Z, [0.0, 0.0, 0.0], [diameter, diameter, length],
            (curvature, 0.0),
        )  # fmt: skip
        for end in (0, 1):
            solid.join(end, face, math.pi * diameter, math.pi / 2)
    return solid


# ------------------------------------------------------------------ families


def _bracket(v: ByName, fillet: bool) -> tuple[Solid, Point]:
    leg1, leg2, t = v["leg1"], v["leg2"], v["thickness"]
    zero = np.zeros_like(t)
    profile = [(zero, zero), (leg1, zero), (leg1, t), (t, t), (t, leg2), (zero, leg2)]
    solid = prism(profile, v["width"])
    drill(solid, 0, 2, 2, [leg1 - v["hole1_distance"], 0.0, 0.0], v["hole1_diameter"])
    drill(solid, 5, 3, 0, [0.0, 0.0, leg2 - v["hole2_distance"]], v["hole2_diameter"])
    if fillet:
        round_inner_corner(solid, (2, 3), (6, 7), (t, t), v["fillet"])
    return solid, (leg1 / 2, 0.0, leg2 / 2)


def _channel(v: ByName) -> tuple[Solid, Point]:
    w, h, t = v["width"], v["height"], v["thickness"]
    zero = np.zeros_like(t)
    profile = [
        (zero, zero), (w, zero), (w, h), (w - t, h), (w - t, t), (t, t), (t, h), (zero, h),
    ]  # fmt: skip
    return prism(profile, v["length"]), (w / 2, 0.0, h / 2)


def _block(v: ByName) -> tuple[Solid, Point]:
    length, height = v["length"], v["height"]
    zero = np.zeros_like(length)
    profile = [(zero, zero), (length, zero), (length, height), (zero, height)]
    return prism(profile, v["width"]), (length / 2, 0.0, height / 2)


def _blockhole(v: ByName) -> tuple[Solid, Point]:
    solid, middle = _block(v)
    drill(solid, 0, 2, 2, [middle[0] + v["hole_x"], v["hole_y"], 0.0], v["hole_diameter"])
    return solid, middle


def solid_of(family: Family, values: Values) -> tuple[Solid, Point]:
    """Faces and edges of parts [n, parameters] with the same faces, and their boxes' middles."""
    v = family.by_name(values)
    if family.name == "bracket":
        return _bracket(v, fillet=bool(v["fillet"][0] > 0))
    if family.name == "tube":
        return turned(v["length"], v["outer_diameter"], v["inner_diameter"]), (0.0, 0.0, 0.0)
    if family.name == "cylinder":
        return turned(v["length"], v["diameter"], None), (0.0, 0.0, 0.0)
    return {"channel": _channel, "block": _block, "blockhole": _blockhole}[family.name](v)


def graphs_of(family: NDArray[np.int64], values: Values) -> Graphs:
    """The graphs of parts: family [n] and dimensions [n, MOST_PARAMETERS] in mm.

    Raises DataError for dimensions that make no part: a hole beside it, a fillet that eats a leg.
    """
    n = len(family)
    made = Graphs(
        family=np.asarray(family, dtype=np.int64),
        values=np.asarray(values, dtype=np.float64),
        types=np.full((n, MOST_FACES), -1, dtype=np.int64),
        faces=np.zeros((n, MOST_FACES, len(FEATURES))),
        ends=np.full((n, MOST_EDGES, 2), -1, dtype=np.int64),
        edges=np.zeros((n, MOST_EDGES, len(EDGE_FEATURES))),
    )
    for index, kind in enumerate(FAMILIES):
        mine = np.flatnonzero(made.family == index)
        here = made.values[mine, : len(kind.parameters)]
        for row in np.flatnonzero(~are_valid(kind, here))[:1]:
            refuse_invalid(kind, here[row].tolist())
            raise DataError(f"no {kind.name} has the dimensions {here[row].tolist()}")
        absent = here[:, kind.place("fillet")] == 0 if "fillet" in kind.names else None
        groups = [mine] if absent is None else [mine[absent], mine[~absent]]
        for rows in groups:
            if len(rows):
                _fill(made, rows, kind)
    return made


def _fill(made: Graphs, rows: NDArray[np.int64], family: Family) -> None:
    """Put parts with the same faces into their places."""
    solid, middle = solid_of(family, made.values[rows, : len(family.parameters)])
    count = len(solid.types)
    made.types[rows, :count] = solid.types
    for face in range(count):
        centroid = [solid.centroid[face][k] - middle[k] for k in range(3)]
        numbers = [
            solid.area[face], *solid.direction[face], *centroid, *solid.curvature[face],
            *solid.extents[face],
        ]  # fmt: skip
        for column, number in enumerate(numbers):
            made.faces[rows, face, column] = number
    place = 0
    for (one, other), (length, dihedral) in sorted(solid.edges.items()):
        for ends in ((one, other), (other, one)):
            made.ends[rows, place] = ends
            made.edges[rows, place, 0] = length
            made.edges[rows, place, 1] = dihedral
            place += 1


def one_part(family: Family, values: Sequence[float]) -> Graphs:
    """The graph of one part. Raises DataError for dimensions that make none."""
    padded = np.zeros((1, MOST_PARAMETERS))
    padded[0, : len(family.parameters)] = values
    return graphs_of(np.array([FAMILIES.index(family)]), padded)
