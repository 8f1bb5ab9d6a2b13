"""The rules: what is a warning sign, what is none, and that each is said once."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.config import Monitor as Section
from headway.monitor import Alert, Gauges, Monitor, Over
from headway.monitor.history import BLOCK_STEPS, spread
from headway.monitor.running import DISK_LOOKS, minutes_to_full
from headway.monitor.watch import AT_GAUGES, RULES, report_of
from headway.records import Refusal, StepReport

STEPS = 600


def report(step: int, loss: float = 2.0, **changes: Any) -> StepReport:
    given: dict[str, Any] = dict(
        step=step, loss=loss, learning_rate=1e-3, grad_norm=1.0, weight=100.0, rows=8, tokens=1000,
        seconds=1.0, memory_bytes=10**9,
    )  # fmt: skip
    return StepReport(**given | changes)


def falling(seed: int, steps: int = STEPS, noise: float = 0.1) -> list[StepReport]:
    """A loss that falls from 3 to 1.5 with constant noise; gradients and speed vary too."""
    draw = random.Random(seed)
    return [
        report(
            step,
            1.5 + 1.5 * math.exp(-step / 150) + draw.gauss(0, noise),
            grad_norm=math.exp(draw.gauss(0, 0.4)),
            tokens=draw.randrange(800, 1200),
        )
        for step in range(1, steps + 1)
    ]


def said(reports: Iterable[StepReport], monitor: Monitor | None = None) -> list[Alert | Over]:
    """Everything the monitor says of these steps."""
    monitor = monitor or Monitor(Section(), num_steps=STEPS)
    return [one for step in reports for one in monitor.step(step)]


def alerts(found: Iterable[Alert | Over]) -> list[tuple[str, int]]:
    return [(one.kind, one.step) for one in found if isinstance(one, Alert)]


def from_step(first: int, **changes: Callable[[StepReport], Any]) -> list[StepReport]:
    """A falling curve with fields changed from one step on."""
    return [
        step
        if step.step < first
        else replace(step, **{name: new(step) for name, new in changes.items()})
        for step in falling(1)
    ]


# ------------------------------------------------------------------ what is no sign


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), noise=st.sampled_from([0.0, 0.01, 0.1, 0.3]))
def test_a_falling_curve_with_constant_noise_is_no_sign_of_anything(
    seed: int, noise: float
) -> None:
    assert said(falling(seed, noise=noise)) == []


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), factor=st.sampled_from([1e-6, 0.01, 37.0, 1e9]))
def test_a_loss_in_another_unit_is_judged_the_same(seed: int, factor: float) -> None:
    draw = random.Random(seed)
    steps = falling(seed, steps=400)
    for at in draw.sample(range(60, 400), 3):  # spikes of several heights, some below the line
        steps[at] = replace(steps[at], loss=steps[at].loss + draw.choice([0.5, 1.0, 2.0, 8.0]))
    if draw.random() < 0.5:
        steps[250:] = [replace(step, loss=step.loss + 1.5) for step in steps[250:]]
    scaled = [replace(step, loss=step.loss * factor) for step in steps]
    assert [(type(one), one.kind, one.step) for one in said(steps)] == [
        (type(one), one.kind, one.step) for one in said(scaled)
    ]


def test_losses_distributed_exponentially_are_no_spikes_though_a_score_alone_says_so() -> None:
    draw = random.Random(5)
    steps = [report(n, draw.expovariate(1.0)) for n in range(1, 3001)]
    monitor = Monitor(Section(), num_steps=6000)
    assert alerts(said(steps, monitor)) == [("loss_flat", 325)]  # so it is
    window = [step.loss for step in steps]
    scores = [
        (value - sorted(before)[64]) / spread(before)
        for value, before in ((window[n], window[n - 128 : n]) for n in range(128, 3000))
    ]
    assert max(scores) > 8  # negative control: the tail of the window is what tells them apart


# ------------------------------------------------------------------ what is one


def test_a_spike_is_seen_though_the_window_begins_with_the_first_steep_fall() -> None:
    """It was missed in a real run: six times the loss at step 100, after a fall from 3 to 0.4."""
    draw = random.Random(4)
    steps = [report(n, 0.35 + 2.7 * math.exp(-n / 25) + draw.gauss(0, 0.02)) for n in range(1, 140)]
    assert said(steps) == []
    steps[99] = replace(steps[99], loss=2.4)
    assert alerts(said(steps)) == [("loss_spike", 100)]
    losses = [step.loss for step in steps[:99]]  # negative control: the losses themselves hide it
    middle = sorted(losses)[49]
    assert 2.4 - middle < 6 * (sorted(losses)[93] - middle)


SPIKE = [*falling(1)[:299], *[replace(falling(1)[299], loss=9.0)], *falling(1)[300:]]
PLANTED: dict[str, tuple[list[StepReport], int, int]] = {
    # kind: (steps, the step the fault begins at, the latest step at which it must be said)
    "loss_spike": (SPIKE, 300, 300),
    "loss_rising": (from_step(300, loss=lambda s: s.loss + 0.01 * (s.step - 300)), 300, 420),
    "loss_flat": ([replace(s, loss=2 + (s.loss % 0.01)) for s in falling(1)], 1, 300),
    "gradient_exploding": (from_step(300, grad_norm=lambda s: 40 * s.grad_norm), 300, 310),
    "gradient_vanishing": (from_step(300, grad_norm=lambda s: 1e-5 * s.grad_norm), 300, 350),
    "gradient_zero": (from_step(300, grad_norm=lambda s: 0.0), 300, 302),
    "learning_rate_zero": (from_step(300, learning_rate=lambda s: 0.0), 300, 300),
    "throughput_drop": (from_step(300, seconds=lambda s: 2 * s.seconds), 300, 325),
    "memory_growing": (
        from_step(1, memory_bytes=lambda s: 10**9 + 10**7 * s.step), 1, 200,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(PLANTED))
def test_a_planted_fault_is_said_once_and_in_time(kind: str) -> None:
    steps, begins, latest = PLANTED[kind]
    found = said(steps, Monitor(Section(), num_steps=STEPS, memory_limit_bytes=4 * 10**9))
    mine = [step for name, step in alerts(found) if name == kind]
    assert len(mine) == 1 and begins <= mine[0] <= latest, alerts(found)
    expected = {kind, "loss_rising"} if kind == "loss_spike" else {kind}
    assert {name for name, _ in alerts(found)} <= expected
    (alert,) = [one for one in found if isinstance(one, Alert) and one.kind == kind]
    assert alert.what and alert.why and alert.advice


def test_every_rule_has_a_planted_fault() -> None:
    with_tests_of_their_own = {"evaluation_gap", *AT_GAUGES.rules}
    assert set(RULES) == set(PLANTED) | with_tests_of_their_own


def test_an_alert_is_over_after_enough_quiet_looks_and_may_then_come_again() -> None:
    steps = falling(1)
    for at in (299, 310, 450):  # the second is the same episode, the third is another
        steps[at] = replace(steps[at], loss=9.0)
    found = [(type(one).__name__, one.step) for one in said(steps) if one.kind == "loss_spike"]
    assert found == [("Alert", 300), ("Over", 361), ("Alert", 451), ("Over", 501)]


def test_a_refused_step_is_said_and_no_part_of_what_others_are_compared_with() -> None:
    steps = falling(1)
    for at in (299, 300):
        nan = Refusal(why="loss nan, gradient norm nan", rows=(7, 9))
        steps[at] = replace(steps[at], loss=math.nan, grad_norm=math.nan, refused=nan)
    found = said(steps)
    assert alerts(found) == [("non_finite", 300)]
    (alert,) = [one for one in found if isinstance(one, Alert)]
    assert alert.rows == (7, 9) and "7, 9" in alert.what


def test_what_is_muted_is_not_said_and_still_known() -> None:
    monitor = Monitor(Section(), num_steps=STEPS, mute=["loss_spike"])
    spiked = []
    for step in SPIKE:
        assert monitor.step(step) == []
        spiked += [step.step] if monitor.spiked else []
    assert spiked == [300]


# ------------------------------------------------------------------ held-out loss


def evaluated(losses: list[float], train: list[StepReport]) -> list[tuple[str, int]]:
    """The held-out losses at every 100 steps beside a training curve."""
    monitor, found = Monitor(Section(), num_steps=STEPS), []
    for step in train:
        found += monitor.step(step)
        if step.step % 100 == 0:
            found += monitor.evaluation(step.step, losses[step.step // 100 - 1])
    return alerts(found)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.0, 2.0, 1.8, 1.9, 2.0, 2.2], [("evaluation_gap", 500)]),
        ([3.0, 2.0, 1.8, 1.9, 1.79, 1.78], []),  # one step up is noise
        ([3.0, 2.5, 2.2, 2.0, 1.9, 1.85], []),
        ([3.0, 2.0, 1.8, 1.801, 1.802, 1.803], []),  # too little to matter
    ],
)
def test_a_held_out_loss_that_rises_while_training_falls_is_a_sign(
    losses: list[float], expected: list[tuple[str, int]]
) -> None:
    assert evaluated(losses, falling(3, noise=0.01)) == expected


def test_a_held_out_loss_that_rises_with_the_training_loss_is_another_trouble() -> None:
    rising = [replace(s, loss=1 + s.step / 200) for s in falling(3)]
    found = evaluated([3, 2, 1.8, 1.9, 2.0, 2.2], rising)
    assert [kind for kind, _ in found] == ["loss_rising"]


# ------------------------------------------------------------------ the machine


def looked(*gauges: Gauges) -> list[tuple[str, int]]:
    monitor = Monitor(Section(), num_steps=STEPS)
    found = [*monitor.step(report(1))]
    return alerts([*found, *(one for look in gauges for one in monitor.gauges(look))])


def looks(count: int, **values: Callable[[int], Any]) -> list[Gauges]:
    """One look a minute."""
    return [
        Gauges(at_seconds=60.0 * n, **{name: value(n) for name, value in values.items()})
        for n in range(count)
    ]


def test_a_gpu_that_idles_for_two_minutes_is_a_sign_and_one_that_nobody_can_ask_is_not() -> None:
    assert looked(*looks(20, gpu_share=lambda n: 0.3)) == [("gpu_idle", 1)]
    assert looked(*looks(20, gpu_share=lambda n: 0.97)) == []
    assert looked(*looks(20, gpu_share=lambda n: None)) == []
    assert looked(*looks(7, gpu_share=lambda n: 0.0)) == []


def test_a_disk_that_fills_within_the_hour_is_a_sign_and_a_saw_is_not() -> None:
    assert looked(*looks(60, disk_free_bytes=lambda n: 10**11 - n * 10**9)) == [("disk_filling", 1)]
    # Saves of 10 GB, one deleted for each made.
    saw = looks(240, disk_free_bytes=lambda n: 5 * 10**10 - (n % 10) * 10**9)
    stairs = looks(240, disk_free_bytes=lambda n: 5 * 10**10 - (n // 30 % 3) * 10**10)
    assert looked(*saw) == looked(*stairs) == []
    assert looked(*looks(60, disk_free_bytes=lambda n: 10**12 - n * 10**9)) == []  # a day is left


def test_a_disk_without_a_byte_is_full_and_not_unknown() -> None:
    monitor = Monitor(Section())
    monitor.step(report(1))
    (alert,) = monitor.gauges(Gauges(at_seconds=0.0, disk_free_bytes=0, save_bytes=10**9))
    assert isinstance(alert, Alert) and alert.kind == "disk_filling"
    assert monitor.gauges(Gauges(at_seconds=30.0, disk_free_bytes=None, save_bytes=10**9)) == []


def test_a_disk_without_room_for_the_next_checkpoint_is_critical_at_once() -> None:
    monitor = Monitor(Section())
    monitor.step(report(1))
    (alert,) = monitor.gauges(Gauges(at_seconds=0.0, disk_free_bytes=10**9, save_bytes=2 * 10**9))
    assert isinstance(alert, Alert) and alert.level == "critical" and "2.0 GB" in alert.what


@given(rate=st.floats(1e3, 1e8), free=st.floats(1e10, 1e13))
def test_the_time_until_a_disk_is_full_is_what_is_left_over_the_rate(
    rate: float, free: float
) -> None:
    known = [(60.0 * n, int(free - rate * 60 * n)) for n in range(DISK_LOOKS + 10)]
    assert minutes_to_full(known) == pytest.approx(known[-1][1] / rate / 60, rel=1e-3)
    assert minutes_to_full([(at, 5) for at, _ in known]) is None


def test_checkpoints_that_wait_for_the_bucket_look_after_look_are_a_sign() -> None:
    assert looked(*looks(20, waiting_checkpoints=lambda n: 3)) == [("upload_backlog", 1)]
    assert looked(*looks(20, waiting_checkpoints=lambda n: 3 if n % 5 else 0)) == []


# ------------------------------------------------------------------ restarts


def event_of(step: StepReport) -> dict[str, Any]:
    return {"event": "step", **{name: getattr(step, name) for name in StepReport.__slots__}}


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(30, 590), seed=st.integers(0, 1000))
def test_a_monitor_that_remembers_says_what_one_that_never_stopped_says(
    cut: int, seed: int
) -> None:
    steps = falling(seed)
    steps[299:] = [replace(step, loss=step.loss + 4.0) for step in steps[299:]]
    whole = said(steps)
    before = said(steps[:cut])
    again = Monitor(Section(), num_steps=STEPS)
    again.remember([event_of(step) for step in steps[:cut]])
    assert before + said(steps[cut:], again) == whole


def test_speed_and_memory_are_compared_within_one_attempt_only() -> None:
    steps = from_step(300, seconds=lambda s: 2 * s.seconds)
    assert alerts(said(steps)) == [("throughput_drop", 325)]  # negative control: one attempt
    again = Monitor(Section(), num_steps=STEPS)
    again.remember([event_of(step) for step in steps[:299]])
    assert alerts(said(steps[299:], again)) == []  # the next machine is only slower


def test_a_journals_line_is_the_report_it_was_made_from() -> None:
    one = report(7, 1.25, grad_norm=0.1 + 0.2)
    assert report_of(event_of(one)) == one


def test_a_look_is_quick() -> None:
    """Not a timing: how much a rule may look at. Nothing grows with the run."""
    monitor = Monitor(Section(), num_steps=10**6)
    for step in falling(2, steps=40 * BLOCK_STEPS):
        monitor.step(step)
    history = monitor.history
    assert len(history.steps) <= 256 and len(history.blocks) == 40
