"""A disk that fills up at any byte: the save fails by name, what is committed stays, it goes on."""

from __future__ import annotations

import os
import subprocess

import pytest
from child import payload
from disks import tmpfs
from sweep import read_all, save

from headway.checkpoint import CheckpointStore, Saver, verify
from headway.errors import StorageFull
from headway.journal import Journal, scan

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MiB."""
    with tmpfs(tmp_path / "disk", "1m") as place:
        yield place


def fill(disk, leave_pages: int) -> None:
    """Leave exactly so many free pages."""
    free = os.statvfs(disk).f_bavail - leave_pages
    (disk / "ballast").write_bytes(bytes(free * PAGE))
    assert os.statvfs(disk).f_bavail == leave_pages


@pytest.mark.fault(10, 11)
def test_at_every_fill_level_a_save_works_or_fails_cleanly(small_disk, table):
    store = CheckpointStore(small_disk, attempt="1", reserve_bytes=0)
    kept, full, good = save(store, 1), 0, 0
    for leave_pages in range(20):
        fill(small_disk, leave_pages)
        partial = None
        try:
            partial = store.open(2, expected_bytes=0)  # the estimate is wrong: nothing is foreseen
            for name, data in payload(2).items():
                partial.write(name, [data[i : i + 1000] for i in range(0, len(data), 1000)])
            partial.commit({})
            good += 1
        except StorageFull as error:
            assert "ENOSPC" in str(error)
            full += 1
            if partial is not None:
                partial.discard()
        newest, said = store.newest_good()
        assert said == [] and verify(kept) == [] and store.checkpoints()[0] == kept
        assert read_all(newest.path) == payload(newest.step)
        (small_disk / "ballast").unlink()
        if newest.step == 2:
            newest.path.rename(small_disk / "done")
            subprocess.run(["rm", "-r", str(small_disk / "done")], check=True)
        assert not [p for p in store.directory.iterdir() if p.name.startswith(".")]
    assert full >= 8 and good >= 8
    assert save(store, 2).step == 2
    table(("disk full (1 MiB tmpfs)", "20 fill levels, page by page", full + good, full, 0, 0))


@pytest.mark.fault(10)
def test_a_full_disk_in_the_background_is_seen_in_the_foreground_and_training_goes_on(small_disk):
    store = CheckpointStore(small_disk, attempt="1", reserve_bytes=0)
    kept = save(store, 1)
    with Saver(store) as saver:
        saver.submit(2, {"big": bytes(2 << 20)}, {}, expected_bytes=0)
        with pytest.raises(StorageFull, match="ENOSPC"):
            saver.collect(wait=True)
        saver.submit(3, payload(3), {}, expected_bytes=0)
        assert [c.step for c in saver.collect(wait=True)] == [3]
    assert [c.step for c in store.checkpoints()] == [1, 3] and verify(kept) == []


def test_what_will_not_fit_is_refused_before_a_byte_is_written(small_disk):
    store = CheckpointStore(small_disk, attempt="1", reserve_bytes=512 << 10)
    with pytest.raises(StorageFull, match=r"needs 1.47 MB .* has 1.05 MB free"):
        store.open(1, expected_bytes=900_000)
    store.open(1, expected_bytes=300_000).discard()


@pytest.mark.fault(11)
def test_on_a_full_disk_the_journal_keeps_its_whole_lines(small_disk):
    path, written = small_disk / "journal.jsonl", 0
    with Journal(path, 1) as journal:
        with pytest.raises(StorageFull, match="journal"):
            for written in range(100_000):
                journal.append("step", step=written, text="x" * 700)
        assert [event["step"] for event in scan(path).events] == list(range(written))
        assert scan(path).torn_bytes == scan(path).damaged_lines == 0
    assert written > 1000


def test_without_discard_the_half_written_save_would_keep_the_disk_full(small_disk):
    """Negative control: what torch.save and DCP leave behind (reference/reliability.md, 1.3)."""
    store = CheckpointStore(small_disk, attempt="1", reserve_bytes=0)
    partial = store.open(1, 0)
    with pytest.raises(StorageFull):
        partial.write("big", [bytes(2 << 20)])
    with pytest.raises(StorageFull):
        save(store, 2)
    assert len(store.sweep()) == 2
    assert save(store, 2).step == 2
