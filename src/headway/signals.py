"""A signal asks; the loop answers at the next step boundary.

*Promises.* The first SIGTERM or SIGINT only sets a flag, so a step, a save and an evaluation are
never torn. The second one ends the process at once, which can lose no committed work. Before
``arm`` is called there is nothing to save, and the first signal already ends the process.

*Does not promise.* A grace period: while the main thread sits in one long call into C, Python runs
no handler, so a save by the clock is the contract and the signal only improves on it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from headway.records import StopReason

ASKING = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Context manager that turns SIGTERM and SIGINT into a flag."""

    def __init__(self) -> None:
        self.received: str | None = None
        """Name of the signal that asked to stop."""
        self._armed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in ASKING}
        return self

    def arm(self) -> None:
        """From now on there is something to save: the first signal only sets the flag."""
        self._armed = True

    def again(self) -> Callable[[], bool]:
        """A question: did another signal come since now?"""
        before = self.received
        return lambda: self.received != before

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self._armed:
            tell(f"{name} before step 1: nothing to save.")
            os._exit(StopReason.SIGNAL.exit_code)
        if self.received is not None:
            tell(f"{name} again: leaving now.")
            os._exit(StopReason.SIGNAL.exit_code)
        self.received = name
        tell(f"{name}: saving at the end of this step; once more to leave at once.")


def tell(what: str) -> None:
    """One line, even from a signal handler, and even when the terminal is gone."""
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"\n{what}\n".encode())
