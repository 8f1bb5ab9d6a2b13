"""The supervisor over small real processes: it starts again, gives up, sees hangs, passes signals.

Time is injected: it stands still while a child runs (unless the test says the child is stuck) and
flies while the supervisor rests.
"""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.journal import read_events
from headway.supervise import EVENTS, Ears, Patience, Supervisor, Trace, beat, trace

SOURCE = Path(__file__).parent.parent / "src"
TRAINER = Path(__file__).parent / "supervised_child.py"
FOREVER = 10**9


class Bench:
    """A supervisor over scripted attempts: ``(restored, last, end)`` each, the last one repeated.

    The child (``supervised_child.py``) journals the steps after ``restored`` up to ``last`` and
    ends by ``end``.
    """

    def __init__(
        self,
        folder: Path,
        attempts: Sequence[tuple[int | None, int, str]],
        patience: Patience | None = None,
        stuck: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder, self.attempts = folder, attempts
        self.patience = patience or Patience()
        self.stuck = stuck
        self.now = 0.0
        self.said: list[str] = []
        self.again: list[bool] = []
        self.most = 60

    def command(self, again: bool) -> list[str]:
        self.again.append(again)
        assert len(self.again) <= self.most, "an endless loop"
        (self.folder / "stuck").unlink(missing_ok=True)
        script = self.attempts[min(len(self.again), len(self.attempts)) - 1]
        return [sys.executable, "-S", str(TRAINER), str(self.folder), json.dumps(script)]

    def run(self) -> int:
        journal = self.folder / "journal.jsonl"
        with Ears() as ears:

            def wait(seconds: float) -> list[int]:
                resting = self.said[-1].startswith("starting again")
                heard = ears.wait(0 if resting else 0.01)
                if not heard and (resting or self.stuck()):
                    self.now += seconds
                return heard

            return Supervisor(
                journal,
                self.command,
                lambda: read_events(journal, EVENTS),
                self.said.append,
                self.patience,
                wait=wait,
                clock=lambda: self.now,
                draw=lambda: 0.5,
            ).run()

    @property
    def starts(self) -> int:
        return len(self.again)

    def record(self, event: str) -> list[dict[str, Any]]:
        lines = (self.folder / "supervisor.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == event]


# ------------------------------------------------------------------ start again, or not


@pytest.mark.parametrize("end", ["kill 9", "kill 11", "exit 1", "exit 137", "exit 70", "exit 75"])
def test_an_attempt_that_a_crash_ended_is_followed_by_another(tmp_path: Path, end: str) -> None:
    bench = Bench(tmp_path, [(0, 3, end), (2, 6, "exit 0")])
    assert bench.run() == 0
    assert bench.starts == 2


@pytest.mark.parametrize("code", [0, 2, 65, 76, 77, 78])
def test_an_exit_code_that_would_only_be_repeated_is_passed_through(
    tmp_path: Path, code: int
) -> None:
    bench = Bench(tmp_path, [(0, 3, f"exit {code}")])
    assert bench.run() == code
    assert bench.starts == 1


@pytest.mark.fault(46)
def test_three_deaths_at_one_step_end_it_with_the_reason_and_what_to_do(tmp_path: Path) -> None:
    for step in (4, 8):
        (tmp_path / f"checkpoints/step-{step:08d}").mkdir(parents=True)
    bench = Bench(tmp_path, [(8, 9, "error row 17 is poison")])
    assert bench.run() == 70
    assert bench.starts == 3
    for words in ("did not get past step 9", "row 17 is poison", "--from step-00000004"):
        assert words in bench.said[-1]
    assert bench.record("gave_up")[0]["last"] == "row 17 is poison"


def test_without_the_breaker_it_never_ends(tmp_path: Path) -> None:
    """Negative control."""
    bench = Bench(tmp_path, [(8, 9, "exit 1")], Patience(tries=FOREVER))
    bench.most = 12
    with pytest.raises(AssertionError, match="an endless loop"):
        bench.run()


def test_a_new_step_resets_the_count(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [(0, 1, "exit 1"), (0, 1, "exit 1"), (0, 2, "exit 1")])
    assert bench.run() == 70
    assert bench.starts == 5


def test_a_new_save_resets_the_count_though_the_step_was_seen_before(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, [(0, 9, "exit 1"), (0, 5, "exit 1"), (0, 4, "save 4"), (4, 4, "exit 1")]
    )
    assert bench.run() == 70
    assert bench.starts == 5


def test_deaths_before_the_journal_opens_are_counted_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [(None, 0, "exit 1")])
    assert bench.run() == 70
    assert bench.starts == 3


def test_an_old_attempt_in_the_journal_is_not_taken_for_progress(tmp_path: Path) -> None:
    assert Bench(tmp_path, [(0, 9, "error of long ago")]).run() == 70
    bench = Bench(tmp_path, [(None, 0, "exit 1")])
    assert bench.run() == 70
    assert bench.starts == 3
    assert "did not get past the start" in bench.said[-1] and "long ago" not in bench.said[-1]


def test_a_bucket_that_does_not_answer_is_tried_for_longer(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [(None, 0, "exit 69")])
    assert bench.run() == 70
    assert bench.starts == 10
    delays = [line["seconds"] for line in bench.record("restarting")]
    assert delays == sorted(delays) and delays[-1] > 100


def test_outages_and_crashes_are_counted_apart(tmp_path: Path) -> None:
    """One crash after three outages is the first crash, not the fourth."""
    outages = [(None, 0, "exit 69")] * 3
    bench = Bench(tmp_path, [*outages, (None, 0, "exit 1"), (0, 5, "exit 0")])
    assert bench.run() == 0
    assert bench.starts == 5


@given(st.integers(1, 2000), st.floats(0, 1, exclude_max=True))
def test_delays_grow_are_bounded_and_spread(ended: int, draw: float) -> None:
    patience = Patience()
    delay = patience.delay_seconds(ended, draw)
    assert delay <= patience.longest_delay_seconds
    assert patience.delay_seconds(ended + 1, draw) >= delay
    assert patience.delay_seconds(ended, 0.0) <= delay <= 2 * patience.delay_seconds(ended, 0.0)
    assert patience.delay_seconds(ended, 0.0) < patience.delay_seconds(ended, 0.5)


def test_what_is_asked_for_once_is_repeated_until_an_attempt_opened_and_never_after(
    tmp_path: Path,
) -> None:
    """``--fresh`` a second time would throw the new run away; ``--from`` would go back again."""
    folder = tmp_path / "run"
    assert Bench(folder, [(0, 9, "exit 0")]).run() == 0
    script = [(None, 0, "exit 1"), (None, 0, "exit 1"), (0, 3, "fresh"), (3, 5, "exit 0")]
    bench = Bench(folder, script)
    assert bench.run() == 0
    assert bench.again == [False, False, False, True]


# ------------------------------------------------------------------ hangs


def hung(folder: Path) -> Callable[[], bool]:
    """The child has said that it does nothing from now on."""
    return (folder / "stuck").exists


SHORT = Patience(hang_seconds=600)


def test_a_silent_child_tells_its_stacks_is_asked_then_killed_and_started_again(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path, [(0, 3, "hang deaf"), (2, 6, "exit 0")], SHORT, hung(tmp_path))
    assert bench.run() == 0
    assert "stand_still" in (tmp_path / "hang-1.txt").read_text()
    assert (tmp_path / "asked").read_text() == "SIGTERM\n"
    assert bench.record("ended")[0]["code"] == -signal.SIGKILL
    assert bench.record("ended")[0]["hung"]


def test_a_hang_that_repeats_at_one_step_ends_with_70(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [(2, 3, "hang")], SHORT, hung(tmp_path))
    assert bench.run() == 70
    assert bench.starts == 3
    assert sorted(p.name for p in tmp_path.glob("hang-*")) == [f"hang-{n}.txt" for n in (1, 2, 3)]
    assert "hang-*.txt" in bench.said[-1]


@pytest.mark.fault(71)
@pytest.mark.parametrize("end", ["hang in C", "hang stopped"])
def test_a_child_that_runs_no_python_any_more_is_seen_too(tmp_path: Path, end: str) -> None:
    """The interpreter is held for ever; the process is stopped."""
    bench = Bench(tmp_path, [(0, 3, end), (2, 6, "exit 0")], SHORT, hung(tmp_path))
    assert bench.run() == 0
    assert bench.record("ended")[0]["code"] == -signal.SIGKILL
    answered = "stand_still" in (tmp_path / "hang-1.txt").read_text()
    assert answered == (end == "hang in C")


def test_a_child_that_would_die_of_the_question_is_not_asked(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [(0, 3, "hang unasked"), (2, 6, "exit 0")], SHORT, hung(tmp_path))
    assert bench.run() == 0
    assert "does not answer" in (tmp_path / "hang-1.txt").read_text()
    assert bench.record("ended")[0]["code"] == -signal.SIGTERM


def test_a_child_that_saves_when_asked_goes_on_from_there(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [(0, 3, "hang polite"), (3, 6, "exit 0")], SHORT, hung(tmp_path))
    assert bench.run() == 0
    assert bench.record("ended")[0]["code"] == 75


@pytest.mark.parametrize(("beats", "starts"), [(True, 1), (False, 2)])
def test_a_heartbeat_alone_keeps_a_child_alive_and_without_it_the_same_child_hangs(
    tmp_path: Path, beats: bool, starts: int
) -> None:
    """The second is the negative control."""

    def alive_for_a_day() -> bool:
        if beats and bench.starts == 1:
            beat(tmp_path / "heartbeat")
            if bench.now > 86_400:
                (tmp_path / "go").touch()
        return hung(tmp_path)()

    long = Patience(hang_seconds=600, look_seconds=590)
    script = [(0, 3, "hang until told"), (2, 6, "exit 0")]
    bench = Bench(tmp_path, script, long, alive_for_a_day)
    assert bench.run() == 0
    assert bench.starts == starts


def test_silence_is_judged_by_the_steps_and_more_kindly_before_the_first() -> None:
    patience = Patience()
    assert patience.silence_seconds(Trace(trained=True, median_seconds=1)) == 1800
    assert patience.silence_seconds(Trace(trained=True, median_seconds=200)) == 4000
    assert patience.silence_seconds(Trace(median_seconds=200)) == 16_000
    assert Patience(hang_seconds=60).silence_seconds(Trace(trained=True, median_seconds=9)) == 60


def test_a_child_may_be_silent_for_longer_before_its_first_step(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [(0, 0, "hang"), (0, 6, "exit 0")], SHORT, hung(tmp_path))
    assert bench.run() == 0
    assert 2400 <= bench.record("hang")[0]["seconds"] < 2500


def test_a_heartbeat_counts_and_nothing_about_it_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat"
    for _ in range(12):
        beat(file)
    assert int(file.read_text()) == 12
    file.write_text("not a number")
    beat(file)
    assert int(file.read_text()) == 1
    beat(tmp_path / "missing" / "heartbeat")


# ------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_passed_on_once_and_its_answer_is_final(
    tmp_path: Path, number: signal.Signals
) -> None:
    bench = Bench(tmp_path, [(0, 3, f"ask {number:d}")])
    assert bench.run() == 75
    assert bench.starts == 1
    assert (tmp_path / "asked").read_text() == f"{number.name}\n"


