"""A run's folder: claimed by one writer, and refused to a config that is another run.

The same of its bucket, whose config is asked before anything of it comes here.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headway.config import RunConfig, difference, fingerprint, identity, load_config
from headway.errors import CheckpointError, ConfigError, StorageFull
from headway.journal import read_events
from headway.lock import RunLock
from headway.upload import Line, Remote
from headway.upload.layout import MANIFEST_NAME, first_attempt, newest_versions, standing_in
from headway.upload.objects import RemoteFile
from headway.upload.run_files import read_small
from headway.viewing import CONFIG_FILE, JOURNAL_FILE, LOCK_FILE


def run_folder(config: RunConfig) -> Path:
    """``run.root/run.name``; a config without a name is named after its recipe."""
    return config.run.root / (config.run.name or config.recipe)


@contextlib.contextmanager
def claimed(folder: Path, config: RunConfig, fresh: bool) -> Iterator[list[str]]:
    """The folder, locked, with the resolved config in it; a run of another config is refused.

    Yields what the config changes between this attempt and the last, one line each: mechanics,
    because anything else is refused.
    """
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    aside = None
    if fresh and (begun(folder) or holds_checkpoints(folder)):
        with RunLock(folder / LOCK_FILE):
            aside = folder.rename(unused_name(folder))
            folder.mkdir()
    try:
        with RunLock(folder / LOCK_FILE):
            path = folder / CONFIG_FILE
            changed = same_run(str(folder), load_config(path), config) if begun(folder) else []
            with writable(folder):
                config.save(path)
            yield [f"changed since the last attempt: {line}" for line in changed]
    except BaseException:
        if aside and not begun(folder):  # the new run could not begin: the old one stays in place
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
        raise


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """A disk that refuses the run's folder is a StorageFull or ConfigError with its name."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (StorageFull if full else ConfigError)(
            f"the run's folder {folder} cannot be written: {error.strerror}. Free space, mend the "
            "disk or its rights, or give another run.root"
        ) from error


def begun(folder: Path) -> bool:
    """Whether an attempt of this run ever opened, data, model and all."""
    return bool(read_events(folder / JOURNAL_FILE, {"plan"}))


def holds_checkpoints(folder: Path) -> bool:
    """Whether checkpoints lie here, good or set aside: a lost journal does not make a folder
    empty."""
    return any(any((folder / place).glob("*step-*")) for place in ("checkpoints", "quarantine"))


def unused_name(folder: Path) -> Path:
    """``NAME.replaced-1`` and so on: an old run is moved aside, never deleted."""
    names = (folder.with_name(f"{folder.name}.replaced-{n}") for n in itertools.count(1))
    return next(path for path in names if not path.exists())


def same_run(where: str, then: RunConfig, now: RunConfig, names: str = "run.name") -> list[str]:
    """What differs without making another run; ConfigError, with the differences, if they do."""
    before, after = then.tree(), now.tree()
    changed = difference(identity(before), identity(after))
    if changed:
        raise ConfigError(
            f"{where} is a run with another config, and continuing it would mix two:\n  "
            + "\n  ".join(changed)
            + f"\nGive this one another {names}, or start it over with --fresh"
        )
    return difference(before, after)


def same_run_there(
    remote: Remote, config: RunConfig, objects: Sequence[RemoteFile] | None = None
) -> None:
    """ConfigError, with the differences, if the run in the bucket is another one; fetches little.

    By its config; where that is not there, by the fingerprint in its newest checkpoint's manifest.
    ``objects``: all that lies there, where that was listed just before.
    """
    line = Line()
    if objects is None:
        objects = line.ask(lambda: remote.list(""))
    then = config_there(remote, objects, line)
    if then is not None:
        same_run(remote.url, then, config, "run.name or upload.to")
        return
    for copy in reversed(standing_in(objects)):
        data = read_small(copy.files[MANIFEST_NAME].key, copy.digest, remote, line)
        try:
            made = json.loads(data or b"")["facts"]["fingerprint"]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue  # a bad copy: whoever restores says so
        if made != fingerprint(config):
            raise ConfigError(
                f"{remote.url} holds a run with another config ({copy.name}: fingerprint {made}, "
                f"here {fingerprint(config)}), and continuing it would mix two. "
                "Give this one another run.name or upload.to, or start it over with --fresh"
            )
        return


def config_there(remote: Remote, objects: Sequence[RemoteFile], line: Line) -> RunConfig | None:
    """The newest config in the bucket; None if none is whole. ConfigError if it cannot be read."""
    version = newest_versions(objects, first_attempt(objects)).get(CONFIG_FILE)
    data = read_small(version.key, version.digest, remote, line) if version else None
    if data is None:
        return None
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, CONFIG_FILE)
        path.write_bytes(data)
        try:
            return load_config(path)
        except ConfigError as error:
            said = str(error).replace(str(path), CONFIG_FILE)
            raise ConfigError(f"the config of the run in {remote.url}: {said}") from None


def same_fingerprint(then: Mapping[str, Any], now: dict[str, Any], path: Path) -> None:
    """A checkpoint of another config is refused, however it came here.

    Another headway may resolve the same config to more keys: then the saved config alone decides.
    """
    same_headway = then.get("versions", {}).get("headway") == now["versions"]["headway"]
    made = then.get("fingerprint")
    if same_headway and made and made != now["fingerprint"]:
        raise CheckpointError(
            f"{path} was made by a run with another config (fingerprint {made}, here "
            f"{now['fingerprint']}), and continuing from it would mix two. Remove it, give this "
            "run another run.name, or start it over with --fresh"
        )


def same_identities(then: dict[str, Any], now: dict[str, Any], step: int) -> None:
    """The data and the base weights must be those the checkpoint was made with."""
    changed = [f"{key}: {then[key]} -> {now.get(key)}" for key in then if then[key] != now.get(key)]
    if changed:
        raise CheckpointError(
            f"step {step} was made with other inputs than are here now ({'; '.join(changed)}): "
            "the data or the base model changed. Put them back, or start over with --fresh"
        )
