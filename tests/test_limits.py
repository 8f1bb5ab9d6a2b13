"""Budget, hours, deadline: a run stops while the final save and the upload still fit."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_recipe import ToyRecipe

from headway.api import train
from headway.cost import Meter, Price, process_age_seconds
from headway.engine.task import Interrupted
from headway.engine.world import World
from headway.journal import read_events
from headway.limits import LIMITS, Limits, Spent, used_seconds
from headway.opening import opened
from headway.records import StepReport, StopReason
from headway.run import train as loop
from headway.show import Quiet
from headway.spending import opening_seconds, refuse_spent, started_meter
from toy import Cut, CutAt, assert_same_state, final_state, toy_config

WORLD = World(torch.device("cpu"))
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Clock:
    """Seconds that only a test lets pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def date(self) -> datetime:
        return NOON + timedelta(seconds=self.now)


def simulated(random: Random, limits: Limits, clock: Clock, drains: bool) -> int:
    """A run whose every part takes a random time, at most twice as long as one before it did.

    Returns how many steps it made before a limit stopped it.
    """
    step, save, drain = (random.uniform(0.1, 20) for _ in range(3))
    limits.expected_save_seconds = 2 * save  # a cautious first guess
    steps = 0
    while limits.reached(drain_seconds=drain * drains) is None:
        took = step * random.uniform(0.5, 1.0 if steps == 0 else 2.0) / 2
        clock.now += took
        limits.took(step=took)
        steps += 1
        if steps % 5 == 0:
            saved = save * random.uniform(0.5, 1.0)
            clock.now += saved * random.random()  # the rest is beside the next steps
            limits.took(save=saved)
        if steps == 10_000:
            break
    clock.now += save * random.uniform(0.5, 1.0)
    clock.now += drain * random.random() * drains
    return steps


@settings(max_examples=200, deadline=None)
@given(
    st.integers(),
    st.floats(0.1, 50),
    st.floats(0.5, 5),
    st.integers(1, 4),
    st.booleans(),
)
def test_over_any_attempts_a_run_never_costs_more_than_its_budget(
    seed: int, usd_per_hour: float, budget_usd: float, attempts: int, drains: bool
) -> None:
    price = Price(usd_per_hour=usd_per_hour, gpu="x", source="config", date="2026-11-21")
    random, clock, spent = Random(seed), Clock(), 0.0
    for _ in range(attempts):
        meter = Meter(price, spent, clock=clock)
        limits = Limits(
            spent_usd=lambda meter=meter: meter.cost_usd,  # type: ignore[misc]
            usd_per_second=meter.usd_for(1), budget_usd=budget_usd, clock=clock, now=clock.date,
        )  # fmt: skip
        limits.took(step=20)
        if limits.reached(drain_seconds=20.0) is None:
            simulated(random, limits, clock, drains)
        spent = meter.cost_usd
    assert spent <= budget_usd


@settings(max_examples=50, deadline=None)
@given(st.integers(), st.floats(200, 5000))
def test_hours_and_a_deadline_are_kept_in_the_same_way(seed: int, seconds: float) -> None:
    for given_limit in ({"max_seconds": seconds}, {"stop_at": NOON + timedelta(seconds=seconds)}):
        clock = Clock()
        limits = Limits(**given_limit, clock=clock, now=clock.date)  # type: ignore[arg-type]
        limits.took(step=20)
        assert simulated(Random(seed), limits, clock, True) > 0
        assert clock.now <= seconds
        clock.now = seconds
        assert limits.passed() == "deadline"


def test_without_a_reserve_the_final_save_would_break_the_budget() -> None:
    """Negative control: stopping when the money is gone is too late."""
    clock = Clock()
    limits = Limits(max_seconds=100, clock=clock)
    limits.took(step=1, save=10)
    while limits.passed() is None:  # instead of ``reached``
        clock.now += 1
    assert clock.now + 10 > 100
    clock.now = 0.0
    while limits.reached() is None:
        clock.now += 1
    assert clock.now + 10 <= 100 and clock.now > 70, "and not a minute too early"


