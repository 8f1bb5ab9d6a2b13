"""Parts as real solids: built, checked, written to STEP and read from it (extra ``cad``).

The kernel is OpenCASCADE through build123d. Each part it builds is compared with what its numbers
say: a hole that cuts nothing leaves a valid solid and no error, and only its volume tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headway.data.cad.checks import face_count, stated_volume
from headway.data.cad.faces import (
    FEATURES,
    FILLET,
    HOLE,
    MOST_EDGES,
    MOST_FACES,
    PLANE,
    ROUND,
    Graphs,
)
from headway.data.cad.families import FAMILIES, MOST_PARAMETERS, Family, refuse_invalid
from headway.errors import ConfigError, DataError

BEYOND_MM = 1.0
"""A cutting tool stands out this far on either side: coincident faces confuse a kernel."""
PROBE_MM = 1e-3
"""How far from an edge it is asked where the material is."""
SAME_VOLUME = 1e-6
"""Largest relative difference between the kernel's volume and the formula's."""


def kernel() -> Any:
    """The kernel's module. Raises ConfigError where the extra is not installed."""
    try:
        import build123d
    except ImportError as error:
        raise ConfigError(
            "this needs a CAD kernel: pip install 'headway[cad]' (about 1 GB on disk)"
        ) from error
    return build123d


def kernel_version() -> str:
    """Which kernel. Raises ConfigError where there is none."""
    from importlib.metadata import version

    return f"{kernel().__name__} {version('build123d')}"


def build(family: Family, values: Sequence[float]) -> Any:
    """The solid with these dimensions in mm. Raises DataError where it is none, or another."""
    refuse_invalid(family, values)
    part = unchecked(family, values)
    refuse_another(part, family, values)
    return part


def unchecked(family: Family, values: Sequence[float]) -> Any:
    """What the kernel makes of these dimensions, whatever that is. Raises DataError."""
    cad, v = kernel(), dict(zip(family.names, values, strict=True))
    makers = {
        "bracket": _bracket, "tube": _tube, "channel": _channel, "block": _block,
        "cylinder": _cylinder, "blockhole": _blockhole,
    }  # fmt: skip
    try:
        return makers[family.name](cad, v)
    except Exception as error:  # whatever the kernel raises: it has exceptions of its own
        raise DataError(f"the kernel cannot build a {family.name} of {v}: {error}") from error


def refuse_another(part: Any, family: Family, values: Sequence[float]) -> None:
    """Raise DataError where a solid's volume or number of faces is not what its dimensions say."""
    padded = np.zeros((1, MOST_PARAMETERS))
    padded[0, : len(values)] = values
    volume = float(stated_volume(np.array([FAMILIES.index(family)]), padded)[0])
    faces, expected = len(part.faces()), face_count(family, padded[0])
    if abs(part.volume - volume) > SAME_VOLUME * volume or faces != expected:
        raise DataError(
            f"a {family.name} of {list(values)} mm came out with {part.volume:.6g} mm³ and {faces} "
            f"faces, not {volume:.6g} mm³ and {expected}: a hole or fillet is missing, or too much"
        )


def _bracket(cad: Any, v: dict[str, float]) -> Any:
    t, width = v["thickness"], v["width"]
    part = cad.Pos(v["leg1"] / 2, 0, t / 2) * cad.Box(v["leg1"], width, t)
    part = part + cad.Pos(t / 2, 0, v["leg2"] / 2) * cad.Box(t, width, v["leg2"])
    if v["fillet"] > 0:
        inner = [
            edge
            for edge in part.edges()
            if abs(edge.center().X - t) < 1e-6 and abs(edge.center().Z - t) < 1e-6
        ]
        part = cad.fillet(inner, v["fillet"])
    deep = t + 2 * BEYOND_MM
    first = cad.Pos(v["leg1"] - v["hole1_distance"], 0, t / 2)
    part = part - first * cad.Cylinder(v["hole1_diameter"] / 2, deep)
    second = cad.Pos(t / 2, 0, v["leg2"] - v["hole2_distance"]) * cad.Rot(0, 90, 0)
    return part - second * cad.Cylinder(v["hole2_diameter"] / 2, deep)


