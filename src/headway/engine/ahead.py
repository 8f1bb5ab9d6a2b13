"""The next batch is made while this step computes: since batches are pure, one thread is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def ahead(batch_at: Callable[[int, int], T], until: int) -> Iterator[Callable[[int, int], T]]:
    """``batch_at(step, halvings)`` with the following step's under way, up to step ``until``.

    An error in the thread is raised by the call that asks for that step.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="headway-batch") as pool:
        waiting: dict[tuple[int, int], Future[T]] = {}

        def take(step: int, halvings: int) -> T:
            ready = waiting.pop((step, halvings), None) or pool.submit(batch_at, step, halvings)
            batch = ready.result()
            waiting.clear()  # what was made for another rung
            if step + 1 < until:
                waiting[step + 1, halvings] = pool.submit(batch_at, step + 1, halvings)
            return batch

        yield take
