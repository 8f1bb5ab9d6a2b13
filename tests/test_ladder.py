"""Out of memory: the same batch in smaller pieces, and the same weights at the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_recipe import RECIPE, ToyConfig, ToyTask

from cases import tree_of
from headway.api import train
from headway.config import RunConfig
from headway.engine import steps
from headway.engine.evaluate import evaluate
from headway.engine.ladder import Rung, is_out_of_memory
from headway.engine.schedule import Schedule
from headway.engine.state import TrainState
from headway.engine.steps import Plan, train_steps
from headway.engine.task import Inputs, RowSums
from headway.engine.world import World
from headway.errors import ConfigError, OutOfMemory
from headway.journal import read_events
from headway.opening import opened
from headway.recipes.text import TextTask, TokenRow, cut_row
from headway.records import StepReport, StopReason
from headway.run import train as loop
from toy import Cut, CutAt, assert_same_state, context, final_state, toy_config

WORLD = World(torch.device("cpu"))
STEPS = 5


class Small(ToyTask):
    """Memory for ``fits`` rows in the forward passes that ``tight`` lists, by number."""

    fits = 8
    tight: frozenset[int] = frozenset()
    passes = 0
    fallen = 0
    recomputed = 0

    def loss(self, model: torch.nn.Module, inputs: Inputs) -> RowSums:
        self.passes += 1
        if len(inputs["x"]) > self.fits and (not self.tight or self.passes in self.tight):
            self.fallen += 1
            if torch.is_grad_enabled():  # what a half-done step leaves
                super().loss(model, inputs)["loss"].sum().backward()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return super().loss(model, inputs)

    def recompute_activations(self) -> bool:
        self.recomputed += 1
        return self.recomputed == 1


def fresh(fits: int = 8, tight: frozenset[int] = frozenset(), **changes: Any) -> TrainState:
    torch.manual_seed(0)
    config = ToyConfig(dropout=changes.pop("dropout", 0.0))
    made = RECIPE.build(config, context(**changes))
    task = Small(config, made.context, made.model)
    task.fits, task.tight = fits, tight
    return TrainState(task, torch.optim.AdamW(task.model.parameters(), lr=0.0))


def run_steps(state: TrainState, rung: Rung | None = None) -> list[StepReport]:
    schedule = Schedule(peak=0.02, num_steps=STEPS, warmup_steps=2)
    plan = Plan(num_steps=STEPS, seed=3, schedule=schedule, max_grad_norm=1.0, precision="fp32")
    return list(train_steps(state.task, state, plan, WORLD, rung or Rung()))


def weights(state: TrainState) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in state.task.model.parameters()])


@pytest.mark.fault(67)
@pytest.mark.parametrize(("fits", "halvings"), [(4, 1), (3, 2), (2, 2), (1, 3)])
def test_a_run_that_ran_out_of_memory_ends_with_the_bits_of_one_that_began_small(
    fits: int, halvings: int
) -> None:
    small = fresh(microbatch_size=8 >> halvings, dropout=0.25)
    expected = run_steps(small)
    state, rung = fresh(fits, dropout=0.25), Rung()
    found = run_steps(state, rung)
    assert rung == Rung(halvings=halvings, falls=halvings) and state.task.fallen == halvings
    assert torch.equal(weights(state), weights(small))
    assert [(r.loss, r.grad_norm, r.rows) for r in found] == [
        (r.loss, r.grad_norm, r.rows) for r in expected
    ]


@settings(deadline=None, max_examples=30)
@given(st.frozensets(st.integers(1, 12), min_size=1), st.integers(1, 7))
def test_wherever_memory_runs_out_the_weights_are_equal_to_rounding(
    tight: frozenset[int], fits: int
) -> None:
    whole, state = fresh(), fresh(fits, tight)
    reports = run_steps(whole)
    for one, other in zip(reports, run_steps(state), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
    assert (state.task.fallen > 0) == (min(tight) <= STEPS), "until it falls, a step is a pass"
    torch.testing.assert_close(weights(whole), weights(state), rtol=1e-5, atol=1e-6)


def test_a_broken_steps_gradients_would_be_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without giving back what the broken try left, the weights differ."""
    whole, state = fresh(), fresh(4)
    run_steps(whole)
    monkeypatch.setattr(steps, "give_back_memory", lambda task, device: None)
    run_steps(state)
    assert state.task.fallen == 1
    assert (weights(whole) - weights(state)).abs().max() > 1e-4


