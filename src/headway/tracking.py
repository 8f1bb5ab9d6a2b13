"""A run's trackers as training uses them: each is fed from the journal by a process of its own.

Training does nothing for them at a step: the process reads what the journal says, with the lowest
priority, so a client that is slow, hangs or dies holds up nothing. It works inside the run's
folder, wherever that is moved, and one at a time feeds a tracker. When training is gone, for
whatever reason, it sends what is there and ends, after DRAIN_SECONDS at the latest.

``python -m headway.tracking`` is that process. Without torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from headway.errors import ConfigError, RunLocked
from headway.journal import Journal, Tail
from headway.lock import RunLock
from headway.system import lower_priority
from headway.track import About, Feed, Sink, feed
from headway.viewing import JOURNAL_FILE, config_tree

if TYPE_CHECKING:  # its process needs no config room
    from headway.config import Track

FOLDER = "track"
"""Of a run: what trackers keep there, how far each was fed, and what their processes said."""
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""Tracker -> the package it needs."""
LOOK_SECONDS = 1.0
RETRY_SECONDS = 60.0
DRAIN_SECONDS = 30.0
"""How long the end of a run waits for its trackers."""

Say = Callable[[str], None]


def sink_of(name: str, run: Path, options: Mapping[str, Any]) -> Sink:
    """The tracker called ``name``, in its folder below ``run``. Raises ImportError."""
    if name == "tensorboard":
        from headway.track.tensorboard_files import TensorBoardFiles

        return TensorBoardFiles(run / FOLDER / name, run)
    if name == "wandb":
        from headway.track.wandb_run import WandbRun

        return WandbRun(run / FOLDER / name, run, **options)
    raise ConfigError(f"track: there is no tracker {name!r}; there are {', '.join(PACKAGES)}")


def fed(
    name: str,
    run: Path,
    options: Mapping[str, Any],
    over: Callable[[], bool] = lambda: True,
    wait: Callable[[], object] = lambda: None,
) -> int:
    """Feed a tracker until ``over``, by default what is there now; returns the step it has.

    Raises RunLocked (another process feeds it), and whatever its client raises.
    """
    with RunLock(run / FOLDER / f"{name}.lock"):
        return feed(
            Feed(
                opened=lambda: Tail(run / JOURNAL_FILE),
                sink=lambda: sink_of(name, run, options),
                about=lambda: about(run),
                mark_file=run / FOLDER / f"{name}.json",
                over=over,
                wait=wait,
            )
        )


def about(run: Path) -> About:
    """What a tracker shows of a run. Its identity is the journal's first line, hashed: the same in
    all attempts, on every machine that the run moves to, and another one after ``--fresh``."""
    with (run / JOURNAL_FILE).open("rb") as file:
        first = file.readline()
    tree = config_tree(run)
    name = str((tree.get("run") or {}).get("name") or run.resolve().name)
    return About(identity=hashlib.sha256(first).hexdigest()[:16], name=name, config=tree)


# ------------------------------------------------------------------ training's side


@contextlib.contextmanager
def tracking(
    section: Track | None,
    folder: Path,
    journal: Journal | None,
    say: Say,
    drain_seconds: float = DRAIN_SECONDS,
) -> Iterator[None]:
    """Feed the run's trackers until the end of the block, and a little longer.

    ``journal``: None on ranks that write nothing. Raises nothing of its own.
    """
    if journal is None or section is None:
        yield
        return

    def warn(line: str) -> None:
        with contextlib.suppress(Exception):  # a full disk is said by whoever needs it
            journal.append("warning", what=line)
        say(f"WARNING: {line}")

    processes = []
    for name, chosen in section.options().items():
        if importlib.util.find_spec(PACKAGES[name]) is None:
            continue  # preflight says so
        try:
            processes.append(Feeder(name, folder, chosen, warn))
        except OSError as error:
            warn(f"track: {name} cannot be fed ({error}); {later(folder)}")
    try:
        yield
    finally:
        behind = drained(processes, drain_seconds)
        if behind:
            names = " and ".join(behind)
            with contextlib.suppress(Exception):
                say(f"WARNING: track: {names} did not take everything in time; {later(folder)}")


def later(folder: Path) -> str:
    """What sends the rest."""
    return f"`headway track {folder}` sends it later"


