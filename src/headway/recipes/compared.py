"""What was said beside what was wanted, as one text in pieces: the same, missing, added."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from headway.records import Mark, Piece

LONGEST_CHARACTERS = 20_000
"""Of each text: what is compared takes time with the square of its length."""


def compared(prediction: str, reference: str) -> list[Piece]:
    """Pieces that read as the reference but for what is ``added``, and as the prediction but for
    what is ``missing``: word by word, a run of blanks and a punctuation mark count as words.

    Beyond 20,000 characters a text is cut. Both texts are found again in the pieces.
    """
    said, wanted = (_words(text[:LONGEST_CHARACTERS]) for text in (prediction, reference))
    pieces: list[Piece] = []
    for kind, i, j, k, m in SequenceMatcher(None, wanted, said, autojunk=False).get_opcodes():
        if kind == "equal":
            _add(pieces, wanted[i:j], None)
        else:
            _add(pieces, wanted[i:j], "missing")
            _add(pieces, said[k:m], "added")
    return pieces


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def _add(pieces: list[Piece], words: Sequence[str], mark: Mark | None) -> None:
    if words:
        pieces.append(("".join(words), mark))