def _tube(cad: Any, v: dict[str, float]) -> Any:
    bore = cad.Cylinder(v["inner_diameter"] / 2, v["length"] + 2 * BEYOND_MM)
    return cad.Cylinder(v["outer_diameter"] / 2, v["length"]) - bore


def _channel(cad: Any, v: dict[str, float]) -> Any:
    t, height = v["thickness"], v["height"]
    inside = cad.Box(v["width"] - 2 * t, v["length"] + 2 * BEYOND_MM, height)
    return cad.Box(v["width"], v["length"], height) - cad.Pos(0, 0, t) * inside


def _block(cad: Any, v: dict[str, float]) -> Any:
    return cad.Box(v["length"], v["width"], v["height"])


def _cylinder(cad: Any, v: dict[str, float]) -> Any:
    return cad.Cylinder(v["diameter"] / 2, v["length"])


def _blockhole(cad: Any, v: dict[str, float]) -> Any:
    hole = cad.Cylinder(v["hole_diameter"] / 2, v["height"] + 2 * BEYOND_MM)
    return _block(cad, v) - cad.Pos(v["hole_x"], v["hole_y"], 0) * hole


# ------------------------------------------------------------------ graphs of solids


def graph_of(part: Any) -> Graphs:
    """The graph of a solid: its dimensions and family are not known, and 0 there.

    The order of the faces is the kernel's. Raises DataError for a face that no family has, or for
    more faces than a part has.
    """
    cad, faces = kernel(), list(part.faces())
    if not 0 < len(faces) <= MOST_FACES:
        raise DataError(
            f"a solid of {len(faces)} faces is none of the parts known here: they have at most "
            f"{MOST_FACES}"
        )
    made = Graphs(
        family=np.zeros(1, dtype=np.int64),
        values=np.zeros((1, MOST_PARAMETERS)),
        types=np.full((1, MOST_FACES), -1, dtype=np.int64),
        faces=np.zeros((1, MOST_FACES, len(FEATURES))),
        ends=np.full((1, MOST_EDGES, 2), -1, dtype=np.int64),
        edges=np.zeros((1, MOST_EDGES, 2)),
    )
    middle = part.bounding_box().center()
    for number, face in enumerate(faces):
        made.types[0, number], made.faces[0, number] = _face(face, middle)
    flat = made.types[0] == PLANE
    normals = [cad.Vector(*n[1:4]) if f else None for n, f in zip(made.faces[0], flat, strict=True)]
    joined = _joined(part, faces, normals)
    if 2 * len(joined) > MOST_EDGES:
        raise DataError(f"a solid of {len(joined)} edges is none of the parts known here")
    for place, (one, other, length, dihedral) in enumerate(joined):
        for way, ends in enumerate(((one, other), (other, one))):
            made.ends[0, 2 * place + way] = ends
            made.edges[0, 2 * place + way] = (length, dihedral)
    return made


