"""Checks are asked one after the other, and whatever they do, each becomes an answer."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headway.errors import HeadwayError
from headway.records import Check, Finding

RANKS = ("ok", "note", "warning", "not asked", "blocker")
"""How an answer can be, from good to bad."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one check found, and how long it took."""

    name: str
    seconds: float
    findings: tuple[Finding, ...]
    missing: str = ""
    """The check without whose answer this one could not be asked."""
    error: HeadwayError | None = None
    """What the check raised: it knows its exit code."""

    @property
    def level(self) -> str:
        """``blocker``, ``not asked``, ``warning``, ``note`` (something to read), or ``ok``."""
        if self.missing:
            return "not asked"
        return max((mark(f) for f in self.findings), key=RANKS.index, default="ok")


def ask(
    checks: Iterable[Check], clock: Callable[[], float] = time.perf_counter
) -> Iterator[Answer]:
    """An answer for each check, as soon as it is there.

    ``checks`` may be a generator that decides what to ask next by what was found before.
    """
    failed: set[str] = set()
    for check in checks:
        missing = next((name for name in check.needs if name in failed), "")
        answer = (
            Answer(name=check.name, seconds=0.0, findings=(), missing=missing)
            if missing
            else _answered(check, clock)
        )
        if answer.level in ("blocker", "not asked"):
            failed.add(check.name)
        yield answer


def mark(finding: Finding) -> str:
    """A finding's level; a note that asks for nothing is ``ok``."""
    plain = finding.level == "note" and not (finding.why or finding.fix)
    return "ok" if plain else finding.level


def has_blocker(answers: Iterable[Answer]) -> bool:
    """Whether one of them says that this cannot work."""
    return any(answer.level == "blocker" for answer in answers)


def tree(answers: Iterable[Answer]) -> dict[str, Any]:
    """The answers for JSON."""
    told: list[dict[str, Any]] = [
        {
            "name": answer.name,
            "level": answer.level,
            "seconds": round(answer.seconds, 4),
            "findings": [asdict(finding) for finding in answer.findings],
            **({"needs": answer.missing} if answer.missing else {}),
        }
        for answer in answers
    ]
    return {
        "blockers": [check["name"] for check in told if check["level"] == "blocker"],
        "warnings": [check["name"] for check in told if check["level"] == "warning"],
        "seconds": round(sum(check["seconds"] for check in told), 4),
        "checks": told,
    }


def _answered(check: Check, clock: Callable[[], float]) -> Answer:
    started = clock()
    findings: list[Finding] = []
    error = None
    try:
        for finding in check.run():  # one by one: what was found before an error stays
            findings.append(finding)
    except HeadwayError as raised:
        error = raised
        findings.append(Finding(level="blocker", name=check.name, what=str(raised)))
    except Exception as raised:  # a check may run a recipe's code, which may do anything
        findings.append(_unexpected(check, raised))
    return Answer(name=check.name, seconds=clock() - started, findings=tuple(findings), error=error)


def _unexpected(check: Check, error: Exception) -> Finding:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return Finding(
        level="blocker",
        name=check.name,
        what=f"the check {check.name} could not be finished: {type(error).__name__}: {error}",
        why=f"it ended in {Path(where.filename).name}, line {where.lineno}, so nobody knows "
        "whether training would work",
        fix="Mend what the message names; if it names nothing of yours, it is a fault of headway "
        "or of the recipe: please report it",
    )


__all__ = ["Answer", "ask", "has_blocker", "mark", "tree"]