def test_an_evaluation_before_the_last_save_is_in_the_reserve() -> None:
    limits = Limits(max_seconds=100, clock=Clock(), seconds_before=50)
    limits.took(evaluation=30)
    assert limits.reached() is None and limits.reached(evaluates=True) == "deadline"


def test_nine_tenths_are_said_once() -> None:
    usd = [8.9]
    limits = Limits(spent_usd=lambda: usd[0], budget_usd=10, clock=Clock())
    assert limits.warning() is None
    usd[0] = 9.0
    assert limits.warning() == (
        "$9.00 of cost.budget_usd $10 is used (90%); the run saves and stops before it is all"
    )
    usd[0] = 9.5
    assert limits.warning() is None


def test_without_limits_nothing_is_ever_reached() -> None:
    clock = Clock()
    limits = Limits(clock=clock, spent_usd=lambda: 1e9)
    clock.now = 1e12
    assert limits.reached(evaluates=True, drain_seconds=1e9) is None and limits.warning() is None


def test_time_that_a_lost_line_held_does_not_come_back() -> None:
    lines: list[dict[str, Any]] = [{"run_seconds": 7.0}, {"event": "x"}, {"run_seconds": 5.0}]
    assert used_seconds(lines) == 7.0 and used_seconds([]) == 0.0
    assert used_seconds([*lines, {"run_seconds": float("inf")}, {"run_seconds": "9"}]) == 7.0


# ------------------------------------------------------------------ real runs


def test_a_real_run_stops_within_one_step_of_what_its_budget_allows(tmp_path: Path) -> None:
    """A dollar a second; each step takes a twentieth of one at least."""
    config = toy_config(
        tmp_path,
        train={"horizon": {"steps": 10_000}},
        task={"step_seconds": 0.05},
        checkpoint={"every_steps": 5},
        cost={"usd_per_hour": 3600.0, "budget_usd": 1e6},
    )
    with opened(config) as run:
        start = run.meter.cost_usd  # type: ignore[union-attr]
        run.limits.budget_usd = start + 4.0
        assert loop(run) is StopReason.BUDGET
        cost = run.meter.cost_usd  # type: ignore[union-attr]
        reserve = run.limits.reached
        unused = start + 4.0 - cost
        step = max(run.limits._steps)
        saves = run.limits.save_seconds
    assert reserve() == "budget"
    assert 0 <= unused <= 2 * step + 2 * saves + 2 * step, "as late as the reserve allows"
    lines = read_events(tmp_path / "run/journal.jsonl", {"step", "stop"})
    assert lines[-1]["reason"] == "budget" and StopReason.BUDGET.exit_code == 76
    newest = sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1]
    assert int(newest.name.removeprefix("step-")) == lines[-2]["step"], "nothing was thrown away"


def test_cost_and_time_add_up_over_ten_kills(tmp_path: Path) -> None:
    """A dollar a second, of all the time that the process of each attempt has been there."""
    config = toy_config(tmp_path, train={"horizon": {"steps": 12}}, cost={"usd_per_hour": 3600.0})
    least = most = 0.0
    for cut in range(1, 12):
        least += process_age_seconds()
        with pytest.raises(Cut) if cut < 11 else contextlib.nullcontext():
            train(config, show=CutAt(cut) if cut < 11 else None)
        most += process_age_seconds()
    lines = read_events(tmp_path / "run/journal.jsonl", {"step", "stop"})
    for name in ("cost_usd", "run_seconds"):
        figures = [line[name] for line in lines if line["event"] == "step"]
        assert figures == sorted(figures) and len(set(figures)) == len(figures)
        assert least <= lines[-1][name] <= most