def test_when_one_row_does_not_fit_activations_are_recomputed_then_the_row_is_named() -> None:
    state, rung = fresh(fits=0), Rung()
    with pytest.raises(OutOfMemory, match=r"row \d+ with 4 tokens.*task\.max_tokens"):
        run_steps(state, rung)
    assert rung.halvings == 3 and rung.recomputes and state.task.recomputed == 1
    assert state.step == 0 and not state.optimizer.state


def test_in_the_middle_of_a_run_activations_are_recomputed_and_the_mathematics_stays() -> None:
    class Shrinking(Small):
        def loss(self, model: torch.nn.Module, inputs: Inputs) -> RowSums:
            self.fits = 0 if self.passes >= 2 and not self.recomputed else 8
            return super().loss(model, inputs)

    whole, state, rung = fresh(), fresh(), Rung()
    state.task.__class__ = Shrinking
    run_steps(whole)
    reports = run_steps(state, rung)
    assert rung == Rung(halvings=3, recomputes=True, falls=4) and state.task.fallen == 4
    assert [report.step for report in reports] == [1, 2, 3, 4, 5]
    torch.testing.assert_close(weights(whole), weights(state), rtol=1e-5, atol=1e-6)


def test_memory_that_runs_out_where_gradients_are_clipped_is_a_lack_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, state, rung = fresh(microbatch_size=4), fresh(), Rung()
    run_steps(small)
    real, lacks = steps.clip, [torch.OutOfMemoryError("CUDA out of memory.")]

    def clip(*given: Any) -> Any:
        if lacks:
            raise lacks.pop()
        return real(*given)

    monkeypatch.setattr(steps, "clip", clip)
    run_steps(state, rung)
    assert rung == Rung(halvings=1, falls=1)
    assert torch.equal(weights(small), weights(state))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_cut_row_keeps_its_last_supervised_tokens_and_what_predicts_them(
    data: st.DataObject,
) -> None:
    length = data.draw(st.integers(1, 40))
    at = sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1)))
    ends = sorted({*data.draw(st.sets(st.integers(1, length))), length})
    ids = np.arange(100, 100 + length)
    row = TokenRow(ids=ids, ends=tuple(ends), at=np.array(at), targets=np.array(at) + 101)
    tokens = data.draw(st.integers(1, 45))
    short = cut_row(row, tokens)
    assert len(short.ids) <= tokens and short.ends[-1] == len(short.ids)
    assert list(short.ends) == sorted(set(short.ends)) and short.ends[0] > 0
    assert short.targets[-1] == row.targets[-1], "the last answer stays"
    assert (short.ids[short.at] + 1 == short.targets).all(), "each place predicts what it did"
    if length <= tokens:
        assert short is row


