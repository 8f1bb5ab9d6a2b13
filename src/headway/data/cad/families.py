"""The six part families: what can be measured on each, in mm, and which values make a part.

What a parameter may be depends on parameters before it in its family's table only. So one rule
serves three: drawing a part, saying what is wrong with one, and finding the nearest that is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headway.errors import DataError

Values = NDArray[np.float64]
ByName = Mapping[str, Values]
Limits = Callable[[ByName], tuple[ArrayLike, ArrayLike]]

WALL = 2.0
"""Least material between a hole and what is next to it, in mm."""
LEAST_FILLET = 1.0
"""A smaller fillet is none, in mm."""
MOST_PARAMETERS = 9


@dataclass(frozen=True, slots=True)
class Parameter:
    """One dimension of a family."""

    name: str
    low: float
    """In mm; also where the normalised value is 0."""
    high: float
    """In mm; where the normalised value is 1."""
    most_change: float
    """The largest change that one edit asks for, in mm."""
    within: Limits | None = None
    """Parameters before it, by name -> (lowest, highest), where narrower than the range."""
    optional: bool = False
    """0 means that the feature is not there; else at least LEAST_FILLET."""
    size: bool = True
    """Whether "make it bigger" means it too; where a hole lies is no size."""


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of part."""

    name: str
    parameters: tuple[Parameter, ...]
    volume: Callable[[ByName], Values]
    """In mm³, by the formula that an engineer would write."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names in order."""
        return tuple(parameter.name for parameter in self.parameters)

    def place(self, name: str) -> int:
        """The column of a parameter. Raises DataError for one the family does not have."""
        if name not in self.names:
            raise DataError(f"a {self.name} has no {name}; it has {', '.join(self.names)}")
        return self.names.index(name)

    def by_name(self, values: Values) -> dict[str, Values]:
        """[n, columns] -> name -> [n]."""
        return {name: values[:, column] for column, name in enumerate(self.names)}


def _hole_distance(leg: str, hole: str) -> Limits:
    """From a leg's end to a hole's axis: clear of the end, of the other leg and of the fillet."""

    def within(v: ByName) -> tuple[ArrayLike, ArrayLike]:
        diameter = v[f"{hole}_diameter"]
        inner = np.maximum(diameter, v["fillet"] + diameter / 2 + 1)
        return diameter, v[leg] - v["thickness"] - inner

    return within


def _hole_place(side: str) -> Limits:
    """From the middle of a block to a hole's axis, along a side."""

    def within(v: ByName) -> tuple[ArrayLike, ArrayLike]:
        room = v[side] / 2 - v["hole_diameter"] / 2 - WALL
        return -room, room

    return within


def _bracket_volume(v: ByName) -> Values:
    profile = v["thickness"] * (v["leg1"] + v["leg2"] - v["thickness"])
    profile = profile + (1 - math.pi / 4) * v["fillet"] ** 2
    holes = math.pi / 4 * (v["hole1_diameter"] ** 2 + v["hole2_diameter"] ** 2)
    return np.asarray(profile * v["width"] - holes * v["thickness"])


FAMILIES: tuple[Family, ...] = (
    Family(
        "bracket",
        (
            Parameter("leg1", 50, 200, 50),
            Parameter("leg2", 50, 200, 50),
            Parameter("width", 20, 60, 15),
            Parameter("thickness", 3, 12, 4),
            Parameter("fillet", 0, 8, 4, optional=True),
            Parameter("hole1_diameter", 4, 12, 4, lambda v: (4, v["width"] / 2)),
            Parameter("hole1_distance", 4, 190, 30, _hole_distance("leg1", "hole1"), size=False),
            Parameter("hole2_diameter", 4, 12, 4, lambda v: (4, v["width"] / 2)),
            Parameter("hole2_distance", 4, 190, 30, _hole_distance("leg2", "hole2"), size=False),
        ),
        _bracket_volume,
    ),
    Family(
        "tube",
        (
            Parameter("length", 30, 200, 50),
            Parameter("outer_diameter", 20, 100, 20),
            Parameter("inner_diameter", 6, 90, 20, lambda v: (6, v["outer_diameter"] - 2 * WALL)),
        ),
        lambda v: math.pi / 4 * (v["outer_diameter"] ** 2 - v["inner_diameter"] ** 2) * v["length"],
    ),
    Family(
        "channel",
        (
            Parameter("width", 30, 100, 20),
            Parameter("height", 30, 100, 20),
            Parameter("length", 50, 200, 50),
            Parameter("thickness", 2, 10, 4),
        ),
        lambda v: (
            v["length"] * v["thickness"] * (v["width"] + 2 * v["height"] - 2 * v["thickness"])
        ),
    ),
    Family(
        "block",
        (
            Parameter("length", 20, 150, 40),
            Parameter("width", 20, 150, 40),
            Parameter("height", 10, 100, 30),
        ),
        lambda v: v["length"] * v["width"] * v["height"],
    ),
    Family(
        "cylinder",
        (Parameter("length", 20, 200, 50), Parameter("diameter", 10, 100, 20)),
        lambda v: math.pi / 4 * v["diameter"] ** 2 * v["length"],
    ),
    Family(
        "blockhole",
        (
            Parameter("length", 30, 150, 40),
            Parameter("width", 30, 150, 40),
            Parameter("height", 15, 80, 20),
            Parameter(
                "hole_diameter",
                5,
                30,
                8,
                lambda v: (5, np.minimum(v["length"], v["width"]) - 4 * WALL),
            ),
            Parameter("hole_x", -60, 60, 20, _hole_place("length"), size=False),
            Parameter("hole_y", -60, 60, 20, _hole_place("width"), size=False),
        ),
        lambda v: v["height"] * (v["length"] * v["width"] - math.pi / 4 * v["hole_diameter"] ** 2),
    ),
)
"""Ranges of the seed system (its phases 1 and 4). A part lies along the axes: see ``faces``."""