def test_a_second_request_is_passed_on_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [(0, 3, "ask 15 2")])
    assert bench.run() == 75
    assert (tmp_path / "asked").read_text() == "SIGTERM\nSIGINT\n"


def test_a_child_that_answers_neither_request_is_killed(tmp_path: Path) -> None:
    twice = (tmp_path / "asked").exists
    bench = Bench(tmp_path, [(0, 3, "ask 15 15 0")], stuck=twice)
    assert bench.run() == 128 + signal.SIGKILL
    assert bench.starts == 1
    assert not bench.record("hang")


def test_a_request_to_stop_between_attempts_ends_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [(0, 3, "exit 1")])
    said = bench.said.append

    class Said(list[str]):
        def append(self, line: str) -> None:
            said(line)
            super().append(line)
            if line.startswith("starting again"):
                os.kill(os.getpid(), signal.SIGTERM)

    bench.said = Said()
    assert bench.run() == 75
    assert bench.starts == 1


@pytest.mark.fault(37)
def test_a_hang_up_does_not_end_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [(0, 3, "hang up"), (3, 6, "exit 0")])
    assert bench.run() == 0
    assert not (tmp_path / "asked").exists()


DRIVER = f"""\
import sys
sys.path[:0] = [{str(SOURCE)!r}, {str(TRAINER.parent)!r}]
from pathlib import Path
from supervised_child import supervise
sys.exit(supervise(Path(sys.argv[1]), sys.argv[2]))
"""