@pytest.mark.fault(67)
def test_where_the_config_allows_it_rows_are_cut_from_that_step_on_and_resume_cuts_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of a run that was killed later, and goes on from before the cut, not one row sooner."""
    real = TextTask.loss

    def small(task: TextTask, model: torch.nn.Module, inputs: Inputs) -> RowSums:
        if torch.is_grad_enabled() and seen[0] >= 2 and inputs["input_ids"].shape[1] > 12:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(task, model, inputs)

    class Seen(CutAt):
        def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
            seen[0] = report.step
            super().step(report, plan, cost_usd)

    def config(root: Path) -> RunConfig:
        tree = tree_of("pretrain", root)
        tree["train"] = {**tree["train"], "shorten_rows_to": 8, "horizon": {"steps": 6}}
        tree["checkpoint"] = {"every_steps": 2, "every_minutes": None, "keep_last": 9}
        return RunConfig(**tree)

    seen = [0]
    monkeypatch.setattr(TextTask, "loss", small)
    train(config(tmp_path / "whole"), show=Seen(-1))
    [event] = read_events(tmp_path / "whole/runs/run/journal.jsonl", {"out_of_memory"})
    assert (event["step"], event["cut_since"], event["cut_tokens"]) == (3, 2, 8)
    assert event["recomputes"]
    seen[0] = 0
    with pytest.raises(Cut):
        train(config(tmp_path / "cut"), show=Seen(4))
    train(config(tmp_path / "cut"), show=Seen(-1))
    one, other = (final_state(tmp_path / name / "runs/run") for name in ("whole", "cut"))
    assert_same_state(one, other)


def test_a_run_that_one_row_ended_goes_on_once_rows_may_be_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To allow it makes no other run; and what was cut stays so where that is taken back."""
    real = TextTask.loss

    def small(task: TextTask, model: torch.nn.Module, inputs: Inputs) -> RowSums:
        if torch.is_grad_enabled() and inputs["input_ids"].shape[1] > fits[0]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(task, model, inputs)

    def config(shorten_rows_to: int | None) -> RunConfig:
        tree = tree_of("pretrain", tmp_path)
        train = {"shorten_rows_to": shorten_rows_to, "horizon": {"steps": 4}}
        tree["train"] = {**tree["train"], **train}
        tree["checkpoint"] = {"every_steps": 1, "every_minutes": None, "keep_last": 9}
        return RunConfig(**tree)

    fits = [1000]
    monkeypatch.setattr(TextTask, "loss", small)
    with pytest.raises(Cut):
        train(config(None), show=CutAt(2))
    fits = [12]
    with pytest.raises(OutOfMemory, match=r"train\.shorten_rows_to"):
        train(config(None))
    with pytest.raises(Cut):
        train(config(8), show=CutAt(3))
    journal = tmp_path / "runs/run/journal.jsonl"
    assert read_events(journal, {"out_of_memory"})[-1]["cut_tokens"] == 8
    with opened(config(None)) as run:
        assert run.task.cuts and loop(run) is StopReason.FINISHED  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "case", ["regression-lora", "vision-scratch", "graph_vae", "latent_editor-lora"]
)
def test_leave_to_cut_rows_that_cannot_be_cut_is_refused_and_not_ignored(
    case: str, tmp_path: Path
) -> None:
    tree = tree_of(case, tmp_path)
    with pytest.raises(ConfigError, match=r"train\.shorten_rows_to"):
        train(RunConfig(**{**tree, "train": {**tree["train"], "shorten_rows_to": 8}}))


def test_rows_are_never_cut_unasked_nor_below_what_was_allowed(tmp_path: Path) -> None:
    state, rung = fresh(fits=0), Rung()
    state.task.__class__ = type(
        "Cutting", (Small,), {"cut_rows": lambda self, tokens, since_step: None}
    )
    schedule = Schedule(peak=0.02, num_steps=STEPS, warmup_steps=2)
    for allowed in (None, 4):  # a row has 4 tokens
        plan = Plan(
            num_steps=STEPS, seed=3, schedule=schedule, max_grad_norm=1.0, precision="fp32",
            shorten_to=allowed,
        )  # fmt: skip
        with pytest.raises(OutOfMemory, match=r"train\.shorten_rows_to"):
            list(train_steps(state.task, state, plan, WORLD, rung))
        assert rung.cut_tokens == 0


@pytest.mark.fault(67)
def test_an_update_that_may_be_half_done_is_never_repeated_and_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(toy_config(tmp_path / "whole"))
    real, taken = torch.optim.AdamW.step, [0]

    def step(self: Any, *given: Any) -> Any:
        taken[0] += 1
        if taken[0] == 4:
            next(iter(self.param_groups))["params"][0].data.add_(1.0)  # the half that is done
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, *given)

    with monkeypatch.context() as lack, pytest.raises(OutOfMemory, match=r"step 4.*adamw_8bit"):
        lack.setattr(torch.optim.AdamW, "step", step)
        train(toy_config(tmp_path))
    assert taken[0] == 4
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("step-*"))
    assert kept and kept[-1] <= "step-00000003"
    train(toy_config(tmp_path))
    assert_same_state(final_state(tmp_path / "run"), final_state(tmp_path / "whole/run"))


def test_another_error_is_no_lack_of_memory() -> None:
    class Broken(Small):
        def loss(self, model: torch.nn.Module, inputs: Inputs) -> RowSums:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)")

    state, rung = fresh(), Rung()
    state.task.__class__ = Broken
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        run_steps(state, rung)
    assert rung == Rung()


