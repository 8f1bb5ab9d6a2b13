"""Steps that are not finite: refused, counted, gone back from; and the same after any kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from headway import api, rollback
from headway.api import train
from headway.config import Cost, RunConfig
from headway.cost import process_age_seconds
from headway.errors import NonFiniteStep
from headway.journal import read, read_events, timeline
from headway.records import StepReport, StopReason
from headway.show import Quiet
from toy import Cut, CutAt, assert_same_state, final_state, toy_config

STEPS = 24


def config_of(root: Path, **monitor: Any) -> RunConfig:
    """24 steps; batches 12, 13, 14 (steps 13 to 15) hold a NaN; one refusal is borne."""
    task = {"nan_at_steps": (12, 13, 14), **monitor.pop("task", {})}
    section = {
        "non_finite": {"refuse_steps": 1, "window_steps": 10},
        "roll_back": {"times": 2, "back_steps": 4},
        **monitor,
    }
    return toy_config(
        root, train={"horizon": {"steps": STEPS}}, task=task, monitor=section,
        checkpoint={"every_steps": 4},
    )  # fmt: skip


def journal_of(root: Path) -> list[dict[str, Any]]:
    return read(root / "run/journal.jsonl")


@pytest.mark.fault(65)
def test_a_few_refused_steps_cost_those_steps_and_nothing_else(tmp_path: Path) -> None:
    borne = config_of(tmp_path, non_finite={"refuse_steps": 3})
    assert train(borne) is StopReason.FINISHED
    steps = timeline(journal_of(tmp_path))
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    refused = [line for line in steps if line["refused"]]
    assert [line["step"] for line in refused] == [13, 14, 15]
    assert all(len(line["refused"]["rows"]) == 1 for line in refused)
    state = json.loads(final_state(tmp_path / "run")["state.json"])
    assert state["refused"] == [13, 14, 15] and state["left_out"] == []
    (alert,) = read_events(tmp_path / "run/journal.jsonl", {"alert"})  # one for the whole episode
    assert alert["kind"] == "non_finite" and alert["step"] == 13
    assert alert["rows"] == refused[0]["refused"]["rows"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state of a run that rolled back, and that nothing else interrupted."""
    root = tmp_path_factory.mktemp("whole")
    assert train(config_of(root)) is StopReason.FINISHED
    return final_state(root / "run")


