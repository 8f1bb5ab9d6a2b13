"""The uploader: what is listed is whole, what was acknowledged stays, training never waits."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from fake_bucket import (
    FAULTS,
    Bucket,
    FakeRemote,
    Killed,
    Time,
    flipped,
    listed,
    patient,
    saved,
)
from headway.bucket import by_policy
from headway.checkpoint import Retention
from headway.checkpoint.retention import ranked
from headway.errors import RemoteError
from headway.upload import Uploader, sending
from headway.upload.faults import Refused
from headway.upload.layout import Bad, Copy, Segment, chain, copies, segments, standing
from headway.upload.ledger import Ledger, read_ledger
from headway.upload.line import Cut, GaveUp, Line
from headway.upload.objects import RemoteFile
from headway.upload.outbox import Outbox
from headway.upload.parallel import run_all
from headway.upload.pruning import delete, leftovers, prune
from headway.upload.restoring import whole
from headway.upload.run_files import RunFiles
from headway.upload.sending import Unsendable, send

PROPERTY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def parcels(tmp_path_factory):
    """Six checkpoints of one run; nothing changes them."""
    folder = tmp_path_factory.mktemp("parcels")
    return [saved(folder, step) for step in range(100, 700, 100)]


def sent(parcel, remote, *, line=None, threads=1, before_commit=lambda: None, **more):
    wrong: list[str] = []
    done = send(
        parcel, remote, line or patient(), threads=threads, before_commit=before_commit,
        on_wrong=wrong.append, **more,
    )  # fmt: skip
    return done, wrong


def uploader(remote, journal, *, attempt=1, **more):
    time = more.pop("time", None) or Time()
    return Uploader(
        remote, journal=journal, attempt=attempt, clock=time, pause=time.pause,
        chance=lambda: 0.5, **more,
    )  # fmt: skip


def drained(one: Uploader) -> bool:
    return one.drain(until=lambda: False, show=lambda progress: None)


# ------------------------------------------------------------------ one checkpoint


def requests_of(parcel) -> int:
    """How many requests an undisturbed upload makes."""
    remote = FakeRemote(Bucket())
    sent(parcel, remote)
    return len(remote.calls)


@pytest.mark.fault(48, 50, 51, 52)
@PROPERTY
@given(data=st.data())
def test_whatever_goes_wrong_nothing_is_listed_or_a_whole_copy_is(parcels, data):
    parcel = parcels[0]
    script = data.draw(
        st.dictionaries(
            st.integers(0, requests_of(parcel) - 1), st.sampled_from(FAULTS), min_size=1, max_size=5
        )
    )
    bucket = Bucket()
    remote = FakeRemote(bucket, script)
    try:
        sent(parcel, remote)
        assert listed(bucket) == {(1, 100): []}, "acknowledged: it is there and whole"
    except (Killed, Unsendable):
        # Altered on its way, and its process dead before it could compare: such a manifest is not
        # the one that its folder is named after, so it commits nothing. See the next test.
        altered = "corrupt" in script.values()
        for wrong in listed(bucket).values():
            assert wrong == [] or (altered and FOREIGN in wrong)
    assert remote.fired
    sent(parcel, FakeRemote(bucket))  # the next process
    assert listed(bucket) == {(1, 100): []}


FOREIGN = "the manifest is not the one its folder is named after"


@pytest.mark.fault(51)
def test_a_manifest_altered_by_a_process_that_then_died_is_nobodys_commit(parcels):
    clean = FakeRemote(Bucket())
    sent(parcels[0], clean)
    at = next(n for n, (what, key) in enumerate(clean.calls) if what == "put" and "manifest" in key)
    bucket = Bucket()
    remote = FakeRemote(bucket, {at: "corrupt", at + 1: "die"})
    with pytest.raises(Killed):
        sent(parcels[0], remote)
    assert len(remote.fired) == 2 and all(FOREIGN in wrong for wrong in listed(bucket).values())
    [copy] = copies(FakeRemote(bucket).list())
    with pytest.raises(Bad):
        whole(copy, FakeRemote(bucket), patient())
    sent(parcels[0], FakeRemote(bucket))
    assert listed(bucket) == {(1, 100): []}


@pytest.mark.fault(48, 50, 51, 52)
def test_every_kind_of_fault_at_every_request_and_then_once_more(parcels):
    """Exhaustive over single faults, checksums or none; every fault fired."""
    for checksums in (True, False):
        clean = FakeRemote(Bucket(), checksums=checksums)
        sent(parcels[0], clean)
        for at in range(len(clean.calls)):
            for fault in FAULTS:
                bucket = Bucket()
                remote = FakeRemote(bucket, {at: fault}, checksums=checksums)
                try:
                    sent(parcels[0], remote)
                except (Killed, Unsendable):
                    assert listed(bucket) in ({}, {(1, 100): []})
                assert len(remote.fired) == 1
                sent(parcels[0], FakeRemote(bucket, checksums=checksums))
                assert listed(bucket) == {(1, 100): []}, (at, fault)


def manifest_first(parcel, remote, line):
    """What a naive uploader does: in the order of names, and no comparison."""
    remote.put(parcel.prefix + "manifest.json", (parcel.folder / "manifest.json").read_bytes())
    for name in parcel.files:
        remote.put(parcel.prefix + name, parcel.folder / name)


def no_comparison(parcel, remote, line):
    """Manifest last, but whatever the store holds is believed."""
    for name in [*parcel.files, "manifest.json"]:
        remote.put(parcel.prefix + name, parcel.folder / name, create_only=False)


@pytest.mark.parametrize(
    ("naive", "fault"), [(manifest_first, "die after"), (no_comparison, "corrupt")]
)
def test_the_same_oracle_sees_what_a_naive_uploader_does(parcels, naive, fault):
    """Negative control."""
    broken = 0
    for at in range(4):
        bucket = Bucket()
        remote = FakeRemote(bucket, {at: fault})
        with contextlib.suppress(Killed):
            naive(parcels[0], remote, patient())
        assert remote.fired
        broken += any(wrong for wrong in listed(bucket).values())
    assert broken >= 3


@pytest.mark.fault(50)
def test_a_lost_reply_is_found_to_have_happened_and_not_sent_twice(parcels):
    bucket = Bucket()
    clean = FakeRemote(Bucket())
    sent(parcels[0], clean)
    first_put = [verb for verb, _ in clean.calls].index("put")
    remote = FakeRemote(bucket, {first_put: "lose"})
    done, wrong = sent(parcels[0], remote)
    assert done and wrong == [] and remote.fired == [("lose", "put")]
    puts = [key for verb, key in remote.calls if verb == "put"]
    assert len(puts) - len(set(puts)) == 1, "asked once more, answered: it exists"


@pytest.mark.fault(51)
def test_altered_bytes_are_deleted_sent_again_and_said(parcels):
    clean = FakeRemote(Bucket())
    sent(parcels[0], clean)
    at = [verb for verb, _ in clean.calls].index("put")
    bucket = Bucket()
    done, wrong = sent(parcels[0], FakeRemote(bucket, {at: "corrupt"}))
    assert done and listed(bucket) == {(1, 100): []}
    assert "other bytes than were sent" in wrong[0]


@pytest.mark.fault(51)
def test_a_store_that_always_alters_gets_no_manifest(parcels):
    class Altering(FakeRemote):
        def put(self, key, source, **more):
            data = source if isinstance(source, bytes) else source.read_bytes()
            return super().put(key, flipped(data), **more)

    bucket = Bucket()
    with pytest.raises(Unsendable, match="3 times the store held other bytes"):
        sent(parcels[0], Altering(bucket))
    assert listed(bucket) == {}


@pytest.mark.fault(52)
def test_a_file_that_is_already_there_is_not_sent_again(parcels):
    bucket = Bucket()
    total = requests_of(parcels[0])
    remote = FakeRemote(bucket, {total - 2: "die"})
    with pytest.raises(Killed):
        sent(parcels[0], remote)
    again = FakeRemote(bucket)
    sent(parcels[0], again)
    assert [key.rpartition("/")[2] for verb, key in again.calls if verb == "put"] == [
        "manifest.json"
    ]


def test_a_damaged_local_file_is_never_sent(tmp_path):
    parcel = saved(tmp_path, 5)
    file = parcel.folder / "state.json"
    file.write_bytes(flipped(file.read_bytes()))
    bucket = Bucket()
    with pytest.raises(Unsendable, match="not what was saved"):
        sent(parcel, FakeRemote(bucket))
    assert listed(bucket) == {} and not any("state.json" in key for key in bucket.objects)


def test_a_committed_copy_is_never_touched_even_if_it_is_damaged(parcels):
    bucket = Bucket()
    sent(parcels[0], FakeRemote(bucket))
    del bucket.objects[parcels[0].prefix + "state.json"]
    before = dict(bucket.objects)
    with pytest.raises(Unsendable, match=r"state\.json.*left as it is"):
        sent(parcels[0], FakeRemote(bucket))
    assert bucket.objects == before


@pytest.mark.parametrize("where", ["link", "missing", "folder"])
def test_only_regular_files_are_sent(tmp_path, where):
    parcel = saved(tmp_path, 5)
    file = parcel.folder / "state.json"
    data = file.read_bytes()
    file.unlink()
    if where == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        file.symlink_to(tmp_path / "elsewhere")
    elif where == "folder":
        file.mkdir()
    with pytest.raises(Unsendable):
        sent(parcel, FakeRemote(Bucket()))


@pytest.mark.parametrize("threads", [1, 4])
def test_the_manifest_is_the_last_object_and_follows_the_check_before_the_commit(parcels, threads):
    order: list[str] = []
    remote = FakeRemote(Bucket(), gate=lambda verb, key: order.append(f"{verb} {key}"))
    sent(parcels[0], remote, threads=threads, before_commit=lambda: order.append("lease"))
    puts = [entry for entry in order if entry.startswith("put") or entry == "lease"]
    assert puts[-2:] == ["lease", f"put {parcels[0].prefix}manifest.json"]
    assert len(puts) == 5


def test_a_refused_commit_leaves_nothing_listed(parcels):
    def refuse():
        raise Refused("the lease is gone")

    bucket = Bucket()
    with pytest.raises(Refused):
        sent(parcels[0], FakeRemote(bucket), before_commit=refuse)
    assert listed(bucket) == {}


# ------------------------------------------------------------------ the line


@pytest.mark.fault(48)
def test_waiting_doubles_with_full_jitter_and_ends_with_patience():
    time = Time()
    line = Line(patience_seconds=100, clock=time, pause=time.pause, chance=lambda: 1.0)
    bucket = Bucket()
    remote = FakeRemote(bucket, dict.fromkeys(range(50), "fail"))
    with pytest.raises(GaveUp, match=r"no success for .* 503"):
        line.ask(lambda: remote.head("x"))
    assert time.waits == [0.5, 1, 2, 4, 8, 16, 32]
    assert line.retries == 7


def test_a_refusal_is_not_asked_again():
    remote = FakeRemote(Bucket(), {0: "refuse"})
    with pytest.raises(Refused):
        patient().ask(lambda: remote.head("x"))
    assert len(remote.calls) == 1


def test_a_cut_line_ends_at_its_next_wait():
    line = Line(pause=lambda seconds: True)
    remote = FakeRemote(Bucket(), {0: "fail"})
    with pytest.raises(Cut):
        line.ask(lambda: remote.head("x"))


def test_bandwidth_is_kept_over_all_threads():
    time = Time()
    line = Line(bytes_per_second=1000, clock=time, pause=time.pause)
    for _ in range(10):
        line.moved(500)
    assert time.now - 1000.0 == pytest.approx(5.0)


def test_after_an_error_no_new_job_begins_and_the_error_is_seen():
    begun: list[int] = []

    def job(n):
        begun.append(n)
        if n == 3:
            raise Refused("no")

    with pytest.raises(Refused):
        run_all([partial(job, n) for n in range(100)], 2, threading.Event(), "test")
    assert len(begun) < 100


# ------------------------------------------------------------------ the uploader


def test_what_is_submitted_is_verified_collected_once_and_known_to_the_next_attempt(
    parcels, tmp_path
):
    bucket, journal = Bucket(), tmp_path / "upload.jsonl"
    with uploader(FakeRemote(bucket), journal) as one:
        one.submit(parcels[0])
        assert drained(one)
        assert one.pending() == frozenset() and one.verified() == {100}
        [event] = one.collect()
        assert (event.kind, event.step, event.retries) == ("sent", 100, 0) and event.bytes > 3000
        assert one.collect() == [] and one.failure() is None
    with uploader(quiet := FakeRemote(bucket), journal) as two:
        two.submit(parcels[0])
        assert drained(two) and two.verified() == {100}
        assert two.collect() == [], "neither sent nor skipped"
    assert quiet.calls == [("list", "checkpoints/")]


class Elsewhere(FakeRemote):
    url = "fake://another/run"


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("lost", ["manifest.json", "state.json", None])
def test_a_claim_is_compared_with_its_checkpoint_whichever_comes_first(
    parcels, tmp_path, early, lost
):
    """The bucket is asked while the run still submits what is on its disk."""
    bucket, journal, parcel = Bucket(), tmp_path / "upload.jsonl", parcels[1]
    remote = FakeRemote(bucket)
    with uploader(remote, journal) as one:
        one.submit(parcel)
        assert drained(one)
    for key in [key for key in bucket.objects if lost and key == parcel.prefix + lost]:
        del bucket.objects[key]
    outbox = Outbox(journal, remote.url, None)
    assert outbox.known.claims
    if early:
        outbox.confirm(copies(remote.list()))
        is_new = outbox.add(parcel, None)
    else:
        outbox.add(parcel, None)
        outbox.confirm(copies(remote.list()))
        is_new = bool(outbox)
    assert is_new == (lost is not None) == bool(outbox.pending())
    outbox.known.refuse(parcel, Unsendable("damaged"))
    assert (parcel.step in outbox.known.lost()) == (lost is not None)


def test_what_one_bucket_has_is_sent_to_another(parcels, tmp_path):
    """One ledger: `upload push --to`, or another upload.to in the config."""
    first, second, journal = Bucket(), Bucket(), tmp_path / "upload.jsonl"
    for remote, bucket in ((FakeRemote(first), first), (Elsewhere(second), second)):
        with uploader(remote, journal) as one:
            one.submit(parcels[0])
            assert drained(one)
            assert one.verified() == {100}
        assert listed(bucket) == {(1, 100): []}


@pytest.mark.parametrize("lost", ["manifest.json", "state.json", ""])
def test_what_somebody_deleted_from_the_bucket_is_not_believed_to_be_there(parcels, tmp_path, lost):
    bucket, journal = Bucket(), tmp_path / "upload.jsonl"
    for parcel in parcels[:2]:
        with uploader(FakeRemote(bucket), journal) as one:
            one.submit(parcel)
            assert drained(one)
    for key in [key for key in bucket.objects if key.startswith(parcels[1].prefix + lost)]:
        del bucket.objects[key]
    with uploader(FakeRemote(bucket), journal) as two:
        for parcel in parcels[:2]:
            two.submit(parcel)
        if lost == "state.json":
            assert not drained(two) and two.unsendable() == {200}, "a committed copy is not touched"
            assert two.verified() == {100}
        else:
            assert drained(two)
            assert two.verified() == {100, 200} and listed(bucket)[1, 200] == []


def held_up(bucket, script=None):
    """A client that waits at its first put until released, and says that it got there."""
    reached, go = threading.Event(), threading.Event()

    def gate(verb, key):
        if verb == "put":
            reached.set()
            assert go.wait(30)

    return FakeRemote(bucket, script, gate=gate), reached, go


@pytest.mark.fault(61)
def test_a_slow_bucket_gets_the_newest_and_the_best_and_the_rest_is_skipped(parcels, tmp_path):
    bucket = Bucket()
    remote, reached, go = held_up(bucket)
    scores = {100: 3.0, 200: 1.0, 300: 2.0, 400: 2.0}
    newest_and_best = partial(by_policy, Retention(keep_last=1, keep_best=1))
    with uploader(remote, tmp_path / "upload.jsonl", skippable=newest_and_best) as one:
        one.submit(parcels[0], scores)
        assert reached.wait(30)
        for parcel in parcels[1:]:
            one.submit(parcel, scores)
        assert one.pending() == {100, 200, 600}, "in flight, the best, the newest"
        assert one.progress().steps == (100, 600, 200)
        go.set()
        assert drained(one)
        events = one.collect()
    assert [e.step for e in events if e.kind == "skipped"] == [300, 400, 500]
    assert [e.step for e in events if e.kind == "sent"] == [100, 600, 200], "newest first"
    assert sorted(listed(bucket)) == [(1, 100), (1, 200), (1, 600)]
    skipped = [e["step"] for e in read_ledger(tmp_path / "upload.jsonl") if e["event"] == "skipped"]
    assert skipped == [300, 400, 500]


@pytest.mark.fault(48)
def test_submit_asks_and_writes_nothing_while_the_bucket_hangs(parcels, tmp_path):
    """It returns though every request hangs and the ledger is being synced."""
    remote, reached, go = held_up(Bucket())
    journal = tmp_path / "upload.jsonl"
    with uploader(remote, journal) as one:
        one.submit(parcels[0])
        assert reached.wait(30)
        with one._ledger._lock:  # as during an fsync
            for parcel in parcels[1:]:
                one.submit(parcel)
            assert one.pending() == {100, 600}
            assert [verb for verb, _ in remote.calls if verb == "put"] == []
        go.set()
        assert drained(one)


@pytest.mark.fault(48, 55)
@pytest.mark.parametrize("fault", ["fail", "refuse"])
def test_a_bucket_that_fails_is_said_and_tried_again_at_the_next_save(parcels, tmp_path, fault):
    bucket = Bucket()
    remote = FakeRemote(bucket, dict.fromkeys(range(6), fault))
    with uploader(remote, tmp_path / "upload.jsonl", patience_seconds=1.0) as one:
        one.submit(parcels[0])
        wait_for(one, lambda: one.failure() is not None)
        assert one.pending() == {100}, "kept, and pinned"
        assert [event.kind for event in one.collect()] == ["failed"]
        remote.script.clear()
        one.submit(parcels[1])
        assert drained(one)
        assert one.failure() is None and one.verified() == {200}
    assert listed(bucket) == {(1, 200): []}


def wait_for(one: Uploader, seen) -> None:
    """Wait on the uploader's own condition: no sleeping."""
    with one._changed:
        assert one._changed.wait_for(seen, 30)


