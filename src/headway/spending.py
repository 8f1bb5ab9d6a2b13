"""What earlier attempts used, and what this one goes on with: money, time, and the way it fits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from headway.checkpoint import CheckpointStore
from headway.config import Cost, RunConfig
from headway.cost import (
    Meter,
    Price,
    Unanswered,
    live_price,
    price_of,
    process_age_seconds,
    spent,
)
from headway.engine.ladder import Rung
from headway.engine.task import Shortening, Task
from headway.engine.world import World
from headway.errors import ConfigError
from headway.limits import LIMITS, RECENT_STEPS, Limits, Spent, steady_seconds, used_seconds
from headway.records import StopReason

HOURS_A_MONTH = 730
USED = {"opening", "step", "stop", "attempt", "evaluation", "save", "out_of_memory", "rollback"}
"""Journal events that say what earlier attempts used, and how they went on."""


def started_meter(
    section: Cost | None,
    events: Sequence[Mapping[str, Any]],
    store: CheckpointStore,
    billed_until: float | None = None,
    gpus: int = 1,
) -> Meter | None:
    """A meter that goes on from what earlier attempts spent, or None without a price.

    The journal and the checkpoints both know it; where they disagree the larger figure counts.
    ``billed_until``: as in ``opening.opened``. ``gpus``: how many the run trains on.
    """
    if section is None:
        return None
    price = price_now(section, gpus)
    disks = section.storage_usd_per_month / HOURS_A_MONTH
    price = replace(price, usd_per_hour=price.usd_per_hour + disks)
    before = max(spent(events), spent(facts_of(store)))
    age_seconds = unbilled_seconds(billed_until)
    if section.count_idle:
        before += idle_seconds(events, age_seconds) / 3600 * price.usd_per_hour
    return Meter(price, before, age_seconds, clock=steady_seconds)


def price_now(section: Cost, gpus: int = 1) -> Price:
    """What the provider says; where it was not asked or did not answer, what the config says: the
    machine's price, or so many times the table's of one GPU.

    Raises ConfigError: nobody knows a price.
    """
    if section.provider is None:
        return said_price(section, gpus)
    try:
        return live_price(section.provider, section.gpu)
    except Unanswered as error:
        if section.usd_per_hour is None and section.gpu is None:
            advice = "write cost.usd_per_hour or cost.gpu, for when it does not answer"
            raise ConfigError(f"cost.provider: {error}; {advice}") from error
        price = said_price(section, gpus)
        return replace(price, source=f"{price.source} ({error})")


def said_price(section: Cost, gpus: int) -> Price:
    """What the config says. Raises ConfigError."""
    price = price_of(section.gpu, section.usd_per_hour, section.prices)
    if section.usd_per_hour is not None or gpus == 1:
        return price
    return replace(price, usd_per_hour=gpus * price.usd_per_hour, gpu=f"{gpus} x {price.gpu}")


def unbilled_seconds(billed_until: float | None) -> float:
    """What this process has taken so far, or since an earlier attempt of it was billed."""
    if billed_until is None:
        return process_age_seconds()
    return max(0.0, steady_seconds() - billed_until)


def idle_seconds(events: Sequence[Mapping[str, Any]], age_seconds: float) -> float:
    """How long nothing ran since the last attempt's last line, until this process started."""
    instants = [str(event["at"]) for event in events if "at" in event]
    if not instants:
        return 0.0
    since = (datetime.now(UTC) - datetime.fromisoformat(instants[-1])).total_seconds()
    return max(0.0, since - age_seconds)


def limits_of(
    config: RunConfig,
    meter: Meter | None,
    events: Sequence[Mapping[str, Any]],
    store: CheckpointStore,
    billed_until: float | None = None,
) -> Limits:
    """The config's limits, less what earlier attempts used and this one so far."""
    run, cost = config.run, config.cost
    limits = Limits(
        max_seconds=(run.max_hours or math.inf) * 3600,
        stop_at=run.stop_at,
        seconds_before=max(used_seconds(events), used_seconds(facts_of(store)))
        + unbilled_seconds(billed_until),
    )
    if meter is not None:
        limits.spent_usd = lambda: meter.cost_usd
        limits.usd_per_second = meter.usd_for(1.0)
        limits.budget_usd = (cost and cost.budget_usd) or math.inf
    return limits


def refuse_spent(limits: Limits, events: Sequence[Mapping[str, Any]], world: World) -> None:
    """Raise Spent where not even opening the run and one step can be paid.

    By what opening, a step and a save took before: so that a run that has stopped at its budget
    does not load its model, at a price, each time it is started again.
    """
    steps = [e["seconds"] for e in events if e["event"] == "step"][-RECENT_STEPS:]
    saves = [e["write_seconds"] or 0.0 for e in events if e["event"] == "save"][-RECENT_STEPS:]
    ahead = opening_seconds(events) + 2 * max(steps, default=0.0) + 2 * max(saves, default=0.0)
    passed = limits.passed(ahead)
    stop = LIMITS[world.agree(LIMITS.index(StopReason(passed) if passed else None))[0]]
    if stop:
        raise Spent(stop)


def opening_seconds(events: Iterable[Mapping[str, Any]]) -> float:
    """How long the newest attempt that came to train was opening; 0 where none did.

    By the date of its lines, and never more than it says it used by then: a date may be set while a
    run is opened, and a year too much would shut the run out for good.
    """
    began, took, newest = "", 0.0, 0.0
    used = before = 0.0  # run_seconds: on a clock that no one can set
    for event in events:
        if event["event"] == "opening":
            began, took, before = event["at"], 0.0, used
        elif event["event"] == "attempt" and began:
            since = datetime.fromisoformat(event["at"]) - datetime.fromisoformat(began)
            took = max(0.0, since.total_seconds())
        seen = used_seconds([event])
        if took and seen > before:
            newest, took = min(took, seen - before), 0.0
        used = max(used, seen)
    return newest


def facts_of(store: CheckpointStore) -> list[Mapping[str, Any]]:
    """What each committed checkpoint's manifest says of the run at its step."""
    return [checkpoint.manifest.facts for checkpoint in store.checkpoints()]


def rung_of(
    events: Iterable[Mapping[str, Any]], config: RunConfig, hardware: Mapping[str, Any], task: Task
) -> Rung:
    """How steps had to be cut on this very hardware, if the config asks for the same as then.

    ``task`` is told to recompute activations if they had to be, and from which steps on rows are
    cut: that is part of what was learned, so it stays whatever else changes.
    """
    asked = asked_of(config)
    found = Rung()
    for event in events:
        same = event.get("asked") == asked and event.get("hardware") == hardware
        if event["event"] != "out_of_memory":
            continue
        if same:
            found = Rung(halvings=event["halvings"], recomputes=event["recomputes"])
        if event.get("cut_tokens") and isinstance(task, Shortening):
            task.cut_rows(event["cut_tokens"], event["cut_since"])
            found.cut_tokens, found.cut_since = event["cut_tokens"], event["cut_since"]
    if found.recomputes:
        task.recompute_activations()
    return found


def asked_of(config: RunConfig) -> dict[str, Any]:
    """The settings that a rung is relative to."""
    section = config.hardware
    return {
        "microbatch_size": section.microbatch_size,
        "activation_checkpointing": section.activation_checkpointing,
        "precision": section.precision,
    }