class Feeder:
    """The process that feeds one tracker, and a thread that hears what it complains of."""

    def __init__(
        self, name: str, folder: Path, options: Mapping[str, Any], warn: Say, *, python: str = ""
    ) -> None:
        """Start it. ``warn`` is called once at most, on another thread. Raises OSError."""
        self.name = name
        place = folder / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        command = [python or sys.executable, "-P", "-m", "headway.tracking", name]
        with (place / f"{name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, json.dumps(dict(options))],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=environment(),
            )
        self._warn: Say | None = warn
        self._folder = folder
        self.pid = self._process.pid
        self._thread = threading.Thread(target=self._hear, name=f"headway-{name}", daemon=True)
        self._thread.start()

    def no_more(self) -> None:
        """Nothing more will come: it sends what is there, and ends."""
        self._warn = None
        _close(self._process.stdin)

    def ended(self) -> int | None:
        """Its exit code; None while it works."""
        return self._process.poll()

    def kill(self) -> None:
        """End it, and what it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def forget(self) -> None:
        """It has ended: nothing of it is left here."""
        self._thread.join(LOOK_SECONDS)

    def _hear(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError), self._process.stdout as said:
            for line in said:
                self._say(line.decode("utf-8", "replace").strip())
        self._say(f"its process ended with exit code {self._process.wait()}")

    def _say(self, what: str) -> None:
        warn, self._warn = self._warn, None
        if warn is not None:
            warn(f"track: {self.name}: {what}. Training goes on; {later(self._folder)}")


def drained(feeders: Sequence[Feeder], seconds: float = DRAIN_SECONDS) -> list[str]:
    """Let them send what is there, for so long at most; the names of those that were not done."""
    from headway.signals import asked_to_leave

    for feeder in feeders:
        feeder.no_more()
    until = time.monotonic() + seconds
    behind = []
    with asked_to_leave() as leaving:
        for feeder in feeders:
            while feeder.ended() is None and time.monotonic() < until and not leaving():
                time.sleep(0.02)
            if feeder.ended() != 0:
                feeder.kill()
                behind.append(feeder.name)
            feeder.forget()
    return behind


def environment() -> dict[str, str]:
    """Ours; relative places to import from stay what they are in another working directory."""
    places = [str(Path(p).absolute()) for p in os.environ.get("PYTHONPATH", "").split(":") if p]
    return {**os.environ, **({"PYTHONPATH": ":".join(places)} if places else {})}


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with contextlib.suppress(OSError):
            pipe.close()


# ------------------------------------------------------------------ the process's side


class Parent:
    """Whether training still lives: it holds the other end of stdin, and is our parent."""

    def __init__(self) -> None:
        self._pid = os.getppid()
        self._gone = False

    def gone(self) -> bool:
        """Once it is, DRAIN_SECONDS are left."""
        return self._look(0.0)

    def wait(self, seconds: float) -> None:
        """So long, or until it is gone."""
        self._look(seconds)

    def _look(self, seconds: float) -> bool:
        if not self._gone:
            heard = select.select([0], [], [], seconds)[0]
            self._gone = bool(heard) or os.getppid() != self._pid
            if self._gone:
                signal.setitimer(signal.ITIMER_REAL, DRAIN_SECONDS)  # SIGALRM ends the process
        return self._gone


def main(name: str, options: Mapping[str, Any]) -> int:
    """Feed one tracker from the journal in the working directory until training is gone.

    What goes wrong is said on stdout, the first time; it is tried again every RETRY_SECONDS.
    """
    lower_priority()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent, said, ours = Parent(), False, os.dup(1)
    os.dup2(2, 1)  # what clients print is for the log
    while True:
        try:
            fed(name, Path(), options, parent.gone, lambda: parent.wait(LOOK_SECONDS))
            return 0
        except RunLocked:
            parent.gone()  # an earlier attempt's still sends; where this one's is gone, the
            time.sleep(LOOK_SECONDS)  # alarm ends the waiting
            continue
        except Exception as error:
            line = in_a_line(error)
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
        if not said:
            said = True
            with contextlib.suppress(OSError):
                os.write(ours, f"{line}\n".encode())
        parent.wait(RETRY_SECONDS)
        if parent.gone():
            return 1


def in_a_line(error: Exception) -> str:
    """What a client raised: its kind, and the first line of what it says."""
    first = str(error).strip().splitlines()[:1]
    return ": ".join([type(error).__name__, *first])[:500]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.loads(sys.argv[2])))
