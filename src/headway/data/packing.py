"""Packing: which examples share a row, so that little of the row is empty.

Best-fit decreasing: longest first, each into the fullest row that still has room. Asymptotically at
most 11/9 of the fewest possible rows (Johnson et al., SIAM J. Comput. 3, 1974).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

import numpy as np

from headway.errors import DataError


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of ``lengths`` in rows of at most ``capacity`` tokens, each index exactly once.

    A pure function: equal input, equal rows, in the order they were opened; within a row the
    longest comes first. O(n log n). DataError for a length below 1 or above the capacity.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and (sizes.min() < 1 or sizes.max() > capacity):
        bad = int(np.argmax((sizes < 1) | (sizes > capacity)))
        raise DataError(
            f"example {bad} has {int(sizes[bad])} tokens and cannot be packed into a row of "
            f"{capacity}: truncate or drop it first"
        )
    rows: list[list[int]] = []
    spaces: list[int] = []  # the distinct free spaces among open rows, sorted
    open_rows: dict[int, deque[int]] = {}  # free space -> rows that have exactly that much
    for index in np.argsort(-sizes, kind="stable").tolist():
        need = int(sizes[index])
        at = bisect_left(spaces, need)
        if at == len(spaces):
            rows.append([])
            row, space = len(rows) - 1, capacity
        else:
            space = spaces[at]
            row = open_rows[space].popleft()
            if not open_rows[space]:
                del open_rows[space], spaces[at]
        rows[row].append(index)
        left = space - need
        if left:
            if left not in open_rows:
                insort(spaces, left)
            open_rows.setdefault(left, deque()).append(row)
    return rows


def filled(lengths: Sequence[int], rows: Sequence[Sequence[int]], capacity: int) -> float:
    """Share of the packed rows that is real tokens, between 0 and 1."""
    return float(sum(lengths) / (len(rows) * capacity)) if rows else 0.0
