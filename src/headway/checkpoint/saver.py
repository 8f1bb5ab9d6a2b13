"""Writes checkpoints beside training: one save at a time, in one thread of low priority."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from headway.checkpoint.disk import Data
from headway.checkpoint.manifest import check_name, plain
from headway.checkpoint.store import Checkpoint, CheckpointStore, Partial
from headway.errors import CheckpointError, HeadwayError
from headway.system import lower_priority

Source = Data | Callable[[], Iterable[Data]]
"""A file's content: its bytes, or what yields them when the writer gets to it."""


class Saver:
    """At most one save in flight; a second waits for the first. Use it as a context manager."""

    def __init__(self, store: CheckpointStore) -> None:
        self.seconds: float | None = None
        """How long the last save took, from submit to acknowledged or failed; None before one."""
        self._store = store
        self._thread: threading.Thread | None = None
        self._committed: list[Checkpoint] = []
        self._failures: list[HeadwayError] = []

    def submit(
        self,
        step: int,
        files: Mapping[str, Source],
        facts: Mapping[str, Any],
        expected_bytes: int,
        on_done: Callable[[Checkpoint | None], None] | None = None,
    ) -> None:
        """Begin to save; returns as soon as no earlier save is in flight.

        ``files`` must not change until ``on_done`` was called: once, on the writer's thread, with
        the checkpoint, or None if the save failed. Raises StorageFull at once if it cannot fit.
        """
        self.wait()
        names, facts = list(files), plain(facts)  # a wrong name or fact fails here, not in an hour
        for name in names:
            check_name(name)
        partial = self._store.open(step, expected_bytes)
        self._thread = threading.Thread(
            target=self._save,
            args=(partial, dict(files), facts, on_done),
            name=f"save-step-{step}",
        )
        self._thread.start()

    def collect(self, wait: bool = False) -> list[Checkpoint]:
        """The checkpoints committed since the last call; raises a failed save's error, once."""
        if wait:
            self.wait()
        if self._failures:
            raise self._failures.pop(0)
        committed = []
        while self._committed:
            committed.append(self._committed.pop(0))
        return committed

    def wait(self) -> None:
        """Return when no save is in flight."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Wait for the save in flight; raises its error if nobody has seen it yet."""
        self.wait()
        if self._failures:
            raise self._failures.pop(0)

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.wait()  # the first error is the one to see

    def _save(
        self,
        partial: Partial,
        files: Mapping[str, Source],
        facts: Mapping[str, Any],
        on_done: Callable[[Checkpoint | None], None] | None,
    ) -> None:
        """Runs on the writer's thread."""
        started = time.monotonic()
        checkpoint = None
        try:
            lower_priority()
            for name, source in files.items():
                partial.write(name, source() if callable(source) else [source])
            checkpoint = partial.commit(facts)
        except BaseException as error:
            partial.discard()
            self._failures.append(_as_headway(error, partial.step))
        self.seconds = time.monotonic() - started
        if checkpoint is not None:
            self._committed.append(checkpoint)
        if on_done is not None:
            on_done(checkpoint)


def _as_headway(error: BaseException, step: int) -> HeadwayError:
    if isinstance(error, HeadwayError):
        return error
    failure = CheckpointError(
        f"the save at step {step} failed: {type(error).__name__}: {error}. "
        "Committed checkpoints are untouched."
    )
    failure.__cause__ = error
    return failure
