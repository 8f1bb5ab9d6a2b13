"""Which row comes at which position: a pure function of (seed, position), O(1) to seek at any size.

Nothing is shuffled in memory and nothing is saved: a position is pushed through a small keyed
permutation. Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002): a generalised
Feistel network over Z_a x Z_b with a*b just above the number of rows (their section 5), and *cycle
walking* (section 4): a value outside the rows is pushed through again until it lands inside. The
round function is splitmix64's finaliser (Steele, Lea and Flood, OOPSLA 2014), which is not
cryptographic, and need not be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headway.errors import DataError

_ROUNDS = 8
_BLOCK = 1000
_MASK = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]


def rows_at(seed: int, positions: ArrayLike, rows: int, stream: int = 0) -> I64:
    """Row at each position [n] -> [n]: epoch ``position // rows`` visits every row exactly once.

    Every epoch has its own permutation, and so has every ``stream`` (a source of a mixture).
    """
    if rows < 1:
        raise DataError(f"an order over {rows} rows does not exist: there must be at least one row")
    flat = np.asarray(positions, dtype=np.int64)
    if flat.size and flat.min() < 0:
        raise ValueError(f"positions start at 0, not {flat.min()}")
    epochs, within = np.divmod(flat.reshape(-1), rows)
    keys = _mixed(epochs.astype(np.uint64) * _GOLDEN + np.uint64(_key(seed, stream)))
    at = _permuted(within.astype(np.uint64), keys, rows)
    return at.astype(np.int64).reshape(flat.shape)


def row_at(seed: int, position: int, rows: int, stream: int = 0) -> int:
    """Row at one position; see :func:`rows_at`."""
    return int(rows_at(seed, [position], rows, stream)[0])


class Mixture:
    """Several sources as one order: position -> (source, row of that source).

    Without weights the sources are one long list and an epoch has each row exactly once. With
    weights every block of 1000 positions holds exactly the configured share of each source
    (largest-remainder apportionment), in a pattern of its own; the k-th draw of a source is the
    k-th row of that source's own order, so a source repeats only after all its rows were seen.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int) -> None:
        """``sizes``: rows of each source. ``weights``: relative shares, or None."""
        if not sizes or min(sizes) < 1:
            raise DataError(f"every source needs at least one row; the sizes are {list(sizes)}")
        self.sizes = tuple(int(size) for size in sizes)
        self.seed = seed
        self._ends: I64 = np.cumsum(self.sizes, dtype=np.int64)
        self._starts: I64 = self._ends - np.array(self.sizes, dtype=np.int64)
        self._counts = None if weights is None else apportion(weights, _BLOCK)
        if weights is not None and len(weights) != len(sizes):
            raise DataError(f"{len(sizes)} sources but {len(weights)} weights: give one to each")

    @property
    def rows_per_epoch(self) -> int:
        """As many positions as there are rows, whatever the weights."""
        return int(self._ends[-1])

    def at(self, positions: ArrayLike) -> tuple[I64, I64]:
        """Source [n] and row within that source [n] at each position [n]."""
        flat = np.asarray(positions, dtype=np.int64).reshape(-1)
        if self._counts is None:
            row = rows_at(self.seed, flat, self.rows_per_epoch)
            source = np.searchsorted(self._ends, row, side="right")
            return source, row - self._starts[source]
        source, draw = self._drawn(flat)
        row = np.empty_like(flat)
        for index, size in enumerate(self.sizes):
            mine = source == index
            row[mine] = rows_at(self.seed, draw[mine], size, stream=index + 1)
        return source, row

    def rows_at(self, positions: ArrayLike) -> I64:
        """The same as one number [n]: the row counted over all sources, one after the other."""
        source, row = self.at(positions)
        return self._starts[source] + row

    def as_sampled(self, first_n: int) -> list[int]:
        """Rows of each source in the first ``first_n`` positions: counted, not configured."""
        counts = np.zeros(len(self.sizes), dtype=np.int64)
        for start in range(0, first_n, 1 << 16):
            source, _ = self.at(np.arange(start, min(first_n, start + (1 << 16))))
            counts += np.bincount(source, minlength=len(self.sizes))
        return counts.tolist()

    def _drawn(self, positions: I64) -> tuple[I64, I64]:
        """Source [n] of each position, and how many draws of that source came before it [n]."""
        assert self._counts is not None
        sorted_pattern = np.repeat(np.arange(len(self.sizes)), self._counts)
        blocks, offsets = np.divmod(positions, _BLOCK)
        source, draw = np.empty_like(positions), np.empty_like(positions)
        for block in np.unique(blocks):
            slots = rows_at(self.seed, block * _BLOCK + np.arange(_BLOCK), _BLOCK, stream=-1)
            pattern = sorted_pattern[slots]
            by_source = np.argsort(pattern, kind="stable")
            rank = np.empty(_BLOCK, dtype=np.int64)
            first = np.cumsum(self._counts) - self._counts
            rank[by_source] = np.arange(_BLOCK) - first[sorted_pattern]
            here = blocks == block
            source[here] = pattern[offsets[here]]
            draw[here] = block * self._counts[source[here]] + rank[offsets[here]]
        return source, draw


def apportion(weights: Sequence[float], total: int) -> I64:
    """Whole counts [n] that add up to ``total`` in proportion to ``weights``: largest remainders.

    Raises DataError for a weight that is not positive, or too small to be drawn even once.
    """
    shares = np.asarray(weights, dtype=np.float64)
    if not np.isfinite(shares).all() or (shares <= 0).any():
        raise DataError(
            f"weights must be positive numbers, not {list(weights)}; leave a source out"
        )
    exact = shares / shares.sum() * total
    counts = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(-(exact - counts), kind="stable")
    counts[by_remainder[: total - int(counts.sum())]] += 1
    if (counts == 0).any():
        never = int(np.argmin(counts))
        raise DataError(
            f"weight {weights[never]} of source {never} is less than 1 in {total} and would "
            "never be drawn: raise it, or leave the source out"
        )
    return counts


def _key(seed: int, stream: int) -> int:
    """One 64-bit number out of seed and stream."""
    mixed = _mixed(np.array([seed & _MASK], dtype=np.uint64)) + np.uint64(stream & _MASK)
    return int(_mixed(mixed)[0])


def _mixed(value: U64) -> U64:
    """Splitmix64's finaliser on each element [n]; arithmetic wraps at 2**64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _permuted(values: U64, keys: U64, rows: int) -> U64:
    """Each value [n] in [0, rows) under the permutation of its key [n]."""
    a = math.isqrt(rows - 1) + 1
    b = -(-rows // a)
    result = _feistel(values, keys, a, b)
    outside = np.flatnonzero(result >= rows)
    while outside.size:  # the cycle of a value inside always comes back inside
        result[outside] = _feistel(result[outside], keys[outside], a, b)
        outside = outside[result[outside] >= rows]
    return result


def _feistel(values: U64, keys: U64, a: int, b: int) -> U64:
    """A permutation of [0, a*b): halves are added to in turn, modulo a and modulo b."""
    left, right = np.divmod(values, np.uint64(b))
    for index in range(_ROUNDS):
        key = keys + np.uint64(index * 0x9E3779B97F4A7C15 & _MASK)
        if index % 2:
            right = (right + _mixed(left + key) % np.uint64(b)) % np.uint64(b)
        else:
            left = (left + _mixed(right + key) % np.uint64(a)) % np.uint64(a)
    return left * np.uint64(b) + right