def test_draining_a_dead_bucket_ends_and_says_that_not_all_is_there(parcels, tmp_path):
    remote = FakeRemote(Bucket(), dict.fromkeys(range(1000), "fail"))
    with uploader(remote, tmp_path / "upload.jsonl", patience_seconds=1.0) as one:
        one.submit(parcels[0])
        assert not drained(one)
        assert isinstance(one.failure(), RemoteError)


def test_a_second_ctrl_c_leaves_a_drain_and_nothing_half_listed(parcels, tmp_path):
    bucket = Bucket()
    remote, reached, go = held_up(bucket)
    with uploader(remote, tmp_path / "upload.jsonl") as one:
        one.submit(parcels[0])
        assert reached.wait(30)
        shown = []
        assert not one.drain(until=lambda: len(shown) == 2, show=shown.append)
        assert shown[0].steps == (100,) and shown[0].left_bytes == parcels[0].bytes
        go.set()
    assert all(wrong == [] for wrong in listed(bucket).values())


def test_a_checkpoint_that_cannot_be_sent_does_not_hold_up_the_others(tmp_path):
    bad, good = saved(tmp_path, 1), saved(tmp_path, 2)
    (bad.folder / "state.json").unlink()
    bucket = Bucket()
    with uploader(FakeRemote(bucket), tmp_path / "upload.jsonl") as one:
        one.submit(bad)
        assert not drained(one), "it is in no bucket"
        assert one.unsendable() == {1} and isinstance(one.failure(), Unsendable)
        one.submit(good)
        assert drained(one), "a newer one is"
        assert [(e.kind, e.step) for e in one.collect()] == [("failed", 1), ("sent", 2)]
        assert one.failure() is None and one.pending() == frozenset()


