"""A chain: a problem, the steps of its reasoning, and what each step's label says.

A plain text with one score is a chain of one step. A reader of a format turns a record into chains,
and says beside them what it left out (:class:`Drop`) and what it changed (:class:`Note`), so that
nothing disappears uncounted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from headway.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Steps in order, and a target for each that is a loss unit, in the units of its source."""

    problem: str
    """What is asked; may be empty."""
    steps: tuple[str, ...]
    targets: tuple[float | None, ...]
    """One per step. None: not a loss unit here (not rated, or counted by another chain)."""
    source: str
    """Short name of the source: metrics are given for each."""
    where: str
    """File and line of the record, and ``#branch n`` for an alternative step of it."""
    group: str
    """Chains of one problem share it: a split never separates them."""
    evidence: tuple[str, ...] = ()
    """Passages the labels were given against, when the source was asked for them."""
    kinds: tuple[str | None, ...] = ()
    """The type of error of each step, where the source knows it; empty: it does not."""
    extra: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Other numbers of the record, such as a score to be compared with."""

    def __post_init__(self) -> None:
        if not self.steps:
            raise DataError(f"{self.where}: a chain needs at least one step")
        for name, values in (("targets", self.targets), ("kinds", self.kinds or self.steps)):
            if len(values) != len(self.steps):
                given = name if len(values) != 1 else name.removesuffix("s")
                raise DataError(
                    f"{self.where}: {len(self.steps)} steps but {len(values)} {given}: give one "
                    "for each step, null where there is none"
                )

    @property
    def labels(self) -> tuple[float, ...]:
        """The targets that are loss units."""
        return tuple(target for target in self.targets if target is not None)


@dataclass(frozen=True, slots=True)
class Drop:
    """A record, or a part of one, that is not trained on."""

    reason: str
    where: str
    unit: Literal["record", "part"] = "record"


@dataclass(frozen=True, slots=True)
class Note:
    """Something that is trained on, but not exactly as it stands in the file."""

    what: str
    where: str


Item = Chain | Drop | Note
"""What a reader yields."""


def pieces(chain: Chain, *, max_steps: int) -> list[tuple[int, Chain]]:
    """(first step, piece) of at most ``max_steps`` steps each: every label is in exactly one.

    The last piece ends where the chain ends, so no error at the tail is lost. A later piece begins
    with at least ``max_steps // 2`` steps of what came before, their targets None. A piece without
    a label is left out.
    """
    if max_steps < 1:
        raise ValueError(f"a piece holds at least one step, not {max_steps}")
    if len(chain.steps) <= max_steps:
        return [(0, chain)]
    found: list[tuple[int, Chain]] = []
    done = 0
    while done < len(chain.steps):
        fresh = max_steps - max_steps // 2 if done else max_steps
        end = min(done + fresh, len(chain.steps))
        span = slice(max(0, end - max_steps), end)
        context = done - span.start
        if any(target is not None for target in chain.targets[done:end]):
            piece = replace(
                chain,
                steps=chain.steps[span],
                targets=(None,) * context + chain.targets[done:end],
                kinds=chain.kinds[span],
                where=f"{chain.where}#steps {span.start + 1}-{end}",
            )
            found.append((span.start, piece))
        done = end
    return found
