"""Where checkpoints and the bucket meet: a checkpoint becomes a parcel, a URL becomes a run.

The rooms ``checkpoint`` and ``upload`` do not know each other; this composes them, for training and
for the verbs. Without torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from headway.checkpoint import Checkpoint, CheckpointStore, Retention, read_manifest, verify
from headway.checkpoint import expendable as expendable_steps
from headway.checkpoint.manifest import manifest_bytes
from headway.config import Upload
from headway.config.load import write_yaml
from headway.errors import CheckpointError, ConfigError
from headway.journal import read_events, timeline
from headway.lock import RunLock
from headway.upload import (
    Lease,
    LeaseLost,
    Line,
    Parcel,
    Remote,
    Restored,
    Uploader,
    acquire,
    remote_checkpoints,
    restore,
)
from headway.upload.faults import Exists
from headway.upload.layout import (
    first_attempt,
    fresh_key,
    from_key,
    highest_attempt,
    standing_in,
)
from headway.upload.lease import read as read_lease
from headway.upload.ledger import read_ledger
from headway.upload.remote import folder_of
from headway.upload.restoring import UPLOAD_JOURNAL
from headway.upload.run_files import bring
from headway.viewing import CONFIG_FILE, JOURNAL_FILE, LOCK_FILE, config_tree, find_run

MEGABYTE = 1_000_000

Say = Callable[[str], None]


def url_of(section: Upload, run: Path) -> str:
    """Where this run's copy lies: ``upload.to`` and the run's name.

    Raises ConfigError for a folder that the run and its copy would share.
    """
    url = f"{section.to}/{run.resolve().name}"
    refuse_shared(url, run)
    return url


def refuse_shared(url: str, run: Path) -> None:
    """ConfigError if the copy is, holds, or lies in the run's own folder: both would be mixed."""
    folder = folder_of(url)
    if folder is None:
        return
    there, here = folder.resolve(), run.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise ConfigError(
            f"upload.to: the run's copy would lie in {there}, and the run itself in {here}: one "
            "holds the other. Give a folder apart from it, best on another disk"
        )


def attempt_of(checkpoint: Checkpoint) -> int:
    """The number of the attempt that saved it; 0 where it has none."""
    text = checkpoint.manifest.attempt
    return int(text) if text.isascii() and text.isdigit() else 0


def parcel_of(checkpoint: Checkpoint) -> Parcel:
    """A committed checkpoint as the uploader needs to know it; reads nothing."""
    return Parcel(
        name=checkpoint.path.name,
        step=checkpoint.step,
        attempt=attempt_of(checkpoint),
        digest=hashlib.sha256(manifest_bytes(checkpoint.manifest)).hexdigest(),
        folder=checkpoint.path,
        files=checkpoint.manifest.files,
    )


@contextlib.contextmanager
def leased(remote: Remote, section: Upload, at_least: int, say: Say) -> Iterator[Lease]:
    """This process is the one that writes the run in the bucket, until the end of the block.

    ``at_least``: the number of the attempt that begins; the lease's token, which is never smaller,
    is the attempt's number, above that of every object there. Raises RunLocked (another machine),
    RemoteError.
    """
    at_least = max(at_least, 1 + highest_attempt(Line().ask(lambda: remote.list(""))))
    if not remote.abilities.compare_and_swap:
        say(f"WARNING: {remote.url} cannot compare and swap: a second machine is not kept out")
    with acquire(remote, seconds=section.lease_seconds, at_least=at_least, say=say) as lease:
        yield lease


def open_uploader(
    remote: Remote, section: Upload, run: Path, lease: Lease, *, keep_all: bool = False
) -> Uploader:
    """The uploader of a run; close it. ``keep_all``: it skips nothing and deletes nothing."""
    keep = Retention(
        keep_last=section.keep_last,
        keep_best=section.keep_best,
        keep_every_steps=section.keep_every_steps,
    )
    # Behind the line only the newest waits, but what is to be kept there must first come there.
    waits = Retention(
        keep_last=1, keep_best=section.keep_best, keep_every_steps=section.keep_every_steps
    )
    rate = section.bandwidth_mb_per_second
    uploader = Uploader(
        remote,
        journal=run / UPLOAD_JOURNAL,
        attempt=lease.token,
        lease=lease,
        parallel_files=section.parallel_files,
        bandwidth_bytes_per_second=rate * MEGABYTE if rate else None,
        archive=section.archive,
        expendable=None if keep_all else partial(by_policy, keep),
        skippable=nothing if keep_all else partial(by_policy, waits),
        patience_seconds=60 * section.patience_minutes,
    )
    uploader.also(CONFIG_FILE, run / CONFIG_FILE)
    uploader.also(JOURNAL_FILE, run / JOURNAL_FILE, grows=True)
    return uploader


