"""A checkpoint exists exactly when its manifest does; nothing damaged is ever handed out."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.checkpoint import (
    CheckpointStore,
    Manifest,
    NewerFormat,
    Retention,
    read_manifest,
    verify,
)
from headway.checkpoint.manifest import FileFact, check_name, manifest_bytes, plain
from headway.errors import CheckpointError, StorageFull

FILES = {
    "model/adapter_config.json": b'{"r": 16}',
    "model/adapter_model.safetensors": bytes(range(256)) * 40,
    "optimizer.safetensors": b"\x01" * 9000,
    "state.json": b"{}",
}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path, attempt="1", reserve_bytes=0)


def save(store, step, files=FILES, **facts):
    partial = store.open(step, sum(map(len, files.values())))
    for name, data in files.items():
        partial.write(name, [data])
    return partial.commit({"loss": 1.5, **facts})


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


# -- commit ------------------------------------------------------------------------------------


def test_what_was_saved_is_what_lies_there(store):
    checkpoint = save(store, 500, tokens=12)
    assert checkpoint.path == store.root / "checkpoints" / "step-00000500"
    assert {name: (checkpoint.path / name).read_bytes() for name in FILES} == FILES
    assert checkpoint.manifest.facts == {"loss": 1.5, "tokens": 12}
    assert checkpoint.bytes == sum(map(len, FILES.values()))
    assert verify(checkpoint) == []
    assert store.newest_good() == (checkpoint, [])
    assert read_manifest(checkpoint.path) == checkpoint.manifest


def test_a_partial_is_not_a_checkpoint(store):
    partial = store.open(1, 10)
    partial.write("state.json", [b"{}"])
    assert store.checkpoints() == []
    assert store.newest_good() == (None, [])
    partial.commit({})
    assert [c.step for c in store.checkpoints()] == [1]


def test_chunks_of_any_kind_are_joined(store):
    array = memoryview(bytes(range(16))).cast("I")
    partial = store.open(1, 10)
    fact = partial.write("x", (c for c in [b"ab", bytearray(b"cd"), array, b""]))
    checkpoint = partial.commit({})
    assert (checkpoint.path / "x").read_bytes() == b"abcd" + bytes(range(16))
    assert fact.bytes == 20 and verify(checkpoint) == []


def test_saving_a_step_again_keeps_the_good_one_and_changes_nothing(store):
    first = save(store, 3)
    before = {p: p.stat().st_mtime_ns for p in first.path.rglob("*")}
    again = save(store, 3, {"state.json": b"other"})
    assert again == first
    assert {p: p.stat().st_mtime_ns for p in first.path.rglob("*")} == before
    assert [p.name for p in store.directory.iterdir()] == ["step-00000003"]


def test_saving_a_step_again_replaces_a_damaged_one_and_keeps_it_aside(store):
    flip(save(store, 3).path / "state.json", 0)
    again = save(store, 3)
    assert verify(again) == []
    assert len(list(store.quarantine.iterdir())) == 1


def test_a_failed_write_closes_the_partial_for_good(store):
    def broken():
        yield b"half"
        raise RuntimeError("the snapshot is gone")

    partial = store.open(1, 10)
    with pytest.raises(RuntimeError):
        partial.write("a", broken())
    for again in (lambda: partial.write("b", [b""]), lambda: partial.commit({})):
        with pytest.raises(CheckpointError, match="closed"):
            again()
    partial.discard()
    assert list(store.directory.iterdir()) == []


@pytest.mark.fault(13)
def test_a_failed_fsync_is_fatal_and_never_tried_again(store, monkeypatch):
    calls = []

    def broken(fd):
        calls.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    partial = store.open(1, 10)
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(CheckpointError, match="refused writing"):
        partial.write("a", [b"x"])
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="closed"):
        partial.commit({})
    assert len(calls) == 1 and store.checkpoints() == []


@pytest.mark.fault(12)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_and_a_used_up_quota_are_named(store, monkeypatch, number):
    def full(fd, data):
        raise OSError(number, os.strerror(number))

    partial = store.open(1, 10)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageFull, match=errno.errorcode[number]) as raised:
        partial.write("a", [b"x"])
    assert raised.value.__cause__.errno == number


def test_a_checkpoint_that_cannot_fit_is_refused_with_figures(store):
    store.reserve_bytes = 1 << 60
    with pytest.raises(StorageFull, match=r"needs 1152921504\.\d GB .* free"):
        store.open(1, 1000)
    assert not list(store.directory.iterdir())


@pytest.mark.fault(14)
def test_a_rename_that_reports_failure_but_happened_is_a_commit(store, monkeypatch):
    """NFS may retransmit (rename(2), BUGS): what lies there decides."""
    real = Path.rename

    def lying(self, target):
        real(self, target)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    partial = store.open(1, 10)
    partial.write("a", [b"x"])
    monkeypatch.setattr(Path, "rename", lying)
    assert verify(partial.commit({})) == []


def test_a_rename_that_failed_is_an_error(store, monkeypatch):
    def broken(self, target):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    partial = store.open(1, 10)
    partial.write("a", [b"x"])
    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(CheckpointError, match="renaming"):
        partial.commit({})
    assert store.checkpoints() == []


def test_everything_is_synced_before_the_name_and_the_name_before_the_answer(store, monkeypatch):
    """The order that power loss needs: files, manifest, directories, rename, parents."""
    seen, fsync, rename = [], os.fsync, Path.rename

    def watched_fsync(fd):
        seen.append(Path(f"/proc/self/fd/{fd}").readlink())
        fsync(fd)

    def watched_rename(self, target):
        seen.append(Path("rename"))
        return rename(self, target)

    partial = store.open(7, 1)
    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    for name in FILES:
        partial.write(name, [FILES[name]])
    partial.commit({})
    assert seen == [
        *(partial.path / name for name in FILES),
        partial.path / "manifest.json",
        partial.path / "model",
        partial.path,
        Path("rename"),
        store.directory,
        store.root,
    ]


# -- damage ------------------------------------------------------------------------------------


def lfs_pointer(path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10240\n")


def link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGE = {
    "bit": lambda p: flip(p, p.stat().st_size // 2, 3),
    "truncated": lambda p: os.truncate(p, p.stat().st_size - 1),
    "empty": lambda p: os.truncate(p, 0),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"\n"),
    "zeroed": lambda p: p.write_bytes(bytes(p.stat().st_size)),
    "missing": lambda p: p.unlink(),
    "lfs": lfs_pointer,
    "link": link,
    "directory": lambda p: (p.unlink(), p.mkdir()),
}


@pytest.mark.fault(21, 22, 23, 24, 25, 33)
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_never_handed_out(store, kind, name):
    good, bad = save(store, 1), save(store, 2)
    DAMAGE[kind](bad.path / name)
    assert verify(bad)
    found, said = store.newest_good()
    assert found == good
    assert len(said) == 1 and "Moved to quarantine/step-00000002-" in said[0]
    [aside] = store.quarantine.iterdir()
    assert aside.name.startswith("step-00000002-")
    assert store.newest_good() == (good, [])


@pytest.mark.fault(29)
def test_an_lfs_pointer_is_called_one(store):
    checkpoint = save(store, 1)
    lfs_pointer(checkpoint.path / "optimizer.safetensors")
    assert "Git LFS" in verify(checkpoint)[0] and "optimizer.safetensors" in verify(checkpoint)[0]


@pytest.mark.fault(25)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model/extra.json"])
def test_a_file_the_manifest_does_not_name_is_damage(store, name):
    checkpoint = save(store, 1)
    (checkpoint.path / name).write_bytes(b"x")
    assert verify(checkpoint) == [f"step-00000001/{name} is not in the manifest"]


def test_a_hidden_file_that_a_desktop_left_is_not_damage(store):
    checkpoint = save(store, 1)
    (checkpoint.path / ".DS_Store").write_bytes(b"x")
    assert verify(checkpoint) == []


@pytest.mark.fault(33)
def test_a_linked_directory_is_damage(store, tmp_path):
    checkpoint = save(store, 1)
    (checkpoint.path / "model").rename(tmp_path / "away")
    (checkpoint.path / "model").symlink_to(tmp_path / "away")
    assert any("symbolic link" in problem for problem in verify(checkpoint))


def test_a_checkpoint_under_another_steps_name_is_damage(store):
    save(store, 1)
    checkpoint = save(store, 2)
    checkpoint.path.rename(store.directory / "step-00000009")
    found, said = store.newest_good()
    assert found.step == 1 and "holds the manifest of step 2" in said[0]


@pytest.mark.fault(21, 24)
@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_a_manifest_is_seen(store, bit):
    checkpoint = save(store, 1, rate=1e-05)
    path = checkpoint.path / "manifest.json"
    intact = path.read_bytes()
    for offset in range(len(intact)):
        path.write_bytes(
            intact[:offset] + bytes([intact[offset] ^ (1 << bit)]) + intact[offset + 1 :]
        )
        with pytest.raises(CheckpointError):
            read_manifest(checkpoint.path)


def test_trusting_sizes_alone_would_load_a_flipped_bit(store):
    """Negative control: without the hashes the same damage passes."""
    checkpoint = save(store, 1)
    flip(checkpoint.path / "optimizer.safetensors", 4000)
    assert verify(checkpoint, hashes=False) == []
    assert verify(checkpoint)


# -- finding the newest ------------------------------------------------------------------------


@pytest.mark.fault(41)
def test_newest_is_by_step_never_by_time(store):
    for step in (10, 2, 7):
        os.utime(save(store, step).path, (step, 100 - step))
    assert [c.step for c in store.checkpoints()] == [2, 7, 10]
    assert store.newest_good()[0].step == 10
    assert store.newest_good(at_or_before=9)[0].step == 7


@pytest.mark.fault(27)
@pytest.mark.parametrize("kind", ["empty", "a step that is gone", "an older step", "a link"])
def test_what_others_point_to_as_the_newest_counts_for_nothing(store, kind):
    """There is no pointer of ours; one that a person or another tool left is not believed."""
    for step in (1, 2, 3):
        save(store, step)
    for folder in (store.directory, store.root):
        if kind == "a link":
            (folder / "latest").symlink_to(store.directory / "step-00000001")
        else:
            text = {"empty": "", "an older step": "step-00000001"}.get(kind, "step-00000009")
            (folder / "latest").write_text(text)
    assert store.newest_good()[0].step == 3
    assert [c.step for c in store.checkpoints()] == [1, 2, 3]
    store.prune(Retention(keep_last=1, keep_best=1))
    assert store.newest_good()[0].step == 3 and store.sweep() == []


@pytest.mark.fault(26)
def test_if_all_are_damaged_the_run_stops_now_and_at_the_next_start(store):
    for step in (1, 2):
        (save(store, step).path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no good checkpoint.*Not starting over"):
        store.newest_good()
    assert len(list(store.quarantine.iterdir())) == 2
    with pytest.raises(CheckpointError, match="quarantine/step-00000002"):
        store.newest_good()


def test_no_checkpoint_early_enough_is_an_error_not_a_fresh_start(store):
    save(store, 5)
    with pytest.raises(CheckpointError, match=r"at or before step 4.*step-00000005"):
        store.newest_good(at_or_before=4)
    assert store.newest_good()[0].step == 5


@pytest.mark.fault(24)
def test_a_checkpoint_of_a_newer_headway_is_left_where_it_is(store):
    checkpoint = save(store, 1)
    tree = json.loads((checkpoint.path / "manifest.json").read_bytes())
    (checkpoint.path / "manifest.json").write_text(json.dumps(tree | {"format": 99}))
    with pytest.raises(NewerFormat, match="upgrade headway"):
        store.newest_good()
    assert checkpoint.path.is_dir()


@pytest.mark.fault(42)
def test_a_run_directory_can_be_moved(store, tmp_path):
    save(store, 1)
    shutil.copytree(store.directory, tmp_path / "other" / "checkpoints")
    moved = CheckpointStore(tmp_path / "other", attempt="2")
    assert moved.newest_good()[0].manifest == store.newest_good()[0].manifest


def test_going_back_on_purpose_sets_the_later_ones_aside(store):
    for step in (1, 2, 3):
        save(store, step)
    assert len(store.supersede(after=1)) == 2
    assert store.newest_good()[0].step == 1
    assert len(list(store.superseded.iterdir())) == 2


# -- deleting ----------------------------------------------------------------------------------


def test_prune_deletes_what_the_policy_does_not_keep_and_nothing_else(store):
    for step in range(1, 7):
        save(store, step)
    policy = Retention(keep_last=2, keep_best=1)
    assert store.prune(policy, {1: 3.0, 2: 0.5, 3: float("nan")}, pinned=[4]) == [1, 3]
    assert [c.step for c in store.checkpoints()] == [2, 4, 5, 6]
    assert all(verify(c) == [] for c in store.checkpoints())
    assert not [p for p in store.directory.iterdir() if p.name.startswith(".")]


def test_prune_deletes_nothing_while_the_newest_is_not_all_there(store):
    for step in (1, 2, 3):
        save(store, step)
    (store.directory / "step-00000003" / "optimizer.safetensors").unlink()
    assert store.prune(Retention(keep_last=1, keep_best=1)) == []


def test_sweep_removes_what_kills_left_and_keeps_checkpoints(store):
    kept = save(store, 1)
    store.open(2, 1).write("a", [b"x"])
    save(store, 3).path.rename(store.directory / ".trash-step-00000003-x")
    assert len(store.sweep()) == 2
    assert store.checkpoints() == [kept] and store.sweep() == []


def test_sweep_never_follows_a_link(store, tmp_path):
    save(store, 1)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_bytes(b"x")
    (store.directory / ".trash-link").symlink_to(tmp_path / "precious")
    store.sweep()
    assert (tmp_path / "precious" / "x").exists()


def test_a_new_run_has_no_checkpoints_and_nothing_to_do(store):
    assert store.checkpoints() == [] and store.sweep() == []
    assert store.newest_good() == (None, []) and store.prune(Retention()) == []


# -- the manifest ------------------------------------------------------------------------------

BAD_NAMES = [
    "",
    "/etc/passwd",
    "../x",
    "a/../b",
    "a//b",
    "./a",
    "a/",
    "a\\b",
    "C:x",
    "a\0b",
    "a\nb",
]


@pytest.mark.fault(33)
@pytest.mark.parametrize("name", [*BAD_NAMES, "manifest.json", "x" * 256])
def test_a_name_that_could_leave_the_directory_is_refused(store, name):
    with pytest.raises(CheckpointError, match="cannot be the name"):
        store.open(1, 1).write(name, [b""])


@pytest.mark.fault(33)
def test_a_forged_manifest_cannot_name_a_file_outside(store):
    """Its own hash is right, because a forger can compute it; the name is still refused."""
    checkpoint = save(store, 1)
    path = checkpoint.path / "manifest.json"
    tree = json.loads(path.read_bytes().replace(b'"state.json"', b'"../x.json"'))
    del tree["sha256"]
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    tree["sha256"] = hashlib.sha256(canonical).hexdigest()
    path.write_text(json.dumps(tree, indent=1, sort_keys=True) + "\n")
    with pytest.raises(CheckpointError, match="cannot be the name"):
        read_manifest(checkpoint.path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    step=st.integers(0, 10**9),
    attempt=st.text(),
    files=st.dictionaries(
        st.from_regex(r"[a-z_.]{1,8}x(/[a-zé ]{1,8}y)?", fullmatch=True),
        st.builds(FileFact, bytes=st.integers(0), sha256=st.just("0" * 64)),
        max_size=4,
    ),
    facts=st.dictionaries(st.text(), JSON, max_size=4),
)
def test_a_manifest_reads_back_as_it_was_written(tmp_path_factory, step, attempt, files, facts):
    manifest = Manifest(
        step=step, attempt=attempt, created_at="2026-01-01", files=files, facts=plain(facts)
    )
    directory = tmp_path_factory.mktemp("m")
    (directory / "manifest.json").write_bytes(manifest_bytes(manifest))
    assert read_manifest(directory) == manifest
    for name in files:
        check_name(name)


def test_a_fact_that_is_not_plain_json_is_refused_by_name(store):
    partial = store.open(1, 1)
    with pytest.raises(CheckpointError, match="fact 'where': PosixPath is not plain JSON"):
        partial.commit({"where": Path("x")})
    assert partial.commit({"loss": float("nan")}).manifest.facts == {"loss": "nan"}


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": 1}', "[" * 100_000, "\udcff"])
def test_what_is_not_a_manifest_is_damaged_never_a_crash(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match="damaged"):
        read_manifest(tmp_path)
