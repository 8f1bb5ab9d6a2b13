"""Whatever happens to a checkpoint's bytes: never loaded, never deleted, always said aloud."""

from __future__ import annotations

import os
import random
import shutil

import pytest
from child import payload
from sweep import read_all, save

from headway.checkpoint import CheckpointStore
from headway.errors import CheckpointError

pytestmark = pytest.mark.crash
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def flipped(data: bytes, seed: int) -> bytes:
    """One bit is other than it was."""
    changed, at = bytearray(data), random.Random(seed).randrange(8 * len(data))
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


def zeroed(data: bytes) -> bytes:
    """A hole where a page was never written."""
    start = len(data) // 2
    return data[:start] + bytes(len(data[start : start + 4096])) + data[start + 4096 :]


DAMAGES = {
    **{f"bit flipped ({seed})": lambda data, seed=seed: flipped(data, seed) for seed in range(25)},
    "truncated by 1": lambda data: data[:-1],
    "truncated to half": lambda data: data[: len(data) // 2],
    "truncated to nothing": lambda data: b"",
    "one byte longer": lambda data: data + b"\0",
    "zeroed page": zeroed,
    "LFS pointer": lambda data: LFS,
    "missing": lambda data: None,
}
FILES = [*payload(0), "manifest.json"]


def damaged(base, name, damage):
    """A run whose newest of two checkpoints has one damaged file."""
    run = base / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(base / "template", run)
    path = run / "checkpoints" / "step-00000002" / name
    data = damage(path.read_bytes())
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    return CheckpointStore(run, attempt="2", reserve_bytes=0), data


@pytest.mark.fault(21, 22, 23, 25, 29)
def test_no_damage_to_any_file_is_ever_loaded(tmp_path, table):
    store = CheckpointStore(tmp_path / "template", attempt="1", reserve_bytes=0)
    save(store, 1), save(store, 2)
    naive_corrupt = 0
    for kind, damage in DAMAGES.items():
        for name in FILES:
            store, data = damaged(tmp_path, name, damage)
            newest = store.directory / "step-00000002"
            naive_corrupt += name != "manifest.json" and read_all(newest) != payload(2)
            found, said = store.newest_good()
            assert found.step == 1 and read_all(found.path) == payload(1), (kind, name)
            assert len(said) == 1 and "Moved to quarantine/" in said[0], (kind, name)
            [aside] = store.quarantine.iterdir()
            kept = (aside / name).read_bytes() if (aside / name).exists() else None
            assert kept == data, "quarantine keeps what was found"
    runs = len(DAMAGES) * len(FILES)
    flips = 25 * len(FILES)
    table(("flipped bit", f"25 places in each of {len(FILES)} files", flips, flips, 0, 0))
    others = runs - flips
    where = f"{len(FILES)} files: truncated, longer, zeroed page, missing, LFS pointer"
    table(("damaged file", where, others, others, 0, 0))
    data_runs = len(DAMAGES) * (len(FILES) - 1)
    cells = ("damaged file", "the same data files, **trusting the newest name**")
    table((*cells, data_runs, data_runs, 0, naive_corrupt))
    assert naive_corrupt == data_runs  # negative control: every damage was real


@pytest.mark.fault(26)
@pytest.mark.parametrize("name", FILES)
def test_if_every_checkpoint_is_damaged_the_run_stops(tmp_path, name):
    store = CheckpointStore(tmp_path, attempt="1", reserve_bytes=0)
    for step in (1, 2, 3):
        path = save(store, step).path / name
        os.truncate(path, 10)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no good checkpoint") as stopped:
            store.newest_good()
        assert stopped.value.exit_code == 65
    assert len(list(store.quarantine.iterdir())) == 3