def find_family(name: str) -> Family:
    """The family of this name. Raises DataError."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise DataError(
        f"there is no part family {name!r}; there are {', '.join(f.name for f in FAMILIES)}"
    )


def limits(family: Family, column: int, values: Values) -> tuple[Values, Values]:
    """(lowest [n], highest [n]) of a parameter, given the columns before it of [n, …]."""
    parameter, n = family.parameters[column], len(values)
    low, high = np.full(n, float(parameter.low)), np.full(n, float(parameter.high))
    if parameter.within:
        least, most = parameter.within(family.by_name(values))
        low, high = np.maximum(low, least), np.minimum(high, most)
    return low, high


def nearest_valid(family: Family, values: ArrayLike) -> Values:
    """The nearest parts [n, parameters] to any numbers, parameter by parameter in table order.

    A parameter is moved only as far as those before it, already moved, leave no other way.
    """
    found = np.atleast_2d(np.array(values, dtype=np.float64))
    for column, parameter in enumerate(family.parameters):
        low, high = limits(family, column, found)
        here = np.clip(found[:, column], low, high)
        if parameter.optional:
            there = np.maximum(here, LEAST_FILLET)
            here = np.where(here < LEAST_FILLET / 2, 0.0, there)
        found[:, column] = here
    return found


def are_valid(family: Family, values: ArrayLike, tolerance_mm: float = 1e-6) -> NDArray[np.bool_]:
    """[n]: which rows of [n, parameters] are parts."""
    given = np.atleast_2d(np.asarray(values, dtype=np.float64))
    close = np.abs(nearest_valid(family, given) - given) <= tolerance_mm
    return np.asarray(close.all(1) & np.isfinite(given).all(1))


def refuse_invalid(family: Family, values: Sequence[float]) -> None:
    """Raise DataError with each parameter that cannot be, and what it may be."""
    given = np.array([values], dtype=np.float64)
    wrong = []
    for column, parameter in enumerate(family.parameters):
        low, high = limits(family, column, given)
        value = float(given[0, column])
        absent = parameter.optional and value == 0
        least = max(float(low[0]), LEAST_FILLET) if parameter.optional else float(low[0])
        if not absent and not least - 1e-6 <= value <= float(high[0]) + 1e-6:
            wrong.append(f"{parameter.name} is {value:g} mm, not {least:g} to {float(high[0]):g}")
    if wrong:
        raise DataError(f"no {family.name} has these dimensions: {'; '.join(wrong)}")


def normalised(family: Family, values: Values) -> Values:
    """mm [n, parameters] -> shares of each range [n, MOST_PARAMETERS], padded with 0."""
    low = np.array([p.low for p in family.parameters])
    high = np.array([p.high for p in family.parameters])
    found = np.zeros((len(values), MOST_PARAMETERS))
    found[:, : len(low)] = (values[:, : len(low)] - low) / (high - low)
    return found


def in_mm(family: Family, shares: Values) -> Values:
    """The reverse of ``normalised``: [n, MOST_PARAMETERS or fewer] -> mm [n, parameters]."""
    low = np.array([p.low for p in family.parameters])
    high = np.array([p.high for p in family.parameters])
    return np.asarray(low + shares[:, : len(low)] * (high - low))
