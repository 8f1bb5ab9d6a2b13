"""A parent that has imported everything once and forks attempts: real processes, killed for real.

``python forks.py`` reads one JSON request a line (``config``, ``output``, ``sabotage``), forks a
child that is ``headway train CONFIG``, and answers with the child's pid, then with how it ended.
``sabotage`` breaks that child on purpose: the negative controls of the tests.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import toy_recipe  # noqa: F401

import headway.checkpoint.store as store_module
import headway.engine.state as state_module
import headway.recipes.sft  # noqa: F401
from headway.checkpoint import CheckpointStore
from headway.cli import main
from headway.errors import HeadwayError


def serve() -> None:
    """One attempt at a time, until there are no more requests."""
    for line in sys.stdin:
        request = json.loads(line)
        threads = os.listdir("/proc/self/task")  # noqa: PTH208
        assert len(threads) == 1, "a fork would lose the other threads"
        pid = os.fork()
        if pid == 0:
            attempt(**request)
        say(pid)
        _, status = os.waitpid(pid, 0)
        say(os.waitstatus_to_exitcode(status))


def say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def attempt(config: str, output: str, sabotage: str | None) -> None:
    """The child: what the ``headway`` command does, with its output in a file. Never returns."""
    code = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = ["headway", "train", config]
        if sabotage:
            SABOTAGES[sabotage]()
        main()
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


# ------------------------------------------------------------------ broken on purpose


def write_in_place() -> None:
    """What many trainers do: write under the final name, and trust the newest name."""

    def open_in_place(store, step, expected_bytes):
        path = store.directory / f"step-{step:08d}"
        path.mkdir(parents=True, exist_ok=True)
        return store_module.Partial(store, step, path)

    def trust(store, at_or_before=None):
        names = sorted(store.directory.glob("step-*"))
        if not names:
            return None, []
        try:
            manifest = store_module.read_manifest(names[-1])
        except HeadwayError as error:
            raise HeadwayError(f"the newest is half written: {error}") from error
        return store_module.Checkpoint(manifest.step, names[-1], manifest), []

    CheckpointStore.open = open_in_place  # type: ignore[method-assign]
    CheckpointStore.newest_good = trust  # type: ignore[method-assign]
    store_module.Partial._publish = lambda partial, checkpoint: checkpoint  # type: ignore[method-assign]


def prune_the_newest() -> None:
    """Deletes first and saves second, as with ``total_limit=1`` elsewhere."""
    saved = CheckpointStore.open

    def open_after_deleting(store, step, expected_bytes):
        for checkpoint in store.checkpoints():
            trash = store.directory / f".trash-{checkpoint.path.name}"
            checkpoint.path.rename(trash)
        return saved(store, step, expected_bytes)

    CheckpointStore.open = open_after_deleting  # type: ignore[method-assign]


def forget_the_optimizer() -> None:
    """Resumes with weights only."""
    state_module._restore_optimizer = lambda *_: None  # type: ignore[assignment]


def foresee_no_full_disk() -> None:
    """The free-space check never refuses, so the write itself meets the end of the disk."""
    CheckpointStore.__init__.__kwdefaults__["reserve_bytes"] = -(1 << 40)


def keep_a_small_reserve() -> None:
    """The free-space check, on a disk too small for the real reserve of 256 MiB."""
    CheckpointStore.__init__.__kwdefaults__["reserve_bytes"] = 1 << 20


SABOTAGES = {
    function.__name__: function
    for function in (
        write_in_place,
        prune_the_newest,
        forget_the_optimizer,
        foresee_no_full_disk,
        keep_a_small_reserve,
    )
}

if __name__ == "__main__":
    Path("/proc/self/task").exists() or sys.exit("needs Linux")
    serve()
