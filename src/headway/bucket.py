"""Where checkpoints and the bucket meet: a checkpoint becomes a parcel, a URL becomes a run.

The rooms ``checkpoint`` and ``upload`` do not know each other; this composes them, for training and
for the verbs. Without torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from headway.checkpoint import (
    Checkpoint,
    CheckpointStore,
    Follower,
    Retention,
    read_manifest,
    verify,
)
from headway.checkpoint import expendable as expendable_steps
from headway.checkpoint.manifest import manifest_bytes
from headway.config import Upload
from headway.config.load import write_yaml
from headway.errors import CheckpointError, ConfigError
from headway.evals import EVALS
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
    restore,
)
from headway.upload.archive import zstandard
from headway.upload.faults import Exists
from headway.upload.layout import (
    first_attempt,
    fresh_key,
    from_key,
    highest_attempt,
)
from headway.upload.objects import RemoteFile
from headway.upload.remote import folder_of
from headway.upload.restoring import UPLOAD_JOURNAL
from headway.upload.run_files import bring
from headway.upload.uploader import Join
from headway.viewing import CONFIG_FILE, JOURNAL_FILE, LOCK_FILE, config_tree

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
    """A committed checkpoint as the uploader needs to know it; reads nothing.

    Microseconds for one that was just committed: training waits for this.
    """
    return Parcel(
        name=checkpoint.path.name,
        step=checkpoint.step,
        attempt=attempt_of(checkpoint),
        digest=checkpoint.manifest_sha256 or sha256_of(checkpoint),
        folder=checkpoint.path,
        files=checkpoint.manifest.files,
    )


def sha256_of(checkpoint: Checkpoint) -> str:
    """Hex, of its manifest's bytes."""
    return hashlib.sha256(manifest_bytes(checkpoint.manifest)).hexdigest()


@contextlib.contextmanager
def leased(
    remote: Remote, section: Upload, at_least: int, say: Say, *, looks: bool = True
) -> Iterator[Lease]:
    """This process is the one that writes the run in the bucket, until the end of the block.

    ``at_least``: the number of the attempt that begins; the lease's token, which is never smaller,
    is the attempt's number, above that of every object there. ``looks``: False where the caller
    lists the bucket under the lease and raises the token itself. Raises RunLocked (another
    machine), RemoteError.
    """
    if looks:
        at_least = max(at_least, 1 + highest_attempt(Line().ask(lambda: remote.list(""))))
    if not remote.abilities.compare_and_swap:
        say(f"WARNING: {remote.url} cannot compare and swap: a second machine is not kept out")
    with acquire(remote, seconds=section.lease_seconds, at_least=at_least, say=say) as lease:
        yield lease


@contextlib.contextmanager
def leased_to_clean(remote: Remote, say: Say) -> Iterator[Lease | None]:
    """``leased``, for a bucket without a config; None where there is nothing yet to be leased.

    Under it no upload is running: what looks dead is dead. Raises RunLocked, RemoteError.
    """
    if not Line().ask(lambda: remote.list("")):
        yield None
        return
    with leased(remote, Upload(to=remote.url), 1, say) as lease:
        yield lease


def open_uploader(
    remote: Remote,
    section: Upload,
    run: Path,
    lease: Lease | None,
    *,
    keep_all: bool = False,
    attempt: int = 0,
    join: Join | None = None,
) -> Uploader:
    """The uploader of a run; close it. ``keep_all``: it skips nothing and deletes nothing.

    Without a lease it sends nothing until ``join`` has got one (headway.joining); ``attempt`` is
    then this attempt's number.
    Raises ConfigError where the archive it is to make needs a package that is not installed.
    """
    if section.archive == "tar.zst":
        zstandard()
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
        attempt=lease.token if lease else attempt,
        lease=lease,
        join=join,
        parallel_files=section.parallel_files,
        bandwidth_bytes_per_second=rate * MEGABYTE if rate else None,
        archive=section.archive,
        expendable=None if keep_all else partial(by_policy, keep),
        skippable=nothing if keep_all else partial(by_policy, waits),
        patience_seconds=60 * section.patience_minutes,
    )
    uploader.also(CONFIG_FILE, run / CONFIG_FILE)
    uploader.also(JOURNAL_FILE, run / JOURNAL_FILE, grows=True)
    uploader.also_below(EVALS, run / EVALS)
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


def restore_run(
    remote: Remote, run: Path, say: Say, objects: Sequence[RemoteFile] | None = None
) -> Restored | None:
    """Bring the newest whole state of a run to this disk, unless this disk has it.

    None if the bucket holds nothing newer than the newest good checkpoint here. Takes the run's
    lock meanwhile. Raises RunLocked, CheckpointError, StorageFull, RemoteError.
    """
    refuse_shared(remote.url, run)
    run.mkdir(parents=True, exist_ok=True)
    with RunLock(run / LOCK_FILE):
        return restore(remote, run, problems_in, say, newer_than=newest_here(run), objects=objects)


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


def refuse_lost(remote: Remote, objects: Sequence[RemoteFile]) -> None:
    """CheckpointError if a bucket without a copy has a journal that says that there was one.

    Only a line ``sent`` says so. Saves alone do not: the newest is sent first, so a machine that is
    lost early leaves a journal with several saves of which none arrived.
    """
    with tempfile.TemporaryDirectory() as place:
        bring(objects, first_attempt(objects), remote, Line(), Path(place), lambda line: None)
        events = read_events(Path(place, JOURNAL_FILE), {"upload"})
    if sent := [event["step"] for event in events if event.get("kind") == "sent"]:
        raise CheckpointError(
            f"{remote.url} holds no checkpoint, but its journal says that step {max(sent)} was "
            "sent: the copies were deleted, or training went back behind all that are left "
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
    follower: Follower,
    every_seconds: float = 5.0,
) -> None:
    """Send what another process commits, as it appears, until ``until``; the same uploader.

    Through ``follower`` the other process prunes nothing that is being sent, waits for it, or was
    not seen yet. Raises what ended it (a lost lease).
    """
    seen: set[str] = set()
    while not until():
        here = send_all(run, uploader, seen)
        collected(uploader)
        waits = uploader.pending()
        follower.settle((c.step, c.manifest.attempt) for c in here if c.step not in waits)
        failure = uploader.failure()
        if isinstance(failure, LeaseLost):
            raise failure
        wait(every_seconds)


def send_all(run: Path, uploader: Uploader, seen: set[str]) -> list[Checkpoint]:
    """Submit the committed checkpoints whose prefixes are not in ``seen`` yet, oldest first.

    Returns every one that is here.
    """
    scores = held_out_losses(run)
    here = CheckpointStore(run, attempt="reader").checkpoints()
    for checkpoint in here:
        parcel = parcel_of(checkpoint)
        if parcel.prefix not in seen:
            seen.add(parcel.prefix)
            uploader.submit(parcel, scores)
    return here
