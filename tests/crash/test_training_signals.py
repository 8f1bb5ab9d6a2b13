"""SIGTERM and SIGINT to the ``headway train`` command in each of its phases.

Phases are recognised by what the process has left on disk or mapped, never by the clock.
"""

from __future__ import annotations

import os
import pty
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attempts import ENVIRONMENT, HEADWAY, Forks, command, run_of, said, toy_run
from instants import JOURNAL, happens, names
from oracle import Outcome, checkpoints, judge_end

from headway.journal import read_events, timeline

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]

LAST = 4
SLOW_STEPS = {"task": {"step_seconds": 0.2}, "checkpoint": {"every_steps": None}}
BIG_SAVES = {"task": {"buffer_values": 8_000_000}, "checkpoint": {"every_steps": 2}}
BIG_MODEL = {"task": {"buffer_values": 20_000_000}, "checkpoint": {"every_steps": None}}
EVALUATED = {"task": {"step_seconds": 0.3}, "evaluate": {"every_steps": 2}}


def importing(pid: int, run: Path) -> bool:
    """torch is being loaded."""
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def building(pid: int, run: Path) -> bool:
    """The run is locked and opening, but no attempt is announced."""
    begun = read_events(run / JOURNAL, {"opening", "attempt"})
    return [event["event"] for event in begun] == ["opening"]


def in_a_step(pid: int, run: Path) -> bool:
    """Step 2 is done, so step 3 is under way."""
    return len(read_events(run / JOURNAL, {"step"})) == 2


def saving(pid: int, run: Path) -> bool:
    """The first save has begun."""
    return bool(names(run, ".partial-"))


def evaluating(pid: int, run: Path) -> bool:
    """Step 2 is done, its evaluation is not there (its save may be, or may not)."""
    seen = read_events(run / JOURNAL, {"step", "evaluation"})
    return [(e["event"], e["step"]) for e in seen][-1:] == [("step", 2)]


def saving_the_last(pid: int, run: Path) -> bool:
    """The save of the last step has begun."""
    return bool(names(run, f".partial-step-{LAST:08d}"))


