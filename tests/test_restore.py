"""Bringing a run back: the newest whole state of both sides, and nothing that was not compared."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fake_bucket import FAULTS, Bucket, FakeRemote, Killed, flipped, patient, saved
from headway.bucket import begin_fresh, go_back, newest_here, problems_in, restore_run
from headway.checkpoint import CheckpointStore, verify
from headway.checkpoint.manifest import Manifest, manifest_bytes
from headway.errors import CheckpointError, RunLocked, StorageFull
from headway.lock import RunLock
from headway.upload import Uploader, remote_checkpoints, restore
from headway.upload.faults import Refused
from headway.upload.layout import Bad, highest_attempt
from headway.upload.ledger import read_ledger, verified_copies
from headway.upload.restoring import put_in_place

JOURNAL = '{{"event":"save","step":{}}}\n'


def push(bucket, run: Path, *parcels, attempt=1, **more) -> None:
    """Train and upload on a machine: a line in the journal for each save, then the copy."""
    journal, config = run / "journal.jsonl", run / "config.yaml"
    config.write_text("recipe: toy\n")
    with Uploader(FakeRemote(bucket), journal=run / "upload.jsonl", attempt=attempt, **more) as one:
        one.also("config.yaml", config)
        one.also("journal.jsonl", journal, grows=True)
        one.also_below("evals", run / "evals")
        for parcel in parcels:
            with journal.open("a") as file:
                file.write(JOURNAL.format(parcel.step))
            one.submit(parcel)
            assert one.drain(until=lambda: False, show=lambda progress: None)


@pytest.fixture
def there(tmp_path):
    """(bucket, run): three checkpoints of attempt 1, all in the bucket."""
    bucket, run = Bucket(), tmp_path / "first" / "run"
    push(bucket, run, *(saved(run, step) for step in (100, 200, 300)))
    return bucket, run


def back(bucket, run: Path, script=None, said=None):
    return restore_run(FakeRemote(bucket, script), run, (said if said is not None else []).append)


def same_files(one: Path, other: Path) -> None:
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    assert all((one / file).read_bytes() == (other / file).read_bytes() for file in files)


def damage(bucket: Bucket, step: int, name: str) -> None:
    [key] = [k for k in bucket.objects if f"step-{step:08d}" in k and k.endswith(name)]
    bucket.objects[key] = flipped(bucket.objects[key])


# ------------------------------------------------------------------ the whole way


@pytest.mark.fault(57)
def test_an_empty_machine_gets_the_newest_state_config_and_journal_back(there, tmp_path):
    bucket, run = there
    empty = tmp_path / "second" / "run"
    found = back(bucket, empty)
    assert (found.step, found.name, found.passed_over) == (300, "step-00000300", ())
    assert set(found.run_files) == {"config.yaml", "journal.jsonl"}
    same_files(run / "checkpoints/step-00000300", empty / "checkpoints/step-00000300")
    assert (empty / "journal.jsonl").read_bytes() == (run / "journal.jsonl").read_bytes()
    assert (empty / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
    [checkpoint] = CheckpointStore(empty, attempt="2").checkpoints()
    assert verify(checkpoint) == []
    assert [p.name for p in (empty / "checkpoints").iterdir()] == ["step-00000300"]
    known = verified_copies(read_ledger(empty / "upload.jsonl"))
    assert list(known.values()) == [300], "the uploader knows that this copy is there"
    assert back(bucket, empty) is None, "nothing newer: nothing is fetched"


def test_evaluations_come_back_and_each_content_is_sent_once(tmp_path):
    bucket, run = Bucket(), tmp_path / "one"
    (tmp_path / "secret").write_text("not of this run")
    measured = run / "evals/step-00000001/metrics.json"
    measured.parent.mkdir(parents=True)
    measured.write_text('{"loss": 1}')
    (measured.parent / "link").symlink_to(tmp_path / "secret")

    def sent() -> list[str]:
        return [key for key in bucket.objects if key.startswith("run/evals/")]

    push(bucket, run, saved(run, 1))
    assert len(sent()) == 1 and "metrics.json" in sent()[0]
    push(bucket, run, saved(run, 2), attempt=2)
    assert len(sent()) == 1, "another attempt asks what is there"
    measured.write_text('{"loss": 2}')
    (measured.parent / "worst.jsonl").write_text("{}\n")
    push(bucket, run, saved(run, 3), attempt=3)
    assert len(sent()) == 3
    back(bucket, tmp_path / "two")
    same = tmp_path / "two/evals/step-00000001"
    assert sorted(file.name for file in same.iterdir()) == ["metrics.json", "worst.jsonl"]
    assert (same / "metrics.json").read_text() == '{"loss": 2}'


def test_an_archive_comes_back_as_the_same_files(tmp_path):
    bucket, run = Bucket(), tmp_path / "one"
    push(bucket, run, saved(run, 7), archive="tar")
    back(bucket, tmp_path / "two")
    same_files(run / "checkpoints/step-00000007", tmp_path / "two/checkpoints/step-00000007")


@pytest.fixture(scope="module")
def two_saves(tmp_path_factory):
    """A bucket that restoring only reads."""
    bucket, run = Bucket(), tmp_path_factory.mktemp("two") / "run"
    push(bucket, run, saved(run, 1), saved(run, 2))
    return bucket


@pytest.mark.fault(58)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_goes_wrong_what_is_there_afterwards_was_compared_and_the_next_try_ends_it(
    two_saves, data
):
    bucket = two_saves
    with tempfile.TemporaryDirectory() as folder:
        clean = FakeRemote(bucket)
        restore_run(clean, Path(folder, "measured"), lambda line: None)
        script = data.draw(
            st.dictionaries(
                st.integers(0, len(clean.calls) - 1),
                st.sampled_from(FAULTS),
                min_size=1,
                max_size=4,
            )
        )
        remote, to = FakeRemote(bucket, script), Path(folder, "two")
        with contextlib.suppress(Killed, CheckpointError):
            restore(remote, to, problems_in, lambda line: None, threads=1, line=patient())
        assert remote.fired
        for checkpoint in CheckpointStore(to, attempt="2").checkpoints():
            assert verify(checkpoint) == [] and (to / "journal.jsonl").exists()
        if newest_here(to) is None:
            back(bucket, to)
        assert newest_here(to) in ((1, 1), (1, 2))


def test_a_download_that_is_believed_would_be_seen(there, tmp_path, monkeypatch):
    """Negative control of the comparison: the store's own verification still catches it."""
    bucket, _ = there
    monkeypatch.setattr("headway.upload.restoring.TRIES_PER_FILE", 1)
    monkeypatch.setattr(
        "headway.upload.restoring.fetch_file",
        lambda key, fact, to, remote, line: (
            to.parent.mkdir(parents=True, exist_ok=True),
            remote.download(key, to),
        ),
    )
    remote = FakeRemote(bucket)
    restore(remote, tmp_path / "a", lambda folder: [], lambda line: None, threads=1)
    at = [verb for verb, _ in remote.calls].index("download")
    believed = FakeRemote(bucket, {at: "corrupt"})
    restore(believed, tmp_path / "b", lambda folder: [], lambda line: None, threads=1)
    assert problems_in(tmp_path / "b/checkpoints/step-00000300"), "damaged, and nobody looked"
    said: list[str] = []
    restore(
        FakeRemote(bucket, {at: "corrupt"}), tmp_path / "c", problems_in, said.append, threads=1
    )
    assert [p.name for p in (tmp_path / "c/checkpoints").iterdir()] == ["step-00000200"]


