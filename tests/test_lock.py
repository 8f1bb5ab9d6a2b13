"""One writer: the second is told who holds the run, and a dead holder holds nothing."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from headway.errors import RunLocked
from headway.lock import RunLock, holder

HOLD = """
    import os, sys
    from pathlib import Path
    from headway.lock import RunLock
    with RunLock(Path(sys.argv[1])):
        print("held", os.getpid(), flush=True)
        sys.stdin.read()
"""
HOLD_AND_FORK = """
    import os, sys, fcntl
    from pathlib import Path
    from headway.lock import RunLock
    flock = len(sys.argv) > 2
    if flock:
        file = open(sys.argv[1], "w")
        fcntl.flock(file, fcntl.LOCK_EX)
    else:
        RunLock(Path(sys.argv[1])).__enter__()
    worker = os.fork()
    if worker:
        print("held", worker, flush=True)
    sys.stdin.read()
"""


class Child:
    """A real process that holds the lock until it is told to go."""

    def __init__(self, code: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = int(self.process.stdout.readline().split()[1])

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.mark.fault(39)
def test_a_second_process_is_refused_and_told_who_and_what_to_do(tmp_path):
    path = tmp_path / "lock"
    with Child(HOLD, path) as child:
        with pytest.raises(RunLocked) as refused:
            RunLock(path).__enter__()
        message = str(refused.value)
        assert f"process {child.pid} on {socket.gethostname()}, since 20" in message
        assert f"kill {child.pid}" in message and "no file needs to be deleted" in message
        assert holder(path).pid == child.pid


def test_a_killed_holder_holds_nothing(tmp_path):
    path = tmp_path / "lock"
    with Child(HOLD, path) as child:
        os.kill(child.pid, signal.SIGKILL)
        child.process.wait()
        assert holder(path) is None
        with RunLock(path):
            assert holder(path).pid == os.getpid()


@pytest.mark.fault(39)
def test_a_worker_that_outlives_its_killed_parent_holds_nothing(tmp_path):
    path = tmp_path / "lock"
    with Child(HOLD_AND_FORK, path) as child:
        worker = child.pid
        try:
            child.process.kill()
            child.process.wait()
            os.kill(worker, 0)  # alive
            with RunLock(path) as taken:
                assert taken.path == path
        finally:
            os.kill(worker, signal.SIGKILL)


def test_with_flock_the_worker_would_keep_the_run_locked(tmp_path):
    """Negative control: the same with flock, which a fork inherits."""
    path = tmp_path / "lock"
    with Child(HOLD_AND_FORK, path, "flock") as child:
        try:
            child.process.kill()
            child.process.wait()
            with path.open("w") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.kill(child.pid, signal.SIGKILL)


def test_a_second_lock_in_the_same_process_is_refused_and_harms_nothing(tmp_path):
    """Closing a second descriptor would drop the first lock (fcntl(2)): none is ever opened."""
    path = tmp_path / "lock"
    with RunLock(path):
        with pytest.raises(RunLocked, match="this process already holds"):
            RunLock(path).__enter__()
        assert holder(path).pid == os.getpid()
        assert refused_elsewhere(path)
    with RunLock(path):
        pass


def test_reading_the_lock_naively_would_drop_it(tmp_path):
    """Negative control: this is why ``holder`` reads through the descriptor that is open."""
    path = tmp_path / "lock"
    with RunLock(path):
        holder(path)
        assert refused_elsewhere(path)
        path.read_bytes()
        assert not refused_elsewhere(path)


def test_a_run_moved_away_while_its_lock_was_being_taken_is_not_the_one_locked(
    tmp_path, monkeypatch
):
    """``--fresh`` renames a run's folder: a lock on what was moved would protect nothing."""
    folder, real = tmp_path / "run", fcntl.lockf
    moved = []

    def moves_first(fd, how):
        if not moved:
            moved.append(folder.rename(tmp_path / "run.replaced-1"))
            folder.mkdir()
        real(fd, how)

    folder.mkdir()
    monkeypatch.setattr(fcntl, "lockf", moves_first)
    with RunLock(folder / "lock"):
        assert moved and holder(folder / "lock").pid == os.getpid()


def test_after_the_run_nobody_holds_it(tmp_path):
    path = tmp_path / "deep" / "lock"
    assert holder(path) is None
    with RunLock(path):
        assert holder(path).host == socket.gethostname()
    assert path.exists() and holder(path) is None


@pytest.mark.parametrize("junk", [b"", b"\xff", b"[]", b'{"pid": "x"}', b"{" * 5000])
def test_junk_in_the_lock_file_is_no_obstacle(tmp_path, junk):
    path = tmp_path / "lock"
    path.write_bytes(junk)
    assert holder(path) is None
    with RunLock(path):
        assert holder(path).pid == os.getpid()


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with pytest.raises(RunLocked, match=r"No locks available.*POSIX locks"):
        RunLock(tmp_path / "lock").__enter__()


def refused_elsewhere(path: Path) -> bool:
    """Whether another process is refused the lock."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom headway.lock import RunLock\n"
        "from headway.errors import RunLocked\n"
        "try:\n    RunLock(Path(sys.argv[1])).__enter__()\nexcept RunLocked:\n    sys.exit(9)"
    )
    return subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 9