def test_a_run_that_stopped_at_a_limit_builds_nothing_when_it_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds, real = [], ToyRecipe.build

    def build(self: Any, *given: Any) -> Any:
        builds.append(given)
        return real(self, *given)

    monkeypatch.setattr(ToyRecipe, "build", build)
    config = toy_config(tmp_path, run={"max_hours": 1.0}, train={"horizon": {"steps": 50}})

    class Late(Quiet):
        def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
            if report.step == 3:  # what is left is less than opening, a step and a save took
                run.limits.seconds_before = 3600.0 - 1e-3 - (run.limits.run_seconds - before)

    with opened(config, show=Late()) as run:
        before = run.limits.seconds_before
        assert loop(run) is StopReason.DEADLINE
    monkeypatch.setattr("headway.spending.process_age_seconds", lambda: 0.0)
    for _ in range(2):
        assert len(builds) == 1 and train(config) is StopReason.DEADLINE
    last = read_events(tmp_path / "run/journal.jsonl", {"attempt", "opening", "stop"})[-1]
    assert last["reason"] == "deadline" and "not even" in last["message"]
    assert train(toy_config(tmp_path, train={"horizon": {"steps": 50}})) is StopReason.FINISHED
    assert len(builds) == 2


def lines_of(opened_at: datetime, attempt_at: datetime) -> list[dict[str, Any]]:
    """An attempt that came to train in 4 s of its 100 so far, by the dates it saw."""
    return [
        {"event": "stop", "at": "x", "run_seconds": 50.0},
        {"event": "opening", "at": opened_at.isoformat()},
        {"event": "attempt", "at": attempt_at.isoformat()},
        {"event": "step", "at": "x", "run_seconds": 56.0, "seconds": 1.0},
        {"event": "step", "at": "x", "run_seconds": 100.0, "seconds": 1.0},
    ]


def test_a_date_that_jumped_while_a_run_was_opened_does_not_shut_it_out_for_good() -> None:
    right = lines_of(NOON, NOON + timedelta(seconds=4))
    assert opening_seconds(right) == 4.0
    jumped = lines_of(NOON, NOON + timedelta(days=365))
    assert opening_seconds(jumped) == 6.0, "it had used no more when its first step was done"
    assert opening_seconds(lines_of(NOON, NOON - timedelta(days=365))) == 0.0
    gone = [{"event": "opening", "at": NOON.isoformat()}]  # the newest, killed before it trained
    assert opening_seconds([*right, *gone]) == 4.0
    refuse_spent(Limits(max_seconds=200, seconds_before=100), jumped, WORLD)
    with pytest.raises(Spent):
        refuse_spent(Limits(max_seconds=107, seconds_before=100), jumped, WORLD)


