"""The line to the bucket: asks again after what may pass, keeps to a bandwidth, and can be cut.

Waiting follows "full jitter" (Brooker, Exponential Backoff And Jitter, AWS Architecture Blog,
2015): a random share of a bound that doubles, so that many clients do not come back together.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from headway.errors import RemoteError
from headway.upload.faults import Temporary

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 60.0

T = TypeVar("T")


class Cut(Exception):
    """The line was told to stop; not an error of anybody."""


class GaveUp(RemoteError):
    """The bucket did not answer for longer than patience lasts."""


class Line:
    """Shared by the threads of one uploader."""

    def __init__(
        self,
        *,
        patience_seconds: float = 600.0,
        bytes_per_second: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], bool] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``pause`` waits so many seconds and says whether to stop; ``chance``: in [0, 1)."""
        self.patience_seconds = patience_seconds
        self.retries = 0
        self.sent_bytes = 0
        """Bytes handed to the store so far, those of failed tries included."""
        self._bytes_per_second = bytes_per_second
        self._clock = clock
        self._cut = threading.Event()
        self._pause = pause or self._cut.wait
        self._chance = chance
        self._lock = threading.Lock()
        self._free_at = 0.0

    @property
    def is_cut(self) -> bool:
        """Whether it was told to stop."""
        return self._cut.is_set()

    def cut(self) -> None:
        """Let every thread on the line end at its next request, wait or block of bytes."""
        self._cut.set()

    def ask(self, request: Callable[[], T]) -> T:
        """The answer to a request, asked again after each Temporary error while patience lasts.

        Raises GaveUp, Cut, or at once whatever else the request raises.
        """
        since = None
        bound = FIRST_WAIT_SECONDS
        while True:
            if self.is_cut:
                raise Cut
            try:
                return request()
            except Temporary as error:
                now = self._clock()
                since = now if since is None else since
                wait_seconds = max(self._chance() * bound, error.retry_after_seconds or 0.0)
                if now + wait_seconds - since > self.patience_seconds:
                    raise GaveUp(
                        f"no success for {now - since:.0f} s (upload.patience_minutes); "
                        f"the last answer: {error}"
                    ) from error
            with self._lock:
                self.retries += 1
            bound = min(2 * bound, LONGEST_WAIT_SECONDS)
            if self._pause(wait_seconds):
                raise Cut

    def moved(self, count_bytes: int) -> None:
        """Called after each block that was sent: counts it, and waits if it came too soon."""
        with self._lock:
            self.sent_bytes += count_bytes
            if self._bytes_per_second is None:
                wait_seconds = 0.0
            else:
                now = self._clock()
                self._free_at = max(self._free_at, now) + count_bytes / self._bytes_per_second
                wait_seconds = self._free_at - now
        if self.is_cut or (wait_seconds > 0 and self._pause(wait_seconds)):
            raise Cut