def test_a_fault_of_the_uploader_itself_is_said_and_the_next_save_begins_anew(
    parcels, tmp_path, monkeypatch
):
    bucket = Bucket()
    with uploader(FakeRemote(bucket), tmp_path / "upload.jsonl") as one:
        real = sending.send
        monkeypatch.setattr("headway.upload.uploader.send", lambda *a, **k: 1 / 0)
        one.submit(parcels[0])
        wait_for(one, lambda: one.failure() is not None)
        assert "ZeroDivisionError" in str(one.failure()) and not drained(one)
        [event, *_] = one.collect()
        assert (event.kind, event.step) == ("failed", 100) and "ZeroDivision" in event.why
        monkeypatch.setattr("headway.upload.uploader.send", real)
        one.submit(parcels[1])
        assert drained(one) and one.verified() == {200}


DAMAGED = ["the manifest is not the one its folder is named after"]


def test_a_manifest_that_was_damaged_on_its_way_is_replaced_by_the_next_process(parcels, tmp_path):
    bucket = Bucket()
    clean = FakeRemote(Bucket())
    sent(parcels[0], clean)
    at = clean.calls.index(("put", f"{parcels[0].prefix}manifest.json"))
    with pytest.raises(Killed):
        sent(parcels[0], FakeRemote(bucket, {at: "corrupt", at + 1: "die"}))
    assert listed(bucket) in (
        {(1, 100): DAMAGED},
        {(-1, -1): ["the manifest is damaged", *DAMAGED]},
    )
    assert sent(parcels[0], FakeRemote(bucket))
    assert listed(bucket) == {(1, 100): []}


