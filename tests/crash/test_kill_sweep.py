"""Kill -9, and every error a disk can give, at every system call of recovery, save and pruning."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from sweep import sweep

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]


def strace_works() -> bool:
    """Whether this machine lets strace inject faults."""
    if shutil.which("strace") is None:
        return False
    command = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=fsync:error=EIO", "true"]
    return subprocess.run(command, capture_output=True).returncode == 0


needs_strace = pytest.mark.skipif(
    not strace_works(), reason="strace cannot inject faults here (apt-get install strace)"
)


@pytest.mark.fault(1, 2, 3, 4, 5, 6, 8)
@needs_strace
def test_a_kill_at_every_call_loses_nothing_and_loads_nothing_corrupt(tmp_path, table):
    found = sweep(tmp_path, "real", "signal=SIGKILL")
    calls = ", ".join(f"{n} {call}" for call, n in found.by_call.items())
    lost, corrupt = len(found.lost), len(found.corrupt)
    table(("kill -9", f"every call ({calls})", found.runs, found.fired, lost, corrupt))
    assert found.lost == found.corrupt == found.unclean == []
    assert found.runs == found.fired > 100
    assert found.acknowledged > found.runs  # the kills are spread over several saves


@needs_strace
def test_the_same_sweep_catches_a_store_that_writes_in_place(tmp_path, table):
    """Negative control: the oracle must see what a naive store loses."""
    found = sweep(tmp_path, "naive", "signal=SIGKILL")
    lost, corrupt = len(found.lost), len(found.corrupt)
    table(("kill -9", "every call, **naive store**", found.runs, found.fired, lost, corrupt))
    assert found.runs == found.fired and corrupt > 10


FAULTS = [
    ("fsync", "EIO"),
    ("write", "ENOSPC"),
    ("write", "EDQUOT"),
    ("mkdir", "ENOSPC"),
    ("mkdir", "EROFS"),
    ("write", "EROFS"),
    ("rename", "EIO"),
    ("unlinkat", "EIO"),
]


@pytest.mark.fault(12, 13, 15)
@needs_strace
@pytest.mark.parametrize(("call", "error"), FAULTS)
def test_an_error_at_every_call_is_survived_by_the_same_process(tmp_path, table, call, error):
    found = sweep(tmp_path, "real", f"error={error}", call)
    lost, corrupt = len(found.lost), len(found.corrupt)
    table((error, f"every {call}", found.runs, found.fired, lost, corrupt))
    assert found.lost == found.corrupt == found.unclean == []
    assert found.runs == found.fired > 0
