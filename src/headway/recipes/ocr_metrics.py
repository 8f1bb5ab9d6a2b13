"""How well pages were read: error rates of characters and words, and the fields that came out.

A rate is edits over the reference's length (Levenshtein, by jiwer). Over many pages it is pooled,
all edits over all characters, so that a page counts by its length; ``…_per_page`` is the mean of
the pages' own rates, where a short page counts as much as a long one. Each is there for the text as
it is and ``…_normalised``: without white space and tags of tables. A field counts where its name
and its value are right, each as often as the reference has it.

An empty reference has rate 0 where nothing was read, else 1. In a pooled rate its extra characters
are edits and add nothing to the length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from headway.data.page_text import fields_of, normalised
from headway.errors import ConfigError, DataError

SAME_ANSWER = "same answer for all"
"""The baseline: the best one answer that does not look at the page."""
_CANDIDATES, _TRIED_ON = 16, 32

Piece = tuple[str, str]
"""("equal", "missing" or "extra", text): missing is in the reference only, extra in what was read.
"""


@dataclass(frozen=True, slots=True)
class Edits:
    """How many edits lead from what was read to the reference, and the reference's length."""

    edits: int
    length: int

    @property
    def rate(self) -> float:
        """Edits over length; of an empty reference 0 or 1."""
        return self.edits / self.length if self.length else float(self.edits > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageScore:
    """How one page was read."""

    characters: Edits
    words: Edits
    characters_normalised: Edits
    words_normalised: Edits
    fields_right: int
    fields_predicted: int
    fields_true: int

    @property
    def cer(self) -> float:
        """Character error rate of the text as it is."""
        return self.characters.rate

    @property
    def wer(self) -> float:
        """Word error rate of the text as it is."""
        return self.words.rate

    @property
    def exact(self) -> bool:
        """Whether every field is right and none is too many."""
        return self.fields_right == self.fields_true == self.fields_predicted

    def tree(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "cer": self.cer,
            "wer": self.wer,
            "cer_normalised": self.characters_normalised.rate,
            "wer_normalised": self.words_normalised.rate,
            "character_edits": self.characters.edits,
            "characters": self.characters.length,
            "word_edits": self.words.edits,
            "words": self.words.length,
            "fields_right": self.fields_right,
            "fields_predicted": self.fields_predicted,
            "fields_true": self.fields_true,
            "exact": self.exact,
        }


def score_page(predicted: str, reference: str) -> PageScore:
    """The score of one page. ConfigError where jiwer is not installed."""
    plain, plain_reference = normalised(predicted), normalised(reference)
    found, true = Counter(fields_of(predicted)), Counter(fields_of(reference))
    return PageScore(
        characters=_character_edits(predicted, reference),
        words=_word_edits(predicted, reference),
        characters_normalised=_character_edits(plain, plain_reference),
        words_normalised=_word_edits(plain, plain_reference),
        fields_right=(found & true).total(),
        fields_predicted=found.total(),
        fields_true=true.total(),
    )


def measure(pages: Sequence[PageScore]) -> dict[str, float]:
    """Metrics over pages, the main ones first, counts last; what is not defined is left out.

    Raises DataError where there is no page.
    """
    if not pages:
        raise DataError("no page was read, so there is nothing to measure")
    rates = {
        "cer": [page.characters for page in pages],
        "wer": [page.words for page in pages],
        "cer_normalised": [page.characters_normalised for page in pages],
        "wer_normalised": [page.words_normalised for page in pages],
    }
    pooled = {name: _pooled(edits).rate for name, edits in rates.items()}
    right = sum(page.fields_right for page in pages)
    predicted = sum(page.fields_predicted for page in pages)
    true = sum(page.fields_true for page in pages)
    return {
        "cer": pooled["cer"],
        "wer": pooled["wer"],
        **({"field_recall": right / true} if true else {}),
        **({"field_precision": right / predicted} if predicted else {}),
        **({"exact_match": sum(page.exact for page in pages) / len(pages)} if true else {}),
        **pooled,
        **{
            f"{name}_per_page": sum(edit.rate for edit in edits) / len(pages)
            for name, edits in rates.items()
        },
        "n": float(len(pages)),
        "n_characters": float(_pooled(rates["cer"]).length),
        "n_words": float(_pooled(rates["wer"]).length),
        "n_fields": float(true),
        "n_fields_predicted": float(predicted),
        "n_empty": float(sum(page.characters.length == 0 for page in pages)),
    }


def without_looking(references: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    """Baselines ``METRIC/same answer for all``: one known answer given to every page.

    The one with the lowest CER is taken, of some evenly spaced ``known`` (answers of the training
    rows) on some of the references. Empty where nothing is known or there is no reference.
    """
    if not references or not known:
        return {}
    tried = _spread(references, _TRIED_ON)
    candidates = list(dict.fromkeys(_spread(known, _CANDIDATES)))
    best = min(
        candidates, key=lambda said: _pooled(_character_edits(said, text) for text in tried).rate
    )
    figures = measure([score_page(best, reference) for reference in references])
    return {
        f"{name}/{SAME_ANSWER}": value
        for name, value in figures.items()
        if name != "n" and not name.startswith("n_")
    }


def diff(predicted: str, reference: str) -> list[Piece]:
    """The two texts as pieces: all but the extra ones are the reference, all but the missing ones
    what was read. As few edits as there can be.
    """
    pieces: list[Piece] = []
    for kind, right, read in _alignment(predicted, reference):
        if kind == "equal":
            pieces.append(("equal", right))
        else:
            pieces += [("missing", right)] * bool(right) + [("extra", read)] * bool(read)
    return pieces


def _pooled(edits: Iterable[Edits]) -> Edits:
    """All of them as one."""
    every = list(edits)
    return Edits(sum(edit.edits for edit in every), sum(edit.length for edit in every))


def _character_edits(predicted: str, reference: str) -> Edits:
    if predicted == reference or not predicted or not reference:
        return Edits(
            0 if predicted == reference else len(predicted) + len(reference), len(reference)
        )
    return _counted(_jiwer_characters(predicted, reference), len(reference))


def _word_edits(predicted: str, reference: str) -> Edits:
    read, right = predicted.split(), reference.split()
    if read == right or not read or not right:
        return Edits(0 if read == right else len(read) + len(right), len(right))
    jiwer = _jiwer()
    by_word = jiwer.ReduceToListOfListOfWords()
    return _counted(
        jiwer.process_words(" ".join(right), " ".join(read), by_word, by_word), len(right)
    )


def _alignment(predicted: str, reference: str) -> list[tuple[str, str, str]]:
    """(kind, text of the reference, text of what was read), in order."""
    if not predicted or not reference or predicted == reference:
        kind = "equal" if predicted == reference else "other"
        return [(kind, reference, predicted)] if predicted or reference else []
    return [
        (
            chunk.type,
            reference[chunk.ref_start_idx : chunk.ref_end_idx],
            predicted[chunk.hyp_start_idx : chunk.hyp_end_idx],
        )
        for chunk in _jiwer_characters(predicted, reference).alignments[0]
    ]


def _jiwer_characters(predicted: str, reference: str) -> Any:
    # jiwer's own default strips both texts; a rate of 0 shall mean that they are equal.
    jiwer = _jiwer()
    by_character = jiwer.ReduceToListOfListOfChars()
    return jiwer.process_characters(reference, predicted, by_character, by_character)


def _counted(output: Any, length: int) -> Edits:
    return Edits(output.substitutions + output.deletions + output.insertions, length)


def _jiwer() -> Any:
    try:
        import jiwer
    except ImportError as error:
        raise ConfigError(
            "error rates of pages are counted by jiwer, which is not installed: "
            "pip install 'headway[vision]'"
        ) from error
    return jiwer


def _spread(values: Sequence[str], most: int) -> list[str]:
    """At most so many of them, evenly spaced, the first among them."""
    return list(values[:: -(-len(values) // most)])
