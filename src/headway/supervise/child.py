"""The supervised process, from both sides: its signs of life, its stacks, its start and its end."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

STACKS = "HEADWAY_STACKS_FD"
"""Names the file, open in the child, that its stacks go to."""
STOPPED = 75
_ASKING = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1


def beat(path: Path) -> None:
    """One more sign of life: counts up in the file. Never an error, on a full disk neither."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            said = os.pread(fd, 20, 0)
            count = int(said) if said.isdigit() else 0
            os.pwrite(fd, b"%020d\n" % (count + 1), 0)
            os.utime(fd)
        finally:
            os.close(fd)


def unused_hang_file(folder: Path) -> Path:
    """``hang-1.txt``, or the first number that is free: where stacks go."""
    names = (folder / f"hang-{n}.txt" for n in itertools.count(1))
    return next(path for path in names if not path.exists())


def answer_with_stacks() -> None:
    """From now on SIGUSR1 makes this process write all its stacks for its supervisor, if any.

    The answer comes from C, even while a thread holds the interpreter and never gives it back.
    """
    fd = os.environ.pop(STACKS, "")
    if fd.isdigit():
        faulthandler.register(signal.SIGUSR1, file=int(fd), all_threads=True, chain=False)


class Child:
    """One attempt as a process of its own session, so that Ctrl-C reaches only its supervisor."""

    def __init__(self, command: Sequence[str], *, mute: Sequence[int] = ()) -> None:
        """Start it. ``mute``: 1, 2 for the outputs whose terminal is gone; writing would fail."""
        self._stacks = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        fd = self._stacks.fileno()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if 1 in mute else None,
            stderr=subprocess.DEVNULL if 2 in mute else None,
            pass_fds=[fd],
            env={**os.environ, STACKS: str(fd)},
            start_new_session=True,
            preexec_fn=_bound_to(os.getpid()),  # the supervisor has one thread
        )
        self.pid = self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        if os.getpid() == 1:
            _take_zombies(but=self.pid)
        return self._process.poll()

    def send(self, number: int) -> None:
        """A signal, to the process alone: what it has started is its own business."""
        self._process.send_signal(number)

    def ask_for_stacks(self) -> bool:
        """False if it does not answer that: the signal would end it (or nobody can tell)."""
        if not _catches(self.pid, signal.SIGUSR1):
            return False
        self.send(signal.SIGUSR1)
        return True

    def stacks(self) -> str:
        """What it has said of its stacks so far."""
        fd = self._stacks.fileno()
        return os.pread(fd, os.fstat(fd).st_size, 0).decode("utf-8", "replace")

    def kill(self) -> None:
        """End it at once, and every process it started and left in its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Forget it. It has ended; where an error here kept it from being watched, it is ended."""
        if self._process.poll() is None:
            self.kill()
            self._process.wait()
        self._stacks.close()


def _bound_to(parent: int) -> Callable[[], None]:
    """What a child does between fork and exec: end with its parent (Linux, prctl(2))."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def prepare() -> None:
        for number in _ASKING:
            signal.signal(number, signal.SIG_DFL)  # ours would swallow one that comes before exec
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it died before it could be watched
                os._exit(STOPPED)

    return prepare


def _catches(pid: int, number: int) -> bool:
    """Whether a process has its own answer to a signal. Linux; elsewhere nobody can tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def _take_zombies(but: int) -> None:
    """Process 1 inherits every orphan and must collect it when it ends."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == but:
                return
            os.waitpid(ended.si_pid, 0)
