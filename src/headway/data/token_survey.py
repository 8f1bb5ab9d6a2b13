"""Token streams counted document by document: lengths, what is empty, what is there twice."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from headway.data.tokens import TokenStream


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedTokens:
    """What a stream holds. Lengths are in tokens, EOS included."""

    tokens: int
    documents: int
    shortest: int
    median: int
    longest: int
    empty: int
    """Documents of nothing but EOS."""
    doubled: int
    """Documents that were there before, token by token."""
    first_doubled: int | None
    """The number of the first of them, counted from 0."""

    def lines(self, title: str) -> list[str]:
        """For the terminal."""
        found = [
            f"{title}: {self.tokens:,} tokens in {self.documents:,} documents of {self.shortest:,} "
            f"to {self.longest:,} tokens, median {self.median:,}"
        ]
        if self.empty:
            found.append(f"  {self.empty:,} empty documents")
        if self.doubled:
            found.append(
                f"  {self.doubled:,} documents are there twice, the first of them document "
                f"{self.first_doubled:,}"
            )
        return found

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def counted(stream: TokenStream, eos_id: int | None) -> CountedTokens:
    """Read all of a stream once; 16 bytes a document are kept meanwhile."""
    lengths, seen = [], set()
    empty = doubled = 0
    first_doubled = None
    for number, ids in enumerate(stream.each_document()):
        lengths.append(len(ids))
        is_empty = len(ids) == 1 and int(ids[0]) == eos_id
        empty += is_empty
        key = hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
        if key in seen and not is_empty:
            doubled += 1
            first_doubled = number if first_doubled is None else first_doubled
        seen.add(key)
    return CountedTokens(
        tokens=len(stream),
        documents=len(lengths),
        shortest=min(lengths),
        median=int(np.median(lengths)),
        longest=max(lengths),
        empty=empty,
        doubled=doubled,
        first_doubled=first_doubled,
    )