@pytest.mark.fault(52)
@PROPERTY
@given(data=st.data())
def test_killed_and_started_again_at_random_nothing_acknowledged_is_lost(parcels, data):
    """Processes die at random requests; each restart submits what is on disk, as opening does."""
    bucket = Bucket()
    acknowledged: set[tuple[int, int]] = set()
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "upload.jsonl"
        saves = iter(parcels)
        disk: list = []
        fired = 0
        for _ in range(data.draw(st.integers(1, 4))):
            script = data.draw(
                st.dictionaries(st.integers(0, 30), st.sampled_from(FAULTS), max_size=4)
            )
            remote = FakeRemote(bucket, script)
            disk += [parcel for parcel, _ in zip(saves, range(2), strict=False)]
            with uploader(remote, journal, parallel_files=1) as one:
                for parcel in disk:
                    one.submit(parcel)
                    drained(one)
                acknowledged |= {(1, step) for step in one.verified()}
            fired += len(remote.fired)
            found = listed(bucket)
            # A manifest that was damaged on its way by a process that then died is there, and is
            # seen not to be one; the next process replaces it.
            unread = ["the manifest is damaged", *DAMAGED]
            assert all(wrong in ([], DAMAGED, unread) for wrong in found.values())
            assert all(found[copy] == [] for copy in acknowledged)
        with uploader(FakeRemote(bucket), journal) as last:
            for parcel in disk:
                last.submit(parcel)
            assert drained(last)
        assert listed(bucket)[1, disk[-1].step] == []
        event(f"{min(fired, 5)} faults fired")