def driver(folder: Path, *scripts: tuple[int | None, int, str]) -> list[str]:
    """A process that is nothing but a supervisor, with real time."""
    return [sys.executable, "-c", DRIVER, str(folder), json.dumps(scripts)]


@pytest.mark.fault(37)
def test_ctrl_c_in_a_terminal_reaches_the_child_only_by_its_supervisor(tmp_path: Path) -> None:
    ready = fifo(tmp_path)
    pid, terminal = pty.fork()
    if pid == 0:
        words = driver(tmp_path, (0, 3, "wait ready"))
        os.execv(words[0], words)
    assert ready.read_text() == "ready"
    os.write(terminal, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    os.close(terminal)
    assert (tmp_path / "asked").read_text() == "SIGINT\n"


def test_a_terminal_that_is_gone_costs_one_attempt_and_not_the_run(tmp_path: Path) -> None:
    ready = fifo(tmp_path)
    pid, terminal = pty.fork()
    if pid == 0:
        words = driver(tmp_path, (0, 3, "print ready"), (3, 6, "print"))
        os.execv(words[0], words)
    assert ready.read_text() == "ready"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    lines = (tmp_path / "supervisor.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines].count("started") == 2


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_the_child_of_a_supervisor_that_is_killed_is_asked_to_stop(tmp_path: Path) -> None:
    ready = fifo(tmp_path)
    supervisor = subprocess.Popen(driver(tmp_path, (0, 3, "wait ready and hold")))
    with ready.open() as pipe:
        assert pipe.read(5) == "ready"
        supervisor.kill()
        assert supervisor.wait() == -signal.SIGKILL
        assert pipe.read() == ""  # the end of the file: nobody holds it any more
    assert (tmp_path / "asked").read_text() == "SIGTERM\n"


def namespaces() -> bool:
    """Whether this user may have a process 1 of its own."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0


UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@pytest.mark.fault(38)
@pytest.mark.skipif(not namespaces(), reason="unshare --pid is not allowed here")
def test_as_process_1_it_hears_signals_and_takes_zombies_away(tmp_path: Path) -> None:
    script = [(0, 3, "orphans"), (3, 6, "ask 15")]
    done = subprocess.run([*UNSHARE, *driver(tmp_path, *script)], timeout=60)
    assert done.returncode == 75
    assert (tmp_path / "orphans").read_text() == "none is left\n"
    assert (tmp_path / "asked").read_text() == "SIGTERM\n"


# ------------------------------------------------------------------ what it leaves and says


def test_its_own_lines_are_kept_until_the_folder_is_there(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "not" / "yet", [(0, 1, "kill 9"), (1, 2, "exit 0")])
    assert bench.run() == 0
    lines = (bench.folder / "supervisor.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events == ["started", "ended", "restarting", "started", "ended"]
    assert "by SIGKILL (out of memory?) at step 1" in bench.said[1]


def test_an_empty_journal_has_no_trace_and_an_odd_one_no_harm() -> None:
    assert trace([]) == Trace()
    odd = [{"event": "attempt", "at": "x", "attempt": 2, "restored_step": None}]
    assert trace(odd).step == 0


def test_under_torchrun_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from headway.cli.train import supervised
    from headway.errors import ConfigError

    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="torchrun --max-restarts"):
        supervised(Path("x.yaml"), [], [], [], None)


def test_a_config_that_cannot_be_used_ends_it_before_the_first_attempt(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from headway.cli.train import supervised

    assert supervised(tmp_path / "missing.yaml", [], [], [], None) == 78
    assert "cannot be read" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_minutes_without_a_supervisor_are_refused() -> None:
    from headway.cli.train import train
    from headway.errors import ConfigError

    with pytest.raises(ConfigError, match="only --supervise"):
        train(Path("x.yaml"), hang_minutes=5)