# ------------------------------------------------------------------ bad copies


@pytest.mark.fault(58)
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "adapter.safetensors"])
def test_a_bad_copy_is_named_and_the_one_before_it_is_taken(there, tmp_path, name):
    bucket, _ = there
    damage(bucket, 300, name)
    said: list[str] = []
    found = back(bucket, tmp_path / "two", said=said)
    assert found.step == 200 and len(found.passed_over) == 1
    assert any("WARNING: step-00000300" in line for line in said)
    assert newest_here(tmp_path / "two") == (1, 200)


def test_if_all_are_bad_nothing_begins_anew(there, tmp_path):
    bucket, _ = there
    for step in (100, 200, 300):
        damage(bucket, step, "state.json")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole.*Not starting over"):
        back(bucket, tmp_path / "two")
    assert not list((tmp_path / "two/checkpoints").iterdir())


def test_an_empty_bucket_has_nothing_to_bring_back(tmp_path):
    assert back(Bucket(), tmp_path / "run") is None


def test_the_list_says_what_is_whole_without_fetching_it(there):
    bucket, _ = there
    del bucket.objects[next(k for k in bucket.objects if "step-00000100" in k and "state" in k)]
    damage(bucket, 200, "manifest.json")
    rows = remote_checkpoints(remote := FakeRemote(bucket))
    assert [(r.step, bool(r.problems), r.stands) for r in rows] == [
        (100, True, True), (200, True, True), (300, False, True),
    ]  # fmt: skip
    assert {verb for verb, _ in remote.calls} == {"list", "read"}