def test_every_way_of_saying_it_is_understood() -> None:
    for words in ("CUBLAS_STATUS_ALLOC_FAILED when calling", "CUDA error: out of memory"):
        assert is_out_of_memory(RuntimeError(words))
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_an_evaluation_that_runs_out_of_memory_measures_every_row_all_the_same() -> None:
    def measured(state: TrainState, rung: Rung) -> Any:
        state.task.held_out = lambda halvings=0: iter(  # type: ignore[method-assign]
            [state.task.microbatch(part) for part in cut(range(64, 70), 6 >> halvings)]
        )
        return evaluate(state.task, step=0, world=WORLD, precision="fp32", worst_rows=6, rung=rung)

    rung = Rung()
    expected, found = measured(fresh(), Rung()), measured(fresh(fits=2), rung)
    assert rung.halvings == 2 and found.rows == expected.rows == 6
    assert found.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-6)
    assert [row.row for row in found.worst] == [row.row for row in expected.worst]


def cut(rows: range, size: int) -> list[range]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


# ------------------------------------------------------------------ written down, and kept


@pytest.fixture
def tight_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each forward pass; more than three do not fit."""
    seen: list[int] = []
    real = ToyTask.loss

    def loss(task: ToyTask, model: torch.nn.Module, inputs: Inputs) -> RowSums:
        seen.append(len(inputs["x"]))
        if seen[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(task, model, inputs)

    monkeypatch.setattr(ToyTask, "loss", loss)
    return seen


def test_the_next_attempt_begins_where_this_one_came_to_fit(
    tmp_path: Path, tight_rows: list[int]
) -> None:
    config = toy_config(tmp_path)
    with pytest.raises(Cut):
        train(config, show=CutAt(3))
    (event,) = read_events(tmp_path / "run/journal.jsonl", {"out_of_memory"})
    assert (event["step"], event["halvings"], event["falls"]) == (1, 2, 2)
    tight_rows.clear()
    train(config)
    assert max(tight_rows) == 2, "nothing was tried that had not fitted"
    small = toy_config(tmp_path / "small", hardware={"microbatch_size": 2})
    train(small)
    assert_same_state(final_state(tmp_path / "run"), final_state(tmp_path / "small/run"))


def test_another_setting_or_another_machine_is_tried_afresh(
    tmp_path: Path, tight_rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Cut):
        train(toy_config(tmp_path), show=CutAt(2))
    with opened(toy_config(tmp_path, hardware={"microbatch_size": 4})) as run:
        assert run.rung == Rung()
    with opened(toy_config(tmp_path)) as run:
        assert run.rung == Rung(halvings=2)
    another = {"cpu": "another", "memory_bytes": 10**9}
    monkeypatch.setattr("headway.machine.hardware", lambda world: another)
    with opened(toy_config(tmp_path)) as run:
        assert run.rung == Rung()
        tight_rows.clear()
        loop(run)
    assert tight_rows[:3] == [8, 4, 2]


REAL = """
import resource, sys, torch
from pathlib import Path
import toy
from headway.engine.ladder import Rung
from headway.opening import opened
from headway.run import train
import toy_recipe

MEGABYTES = 150
def loss(task, model, inputs, real=toy_recipe.ToyTask.loss):
    ballast = torch.ones(len(inputs["x"]), MEGABYTES << 18)  # float32: 150 MiB a row
    return real(task, model, inputs)
toy_recipe.ToyTask.loss = loss

config = toy.toy_config(Path(sys.argv[1]), hardware={"threads": 1})
with opened(config) as run:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * 4096 + 2 * (MEGABYTES << 20) + (100 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    train(run)
    print(run.rung)
"""


@pytest.mark.fault(67)
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_a_real_lack_of_memory_on_the_host_is_survived(tmp_path: Path) -> None:
    """The kernel refuses the allocation; nothing is injected."""
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(tmp_path)],
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1",
             "PYTHONPATH": ":".join([*map(str, [tests, tests / "plugins"]), *sys.path])},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{Rung(halvings=2, falls=2)}" in done.stdout
    train(toy_config(tmp_path / "small", hardware={"microbatch_size": 2, "threads": 1}))
    assert_same_state(final_state(tmp_path / "run"), final_state(tmp_path / "small/run"))