@pytest.mark.fault(65)
def test_one_refusal_too_many_rolls_back_and_leaves_the_stretch_out(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    assert train(config_of(tmp_path)) is StopReason.FINISHED
    events = journal_of(tmp_path)
    (rolled,) = [e for e in events if e["event"] == "rollback"]
    # Refused at 13 and 14; at least 4 steps before 13: the checkpoint at 8.
    assert (rolled["step"], rolled["back_to"]) == (14, 8)
    assert [e["restored_step"] for e in events if e["event"] == "attempt"] == [0, 8]
    assert [e["reason"] for e in events if e["event"] == "stop"] == ["roll back", "finished"]
    steps = timeline(events)
    assert [e["step"] for e in steps] == list(range(1, STEPS + 1))
    left_out = [e["step"] for e in steps if e["refused"] and e["refused"]["left_out"]]
    assert left_out == [9, 10, 11, 12, 13, 14]
    # Batch 14 (step 15) is still bad; it is refused and borne.
    state = json.loads(final_state(tmp_path / "run")["state.json"])
    assert state["left_out"] == [[9, 14]] and state["refused"] == [15]
    assert sorted(p.name[:13] for p in (tmp_path / "run/superseded").iterdir()) == ["step-00000012"]
    assert_same_state(final_state(tmp_path / "run"), whole)


@pytest.mark.parametrize("cut", [5, 9, 11, 13, 14, 15, 17, 23])
def test_a_run_that_rolls_back_and_is_killed_anywhere_ends_the_same(
    tmp_path: Path, whole: dict[str, Any], cut: int
) -> None:
    config = config_of(tmp_path)
    with pytest.raises(Cut):
        train(config, show=CutAt(cut))
    assert train(config) is StopReason.FINISHED
    assert_same_state(final_state(tmp_path / "run"), whole)


def test_a_kill_between_the_roll_backs_line_and_the_next_opening_is_obeyed(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any) -> Any:
        raise Cut

    config = config_of(tmp_path)
    one_attempt = api.one_attempt
    monkeypatch.setattr(
        api, "one_attempt", lambda *given: (one_attempt(*given), monkeypatch.setattr(
            api, "one_attempt", dies))[0],
    )  # fmt: skip
    with pytest.raises(Cut):
        train(config)
    assert journal_of(tmp_path)[-1]["reason"] == "roll back"
    monkeypatch.setattr(api, "one_attempt", one_attempt)
    assert train(config) is StopReason.FINISHED
    assert_same_state(final_state(tmp_path / "run"), whole)


@pytest.mark.parametrize("cut", [None, 9, 13, 14, 17, 23])
def test_with_a_bucket_a_run_that_rolls_back_ends_the_same_on_an_empty_machine(
    tmp_path: Path, whole: dict[str, Any], cut: int | None
) -> None:
    """``cut``: the step after which the machine and its disk are gone; None: neither ever is."""
    asked = {"upload": {"to": (tmp_path / "bucket").as_uri()}}
    first, second = (
        RunConfig(**config_of(tmp_path / name).model_dump(exclude_unset=True) | asked)
        for name in ("first", "second")
    )
    if cut:
        with pytest.raises(Cut):
            train(first, show=CutAt(cut))
    else:
        assert train(first) is StopReason.FINISHED
    assert train(second) is StopReason.FINISHED
    assert_same_state(final_state(tmp_path / "second/run"), whole)


def test_without_leaving_steps_out_a_roll_back_repeats_itself_until_it_is_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: steps are repeated bit for bit, so going back alone is of no use."""
    monkeypatch.setattr(rollback, "left_out", lambda events: [])
    with pytest.raises(NonFiniteStep, match="cannot go back"):
        train(config_of(tmp_path))
    rolled = [e["step"] for e in journal_of(tmp_path) if e["event"] == "rollback"]
    assert rolled == [14, 14]


def test_a_run_that_may_not_roll_back_stops_and_keeps_its_checkpoints(tmp_path: Path) -> None:
    config = config_of(tmp_path, non_finite={"refuse_steps": 0}, roll_back={"times": 0})
    with pytest.raises(NonFiniteStep, match=r"step 13: .*refused.*rows \[\d+\]") as caught:
        train(config)
    assert caught.value.exit_code == 65
    last = journal_of(tmp_path)[-1]
    assert last["event"] == "stop" and last["reason"] == "error" and "refused" in last["message"]
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000008", "step-00000012"]


def test_without_an_old_enough_checkpoint_it_stops_rather_than_starts_over(tmp_path: Path) -> None:
    config = config_of(tmp_path, task={"nan_at_steps": (1, 2)})
    with pytest.raises(NonFiniteStep, match="a checkpoint before step 1 is needed"):
        train(config)


def test_a_nearer_checkpoint_serves_where_none_is_far_enough(tmp_path: Path) -> None:
    config = config_of(tmp_path, roll_back={"back_steps": 100})
    assert train(config) is StopReason.FINISHED
    (rolled,) = [e for e in journal_of(tmp_path) if e["event"] == "rollback"]
    assert rolled["back_to"] == 8  # not 12: it holds the very weights that led to the trouble


def test_a_step_that_was_refused_only_once_is_trained_when_it_is_repeated(tmp_path: Path) -> None:
    """A NaN of the hardware is not held against the data."""
    config = config_of(tmp_path, task={"nan_at_steps": ()})
    real, fired = torch.nn.utils.get_total_norm, []

    def sick(gradients: Any) -> Any:
        fired.append(True)
        return torch.tensor(float("nan")) if len(fired) == 7 else real(gradients)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "get_total_norm", sick)
        with pytest.raises(Cut):
            train(config, show=CutAt(7))
    assert len(fired) == 7 and journal_of(tmp_path)[-2]["refused"]
    train(config)
    assert json.loads(final_state(tmp_path / "run")["state.json"])["refused"] == []


@pytest.mark.fault(66)
def test_a_spike_rolls_back_where_that_is_asked_and_only_then(tmp_path: Path) -> None:
    def spiked(root: Path, on_spike: str) -> list[dict[str, Any]]:
        config = toy_config(
            root,
            train={"horizon": {"steps": 60}, "learning_rate": 1e-3},
            task={"dropout": 0.0, "huge_at_steps": (44,)},
            monitor={"on_spike": on_spike, "roll_back": {"back_steps": 4}},
            checkpoint={"every_steps": 10},
        )
        assert train(config) is StopReason.FINISHED
        return journal_of(root)

    watched = spiked(tmp_path / "a", "none")
    (alert,) = [e for e in watched if e["event"] == "alert"]
    assert alert["kind"] == "loss_spike" and alert["step"] == 45 and len(alert["rows"]) == 8
    assert not any(e["event"] == "rollback" for e in watched)
    rolled = spiked(tmp_path / "b", "rollback")
    (line,) = [e for e in rolled if e["event"] == "rollback"]
    assert (line["step"], line["back_to"]) == (45, 40)
    steps = timeline(rolled)
    assert [e["step"] for e in steps if e["refused"]] == [41, 42, 43, 44, 45]
    assert {e["kind"] for e in rolled if e["event"] == "alert"} == {"loss_spike", "roll_back"}


def test_a_checkpoint_whose_only_steps_were_refused_opens_again(tmp_path: Path) -> None:
    """There is no optimizer state then, and that is right."""
    config = config_of(
        tmp_path, task={"nan_at_steps": (0,)}, non_finite={"refuse_steps": 5}
    ).model_copy(update={"checkpoint": toy_config(tmp_path).checkpoint})
    with pytest.raises(Cut):
        train(config, show=CutAt(2))
    newest = tmp_path / "run/checkpoints/step-00000001"
    assert load_file(newest / "optimizer.safetensors") == {}
    assert train(config) is StopReason.FINISHED


def test_what_a_rolled_back_attempt_cost_is_counted_once(tmp_path: Path) -> None:
    """It is the same process: its age must not be billed again."""
    config = config_of(tmp_path).model_copy(update={"cost": Cost(usd_per_hour=3600.0)})
    began = process_age_seconds()
    earlier = began  # this test's process is old; the first attempt is billed for all of it
    assert train(config) is StopReason.FINISHED
    ended = process_age_seconds()
    costs = [e["cost_usd"] for e in journal_of(tmp_path) if e.get("cost_usd") is not None]
    assert costs == sorted(costs)
    # One dollar a second. (Counted twice it would be at least `earlier` more.)
    assert earlier < costs[-1] <= ended + 0.1 and earlier > 1


def test_a_pending_roll_back_is_the_newest_one_that_no_attempt_followed() -> None:
    rolled = {"event": "rollback", "step": 14, "back_to": 8}
    opened = {"event": "attempt", "restored_step": 8}
    assert rollback.pending([], [8]) is None
    assert rollback.pending([opened, rolled], [4, 8]) == 8
    assert rollback.pending([opened, rolled, opened], [4, 8]) is None
    assert rollback.pending([opened, rolled], [4]) is None  # it is gone: go on as usual
    assert rollback.left_out([rolled, opened]) == [(9, 14)]


class Signalled(Quiet):
    def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
        if report.step == 14:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_at_the_roll_backs_step_ends_the_run_and_the_next_start_goes_back(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    config = config_of(tmp_path)
    assert train(config, show=Signalled()) is StopReason.SIGNAL
    assert train(config) is StopReason.FINISHED
    assert_same_state(final_state(tmp_path / "run"), whole)
