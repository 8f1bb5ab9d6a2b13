"""What a tracker is told, made from the journal's events one by one: a pure mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a tracker shows above the curves; the same for all attempts."""

    identity: str
    """Sixteen hex digits that name the run wherever it goes on."""
    name: str
    config: Mapping[str, Any]
    """The resolved config; it holds no secrets."""


@dataclass(frozen=True, slots=True)
class Row:
    """One optimizer step."""

    step: int
    at: float
    """Seconds since 1970, when it was written."""
    values: Mapping[str, float]
    """``train/loss`` and so on; NaN and infinity are values too."""

    @property
    def loss(self) -> float:
        """What tells whether a step that was done again is the same."""
        return self.values.get("train/loss", float("nan"))


@dataclass(frozen=True, slots=True)
class Measurement:
    """One evaluation."""

    step: int
    at: float
    values: Mapping[str, float]
    worst: Sequence[Mapping[str, Any]] = ()
    """The rows with the highest loss: ``row``, ``loss``, and what the recipe shows of them."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a person should hear of."""

    step: int
    at: float
    title: str
    text: str
    level: Literal["info", "warning", "error"] = "warning"


Record = Row | Measurement | Note


def translate(event: Event, step: int = 0) -> Record | None:
    """The record of one event; None where it is nothing for a tracker.

    ``step``: the newest, for what has none of its own. Raises nothing for an event of any shape.
    """
    try:
        return _record(event, step)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _record(event: Event, step: int) -> Record | None:
    at = seconds(event.get("at"))
    match event.get("event"):
        case "step":
            return Row(int(event["step"]), at, _step_values(event))
        case "evaluation":
            found = {"metrics": event.get("metrics"), "baselines": event.get("baselines")}
            values = {
                f"eval/{key}": value
                for part in found.values()
                for key, given in (part or {}).items()
                if (value := number(given)) is not None
            }
            return Measurement(int(event["step"]), at, values, event.get("worst") or ())
        case "alert":
            kind = str(event["kind"]).replace("_", " ")
            text = ". ".join(str(event[k]) for k in ("what", "why", "advice") if event.get(k))
            level: Literal["warning", "error"] = (
                "error" if event.get("level") == "critical" else "warning"
            )
            return Note(int(event.get("step", step)), at, kind, text, level)
        case "rollback":
            text = f"back to step {event['back_to']}: {event.get('why')}"
            return Note(int(event["step"]), at, "roll back", text)
        case "warning" | "quarantine":
            return Note(step, at, str(event["event"]), str(event["what"]))
        case "stop" if event.get("reason") == "error":
            return Note(step, at, "stopped by an error", str(event.get("message") or ""), "error")
    return None


def _step_values(event: Event) -> dict[str, float]:
    taken = {
        "train/loss": event.get("loss"),
        "train/learning_rate": event.get("learning_rate"),
        "train/grad_norm": event.get("grad_norm"),
        **{f"train/{key}": value for key, value in (event.get("also") or {}).items()},
        "machine/step_seconds": event.get("seconds"),
        "machine/memory_bytes": event.get("memory_bytes"),
        "cost/usd": event.get("cost_usd"),
    }
    values = {key: value for key, given in taken.items() if (value := number(given)) is not None}
    spent, tokens = number(event.get("seconds")), number(event.get("tokens"))
    if spent and tokens is not None:
        values["machine/tokens_per_second"] = tokens / spent
    hours = number(event.get("run_seconds"))
    if hours is not None:
        values["cost/hours"] = hours / 3600
    return values


def number(value: Any) -> float | None:
    """A number of the journal, which writes NaN and infinity as text; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    return float(value) if value in ("nan", "inf", "-inf") else None


def seconds(at: Any) -> float:
    """An ISO 8601 instant as seconds since 1970; 0 for anything else."""
    try:
        return datetime.fromisoformat(at).timestamp()
    except (TypeError, ValueError):
        return 0.0