# ------------------------------------------------------------------ journal and config


def journal_in(bucket: Bucket) -> bytes:
    """What would come back as the journal: it ends before a damaged piece."""
    found = b""
    for piece in chain(segments([bucket.facts(key, True) for key in bucket.objects])):
        data = bucket.objects[piece.key]
        if hashlib.sha256(data).hexdigest()[:12] != piece.digest:
            break
        found += data
    return found


@PROPERTY
@given(data=st.data())
def test_the_journal_in_the_bucket_is_always_a_prefix_that_holds_each_committed_save(data):
    bucket = Bucket()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        path.write_bytes(b"")
        committed = b""
        for attempt in range(1, data.draw(st.integers(2, 5))):
            files = RunFiles(attempt)
            files.add("journal.jsonl", path, grows=True)
            script = data.draw(
                st.dictionaries(st.integers(0, 12), st.sampled_from(FAULTS), max_size=3)
            )
            remote = FakeRemote(bucket, script)
            try:
                for lines in data.draw(st.lists(st.integers(0, 3), max_size=5)):
                    whole = path.read_bytes() + f'{{"attempt":{attempt}}}\n'.encode() * lines
                    path.write_bytes(whole + b'{"a line that is being writ')
                    files.send(remote, patient())
                    committed = whole
                    path.write_bytes(whole)  # as the next attempt opens it
            except (Killed, Unsendable):
                path.write_bytes(whole)
            there = journal_in(bucket)
            assert path.read_bytes().startswith(there)
            assert there.startswith(committed)


