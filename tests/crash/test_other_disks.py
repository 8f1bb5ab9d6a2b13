"""A disk that cannot be written, and a run that lies on two disks."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attempts import TOY, Forks, run_of, said, toy_run
from child import payload
from disks import tmpfs
from oracle import Outcome, checkpoints, judge_end
from sweep import read_all, save

from headway.checkpoint import CheckpointStore, Retention
from headway.errors import CheckpointError

pytestmark = [pytest.mark.crash, pytest.mark.timeout(200)]


@contextlib.contextmanager
def read_only(place: Path) -> Iterator[None]:
    """The mounted file system refuses every write, of root too."""
    how = ["mount", "-o", "remount,{}", str(place)]
    subprocess.run([word.format("ro") for word in how], check=True)
    try:
        yield
    finally:
        subprocess.run([word.format("rw") for word in how], check=True)


@pytest.mark.fault(15)
@pytest.mark.parametrize("begun", [False, True], ids=["a new run", "a run to continue"])
def test_on_a_disk_that_cannot_be_written_a_run_does_not_start_and_says_why(
    forks: Forks, whole: Path, tmp_path: Path, begun: bool
) -> None:
    config = toy_run(tmp_path, **TOY)
    run = run_of(config)
    with tmpfs(run.parent, "300m"):
        if begun:
            assert forks.finish(toy_run(tmp_path, **TOY)) == 0, said(config)
        before = {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")}
        told = len(said(config))
        with read_only(run.parent):
            assert forks.finish(config) not in (0, 75), said(config)
        words = said(config)[told:]
        assert "Read-only file system" in words and str(run) in words, words
        assert "Traceback" not in words
        assert {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")} == before
        assert forks.finish(config) == 0, said(config)
        outcome = Outcome()
        judge_end(run, whole, outcome)
        assert outcome.clean, outcome


@pytest.mark.fault(16)
def test_checkpoints_on_a_disk_of_their_own_are_saved_pruned_and_set_aside(tmp_path: Path) -> None:
    """A partial lies beside its final name, so a rename never leaves its disk; and what would
    leave it (quarantine/ is on the other one) stays there under another name."""
    with tmpfs(tmp_path / "run" / "checkpoints", "1m"):
        store = CheckpointStore(tmp_path / "run", attempt="1", reserve_bytes=0)
        assert store.directory.stat().st_dev != store.root.stat().st_dev
        partial = store.open(1, 0)
        assert partial.path.parent == store.directory
        partial.discard()
        for step in (1, 2, 3):
            save(store, step)
        (store.directory / "step-00000003/state.json").write_bytes(b"{}")
        found, told = store.newest_good()
        assert found and found.step == 2 and "quarantine-step-00000003-" in told[0]
        [aside] = store.directory.glob("quarantine-*")
        assert (aside / "state.json").read_bytes() == b"{}", "never deleted"
        assert read_all(save(store, 3).path) == payload(3), "its step can be saved again"
        assert store.prune(Retention(keep_last=1, keep_best=1)) == [1, 2]
        assert store.sweep() == [] and aside.exists()
        (store.directory / "step-00000003/state.json").unlink()
        for _ in range(2):
            with pytest.raises(CheckpointError, match=r"quarantine-step-00000003.*Not starting"):
                store.newest_good()


@pytest.mark.fault(16)
def test_training_goes_on_past_damage_on_such_a_disk(
    forks: Forks, whole: Path, tmp_path: Path
) -> None:
    config = toy_run(tmp_path, **TOY)
    run = run_of(config)
    with tmpfs(run / "checkpoints", "300m"):
        assert forks.finish(config) == 0, said(config)
        newest = checkpoints(run)[-1].path
        (newest / "optimizer.safetensors").write_bytes(b"")
        assert forks.finish(config) == 0, said(config)
        outcome = Outcome()
        judge_end(run, whole, outcome)
        assert outcome.clean, outcome
        shutil.rmtree(run / "evals")
