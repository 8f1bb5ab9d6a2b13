"""Sends a line of text to a webhook (Slack's form, which others take too), beside training.

*Promises.* ``send`` never waits and never raises. A line that cannot be sent is tried again with
growing, random delays, then dropped and counted. The address is a secret: it is in no message, no
journal and no error.

*Does not promise.* That a line arrives, or arrives once.
"""

from __future__ import annotations

import contextlib
import json
import queue
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from types import TracebackType

from headway.errors import ConfigError
from headway.system import lower_priority

WAITING = 32
TRIES = 5
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 60.0
ANSWER_SECONDS = 10.0
LEAVING_SECONDS = 5.0

Post = Callable[[str, bytes], None]


class Webhook:
    """One address and the thread that sends to it. A context manager."""

    def __init__(
        self,
        url: str,
        *,
        post: Post | None = None,
        rest: Callable[[threading.Event, float], bool] = threading.Event.wait,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """``url``: http or https. ConfigError otherwise, without the address in it.

        ``rest(ended, seconds)`` waits between tries; true: it is over.
        """
        if not url.startswith(("https://", "http://")):
            raise ConfigError(
                "the webhook's address (in the variable that monitor.webhook_env names) does not "
                "begin with https:// or http://. Set the variable to the whole address"
            )
        self._url = url
        self._post, self._rest, self._draw = post or post_json, rest, draw
        self._waiting: queue.Queue[str | None] = queue.Queue(WAITING)
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._dropped = 0
        self._why = ""
        self._thread = threading.Thread(target=self._run, name="headway-webhook", daemon=True)

    def send(self, text: str) -> None:
        """Hand over one message; what does not fit in the queue is dropped."""
        try:
            self._waiting.put_nowait(text)
        except queue.Full:
            self._drop(f"{WAITING} others were waiting")

    def dropped(self) -> tuple[int, str]:
        """How many were dropped since this was last asked, and why the last of them was."""
        with self._lock:
            found = self._dropped, self._why
            self._dropped = 0
        return found

    def __enter__(self) -> Webhook:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give what waits a few seconds; then it is dropped."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(LEAVING_SECONDS)
        self._ended.set()

    def _run(self) -> None:
        lower_priority()
        while not self._ended.is_set() and (text := self._waiting.get()) is not None:
            self._sent(text)

    def _sent(self, text: str) -> None:
        data = json.dumps({"text": text}).encode()
        why = ""
        for again in range(TRIES):
            try:
                self._post(self._url, data)
                return
            except (OSError, ValueError) as error:  # http.client's errors are OSErrors or these
                why = named(error)
            if final(why) or again == TRIES - 1:
                break
            delay = min(FIRST_DELAY_SECONDS * 2.0**again, LONGEST_DELAY_SECONDS)
            if self._rest(self._ended, delay * (0.5 + self._draw() / 2)):
                break
        self._drop(why)

    def _drop(self, why: str) -> None:
        with self._lock:
            self._dropped, self._why = self._dropped + 1, why


def webhook_text(run: str, heading: str, *lines: str) -> str:
    """A message: the run and what it is about, then the lines. Slack's three characters escaped."""
    text = "\n".join([f"[{run}] {heading}", *(line for line in lines if line)])
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def post_json(url: str, data: bytes) -> None:
    """One POST. Raises OSError, or ValueError for an address that is none."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers, method="POST")
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
        return


def named(error: Exception) -> str:
    """What went wrong, without the address that the error may hold."""
    if isinstance(error, urllib.error.HTTPError):
        code = error.code
        error.close()
        return f"HTTP {code}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return type(reason).__name__ if isinstance(reason, Exception) else "no connection"


def final(why: str) -> bool:
    """Whether asking again is of no use: the address is wrong, or was taken back."""
    return why == "ValueError" or (
        why.startswith("HTTP 4") and why not in ("HTTP 408", "HTTP 425", "HTTP 429")
    )


__all__ = ["Webhook", "webhook_text"]