def test_where_two_machines_went_on_from_one_byte_the_later_attempt_counts():
    pieces = [
        Segment(file="j", attempt=1, start=0, end=10, digest="a"),
        Segment(file="j", attempt=1, start=10, end=30, digest="b"),
        Segment(file="j", attempt=2, start=10, end=20, digest="c"),
        Segment(file="j", attempt=2, start=20, end=25, digest="d"),
    ]
    assert [piece.digest for piece in chain(pieces)] == ["a", "c", "d"]


def test_config_and_journal_go_before_each_manifest_and_the_end_of_the_journal_at_the_end(
    parcels, tmp_path
):
    config, journal = tmp_path / "config.yaml", tmp_path / "journal.jsonl"
    config.write_text("a: 1\n")
    journal.write_text('{"event":"save"}\n{"torn')
    bucket = Bucket()
    remote = FakeRemote(bucket)
    with uploader(remote, tmp_path / "upload.jsonl", attempt=7) as one:
        one.also("config.yaml", config)
        one.also("journal.jsonl", journal, grows=True)
        one.submit(parcels[0])
        assert drained(one)
        puts = [key for verb, key in remote.calls if verb == "put"]
        digest = hashlib.sha256(b"a: 1\n").hexdigest()[:12]
        assert puts[-3] == f"run/config.yaml/0007-0001-{digest}"
        assert puts[-2].startswith("run/journal.jsonl/0007-000000000000-000000000017-")
        assert puts[-1] == f"{parcels[0].prefix}manifest.json"
        journal.write_text('{"event":"save"}\n{"event":"stop"}\n')
    assert journal_in(bucket) == journal.read_bytes()


