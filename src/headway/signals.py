"""A signal asks; the loop answers at the next step boundary.

*Promises.* The first SIGTERM, SIGINT or SIGHUP (the terminal is gone) only sets a flag, so a step,
a save and an evaluation are never torn. The second one ends the process at once, which can lose no
committed work and no line of the journal; what was given to ``before_leaving`` has LAST_SECONDS.
Before ``arm`` is called there is nothing to save, and the first signal already ends the process.
While a run waits for its bucket a signal only ends the waiting (``asked_to_leave``).

*Does not promise.* A grace period: while the main thread sits in one long call into C, Python runs
no handler, so a save by the clock is the contract and the signal only improves on it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from headway.records import StopReason

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LAST_SECONDS = 2.0
"""For what another machine would wait for: a lease that is given back."""


class Signals:
    """Context manager that turns requests to stop into a flag.

    One that was ignored on purpose (``nohup``) stays ignored.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        """Name of the signal that asked to stop."""
        self._armed = False
        self._last: list[Callable[[], object]] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            asking = [n for n in ASKING if signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._take) for number in asking}
        return self

    def arm(self) -> None:
        """From now on there is something to save: the first signal only sets the flag."""
        self._armed = True

    def before_leaving(self, last: Callable[[], object]) -> None:
        """Called, on a thread of its own, when a signal ends the process at once."""
        self._last.append(last)

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
            leave_now(self._last)
        if self.received is not None:
            tell(f"{name} again: leaving now.")
            leave_now(self._last)
        self.received = name
        tell(f"{name}: saving at the end of this step; once more to leave at once.")


def leave_now(last: list[Callable[[], object]]) -> None:
    """End the process, whatever its threads are doing; ``last`` has LAST_SECONDS. Never returns."""

    def say_goodbye() -> None:
        while last:
            with contextlib.suppress(Exception):
                last.pop()()

    if last:
        goodbye = threading.Thread(target=say_goodbye, name="leaving", daemon=True)
        goodbye.start()
        goodbye.join(LAST_SECONDS)
    os._exit(StopReason.SIGNAL.exit_code)


@contextlib.contextmanager
def asked_to_leave() -> Iterator[Callable[[], bool]]:
    """Whether a signal asked to stop waiting since: nothing is being torn, so once is enough.

    The next one ends the process at once. Off the main thread: never.
    """
    asked: list[str] = []

    def take(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if asked:
            tell(f"{name} again: leaving now.")
            os._exit(StopReason.SIGNAL.exit_code)
        asked.append(name)
        tell(f"{name}: leaving; once more to leave at once.")

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, take) for number in ASKING}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tell(what: str) -> None:
    """One line, even from a signal handler, and even when the terminal is gone."""
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"\n{what}\n".encode())
