"""One step: sums that add however the batch is split; nothing depends on what ran before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from toy_recipe import RECIPE, ToyConfig, ToyTask

from headway.engine.evaluate import evaluate
from headway.engine.schedule import Schedule
from headway.engine.state import TrainState
from headway.engine.steps import Plan, train_steps
from headway.engine.task import Microbatch
from headway.engine.world import World
from headway.records import StepReport
from toy import context

WORLD = World(torch.device("cpu"))


def plan(steps: int = 6, norm: float = 1.0) -> Plan:
    schedule = Schedule(peak=0.02, num_steps=steps, warmup_steps=2)
    return Plan(num_steps=steps, seed=3, schedule=schedule, max_grad_norm=norm, precision="fp32")


def fresh(config: ToyConfig | None = None, **changes: Any) -> TrainState:
    torch.manual_seed(0)
    task = RECIPE.build(config or ToyConfig(), context(**changes))
    return TrainState(task, torch.optim.AdamW(task.model.parameters(), lr=0.0))


def run_steps(state: TrainState, how: Plan | None = None) -> list[StepReport]:
    return list(train_steps(state.task, state, how or plan(), WORLD))


def weights(state: TrainState) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in state.task.model.parameters()])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_any_split_into_microbatches_gives_the_same_losses_and_weights(size: int) -> None:
    without_dropout = ToyConfig(dropout=0.0)  # dropout draws differ between splits, by design
    whole, split = fresh(without_dropout), fresh(without_dropout, microbatch_size=size)
    for one, other in zip(run_steps(whole), run_steps(split), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.weight == other.weight and one.rows == other.rows == 8
    torch.testing.assert_close(weights(whole), weights(split), rtol=1e-5, atol=1e-6)


def test_a_mean_of_means_would_be_another_number() -> None:
    """Negative control: rows weigh differently, so averaging microbatch means is wrong."""
    state = fresh(ToyConfig(dropout=0.0), microbatch_size=3)
    microbatches = state.task.batch_at(0)
    sums = [state.task.loss(state.task.model, m.inputs)["loss"].sum().item() for m in microbatches]
    right = sum(sums) / sum(m.weight for m in microbatches)
    means = [s / m.weight for s, m in zip(sums, microbatches, strict=True)]
    assert abs(right - sum(means) / len(means)) > 1e-3
    assert run_steps(state, plan(1))[0].loss == pytest.approx(right, rel=1e-6)


def test_the_gradient_is_the_loss_over_the_global_weight() -> None:
    state = fresh(ToyConfig(dropout=0.0))
    (whole,) = state.task.batch_at(0)
    loss = state.task.loss(state.task.model, whole.inputs)["loss"].sum() / whole.weight
    loss.backward()
    grads = [p.grad for p in state.task.model.parameters()]
    expected = torch.nn.utils.get_total_norm([g for g in grads if g is not None])
    assert run_steps(fresh(ToyConfig(dropout=0.0)), plan(1))[0].grad_norm == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_randomness_depends_on_seed_and_step_alone() -> None:
    plain, disturbed = fresh(), fresh()
    run_steps(plain)
    for _ in train_steps(disturbed.task, disturbed, plan(), WORLD):
        torch.randn(1000)  # somebody else draws between two steps
    assert torch.equal(weights(plain), weights(disturbed))


def test_evaluation_between_steps_changes_nothing() -> None:
    plain, measured = fresh(), fresh()
    run_steps(plain)
    for report in train_steps(measured.task, measured, plan(), WORLD):
        found = evaluate(
            measured.task, step=report.step, world=WORLD, precision="fp32", worst_rows=2
        )
        assert found is not None and found.rows == 6 and measured.task.model.training
    assert torch.equal(weights(plain), weights(measured))


def test_evaluation_is_the_mean_over_all_units_and_names_the_worst_rows() -> None:
    task = fresh().task
    found = evaluate(task, step=0, world=WORLD, precision="fp32", worst_rows=3)
    assert found is not None
    task.model.eval()
    per_row = {
        m.rows[0]: (task.loss(task.model, m.inputs)["loss"].item(), m.weight)
        for m in task.held_out()
    }
    total = sum(loss for loss, _ in per_row.values()) / sum(w for _, w in per_row.values())
    assert found.metrics["loss"] == pytest.approx(total)
    means = {row: loss / weight for row, (loss, weight) in per_row.items()}
    assert [w.row for w in found.worst] == sorted(means, key=lambda row: -means[row])[:3]


@pytest.mark.parametrize("place", range(6))
def test_a_row_whose_loss_is_no_number_is_the_worst_wherever_it_stands(place: int) -> None:
    task = fresh().task
    held = list(task.held_out())
    held[place].inputs["x"][:] = float("nan")  # type: ignore[index]
    task.held_out = lambda halvings=0: iter(held)  # type: ignore[method-assign]
    found = evaluate(task, step=0, world=WORLD, precision="fp32", worst_rows=1)
    assert found is not None and math.isnan(found.metrics["loss"])
    assert tuple(row.row for row in found.worst) == held[place].rows


def test_an_interrupted_evaluation_is_no_measurement() -> None:
    found = evaluate(fresh().task, step=0, world=WORLD, precision="fp32", interrupted=lambda: True)
    assert found is None


def test_one_of_several_ranks_shows_life_in_an_evaluation_and_does_not_leave_it_alone() -> None:
    class OneOfTwo(World):
        def sum(self, values: Sequence[float]) -> list[float]:
            return list(values)

        def gather(self, rows: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
            return rows

    asked: list[int] = []

    def interrupted() -> bool:
        asked.append(1)
        return True

    task, world = fresh().task, OneOfTwo(torch.device("cpu"), rank=0, ranks=2)
    found = evaluate(task, step=0, world=world, precision="fp32", interrupted=interrupted)
    assert found is not None and len(asked) == found.rows == 6


def test_a_non_finite_step_names_the_row_and_leaves_the_weights_alone() -> None:
    state = fresh(ToyConfig(nan_at_steps=(2,)))
    reports = train_steps(state.task, state, plan(), WORLD)
    next(reports), next(reports)
    before, guilty = weights(state).clone(), state.task.batch_at(2)[-1].rows[-1]
    moments = {n: m["exp_avg"].clone() for n, m in enumerate(state.optimizer.state.values())}
    refused = next(reports)
    assert refused.step == state.step == 3 and refused.refused is not None
    assert refused.refused.rows == (guilty,) and "loss nan" in refused.refused.why
    assert torch.equal(before, weights(state)) and state.refused == [3]
    for n, moment in enumerate(state.optimizer.state.values()):
        assert torch.equal(moment["exp_avg"], moments[n])
    assert state.rows == 16  # what taught nothing is not counted as seen
    after = next(reports)
    assert after.refused is None and not torch.equal(before, weights(state))


def test_an_optimizer_that_ran_on_a_non_finite_gradient_would_ruin_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: one such update is enough."""
    monkeypatch.setattr("headway.engine.steps.refusal", lambda *_: None)
    state = fresh(ToyConfig(nan_at_steps=(2,)))
    run_steps(state)
    assert weights(state).isnan().all()