def _face(face: Any, middle: Any) -> tuple[int, list[float]]:
    """(type, numbers) of a face, as ``faces`` has them."""
    kind = str(face.geom_type).rpartition(".")[2]
    box = face.bounding_box().size
    centre = face.center(kernel().CenterOf.MASS) - middle
    extents = [box.X, box.Y, box.Z]
    if kind == "PLANE":
        normal = face.normal_at()
        numbers = [face.area, normal.X, normal.Y, normal.Z, centre.X, centre.Y, centre.Z, 0.0, 0.0]
        return PLANE, [*numbers, *extents]
    if kind != "CYLINDER":
        raise DataError(f"a face of kind {kind} is on none of the parts known here")
    axis, radius = face.axis_of_rotation, float(face.radius)
    along = np.abs([axis.direction.X, axis.direction.Y, axis.direction.Z])
    height = float(np.dot(extents, np.round(along)))
    whole = abs(face.area - 2 * math.pi * radius * height) < 1e-4 * face.area
    point = face.position_at(0.5, 0.5)
    outward = point - axis.position
    outward = outward - axis.direction * outward.dot(axis.direction)
    convex = face.normal_at(point).dot(outward) > 0
    if convex and not whole:
        raise DataError("a rounded outer corner is on none of the parts known here")
    curvature = (1 if convex else -1) / radius
    shown = ROUND if convex else HOLE if whole else FILLET
    centroid = [centre.X, centre.Y, centre.Z]
    return shown, [face.area, *along.tolist(), *centroid, curvature, 0.0, *extents]


def _joined(
    part: Any, faces: list[Any], normals: Sequence[Any]
) -> list[tuple[int, int, float, float]]:
    """(face, face, length, dihedral) of every edge between two faces; a seam is between none.

    ``normals``: of the planes; None where a face is round.
    """
    by_edge: dict[Any, tuple[Any, list[int]]] = {}
    for number, face in enumerate(faces):
        for edge in face.edges():
            by_edge.setdefault(edge, (edge, []))[1].append(number)
    found, inside = [], _inside(part.solid())
    for edge, sides in by_edge.values():
        if len(set(sides)) == 2:
            point = edge.position_at(0.5)
            one, other = sorted(set(sides))
            first, second = (
                faces[k].normal_at(point) if normals[k] is None else normals[k]
                for k in (one, other)
            )
            angle = _dihedral(inside, point, first, second)
            found.append((one, other, float(edge.length), angle))
    return sorted(found)


def _inside(solid: Any) -> Callable[[Any], bool]:
    """Asks whether a point is in a solid: making the question ready is dearer than asking it."""
    from OCP.BRepClass3d import BRepClass3d_SolidClassifier
    from OCP.TopAbs import TopAbs_State

    classifier = BRepClass3d_SolidClassifier(solid.wrapped)

    def inside(point: Any) -> bool:
        classifier.Perform(point.to_pnt(), PROBE_MM / 10)
        return bool(classifier.State() == TopAbs_State.TopAbs_IN)

    return inside


def _dihedral(inside: Callable[[Any], bool], point: Any, first: Any, second: Any) -> float:
    """The angle through the material in rad, where two faces with these normals meet at a point."""
    between = math.acos(max(-1.0, min(1.0, first.dot(second))))
    if between < 1e-4:
        return math.pi
    # Out along one normal and back along the other: in the material at an inner corner alone.
    inner = inside(point + (first - second) * PROBE_MM)
    return math.pi + between if inner else math.pi - between


# ------------------------------------------------------------------ STEP


def write_step(path: Path, family: Family, values: Sequence[float]) -> None:
    """A part as a STEP file, read back and compared. Raises DataError."""
    cad = kernel()
    part = build(family, values)
    partial = path.with_name(f".partial-{path.name}")
    try:
        written = cad.export_step(part, partial)
        if written is False:
            raise DataError(f"{path}: the kernel could not write it")
        refuse_another(cad.import_step(partial), family, values)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def graph_of_step(path: Path) -> Graphs:
    """The graph of the one solid in a STEP file, whatever its unit; in mm.

    Other programs write a hole as two halves: faces that continue one another are made one. Raises
    DataError, and ConfigError without a kernel.
    """
    cad = kernel()
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        part = cad.import_step(path)
    except Exception as error:  # whatever the kernel's reader raises
        raise DataError(f"{path}: the kernel cannot read it as STEP: {error}") from error
    solids = part.solids()
    if len(solids) != 1:
        raise DataError(f"{path} holds {len(solids)} solids; one part was expected")
    return graph_of(solids[0].clean())
