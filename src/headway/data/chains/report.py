"""What became of the chains: read, kept, dropped and why; what their labels are; what is doubled or
leaked; and, in words, what cannot be learned from them. Shown before step 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from headway.data.chains.chain import Chain, Drop, Item

_SHOWN = 5
_BINS = 10
LEAKED = {
    "train": "also among the training chains",
    "held-out": "also among the held-out chains, which choose the best checkpoint",
}
"""What is said of a chain that is in this split too, and must not be."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of one source in one split."""

    count: int
    low: float
    """Lower end of the range: as given, else 0 when all lie within 0 to 1, else the least."""
    high: float
    negatives: int
    """Labels below the middle of that range."""
    bins: tuple[tuple[str, int], ...]
    """Value, or range of values, and how many labels have it."""

    @property
    def middle(self) -> float:
        """Half of the range: below it a label counts as negative."""
        return (self.low + self.high) / 2


def labels_of(values: Sequence[float], target_range: tuple[float, float] | None = None) -> Labels:
    """Count the labels: by value when there are at most ten values, else in ten equal bins.

    ``target_range``: what a label may be. The labels that happen to be there do not say it: of
    stars from 1 to 5, where only 4 and 5 were given, none is a negative.
    """
    low, high = target_range or (0.0, 1.0)
    if not values:
        return Labels(0, low, high, 0, ())
    if target_range is None and not (min(values) >= 0 and max(values) <= 1):
        low, high = min(values), max(values)
    counts = Counter(values)
    if len(counts) <= _BINS:
        bins = [(f"{value:g}", counts[value]) for value in sorted(counts)]
    else:
        inside = [0] * _BINS
        for value, count in counts.items():
            place = int((value - low) / (high - low) * _BINS)
            inside[max(0, min(_BINS - 1, place))] += count
        edges = [low + (high - low) * i / _BINS for i in range(_BINS + 1)]
        bins = [(f"{edges[i]:.3g} to {edges[i + 1]:.3g}", n) for i, n in enumerate(inside)]
    negatives = sum(count for value, count in counts.items() if value < (low + high) / 2)
    return Labels(len(values), low, high, negatives, tuple(bins))


