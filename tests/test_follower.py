"""What a live follower still wants is not pruned; a dead one holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_bucket import Bucket, FakeRemote, saved
from headway.bucket import follow
from headway.checkpoint import CheckpointStore, Follower, Retention
from headway.checkpoint.awaited import LOCK_NAME, awaited
from headway.errors import RunLocked
from headway.upload import Uploader

KEEP_ONE = Retention(keep_last=1, keep_best=1)


def store_of(run: Path) -> CheckpointStore:
    return CheckpointStore(run, attempt="1", reserve_bytes=0)


def steps(run: Path) -> list[int]:
    return [checkpoint.step for checkpoint in store_of(run).checkpoints()]


def test_nothing_is_pruned_that_a_live_follower_has_not_settled(tmp_path):
    for step in (1, 2, 3, 4):
        saved(tmp_path, step)
    with Follower(tmp_path) as follower:
        assert store_of(tmp_path).prune(KEEP_ONE) == [], "it has seen none of them yet"
        follower.settle([(1, "1"), (3, "1"), (2, "7")])
        assert store_of(tmp_path).prune(KEEP_ONE) == [1, 3], "2 was settled as another attempt's"
        follower.settle([(2, "1")])
        assert store_of(tmp_path).prune(KEEP_ONE) == [2]
    assert steps(tmp_path) == [4]


def test_without_a_follower_retention_alone_decides(tmp_path):
    """Negative control: what the follower's list holds does not matter once it is gone."""
    for step in (1, 2):
        saved(tmp_path, step)
    with Follower(tmp_path):
        pass
    assert (tmp_path / LOCK_NAME).exists()
    assert store_of(tmp_path).prune(KEEP_ONE) == [1]


def test_a_killed_follower_holds_nothing(tmp_path):
    for step in (1, 2):
        saved(tmp_path, step)
    code = (
        "import sys; from pathlib import Path; from headway.checkpoint import Follower\n"
        "with Follower(Path(sys.argv[1])): print('here', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout and child.stdout.readline() == b"here\n"
        assert store_of(tmp_path).prune(KEEP_ONE) == []
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert store_of(tmp_path).prune(KEEP_ONE) == [1]


def test_a_second_follower_is_refused(tmp_path):
    with Follower(tmp_path), pytest.raises(RunLocked, match="one is enough"):
        Follower(tmp_path).__enter__()


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 60), places=st.lists(st.integers(0, 9), unique=True))
def test_half_a_list_keeps_everything(tmp_path_factory, cut, places):
    run = tmp_path_factory.mktemp("run")
    every = [(step, "1") for step in range(10)]
    with Follower(run) as follower:
        follower.settle([(step, "1") for step in places])
        whole = (run / "follower.json").read_bytes()
        (run / "follower.json").write_bytes(whole[:cut])
        left = {step for step, _ in awaited(run, every)}
        assert left in ({*range(10)}, {*range(10)} - {*places})
        assert cut >= len(whole) - 1 or left == {*range(10)}


def test_a_sidecar_that_sends_slowly_finds_every_checkpoint_that_it_wanted(tmp_path):
    """The trainer prunes after each save, to one; the sidecar is held up in its first upload."""
    bucket, reached, go = Bucket(), threading.Event(), threading.Event()

    def hold(verb: str, key: str) -> None:
        if verb == "put" and "step-00000001" in key:
            reached.set()
            assert go.wait(60)

    remote = FakeRemote(bucket, gate=hold)
    rounds: list[int] = []

    def train_on(seconds: float) -> None:
        """Runs between two looks of the sidecar: saves, and prunes at once."""
        rounds.append(len(rounds))
        if len(rounds) == 1:
            assert reached.wait(60)
        if len(rounds) <= 4:
            saved(tmp_path, len(rounds) + 1)
            store_of(tmp_path).prune(KEEP_ONE)
            assert 1 in steps(tmp_path), "it is being sent"
            assert len(rounds) + 1 in steps(tmp_path)
        else:
            go.set()
            assert one.drain(until=lambda: False, show=lambda progress: None)

    saved(tmp_path, 1)
    with (
        Follower(tmp_path) as follower,
        Uploader(remote, journal=tmp_path / "upload.jsonl", attempt=1) as one,
    ):
        follow(
            tmp_path, one, until=lambda: len(rounds) > 5, wait=train_on,
            collected=lambda uploader: None, follower=follower,
        )  # fmt: skip
        assert one.verified() == {1, 5}, "nothing was refused because its files were gone"
        store_of(tmp_path).prune(KEEP_ONE)
    assert steps(tmp_path) == [5]
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000005"]  # noqa: PTH208