# ------------------------------------------------------------------ what stands, what may go


def copy(step, attempt, committed=True, modified_at=0.0):
    names = ["state.json", *(["manifest.json"] if committed else [])]
    files = {name: RemoteFile(name, 1, None, modified_at) for name in names}
    return Copy(step=step, attempt=attempt, digest=f"{attempt:06d}{step:06d}", files=files)


def test_a_later_attempt_takes_back_what_was_committed_from_its_first_step_on():
    went_back = [copy(300, 1), copy(400, 1), copy(500, 1), copy(350, 2)]
    assert [(c.attempt, c.step) for c in standing(went_back)] == [(1, 300), (2, 350)]
    again = [*went_back, copy(320, 3)]
    assert [(c.attempt, c.step) for c in standing(again)] == [(1, 300), (3, 320)]
    assert standing([*again, copy(900, 3, committed=False)]) == standing(again)
    assert [c.step for c in standing(again, since_attempt=2)] == [320]


@PROPERTY
@given(
    places=st.sets(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=15),
)
def test_what_stands_is_one_line_of_steps_that_ends_with_the_last_attempt(places):
    stand = standing([copy(step, attempt) for attempt, step in places])
    steps = [c.step for c in stand]
    assert steps == sorted(set(steps))
    assert (stand[-1].attempt, stand[-1].step) == max(places)
    replay: dict[int, int] = {}  # the same, by telling the story in order
    for attempt in sorted({a for a, _ in places}):
        mine = sorted(step for a, step in places if a == attempt)
        replay = {s: a for s, a in replay.items() if s < mine[0]} | dict.fromkeys(mine, attempt)
    assert {c.step: c.attempt for c in stand} == replay