HOSTILE = {
    "parent": "../../evil",
    "absolute": "/tmp/evil",
    "inside": "model/../../evil",
    "backslash": "..\\evil",
    "manifest": "manifest.json",
    "empty": "model//x",
    "control": "a\nb",
}


@pytest.mark.fault(33)
@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_manifest_whose_names_leave_the_directory_is_refused(there, tmp_path, name):
    bucket, _ = there
    entry = {"bytes": 4, "sha256": hashlib.sha256(b"evil").hexdigest()}
    tree = {"step": 400, "files": {name: entry}}
    plant(bucket, 400, {name: b"evil"}, json.dumps(tree).encode())
    said: list[str] = []
    found = back(bucket, tmp_path / "two", said=said)
    assert found.step == 300 and "could leave its directory" in said[0]
    assert not [p for p in tmp_path.rglob("*evil*")]


def plant(bucket: Bucket, step: int, files: dict[str, bytes], manifest: bytes) -> None:
    folder = f"checkpoints/step-{step:08d}/0001-{hashlib.sha256(manifest).hexdigest()[:12]}/"
    for name, data in {**files, "manifest.json": manifest}.items():
        bucket.objects[folder + name] = data
        bucket.written_at[folder + name] = bucket.now


def test_only_what_the_manifest_names_is_fetched(there, tmp_path):
    bucket, _ = there
    key = next(k for k in bucket.objects if "step-00000300" in k)
    folder = "/".join(key.split("/")[:3])
    bucket.store(f"{folder}/model/evil.bin", b"pickle")
    said: list[str] = []
    assert back(bucket, tmp_path / "two", said=said).step == 300
    assert not list(tmp_path.rglob("evil.bin")) and any("evil.bin" in line for line in said)


@pytest.mark.fault(33)
def test_a_download_that_arrives_as_a_link_is_refused(there, tmp_path):
    bucket, run = there

    class Linking(FakeRemote):
        def download(self, key, to, *, got=None):
            if key.endswith("state.json"):
                source = next(run.glob("checkpoints/*/state.json"))
                to.symlink_to(source)
            else:
                super().download(key, to)

    with pytest.raises(CheckpointError, match="regular file"):
        restore_run(Linking(bucket), tmp_path / "two", lambda line: None)


