"""What became of the data: how many rows were read, kept, dropped and cut, why, and where.

A tally is kept for each source and split while rows are prepared; the report is shown before step 1
and stored with the prepared rows. Beyond a limit the run is refused, and the first offenders named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from headway.errors import DataError

_SHOWN = 5
CHOOSES = "also among the held-out rows, which choose the best checkpoint"


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts for one source in one split. Filled while rows are read, then only looked at."""

    source: str
    split: str
    read: int = 0
    kept: int = 0
    truncated: int = 0
    duplicates: int = 0
    """Rows whose content was already in this split."""
    leaked: int = 0
    """Rows not trained on whose content is among the training rows too."""
    chosen_by: int = 0
    """Test rows whose content is among the held-out rows too: those choose."""
    tokens: int = 0
    supervised_tokens: int = 0
    cut_tokens: int = 0
    """Tokens that truncation removed."""
    longest_tokens: int = 0
    """Of any row, before truncation."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> rows."""
    formats: dict[str, int] = field(default_factory=dict)
    """Shape that was recognised -> rows."""
    first: dict[str, list[str]] = field(default_factory=dict)
    """What happened -> where it happened first, at most five places."""

    def note(self, what: str, where: str) -> None:
        """Remember one of the first places where ``what`` happened."""
        places = self.first.setdefault(what, [])
        if len(places) < _SHOWN:
            places.append(where)

    def drop(self, reason: str, where: str) -> None:
        """Count a row that will not be trained on."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        self.note(reason, where)


@dataclass(frozen=True, slots=True)
class DataReport:
    """All tallies, the training split first."""

    tallies: tuple[Tally, ...]

    def of(self, split: str) -> list[Tally]:
        """The tallies of ``train``, ``held-out`` or ``test``."""
        return [tally for tally in self.tallies if tally.split == split]

    def lines(self) -> list[str]:
        """For the terminal: one line a source, and one for each thing that happened to its rows."""
        shown = []
        for t in self.tallies:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(t.formats.items()))
            share = 100 * t.supervised_tokens / t.tokens if t.tokens else 0.0
            shown.append(
                f"{t.split}: {t.source}: {t.kept:,} of {t.read:,} rows ({kinds}), {t.tokens:,} "
                f"tokens, {share:.0f} % supervised, longest {t.longest_tokens:,}"
            )
            events = [
                *((f"dropped, {reason}", count, reason) for reason, count in t.dropped.items()),
                (f"truncated, {t.cut_tokens:,} tokens lost", t.truncated, "truncated"),
                ("seen before in this split", t.duplicates, "duplicate"),
                ("also among the training rows", t.leaked, "leaked"),
                (CHOOSES, t.chosen_by, "chosen_by"),
            ]
            for what, count, key in events:
                if count:
                    shown.append(f"  {count:,} {what}: {_places(t.first.get(key, []), count)}")
        return shown

    def tree(self) -> dict[str, Any]:
        """For JSON; :meth:`from_tree` reads it back."""
        return {"tallies": [asdict(tally) for tally in self.tallies]}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> DataReport:
        """The report that :meth:`tree` wrote."""
        return cls(tuple(Tally(**tally) for tally in tree["tallies"]))


def refuse_beyond(
    report: DataReport, *, max_truncated: float, max_dropped: float, max_leaked: float
) -> None:
    """DataError when a split has no row left, or a larger share was cut, dropped or leaked."""
    for split in dict.fromkeys(tally.split for tally in report.tallies):
        tallies = report.of(split)
        read, kept = sum(t.read for t in tallies), sum(t.kept for t in tallies)
        reasons = list(dict.fromkeys(reason for t in tallies for reason in t.dropped))
        if kept == 0:
            raise DataError(
                f"no {split} row is left of {read}: {'; '.join(reasons) or 'nothing was read'}. "
                + _first(tallies, reasons)
                + " `headway data lint` shows each; is task.max_tokens too small for the prompts?"
            )
        for count, limit, name, what, keys in (
            (sum(t.truncated for t in tallies), max_truncated, "max_truncated", "cut at max_tokens",
             ["truncated"]),
            (read - kept, max_dropped, "max_dropped", f"dropped ({'; '.join(reasons)})", reasons),
            (sum(t.leaked for t in tallies), max_leaked, "max_leaked",
             "also among the training rows", ["leaked"]),
            (sum(t.chosen_by for t in tallies), max_leaked, "max_leaked", CHOOSES, ["chosen_by"]),
        ):  # fmt: skip
            if count > limit * read:
                raise DataError(
                    f"{count} of {read} {split} rows ({100 * count / read:.1f} %) are {what}, and "
                    f"{name} allows {100 * limit:g} %. First: {_first(tallies, keys)} Repair the "
                    f"data, or raise {name} if this is meant."
                )


def _first(tallies: Sequence[Tally], keys: Sequence[str]) -> str:
    places = [place for t in tallies for key in keys for place in t.first.get(key, [])]
    return ", ".join(places[:_SHOWN]) + "."


def _places(places: Sequence[str], count: int) -> str:
    return ", ".join(places) + (", …" if count > len(places) else "")
