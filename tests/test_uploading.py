"""What training may ask of its bucket while it runs: how far it is, and how long the end takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_bucket import Bucket, FakeRemote, Time, saved
from headway.bucket import parcel_of
from headway.checkpoint import CheckpointStore
from headway.config import Upload
from headway.errors import RemoteError
from headway.journal import Journal
from headway.upload import Progress, Uploader, acquire
from headway.upload.outbox import RECENT, Pace
from headway.uploading import Uploading


class Waits:
    """An uploader of which only the progress is asked."""

    def __init__(self, **facts: object) -> None:
        self.found = Progress(**{"steps": (1,), "left_bytes": 0, "bytes_per_second": None} | facts)

    def progress(self) -> Progress:
        return self.found


def uploading(tmp_path: Path, one: object | None, **section: object) -> Uploading:
    remote = FakeRemote(Bucket())
    with acquire(remote) as lease:
        here = Uploading(Upload(to=str(tmp_path), **section), remote, lease, tmp_path)
    here._uploader = one
    return here


@settings(max_examples=60, deadline=None)
@given(left=st.integers(0, 10**12), more=st.integers(0, 10**10), rate=st.floats(1.0, 1e9))
def test_the_end_is_estimated_from_backlog_and_rate_and_never_above_what_it_waits(
    tmp_path_factory, left, more, rate
):
    one = Waits(left_bytes=left, bytes_per_second=rate)
    here = uploading(tmp_path_factory.getbasetemp(), one, drain_minutes=1)
    assert here.drain_seconds(more) == pytest.approx(min(60.0, (left + more) / rate))


def test_before_the_first_upload_a_slow_bucket_is_expected_and_without_one_nothing(tmp_path):
    assert uploading(tmp_path, None).drain_seconds(10**9) == 0
    assert uploading(tmp_path, Waits(left_bytes=10**9)).drain_seconds(10**9) == 200


def test_a_bucket_that_fails_is_given_the_time_of_one_more_try(tmp_path):
    one = Waits(left_bytes=10, bytes_per_second=10.0, waiting_for="503")
    assert uploading(tmp_path, one, patience_minutes=2).drain_seconds() == 120
    assert uploading(tmp_path, one, patience_minutes=90, drain_minutes=3).drain_seconds() == 180


def test_the_rate_is_that_of_the_last_uploads_and_of_the_one_under_way():
    pace = Pace()
    assert pace.rate(0, 5.0) is None
    assert pace.rate(100, 5.0) == 20
    for _ in range(RECENT):
        pace.add(1, 100.0)
    for _ in range(RECENT):
        pace.add(100, 1.0)
    pace.add(0, 1e9)  # everything was there already
    assert pace.rate(0, 0.0) == 100
    assert pace.rate(100, RECENT * 1.0) == pytest.approx(60)


def test_each_upload_is_said_with_its_rate_and_what_waits_behind_it(tmp_path):
    """Step 1 is sent while 2 and 3 come; a slow clock makes the rate known."""
    time, bucket = Time(), Bucket()
    parcels = [saved(tmp_path, step) for step in (1, 2, 3)]
    said: list[str] = []

    def tick(verb: str, key: str) -> None:
        time.now += 0.1

    here = uploading(tmp_path, None)
    with (
        Uploader(
            FakeRemote(bucket, gate=tick), journal=tmp_path / "upload.jsonl", attempt=1,
            clock=time, pause=time.pause, skippable=lambda steps, scores: (),
        ) as one,
        Journal(tmp_path / "journal.jsonl", 1) as journal,
    ):  # fmt: skip
        here._uploader = one
        one.submit(parcels[0])
        assert one.drain(until=lambda: False, show=lambda progress: None)
        with one._changed:  # its thread cannot take them before they are looked at
            for parcel in parcels[1:]:
                one.submit(parcel)
            here.tell(journal, said.append)
        assert one.drain(until=lambda: False, show=lambda progress: None)
        here.tell(journal, said.append)
    assert "step 1 is in the bucket" in said[0] and "/s; 2 more wait, 6.24 kB, about" in said[0]
    assert said[-1].startswith("step 2 is in the bucket"), said
    assert "more wait" not in said[-1]


def test_where_it_fails_the_progress_says_why(tmp_path):
    remote = FakeRemote(Bucket(), dict.fromkeys(range(1000), "fail"))
    time = Time()
    with Uploader(
        remote, journal=tmp_path / "upload.jsonl", attempt=1, patience_seconds=1.0, clock=time,
        pause=time.pause,
    ) as one:  # fmt: skip
        one.submit(saved(tmp_path, 1))
        assert not one.drain(until=lambda: False, show=lambda progress: None)
        assert isinstance(one.failure(), RemoteError) and "503" in one.progress().waiting_for


def test_what_was_just_committed_is_named_without_hashing_it_again(tmp_path, monkeypatch):
    """Training waits for the submit call: the manifest was hashed where it was written."""
    committed = saved(tmp_path, 1)  # through the store's own commit
    [again] = CheckpointStore(tmp_path, attempt="reader").checkpoints()
    assert parcel_of(again) == committed, "read from disk, it has the same name"
    monkeypatch.setattr("headway.bucket.sha256_of", lambda checkpoint: 1 / 0)
    assert saved(tmp_path, 2).digest
    with pytest.raises(ZeroDivisionError):
        parcel_of(again)