@pytest.mark.fault(33)
@pytest.mark.parametrize("kind", ["extra", "link", "size", "truncated"])
def test_an_archive_may_hold_nothing_but_the_files(tmp_path, kind):
    import io
    import tarfile

    content = {"state.json": b"good"}
    facts = {
        n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in content.items()
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if kind == "link":
                info.type, info.linkname, info.size, data = tarfile.SYMTYPE, "/etc/passwd", 0, b""
            if kind == "size":
                info.size, data = 8, b"too long"
            tar.addfile(info, io.BytesIO(data))
        if kind == "extra":
            info = tarfile.TarInfo("../evil")
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
    data = out.getvalue()[:512] if kind == "truncated" else out.getvalue()
    archive = f"archive-{len(data)}-{hashlib.sha256(data).hexdigest()}.tar"
    bucket = Bucket()
    plant(bucket, 1, {archive: data}, json.dumps({"step": 1, "files": facts}).encode())
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        back(bucket, tmp_path / "run")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b'{"step": 2, "files": {}}',
        b'{"step": 1, "files": {"a": {"bytes": -1, "sha256": "00"}}}',
        b'{"step": 1, "files": {"a": {"bytes": true, "sha256": 3}}}',
        b'{"step": 1, "files": [1]}',
        b"[" * 100_000,
    ],
)
def test_a_manifest_that_lies_or_is_none_is_refused_in_words(tmp_path, manifest):
    bucket = Bucket()
    plant(bucket, 1, {"a": b""}, manifest)
    with pytest.raises(CheckpointError, match="manifest"):
        back(bucket, tmp_path / "run")


# ------------------------------------------------------------------ both sides


@pytest.mark.fault(59)
def test_a_newer_state_here_is_kept_and_a_newer_one_there_is_fetched(there, tmp_path):
    bucket, run = there
    saved(run, 400)
    assert back(bucket, run) is None
    shutil.rmtree(run / "checkpoints/step-00000400")
    shutil.rmtree(run / "checkpoints/step-00000300")
    assert back(bucket, run).step == 300


@pytest.mark.fault(59)
def test_a_damaged_newest_here_is_replaced_from_there_and_kept_aside(there):
    bucket, run = there
    file = run / "checkpoints/step-00000300/state.json"
    file.write_bytes(flipped(file.read_bytes()))
    assert back(bucket, run).step == 300
    assert newest_here(run) == (1, 300)
    [aside] = (run / "superseded").iterdir()
    assert aside.name.startswith("step-00000300-")


def test_a_bad_newer_copy_does_not_stop_a_machine_that_has_a_good_state(there, tmp_path):
    bucket, run = there
    damage(bucket, 300, "state.json")
    shutil.rmtree(run / "checkpoints/step-00000300")
    said: list[str] = []
    assert back(bucket, run, said=said) is None
    assert "WARNING" in said[-1] and newest_here(run) == (1, 200)


@pytest.mark.fault(59)
def test_another_machine_went_on_meanwhile_its_state_counts_and_nothing_here_is_deleted(
    there, tmp_path
):
    bucket, run = there
    mine = saved(run, 400)
    with (run / "journal.jsonl").open("a") as file:
        file.write(JOURNAL.format(400))
    other = tmp_path / "other"
    back(bucket, other)
    push(bucket, other, saved(other, 350, attempt=2), attempt=2)
    found = back(bucket, run)
    assert found.step == 350 and newest_here(run) == (2, 350)
    [aside] = (run / "superseded").iterdir()
    assert aside.name.startswith(mine.name)
    assert (run / "journal.jsonl").read_bytes() == (other / "journal.jsonl").read_bytes()
    [kept] = run.glob("journal.jsonl.replaced-*")
    assert '"step":400' in kept.read_text()


def test_a_run_that_went_back_on_purpose_is_not_dragged_forward(there):
    bucket, run = there
    store = CheckpointStore(run, attempt="2")
    store.supersede(100)
    saved(run, 150, attempt=2)
    assert back(bucket, run) is None and newest_here(run) == (2, 150)


def test_what_a_fresh_run_replaced_does_not_come_back(there, tmp_path):
    bucket, _ = there
    begin_fresh(FakeRemote(bucket), 2)
    begin_fresh(FakeRemote(bucket), 2)
    assert back(bucket, tmp_path / "two") is None
    new = tmp_path / "new"
    push(bucket, new, saved(new, 10, attempt=2), attempt=2)
    assert back(bucket, tmp_path / "three").step == 10
    assert (tmp_path / "three/journal.jsonl").read_text() == JOURNAL.format(10)


# ------------------------------------------------------------------ the disk, the lock, a kill