@dataclass(slots=True, kw_only=True)
class ChainTally:
    """What became of the records of one source. Filled while they are read."""

    source: str
    """Its name."""
    path: str
    format: str = ""
    read: int = 0
    """Records."""
    kept: int = 0
    """Records that are in a chain, or gave one or more; the others are dropped."""
    chains: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> records."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> parts of records that were kept or not: labels, chains of a question."""
    notes: dict[str, int] = field(default_factory=dict)
    """What was changed, or is worth knowing -> how often."""
    first: dict[str, list[str]] = field(default_factory=dict)
    """What happened -> where it happened first, at most five places."""
    warnings: list[str] = field(default_factory=list)

    def count(self, item: Item) -> None:
        """Count what a reader yielded."""
        if isinstance(item, Chain):
            self.chains += 1
        elif isinstance(item, Drop):
            reasons = self.dropped if item.unit == "record" else self.left_out
            _add(reasons, self.first, item.reason, item.where)
        else:
            _add(self.notes, self.first, item.what, item.where)

    def lines(self) -> list[str]:
        """One line for the source, and one for each thing that happened to its records."""
        shown = [
            f"{self.source} ({self.format}): {self.path}: {self.kept:,} of {self.read:,} records, "
            f"{self.chains:,} chains"
        ]
        for reason, count in self.dropped.items():
            shown.append(f"  {count:,} dropped, {reason}: {_places(self.first[reason], count)}")
        for reason, count in self.left_out.items():
            shown.append(f"  {count:,} left out, {reason}: {_places(self.first[reason], count)}")
        for what, count in self.notes.items():
            shown.append(f"  {count:,} × {what}: {_places(self.first[what], count)}")
        return shown + [f"  warning: {warning}" for warning in self.warnings]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitTally:
    """The chains of one source in one split."""

    source: str
    split: str
    """``train``, ``held-out`` (what chooses the best checkpoint) or ``test``."""
    chains: int
    steps: int
    """Of all chains, those without a target too."""
    labels: Labels
    duplicates: int = 0
    """Chains whose problem and steps were already in this split."""
    contradicting: int = 0
    """Of those, how many have other targets: no model can be right about all of them."""
    leaked: int = 0
    """Chains not trained on whose problem and steps are among the training chains too."""
    chosen_by: int = 0
    """Test chains whose problem and steps are among the held-out chains too: those choose."""
    known: int = 0
    """Chains not trained on, leaked or not, of a problem that training chains have too."""
    first: dict[str, list[str]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """How many labels, which, and what is doubled or leaked."""
        labels = self.labels
        share = 100 * labels.negatives / labels.count if labels.count else 0.0
        shown = [
            f"{self.split}: {self.source}: {self.chains:,} chains, {labels.count:,} labels on "
            f"{self.steps:,} steps, {share:.1f} % of them below {labels.middle:g}",
            "  labels: " + ", ".join(f"{name}: {count:,}" for name, count in labels.bins),
        ]
        for what, count in (
            ("seen before in this split", self.duplicates),
            ("seen before with other targets", self.contradicting),
            (LEAKED["train"], self.leaked),
            (LEAKED["held-out"], self.chosen_by),
            ("of a problem that training chains have too", self.known),
        ):
            if count:
                shown.append(f"  {count:,} {what}: {_places(self.first[what], count)}")
        return shown + [f"  warning: {warning}" for warning in self.warnings]


def known_problems(source: str, split: str, known: int, chains: int) -> tuple[str, ...]:
    """What chains of training problems cannot measure, in words."""
    if not known:
        return ()
    return (
        f"{known:,} of {chains:,} {split} chains of {source} are of a problem that training "
        "chains have too: on these, what is measured is not how new problems are judged",
    )


def warnings_of(source: str, split: str, labels: Labels) -> tuple[str, ...]:
    """What labels cannot teach, or cannot measure, in words."""
    if labels.count and not labels.negatives:
        goal = "learned" if split == "train" else "measured"
        return (
            f"{source} has no negatives: none of its {labels.count:,} {split} labels is below "
            f"{labels.middle:g}, the middle of its range, so what a wrong step looks like cannot "
            f"be {goal} from it",
        )
    if labels.count and labels.negatives == labels.count:
        return (
            f"{source} has only negatives: all of its {labels.count:,} {split} labels are below "
            f"{labels.middle:g}, the middle of its range",
        )
    return ()


@dataclass(frozen=True, slots=True)
class ChainReport:
    """All there is to know about the data of a run before its first step."""

    sources: tuple[ChainTally, ...]
    splits: tuple[SplitTally, ...]
    sampled: tuple[tuple[str, float], ...]
    """Training source -> its share of the chains as the order draws them: counted."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings, of all sources and splits."""
        of_sources = [warning for source in self.sources for warning in source.warnings]
        return (*of_sources, *(warning for split in self.splits for warning in split.warnings))

    def lines(self) -> list[str]:
        """For the terminal."""
        shown = [line for source in self.sources for line in source.lines()]
        shown += [line for split in self.splits for line in split.lines()]
        if len(self.sampled) > 1:
            mix = ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.sampled)
            shown.append(f"mixture as sampled: {mix}")
        return shown

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _add(reasons: dict[str, int], first: dict[str, list[str]], what: str, where: str) -> None:
    reasons[what] = reasons.get(what, 0) + 1
    remember(first, what, where)


def remember(first: dict[str, list[str]], what: str, where: str) -> None:
    """Keep ``where`` when it is one of the first places where ``what`` happened."""
    places = first.setdefault(what, [])
    if len(places) < _SHOWN:
        places.append(where)


def _places(places: Sequence[str], count: int) -> str:
    return ", ".join(places) + (", …" if count > len(places) else "")