def by_policy(
    policy: Retention, steps: Collection[int], scores: Mapping[int, float]
) -> Collection[int]:
    """What a retention policy lets go: never the newest, never the best."""
    return expendable_steps(steps, scores, policy)


def nothing(steps: Collection[int], scores: Mapping[int, float]) -> Collection[int]:
    """Every step stays."""
    return ()


def held_out_losses(run: Path) -> dict[int, float]:
    """Step -> held-out loss, from the run's journal."""
    events = read_events(run / JOURNAL_FILE, {"attempt", "evaluation"})
    found = {event["step"]: event["metrics"]["loss"] for event in timeline(events, "evaluation")}
    return {step: loss for step, loss in found.items() if isinstance(loss, float)}


# ------------------------------------------------------------------ bringing a run back


def restore_run(remote: Remote, run: Path, say: Say) -> Restored | None:
    """Bring the newest whole state of a run to this disk, unless this disk has it.

    None if the bucket holds nothing newer than the newest good checkpoint here. Takes the run's
    lock meanwhile. Raises RunLocked, CheckpointError, StorageFull, RemoteError.
    """
    refuse_shared(remote.url, run)
    run.mkdir(parents=True, exist_ok=True)
    with RunLock(run / LOCK_FILE):
        return restore(remote, run, problems_in, say, newer_than=newest_here(run))


def settled(run: Path) -> bool:
    """Make the config in ``run`` name this folder, so that training it goes on here.

    False if it did already, or is not there. Raises RunLocked.
    """
    if not (run / CONFIG_FILE).is_file():
        return False
    with RunLock(run / LOCK_FILE):
        tree, here = config_tree(run), run.resolve()
        section = tree.get("run") or {}
        named = Path(section.get("root") or "runs") / (section.get("name") or "")
        if not tree or named.resolve() == here:
            return False
        tree["run"] = {**section, "root": str(here.parent), "name": here.name}
        write_yaml(tree, run / CONFIG_FILE)
        return True


def holds_a_run(remote: Remote) -> bool:
    """Whether there is a copy that could come back."""
    return bool(standing_in(Line().ask(lambda: remote.list(""))))


def refuse_lost(remote: Remote) -> None:
    """CheckpointError if a bucket without a copy has a journal that says that there was one.

    The last save of a journal may never have arrived: it is sent just before its copy.
    """
    objects = Line().ask(lambda: remote.list(""))
    with tempfile.TemporaryDirectory() as place:
        bring(objects, first_attempt(objects), remote, Line(), Path(place), lambda line: None)
        events = read_events(Path(place, JOURNAL_FILE), {"save", "upload"})
    saves = sorted({event["step"] for event in events if event["event"] == "save"})
    sent = {e["step"] for e in events if e["event"] == "upload" and e.get("kind") == "sent"}
    if lost := sorted({*saves[:-1], *sent}):
        raise CheckpointError(
            f"{remote.url} holds no checkpoint, but its journal says that step {lost[-1]} was "
            "saved: the copies were deleted, or training went back behind all that are left "
            "(`headway upload list`). Not starting over by itself: put a copy back, or start "
            "again with --fresh"
        )


def newest_here(run: Path) -> tuple[int, int] | None:
    """(attempt, step) of the newest good checkpoint here, every byte of it read."""
    local = CheckpointStore(run, attempt="reader").checkpoints()
    for checkpoint in sorted(local, key=lambda c: (attempt_of(c), c.step), reverse=True):
        if not verify(checkpoint):
            return attempt_of(checkpoint), checkpoint.step
    return None