def test_a_recipes_own_measuring_ends_with_the_limit_and_is_made_whole_by_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a vision run that reads aloud: for minutes it makes no step."""
    real, beats = ToyRecipe.measure, []

    def reading(self: Any, task: Any, evaluation: Any, go_on: Any) -> Any:
        for word in range(1000):
            beats.append(word)
            go_on()
            if word == 5:
                run.limits.max_seconds = 0.0
        raise AssertionError("nobody stopped it")

    config = toy_config(tmp_path, evaluate={"every_steps": 2})
    with monkeypatch.context() as slow:
        slow.setattr(ToyRecipe, "measure", reading)
        with opened(config) as run:
            signs = []
            monkeypatch.setattr(run.monitor, "beat", lambda *given: signs.append(given))
            assert loop(run) is StopReason.DEADLINE
    assert beats[-1] == 6 and len(signs) > len(beats)
    assert not read_events(tmp_path / "run/journal.jsonl", {"evaluation"})
    assert ToyRecipe.measure is real and train(config) is StopReason.FINISHED
    found = read_events(tmp_path / "run/journal.jsonl", {"evaluation"})
    assert [event["step"] for event in found] == [0, 2, 4, 6]


def test_a_deadline_stops_with_a_checkpoint_and_more_time_goes_on(tmp_path: Path) -> None:
    train(toy_config(tmp_path / "whole"))

    class Late(Quiet):
        def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
            if report.step == 3:
                run.limits.seconds_before = 7200.0

    with opened(toy_config(tmp_path, run={"max_hours": 1.9}), show=Late()) as run:
        assert loop(run) is StopReason.DEADLINE
    assert (tmp_path / "run/checkpoints/step-00000003").is_dir()
    assert train(toy_config(tmp_path, run={"max_hours": 1.9})) is StopReason.DEADLINE
    past = toy_config(tmp_path, run={"stop_at": "2020-01-01T00:00:00Z"})
    assert train(past) is StopReason.DEADLINE
    assert train(toy_config(tmp_path, run={"max_hours": 5.0})) is StopReason.FINISHED
    assert_same_state(final_state(tmp_path / "run"), final_state(tmp_path / "whole/run"))


def test_a_run_whose_last_step_is_done_when_the_time_is_is_finished(tmp_path: Path) -> None:
    """Nothing is left to pay for; unless the last evaluation is."""

    class Late(Quiet):
        def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
            if report.step == 6:
                run.limits.seconds_before = 7200.0

    with opened(toy_config(tmp_path, run={"max_hours": 1.0}), show=Late()) as run:
        assert loop(run) is StopReason.FINISHED
    measured = {"run": {"max_hours": 1.0}, "evaluate": {"every_steps": 6, "at_start": False}}
    with opened(toy_config(tmp_path / "two", **measured), show=Late()) as run:
        assert loop(run) is StopReason.DEADLINE
    journal = tmp_path / "two/run/journal.jsonl"
    assert not read_events(journal, {"evaluation"})
    measured["run"] = {"max_hours": 9.0}
    assert train(toy_config(tmp_path / "two", **measured)) is StopReason.FINISHED
    assert [event["step"] for event in read_events(journal, {"evaluation"})] == [6]


def test_every_rank_names_the_same_reason_where_measuring_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket's reserve is rank 0's alone, so another rank may not see the limit."""

    def left(self: Any, task: Any, evaluation: Any, go_on: Any) -> Any:
        raise Interrupted

    monkeypatch.setattr(ToyRecipe, "measure", left)
    with opened(toy_config(tmp_path, evaluate={"every_steps": 6})) as run:
        said = LIMITS.index(StopReason.BUDGET)
        monkeypatch.setattr(World, "agree", lambda self, *mine: [max(said, m) for m in mine])
        assert run.limit() is None and run.measure_if_due() is StopReason.BUDGET


def test_an_evaluation_ends_early_when_the_money_does(tmp_path: Path) -> None:
    config = toy_config(
        tmp_path,
        evaluate={"every_steps": 2},
        cost={"usd_per_hour": 1.0, "budget_usd": 100.0},
    )
    with opened(config) as run:
        real = run.task.held_out

        def held_out(halvings: int = 0) -> Any:
            for microbatch in real(halvings):
                yield microbatch
                run.meter.spent_usd_before = 1e6  # type: ignore[union-attr]

        run.task.held_out = held_out  # type: ignore[method-assign]
        assert loop(run) is StopReason.BUDGET
    assert not read_events(tmp_path / "run/journal.jsonl", {"evaluation"})


def test_a_lost_journal_does_not_bring_the_money_back(tmp_path: Path) -> None:
    config = toy_config(tmp_path, cost={"usd_per_hour": 3600.0})
    with pytest.raises(Cut):
        train(config, show=CutAt(5))
    with opened(config) as run:
        store = run.saves.store
    spent = store.checkpoints()[-1].manifest.facts["cost_usd"]
    meter = started_meter(config.cost, [], store)
    assert spent > 0 and meter is not None and meter.spent_usd_before == spent


def test_disks_and_idle_time_are_counted_where_they_are_given(tmp_path: Path) -> None:
    config = toy_config(
        tmp_path, cost={"usd_per_hour": 1.0, "storage_usd_per_month": 730.0, "count_idle": True}
    )
    with opened(config) as run:
        store = run.saves.store
    long_ago = (datetime.now(UTC) - timedelta(hours=10)).isoformat()
    meter = started_meter(config.cost, [{"event": "stop", "at": long_ago, "cost_usd": 3.0}], store)
    assert meter is not None and meter.usd_for(3600) == pytest.approx(2.0)
    assert meter.cost_usd == pytest.approx(23.0, rel=1e-2)
    ahead = (datetime.now(UTC) + timedelta(days=365)).isoformat()  # a clock that was wrong
    meter = started_meter(config.cost, [{"event": "stop", "at": ahead, "cost_usd": 3.0}], store)
    assert meter is not None and meter.spent_usd_before == 3.0