@pytest.mark.fault(54)
@PROPERTY
@given(data=st.data())
def test_remote_retention_never_deletes_the_newest_or_the_best_and_never_half(parcels, data):
    bucket = Bucket()
    for parcel in parcels:
        sent(parcel, FakeRemote(bucket))
    steps = [parcel.step for parcel in parcels]
    scores = data.draw(
        st.dictionaries(st.sampled_from(steps), st.floats(0, 9) | st.just(float("nan")))
    )
    keep = Retention(keep_last=data.draw(st.integers(1, 3)), keep_best=data.draw(st.integers(1, 2)))
    script = data.draw(st.dictionaries(st.integers(2, 14), st.sampled_from(FAULTS), max_size=3))
    with contextlib.suppress(Killed):
        prune(
            FakeRemote(bucket, script), patient(), partial(by_policy, keep), scores,
            lambda c: True, lambda: None,
        )  # fmt: skip
    found = listed(bucket)
    assert all(wrong == [] for wrong in found.values()), "a manifest went before its files"
    assert (1, steps[-1]) in found
    best = ranked(steps, scores)
    assert not best or (1, best[0][1]) in found


@pytest.mark.fault(54)
def test_deleting_files_before_the_manifest_would_be_seen(parcels):
    """Negative control."""
    bucket = Bucket()
    sent(parcels[0], FakeRemote(bucket))
    remote = FakeRemote(bucket, {1: "die"})
    with pytest.raises(Killed):
        remote.delete(sorted(bucket.objects, key=lambda key: "manifest" in key))
    assert listed(bucket)[1, 100]
    bucket = Bucket()
    sent(parcels[0], FakeRemote(bucket))
    [there] = copies(FakeRemote(bucket).list())
    with pytest.raises(Killed):
        delete(there, FakeRemote(bucket, {1: "die"}), patient())
    assert listed(bucket) == {}


def test_nothing_is_deleted_while_the_newest_was_not_verified_here(parcels):
    bucket = Bucket()
    for parcel in parcels[:3]:
        sent(parcel, FakeRemote(bucket))
    before = dict(bucket.objects)
    policy = partial(by_policy, Retention(keep_last=1, keep_best=1))
    known = {parcel.prefix for parcel in parcels[:2]}
    gone = prune(
        FakeRemote(bucket), patient(), policy, {}, lambda c: c.prefix in known, lambda: None
    )
    assert gone == [] and bucket.objects == before


def test_the_uploader_prunes_after_each_copy_and_forgets_what_it_deleted(parcels, tmp_path):
    bucket = Bucket()
    policy = partial(by_policy, Retention(keep_last=2, keep_best=1))
    with uploader(FakeRemote(bucket), tmp_path / "u.jsonl", expendable=policy) as one:
        for parcel in parcels:
            one.submit(parcel, {200: 0.5, 300: 0.7})
            assert drained(one)
        wait_for(one, lambda: one.verified() == {200, 500, 600})
    assert sorted(listed(bucket)) == [(1, 200), (1, 500), (1, 600)]


@pytest.mark.fault(52)
def test_orphans_are_found_by_age_and_only_they(parcels):
    bucket = Bucket()
    sent(parcels[0], FakeRemote(bucket))
    total = requests_of(parcels[1])
    with pytest.raises(Killed):
        sent(parcels[1], FakeRemote(bucket, {total - 2: "die"}))
    young = leftovers(FakeRemote(bucket), patient(), now=bucket.now + 3600)
    assert young == []
    [old] = leftovers(FakeRemote(bucket), patient(), now=bucket.now + 25 * 3600)
    assert old.copy.step == 200 and "no manifest" in old.why
    delete(old.copy, FakeRemote(bucket), patient())
    assert listed(bucket) == {(1, 100): []}
    assert not any("step-00000200" in key for key in bucket.objects)


# ------------------------------------------------------------------ archive, ledger


def test_an_archive_is_one_object_the_same_every_time(parcels):
    buckets = [Bucket(), Bucket()]
    for bucket in buckets:
        sent(parcels[0], FakeRemote(bucket), archive="tar")
    assert buckets[0].objects == buckets[1].objects and len(buckets[0].objects) == 2
    assert not list(parcels[0].folder.parent.glob(".partial-*"))


def test_a_torn_ledger_is_read_and_goes_on(tmp_path):
    path = tmp_path / "upload.jsonl"
    path.write_text('{"event":"sent","step":1,"prefix":"a"}\n{"event":"se')
    ledger = Ledger(path)
    ledger.append("skipped", step=2)
    ledger.close()
    ledger.append("after closing")
    assert [entry["event"] for entry in read_ledger(path)] == ["sent", "skipped"]
