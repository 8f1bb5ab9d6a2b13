"""Parts by number: part i of a seed is a pure function of both, whoever asks and in which order.

Numbers are drawn by counting, not from a stream: splitmix64's finaliser (Steele, Lea and Flood,
OOPSLA 2014) over (seed, part, draw). So parts can be made in parallel, and any one alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headway.data.cad.families import FAMILIES, LEAST_FILLET, MOST_PARAMETERS, Values, limits

U64 = NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ABSENT_SHARE = 0.25
"""Of parts without a feature that may be absent."""
GRID_MM = 0.5
"""Dimensions are whole multiples of this where the limits leave room: as people draw."""


def uniform(seed: int, index: ArrayLike, draw: ArrayLike) -> Values:
    """Numbers in [0, 1), one for each (index, draw), broadcast; a function of nothing else."""
    key = _mixed(np.array(seed & (2**64 - 1), dtype=np.uint64) + _GOLDEN)
    at = _mixed(np.asarray(index, dtype=np.uint64) * _GOLDEN + key)
    found = _mixed(at + np.asarray(draw, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03))
    return np.asarray((found >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mixed(value: U64) -> U64:
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(value ^ (value >> np.uint64(31)), dtype=np.uint64)


def parts(
    seed: int, index: ArrayLike, by_dimensions: bool = False
) -> tuple[NDArray[np.int64], Values]:
    """(family [n], dimensions in mm [n, MOST_PARAMETERS]) of the parts with these numbers [n].

    Families are equally likely, or, ``by_dimensions``, as likely as they have dimensions; each
    dimension is uniform between the limits that the earlier ones leave. Every part is valid.
    """
    number = np.atleast_1d(np.asarray(index, dtype=np.int64))
    shares = [len(kind.parameters) if by_dimensions else 1 for kind in FAMILIES]
    borders = np.cumsum(shares)[:-1] / sum(shares)
    family = np.searchsorted(borders, uniform(seed, number, 0), side="right")
    values = np.zeros((len(number), MOST_PARAMETERS))
    for kind_index, kind in enumerate(FAMILIES):
        mine = np.flatnonzero(family == kind_index)
        here = np.zeros((len(mine), len(kind.parameters)))
        for column, parameter in enumerate(kind.parameters):
            low, high = limits(kind, column, here)
            low = np.maximum(low, LEAST_FILLET) if parameter.optional else low
            drawn = low + uniform(seed, number[mine], 1 + column) * (high - low)
            round_figure = np.round(drawn / GRID_MM) * GRID_MM
            drawn = np.where((round_figure >= low) & (round_figure <= high), round_figure, drawn)
            if parameter.optional:
                absent = uniform(seed, number[mine], 101 + column) < ABSENT_SHARE
                drawn = np.where(absent, 0.0, drawn)
            here[:, column] = drawn
        values[mine, : here.shape[1]] = here
    return family, values
