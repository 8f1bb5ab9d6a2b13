"""Saves: a snapshot now, written beside the next steps, announced once it is committed.

Then old ones are pruned, never what the bucket has not got yet. A disk that fails costs one save.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headway.checkpoint import Checkpoint, CheckpointStore, Retention, Saver
from headway.config import Checkpoint as Section
from headway.engine.state import Snapshot, TrainState, non_finite
from headway.errors import CheckpointError, HeadwayError, StorageFull
from headway.journal import Journal
from headway.limits import Limits
from headway.show import Show
from headway.uploading import Uploading
from headway.watching import Watching


@dataclass
class Saving:
    """The saves of one attempt, on rank 0; the other ranks keep the time and write nothing."""

    section: Section
    state: TrainState
    store: CheckpointStore
    saver: Saver
    journal: Journal | None
    show: Show
    limits: Limits
    monitor: Watching
    bucket: Uploading | None = None
    step: int = -1
    """Of the newest save, whether it is committed yet or not."""
    scores: dict[int, float] = field(default_factory=dict)
    """Step -> held-out loss, for keeping the best."""
    unsaved: HeadwayError | None = None
    """Why the newest save was not made, until one is."""
    _at: float = field(default_factory=time.monotonic)
    _snapshot: Snapshot = field(default_factory=Snapshot)

    @property
    def minutes(self) -> float:
        """How long ago the newest save was."""
        return (time.monotonic() - self._at) / 60

    @property
    def size_bytes(self) -> int:
        """Of the newest snapshot; 0 before one."""
        return self._snapshot.size_bytes

    def begin(self, step: int, facts: Mapping[str, Any]) -> None:
        """Copy the state aside and have it written; only the copy stalls training."""
        if self.step == step or self.journal is None:
            self.step, self._at = step, time.monotonic()
            return
        broken = non_finite(self.state)
        if broken:
            raise CheckpointError(
                f"step {step}: {broken[:3]} hold NaN or infinity, so no checkpoint was "
                "made; the newest good one is untouched. Lower train.learning_rate"
            )
        self.saver.wait()  # one save at a time: the snapshot's buffers are in use until then
        self.settle()
        started = time.perf_counter()
        self._snapshot.take(self.state)
        stall_seconds = time.perf_counter() - started
        try:
            self.saver.submit(
                step,
                self._snapshot.files(),
                {**facts, "stall_seconds": stall_seconds},
                self._snapshot.size_bytes,
            )
        except (StorageFull, CheckpointError) as error:
            self._could_not(step, error)
        self.step, self._at = step, time.monotonic()

    def settle(self, *, last: bool = False) -> None:
        """Announce what was committed since, then delete what retention does not keep.

        ``last``: the attempt stops, and waits here for its last save.
        """
        if self.journal is None:
            return
        try:
            committed = self.saver.collect(wait=last)
        except (StorageFull, CheckpointError) as error:
            self._could_not(self.step, error)
            return
        for checkpoint in committed:
            self._announce(checkpoint, self.journal)
            if self.bucket:
                self.bucket.submit(checkpoint, self.scores)
        if self.bucket:
            self.bucket.tell(self.journal, self.show.say)
        if committed:
            policy = Retention(
                keep_last=self.section.keep_last,
                keep_best=self.section.keep_best,
                keep_every_steps=self.section.keep_every_steps,
            )
            pinned = self.bucket.pending() if self.bucket else ()
            gone = self.store.prune(policy, self.scores, pinned=pinned)
            if gone:
                self.journal.append("prune", steps=gone)

    def _announce(self, checkpoint: Checkpoint, journal: Journal) -> None:
        """Write to the journal that a checkpoint exists from now on."""
        self.unsaved = None
        self.limits.took(save=self.saver.seconds or 0.0)
        self.monitor.saved(checkpoint.bytes)
        journal.append(
            "save",
            step=checkpoint.step,
            bytes=checkpoint.bytes,
            stall_seconds=checkpoint.manifest.facts["stall_seconds"],
            write_seconds=self.saver.seconds,
        )
        journal.flush()
        self.show.say(f"saved {checkpoint.path.name} ({checkpoint.bytes / 1e6:.1f} MB)")

    def _could_not(self, step: int, error: HeadwayError) -> None:
        """A disk that fails costs this save and no more, unless it was the attempt's last."""
        if self.journal:
            self.journal.append("save_skipped", step=step, why=str(error))
        self.show.say(f"NOT SAVED at step {step}: {error}")
        self.unsaved = error