CASES: list[tuple[str, Callable[[int, Path], bool], dict[str, Any]]] = [
    ("in a step", in_a_step, SLOW_STEPS),
    ("in a save", saving, BIG_SAVES),
    ("in an evaluation", evaluating, EVALUATED),
    ("in the final save", saving_the_last, BIG_SAVES),
]
BOTH = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture(scope="module")
def reference(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of an uninterrupted run of such a config; each is trained once."""
    done: dict[str, Path] = {}

    def of(sections: dict[str, Any]) -> Path:
        if str(sections) not in done:
            config = slow_run(tmp_path_factory.mktemp("reference"), sections)
            assert forks.finish(config) == 0, said(config)
            done[str(sections)] = run_of(config)
        return done[str(sections)]

    return of


def slow_run(folder: Path, sections: dict[str, Any]) -> Path:
    return toy_run(folder, **{"train": {"horizon": {"steps": LAST}}, **sections})


def signalled(config: Path, phase: Callable[[int, Path], bool], *numbers: signal.Signals) -> int:
    """Start the command, send the signals from that phase on; its exit code.

    A second signal is sent when the first was answered.
    """
    attempt, run = command(config), run_of(config)
    assert happens(lambda: phase(attempt.pid, run), attempt), said(config)
    for sent, number in enumerate(numbers):
        assert happens(lambda sent=sent: said(config).count("saving at the end") == sent, attempt)
        os.kill(attempt.pid, number)
    return attempt.wait()


def goes_on(forks: Forks, config: Path, whole: Path) -> None:
    """The same command ends as if no signal had come."""
    assert forks.finish(config) == 0, said(config)
    outcome = Outcome()
    judge_end(run_of(config), whole, outcome)
    assert outcome.clean, outcome


@pytest.mark.fault(34, 37)
@pytest.mark.parametrize("number", BOTH, ids=lambda n: n.name)
@pytest.mark.parametrize(("where", "phase", "sections"), CASES, ids=[c[0] for c in CASES])
def test_a_signal_ends_the_attempt_with_a_checkpoint_of_its_last_step(
    forks: Forks,
    reference: Callable[..., Path],
    tmp_path: Path,
    table: Any,
    where: str,
    phase: Callable[[int, Path], bool],
    sections: dict[str, Any],
    number: signal.Signals,
) -> None:
    config = slow_run(tmp_path, sections)
    code = signalled(config, phase, number)
    last = timeline(read_events(run_of(config) / JOURNAL, {"step"}))[-1]["step"]
    # In the last step it may be heard before the horizon is judged, or after.
    assert code == 75 or (code == 0 and last == LAST), said(config)
    assert "Traceback" not in said(config)
    assert checkpoints(run_of(config))[-1].step == last
    goes_on(forks, config, reference(sections))
    table((number.name, f"training, {where}", 1, 1, 0, 0, 0))


@pytest.mark.parametrize("number", BOTH, ids=lambda n: n.name)
@pytest.mark.parametrize(("phase", "sections"), [(importing, SLOW_STEPS), (building, BIG_MODEL)])
def test_a_signal_before_the_first_step_leaves_nothing_half_done(
    forks: Forks,
    reference: Callable[..., Path],
    tmp_path: Path,
    table: Any,
    phase: Callable[[int, Path], bool],
    sections: dict[str, Any],
    number: signal.Signals,
) -> None:
    config = slow_run(tmp_path, sections)
    assert signalled(config, phase, number) == 75, said(config)
    assert "nothing to save" in said(config) and "Traceback" not in said(config)
    assert checkpoints(run_of(config)) == []
    goes_on(forks, config, reference(sections))
    table((number.name, f"training, {phase.__name__}", 1, 1, 0, 0, 0))


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    ("where", "phase", "sections"), [CASES[0], CASES[1]], ids=["in a step", "in a save"]
)
def test_a_second_signal_ends_it_at_once_and_nothing_is_corrupt(
    forks: Forks,
    reference: Callable[..., Path],
    tmp_path: Path,
    table: Any,
    where: str,
    phase: Callable[[int, Path], bool],
    sections: dict[str, Any],
) -> None:
    config = slow_run(tmp_path, sections)
    assert signalled(config, phase, signal.SIGTERM, signal.SIGINT) == 75
    assert "SIGINT again: leaving now" in said(config) and "Traceback" not in said(config)
    checkpoints(run_of(config))
    goes_on(forks, config, reference(sections))
    table(("SIGTERM, SIGINT", f"training, {where}", 1, 1, 0, 0, 0))


@pytest.mark.fault(36)
@pytest.mark.parametrize(
    ("where", "phase", "sections"), CASES[:3], ids=[case[0] for case in CASES[:3]]
)
def test_killed_before_it_could_answer_a_request_it_loses_no_acknowledged_save(
    forks: Forks,
    reference: Callable[..., Path],
    tmp_path: Path,
    table: Any,
    where: str,
    phase: Callable[[int, Path], bool],
    sections: dict[str, Any],
) -> None:
    config = slow_run(tmp_path, {**sections, "checkpoint": {"every_steps": 1}})
    run = run_of(config)
    assert signalled(config, phase, signal.SIGTERM, signal.SIGKILL) == -signal.SIGKILL
    promised = [event["step"] for event in read_events(run / JOURNAL, {"save"})]
    there = [checkpoint.step for checkpoint in checkpoints(run)]
    assert max(there, default=0) >= max(promised, default=0)
    goes_on(forks, config, reference({**sections, "checkpoint": {"every_steps": 1}}))
    table(("SIGTERM, SIGKILL", f"training, {where}", 1, 1, 0, 0, 0))


@pytest.mark.fault(37)
def test_a_terminal_that_is_gone_ends_the_attempt_with_a_checkpoint_of_its_last_step(
    forks: Forks, reference: Callable[..., Path], tmp_path: Path, table: Any
) -> None:
    """What is printed then fails, which must not cost the save."""
    config = slow_run(tmp_path, SLOW_STEPS)
    run = run_of(config)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(HEADWAY, ["headway", "train", str(config)], ENVIRONMENT)
    while not in_a_step(pid, run):
        if select.select([terminal], [], [], 0.02)[0]:
            os.read(terminal, 1 << 16)  # as a terminal does
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    last = timeline(read_events(run / JOURNAL, {"step"}))[-1]["step"]
    assert last < LAST and checkpoints(run)[-1].step == last
    assert read_events(run / JOURNAL, {"stop"})[-1]["reason"] == "signal"
    goes_on(forks, config, reference(SLOW_STEPS))
    table(("SIGHUP, the terminal gone", "training, in a step", 1, 1, 0, 0, 0))
