"""Several transfers at once, which fail as one: the first error ends the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """Raised by a job that found ``stopped`` set: another one failed."""


def run_all(
    jobs: Sequence[Callable[[], T]], threads: int, stopped: threading.Event, name: str
) -> list[T]:
    """The jobs' answers in order, or the first error once no job runs any more.

    An error, or Ctrl-C here, sets ``stopped``: jobs look at it between blocks and raise Stopped.
    """

    def run(job: Callable[[], T]) -> T:
        try:
            if stopped.is_set():
                raise Stopped
            return job()
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(threads, name) as pool:
        answers = [pool.submit(run, job) for job in jobs]
        try:
            wait(answers)
        except BaseException:
            stopped.set()
            raise
    errors = [error for answer in answers if (error := answer.exception()) is not None]
    if errors:
        raise next((error for error in errors if not isinstance(error, Stopped)), errors[0])
    return [answer.result() for answer in answers]


__all__ = ["Stopped", "run_all"]
