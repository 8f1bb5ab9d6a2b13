"""The process that is killed: recovers a run, then saves steps through a real or a naive store.

``child.py RUN KIND LAST_STEP``. No torch. Says ``ack STEP`` after each commit and ``failed STEP
ERROR`` after each refused one, by writev, so that injected faults of write hit only the store.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from headway.checkpoint import CheckpointStore, Retention
from headway.errors import HeadwayError
from headway.journal import Journal, next_attempt
from headway.lock import RunLock

POLICY = Retention(keep_last=2, keep_best=1)
BEST_STEP = 1
SIZES = {"model/adapter_config.json": 300, "model/adapter.safetensors": 20_000, "state.json": 2_000}


def payload(step: int) -> dict[str, bytes]:
    """What a checkpoint of this step must hold: a function of the step, so anyone can check it."""
    return {
        name: b"".join(
            hashlib.sha256(f"{name} {step} {i}".encode()).digest() for i in range(size // 32)
        )
        for name, size in SIZES.items()
    }


def scores(last: int) -> dict[int, float]:
    """Held-out losses: ``BEST_STEP`` is the best and must never be deleted."""
    return {step: float(step) for step in range(1, last + 1)}


def pieces(data: bytes) -> list[bytes]:
    """Each file in several writes, so that a kill can leave half of it."""
    return [data[i : i + 8192] for i in range(0, len(data), 8192)]


def save_real(store: CheckpointStore, step: int) -> None:
    """One save as training makes it."""
    files = payload(step)
    partial = store.open(step, sum(map(len, files.values())))
    try:
        for name, data in files.items():
            partial.write(name, pieces(data))
        partial.commit({"loss": float(step)})
    except HeadwayError:
        partial.discard()
        raise
    say(f"ack {step}")


def save_naive(run: Path, step: int) -> None:
    """What many trainers do: delete the old one, write in place under the final name."""
    for old in sorted(run.glob("checkpoints/step-*"))[:-1]:
        shutil.rmtree(old)
    directory = run / "checkpoints" / f"step-{step:08d}"
    for name, data in payload(step).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        with (directory / name).open("wb", buffering=0) as file:
            for piece in pieces(data):
                file.write(piece)
    say(f"ack {step}")


def run_real(run: Path, last: int) -> None:
    """An attempt: lock, recover, go on, prune."""
    with RunLock(run / "lock"):
        store = CheckpointStore(run, attempt="2", reserve_bytes=0)
        store.sweep()
        found, _ = store.newest_good()
        first = found.step if found else 0
        with Journal(run / "journal.jsonl", next_attempt(run / "journal.jsonl")) as journal:
            journal.append("attempt", restored_step=first)
            for step in range(first + 1, last + 1):
                try:
                    save_real(store, step)
                    journal.append("checkpoint", step=step)
                    store.prune(POLICY, scores(last))
                except HeadwayError as error:
                    say(f"failed {step} {type(error).__name__}")


def say(text: str) -> None:
    os.writev(1, [f"{text}\n".encode()])


if __name__ == "__main__":
    if sys.argv[2] == "real":
        try:
            run_real(Path(sys.argv[1]), int(sys.argv[3]))
        except HeadwayError as error:
            say(f"stopped {type(error).__name__}")
            sys.exit(error.exit_code)
    else:
        for number in range(4, int(sys.argv[3]) + 1):
            save_naive(Path(sys.argv[1]), number)