def problems_in(folder: Path) -> list[str]:
    """Everything that is wrong with a checkpoint's directory, every byte read."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    return verify(Checkpoint(manifest.step, folder, manifest))


def begin_fresh(remote: Remote, attempt: int) -> None:
    """From now on what earlier attempts put into this bucket belongs to another run.

    Nothing is deleted: ``headway upload clean`` does that.
    """
    mark(remote, fresh_key(attempt))


def go_back(remote: Remote, attempt: int, step: int) -> None:
    """From now on what earlier attempts committed after ``step`` does not come back."""
    mark(remote, from_key(attempt, step))


def mark(remote: Remote, key: str) -> None:
    """An empty object whose name says it all; there already is fine. Raises RemoteError."""
    with contextlib.suppress(Exists):
        Line().ask(lambda: remote.put(key, b""))


# ------------------------------------------------------------------ from another process


def follow(
    run: Path,
    uploader: Uploader,
    *,
    until: Callable[[], bool],
    wait: Callable[[float], object],
    collected: Callable[[Uploader], None],
    every_seconds: float = 5.0,
) -> None:
    """Send what another process commits, as it appears, until ``until``; the same uploader.

    The other process does not know which checkpoints are being sent: one that it prunes meanwhile
    is a failed upload, said and passed over, because a newer one is there. Raises what ended it
    (a lost lease).
    """
    seen: set[str] = set()
    while not until():
        send_all(run, uploader, seen)
        collected(uploader)
        failure = uploader.failure()
        if isinstance(failure, LeaseLost):
            raise failure
        wait(every_seconds)


def send_all(run: Path, uploader: Uploader, seen: set[str]) -> None:
    """Submit the committed checkpoints whose prefixes are not in ``seen`` yet, oldest first."""
    scores = held_out_losses(run)
    for checkpoint in CheckpointStore(run, attempt="reader").checkpoints():
        parcel = parcel_of(checkpoint)
        if parcel.prefix not in seen:
            seen.add(parcel.prefix)
            uploader.submit(parcel, scores)


# ------------------------------------------------------------------ for the verbs


def section_of(run: Path, to: str | None) -> Upload:
    """The ``upload`` section of a run's saved config, with another ``to`` if one is given.

    Raises ConfigError when neither says where.
    """
    tree = dict(config_tree(run).get("upload") or {})
    if to:
        tree["to"] = to
    if not tree:
        raise ConfigError(
            f"{run / CONFIG_FILE} has no upload section: give the bucket with --to URL, or add "
            "`upload: {to: URL}` to the config"
        )
    try:
        return Upload.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"upload.{first['loc'][0]}: {first['msg']}") from None


def remote_of(run_or_url: str, to: str | None) -> Remote:
    """The bucket of a run directory (or name), or the bucket at a URL that ends in the run."""
    if "://" in run_or_url and to is None:
        return Remote(run_or_url)
    if to is None and Path(run_or_url).is_dir() and not Path(run_or_url, CONFIG_FILE).exists():
        return Remote(run_or_url)  # a bucket that is a folder
    run = find_run(run_or_url)
    return Remote(url_of(section_of(run, to), run))


def status_of(run: Path, remote: Remote) -> dict[str, Any]:
    """What is here, what is there, what is missing, and the rate of the last uploads."""
    local = {
        checkpoint.step: checkpoint
        for checkpoint in CheckpointStore(run, attempt="reader").checkpoints()
    }
    there = {copy.step: copy for copy in remote_checkpoints(remote) if copy.stands}
    rows = []
    for step in sorted(local.keys() | there.keys()):
        here, copy = local.get(step), there.get(step)
        same = copy is not None and (here is None or parcel_of(here).prefix == copy.copy.prefix)
        state = "no" if copy is None else "other content" if not same else "yes"
        if copy is not None and copy.problems:
            state = f"DAMAGED: {copy.problems[0]}"
        rows.append(
            {
                "step": step,
                "created_at": here.manifest.created_at if here else copy and copy.copy.modified_at,
                "bytes": here.bytes if here else copy.copy.bytes if copy else 0,
                "here": here is not None,
                "there": state,
            }
        )
    entries = read_ledger(run / UPLOAD_JOURNAL)
    recent = [e for e in entries if e.get("event") == "sent" and e.get("seconds")][-5:]
    failed = [e for e in entries if e.get("event") in ("sent", "failed")][-1:]
    holder, _ = read_lease(remote)
    backlog = [row for row in rows if row["here"] and row["there"] == "no"]
    seconds = sum(entry["seconds"] for entry in recent)
    return {
        "url": remote.url,
        "holder": str(holder) if holder and not holder.released else None,
        "checkpoints": rows,
        "backlog": [row["step"] for row in backlog],
        "backlog_bytes": sum(row["bytes"] for row in backlog),
        "bytes_per_second": sum(e["bytes"] for e in recent) / seconds if seconds else None,
        "last_failure": failed[0]["why"] if failed and failed[0]["event"] == "failed" else None,
    }