def test_a_full_disk_is_said_before_anything_is_fetched(there, tmp_path):
    bucket, _ = there
    remote = FakeRemote(bucket)
    with pytest.raises(StorageFull, match="Nothing was fetched"):
        restore(remote, tmp_path / "two", problems_in, lambda line: None, reserve_bytes=1 << 60)
    assert not any(verb == "download" for verb, _ in remote.calls)


def test_a_run_that_is_being_trained_is_not_restored_over(there, tmp_path):
    bucket, _ = there
    run = tmp_path / "two"
    with RunLock(run / "lock"), pytest.raises(RunLocked):
        back(bucket, run)


def test_killed_before_the_rename_it_is_no_checkpoint_and_the_next_one_ends_it(
    there, tmp_path, monkeypatch
):
    bucket, _ = there
    run = tmp_path / "two"

    def kill(copy, fetched, run_folder):
        raise Killed

    monkeypatch.setattr("headway.upload.restoring.put_in_place", kill)
    with pytest.raises(Killed):
        back(bucket, run)
    assert newest_here(run) is None
    [partial] = (run / "checkpoints").iterdir()
    assert partial.name.startswith(".partial-"), "what the store sweeps"
    monkeypatch.setattr("headway.upload.restoring.put_in_place", put_in_place)
    assert back(bucket, run).step == 300


def test_a_damaged_piece_ends_the_journal_before_it_and_is_said(there, tmp_path):
    bucket, _ = there
    pieces = sorted(k for k in bucket.objects if k.startswith("run/journal.jsonl/"))
    assert len(pieces) == 3
    bucket.objects[pieces[1]] = flipped(bucket.objects[pieces[1]])
    said: list[str] = []
    back(bucket, tmp_path / "two", said=said)
    assert (tmp_path / "two/journal.jsonl").read_text() == JOURNAL.format(100)
    assert any("journal.jsonl ends before it" in line for line in said)


def test_a_manifest_of_our_own_is_what_the_tests_above_imitate():
    """The hostile manifests fail by their content, not by a shape that the room does not read."""
    manifest = Manifest(step=1, attempt="1", created_at="", files={}, facts={})
    tree = json.loads(manifest_bytes(manifest))
    assert tree["step"] == 1 and tree["files"] == {}
    assert issubclass(Bad, Exception)


# ------------------------------------------------------------------ a bucket that refuses


@pytest.mark.parametrize("verb", ["read", "download"])
def test_a_refusal_is_an_error_and_never_a_reason_to_take_newer_steps_back(there, tmp_path, verb):
    bucket, _ = there

    def refuse(asked: str, key: str) -> None:
        if asked == verb and "step-00000300" in key:
            raise Refused("403", "Renew the credentials", "AccessDenied")

    with pytest.raises(Refused, match="Renew the credentials"):
        restore_run(FakeRemote(bucket, gate=refuse), tmp_path / "two", lambda line: None)
    assert newest_here(tmp_path / "two") is None
    assert back(bucket, tmp_path / "two").step == 300


@pytest.mark.parametrize("verb", ["read", "download"])
def test_an_object_that_goes_while_it_is_fetched_makes_its_copy_bad(there, tmp_path, verb):
    bucket, _ = there

    def gone(asked: str, key: str) -> None:
        if asked == verb and "step-00000300" in key:
            raise Refused("it is not there", code="404")

    found = restore_run(FakeRemote(bucket, gate=gone), tmp_path / "two", lambda line: None)
    assert found and found.step == 200 and "not there" in found.passed_over[0]


def test_what_a_run_went_back_behind_does_not_come_back_before_its_first_save(there, tmp_path):
    bucket, _ = there
    go_back(FakeRemote(bucket, {0: "lose"}), 2, 200)
    assert [(r.step, r.stands) for r in remote_checkpoints(FakeRemote(bucket))] == [
        (100, True), (200, True), (300, False),
    ]  # fmt: skip
    assert back(bucket, tmp_path / "two").step == 200
    assert highest_attempt(FakeRemote(bucket).list("")) == 2
