"""Whatever a power failure leaves on the disk, the newest acknowledged checkpoint is there.

Real saves and pruning are recorded call by call; the next start is tried on every state that the
disk may then hold (``crash_states.py``).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from crash_states import Content, Effect, Recorder, Said, State, Sync, states, written
from headway.checkpoint import CheckpointStore, Retention, verify
from headway.errors import CheckpointError
from headway.journal import Journal, scan

Events = list[Effect | Sync | Said]

KEEP = Retention(keep_last=1, keep_best=1)
SCORES = {1: 0.5, 2: 2.0, 3: 3.0}
BEST = 1


def payload(step: int) -> dict[str, bytes]:
    return {"model/weights": bytes([step]) * 40, "state.json": b'{"step": %d}' % step}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Events, set[int]]:
    """Three saves, each acknowledged in the journal and said, then pruning down to two."""
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(root, patch)
        store = CheckpointStore(root, attempt="1", reserve_bytes=0)
        with Journal(root / "journal.jsonl", 1) as journal:
            for step in SCORES:
                partial = store.open(step, 0)
                for name, data in payload(step).items():
                    partial.write(name, [data[:20], data[20:]])
                partial.commit({"loss": SCORES[step]})
                recorder.say(step)
                journal.append("save", step=step)
                journal.flush()
                recorder.say(("journal", step))
                if store.prune(KEEP, SCORES):
                    recorder.say("pruned")
    assert recorder.now() == on_disk(root), "a call was not seen"
    assert "pruned" in [event.what for event in recorder.events if isinstance(event, Said)]
    return recorder.events, recorder.folders


def on_disk(root: Path) -> Content:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def broken_promise(state: State, root: Path) -> str:
    """What the next start finds wrong; empty if every promise holds."""
    acknowledged = max((step for step in state.said if isinstance(step, int)), default=0)
    store = CheckpointStore(written(state.content, root), attempt="2", reserve_bytes=0)
    try:
        store.sweep()
        found, _ = store.newest_good()
    except CheckpointError as error:
        return f"stopped: {error}"
    newest = found.step if found else 0
    if newest < acknowledged:
        return f"step {acknowledged} was acknowledged, {newest} is the newest"
    if found and any((found.path / n).read_bytes() != d for n, d in payload(newest).items()):
        return f"step {newest} is not as it was saved"
    there = {checkpoint.step: checkpoint for checkpoint in store.checkpoints()}
    if acknowledged >= BEST and (BEST not in there or verify(there[BEST])):
        return "the best is gone"
    told = {event["step"] for event in scan(root / "journal.jsonl").events}
    promised = {what[1] for what in state.said if isinstance(what, tuple)}
    return f"the journal forgot {promised - told}" if promised - told else ""


def first_broken(events: Events, folders: set[int], base: Path) -> tuple[str, int]:
    """(the first broken promise, how many states were tried)."""
    number = 0
    for number, state in enumerate(states(events, folders), 1):
        root = base / str(number)
        if wrong := broken_promise(state, root):
            return f"after {state.calls} calls: {wrong}", number
        shutil.rmtree(root)
    return "", number


@pytest.mark.fault(2, 5, 7)
def test_whatever_a_power_failure_leaves_the_newest_acknowledged_and_the_best_are_there(
    recorded: tuple[Events, set[int]], tmp_path: Path
) -> None:
    wrong, tried = first_broken(*recorded, tmp_path)
    assert wrong == ""
    assert tried > 100


SYNCS = {
    "a file": r"checkpoints/\.partial-[^/]*/(model/weights|state\.json)",
    "the manifest": r"checkpoints/\.partial-[^/]*/manifest\.json",
    "a folder in the checkpoint": r"checkpoints/\.partial-[^/]*/model",
    "the checkpoint's own folder": r"checkpoints/\.partial-[^/]*",
    "the folder of checkpoints": r"checkpoints",
    "the run's folder": r"\.",
    "the journal": r"journal\.jsonl",
}


@pytest.mark.fault(7)
@pytest.mark.parametrize("left_out", SYNCS)
def test_without_any_one_of_its_syncs_a_power_failure_would_lose_something(
    recorded: tuple[Events, set[int]], tmp_path: Path, left_out: str
) -> None:
    """Negative control: each sync is needed, and the states above show it."""
    events, folders = recorded
    fewer: Events = [
        event
        for event in events
        if not (isinstance(event, Sync) and re.fullmatch(SYNCS[left_out], event.path))
    ]
    assert len(fewer) <= len(events) - 1
    wrong, _ = first_broken(fewer, folders, tmp_path)
    assert wrong
