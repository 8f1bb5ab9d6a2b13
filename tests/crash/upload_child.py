"""The process that is killed: restores a run, goes on saving, and uploads to a folder.

``upload_child.py RUN BUCKET KIND LAST_STEP``. No torch. Says ``ask VERB KEY`` before each request
and ``ack STEP`` when a copy was verified. ``KIND``: ``real``, or one that dies by itself as
soon as a manifest is in the bucket: ``real-dies``, and ``naive-dies``, which sends it first.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from child import payload

import headway.upload.uploader as uploader_module
from headway.bucket import by_policy, newest_here, parcel_of, restore_run
from headway.checkpoint import CheckpointStore, Retention
from headway.journal import Journal
from headway.lock import RunLock
from headway.upload import Remote, Uploader, acquire

KEEP = Retention(keep_last=2, keep_best=1)
BEST_STEP = 1


class Told(Remote):
    """A remote that says what it is about to ask."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in ("put", "head", "read", "list", "delete", "replace", "download", "holds"):
            say(f"ask {name}")
        return found


def killed_within(put):
    """Dies right after a manifest is there: what a manifest-first uploader must survive."""

    def put_and_die(remote, key, source, **more):
        put(remote, key, source, **more)
        if key.endswith("manifest.json"):
            os.kill(os.getpid(), signal.SIGKILL)

    return put_and_die


def send_manifest_first(parcel, remote, line, *, before_commit, **more):
    """What a naive uploader does."""
    before_commit()
    for name in ["manifest.json", *parcel.files]:
        remote.put(parcel.prefix + name, parcel.folder / name, create_only=False)
    return True


def main(run: Path, bucket: str, kind: str, last: int) -> None:
    """One attempt: lease, restore, save, send, prune; drain at the end."""
    if kind == "naive-dies":
        uploader_module.send = send_manifest_first
    if kind.endswith("dies"):
        Told.put = killed_within(Remote.put)
    remote = Told(bucket)
    with acquire(remote, seconds=60) as lease:
        restore_run(remote, run, lambda what: None)
        here = newest_here(run)
        store = CheckpointStore(run, attempt=str(lease.token), reserve_bytes=0)
        with (
            RunLock(run / "lock"),
            Journal(run / "journal.jsonl", lease.token) as journal,
            Uploader(
                remote,
                journal=run / "upload.jsonl",
                attempt=lease.token,
                lease=lease,
                parallel_files=2,
                expendable=partial(by_policy, KEEP),
                skippable=partial(by_policy, Retention(keep_last=1, keep_best=1)),
            ) as uploader,
        ):
            store.sweep()
            uploader.also("journal.jsonl", run / "journal.jsonl", grows=True)
            scores = {step: float(step) for step in range(BEST_STEP, last + 1)}
            for checkpoint in store.checkpoints():
                uploader.submit(parcel_of(checkpoint), scores)
            for step in range((here[1] if here else 0) + 1, last + 1):
                partial_save = store.open(step, 0)
                for name, data in payload(step).items():
                    partial_save.write(name, [data])
                journal.append("save", step=step)
                uploader.submit(parcel_of(partial_save.commit({"loss": float(step)})), scores)
                if step % 2:
                    uploader.drain(until=lambda: False, show=lambda progress: None)
                tell(uploader)
                store.prune(KEEP, scores, pinned=uploader.pending())
            uploader.drain(until=lambda: False, show=lambda progress: None)
            tell(uploader)


def tell(uploader: Uploader) -> None:
    for event in uploader.collect():
        say(f"ack {event.step}" if event.kind == "sent" else f"{event.kind} {event.step}")


def say(text: str) -> None:
    os.writev(1, [f"{text}\n".encode()])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