def test_a_gradient_that_is_not_finite_is_refused_though_every_loss_is_finite() -> None:
    state = fresh()
    parameter = next(iter(state.task.model.parameters()))
    hook = parameter.register_hook(lambda gradient: gradient / 0)
    refused = next(train_steps(state.task, state, plan(), WORLD))
    hook.remove()
    assert refused.refused is not None and refused.refused.rows == ()
    assert math.isfinite(refused.loss) and not math.isfinite(refused.grad_norm)


def test_steps_that_are_left_out_are_not_computed_and_still_counted() -> None:
    state, other = fresh(), fresh()
    state.left_out = [(2, 3)]
    reports = run_steps(state)
    assert [r.step for r in reports] == [1, 2, 3, 4, 5, 6]
    assert [bool(r.refused and r.refused.left_out) for r in reports] == [
        False, True, True, False, False, False,
    ]  # fmt: skip
    whole = run_steps(other)
    assert reports[0] == replace(whole[0], seconds=ANY, memory_bytes=ANY)
    assert [r.learning_rate for r in reports] == [r.learning_rate for r in whole]
    assert state.rows == 32 and not torch.equal(weights(state), weights(other))


def test_an_error_in_the_batch_thread_is_raised_by_the_step_that_needs_it() -> None:
    class Breaks(ToyTask):
        def batch_at(self, step: int, halvings: int = 0) -> list[Microbatch]:
            if step == 2:
                raise KeyError("row 7")
            return super().batch_at(step)

    state = fresh()
    state.task = Breaks(ToyConfig(), context(), state.task.model)
    reports = train_steps(state.task, state, plan(), WORLD)
    assert next(reports).step == 1 and next(reports).step == 2
    with pytest.raises(KeyError, match="row 7"):
        next(reports)


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_reported() -> None:
    free, clipped = fresh(), fresh()
    one = run_steps(free, plan(1, norm=0.0))[0]
    other = run_steps(clipped, plan(1, norm=one.grad_norm / 10))[0]
    assert one.grad_norm == other.grad_norm


@pytest.mark.parametrize("shape", ["linear", "cosine", "constant", "wsd"])
def test_a_schedule_warms_up_peaks_and_ends_in_optimizer_steps(shape: str) -> None:
    schedule = Schedule(
        peak=1.0, num_steps=100, shape=shape, warmup_steps=10, floor_ratio=0.1, decay_steps=20
    )
    rates = [schedule.at(step) for step in range(101)]
    assert 0 < rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == 1.0
    assert rates[100] == pytest.approx(1.0 if shape == "constant" else 0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    if shape == "wsd":
        assert rates[80] == 1.0 and rates[81] < 1.0
