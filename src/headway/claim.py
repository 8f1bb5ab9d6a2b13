"""A run's folder: claimed by one writer, and refused to a config that is another run."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

from headway.config import RunConfig, difference, identity, load_config
from headway.errors import ConfigError
from headway.journal import read_events
from headway.lock import RunLock

CONFIG_FILE, JOURNAL_FILE, LOCK_FILE = "config.yaml", "journal.jsonl", "lock"


def run_folder(config: RunConfig) -> Path:
    """``run.root/run.name``; a config without a name is named after its recipe."""
    return config.run.root / (config.run.name or config.recipe)


@contextlib.contextmanager
def claimed(folder: Path, config: RunConfig, fresh: bool) -> Iterator[list[str]]:
    """The folder, locked, with the resolved config in it; a run of another config is refused.

    Yields what the config changes between this attempt and the last, one line each: mechanics,
    because anything else is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = None
    if fresh and begun(folder):
        with RunLock(folder / LOCK_FILE):
            aside = folder.rename(unused_name(folder))
            folder.mkdir()
    try:
        with RunLock(folder / LOCK_FILE):
            path = folder / CONFIG_FILE
            changed = same_run(folder, load_config(path), config) if begun(folder) else []
            config.save(path)
            yield changed
    except BaseException:
        if aside and not begun(folder):  # the new run could not begin: the old one stays in place
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
        raise


def begun(folder: Path) -> bool:
    """Whether an attempt of this run ever opened, data, model and all."""
    return bool(read_events(folder / JOURNAL_FILE, {"plan"}))


def unused_name(folder: Path) -> Path:
    """``NAME.replaced-1`` and so on: an old run is moved aside, never deleted."""
    names = (folder.with_name(f"{folder.name}.replaced-{n}") for n in itertools.count(1))
    return next(path for path in names if not path.exists())


def same_run(folder: Path, then: RunConfig, now: RunConfig) -> list[str]:
    """What differs without making another run; ConfigError, with the differences, if they do."""
    before, after = then.tree(), now.tree()
    changed = difference(identity(before), identity(after))
    if changed:
        raise ConfigError(
            f"{folder} is a run with another config, and continuing it would mix two:\n  "
            + "\n  ".join(changed)
            + "\nGive this one another run.name, or start it over with --fresh"
        )
    return difference(before, after)
