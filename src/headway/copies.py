"""What lies in a run's bucket, for who looks: which bucket it is, every copy, what is missing.

Without torch; sends and deletes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from headway.bucket import parcel_of, url_of
from headway.checkpoint import Checkpoint, CheckpointStore
from headway.config import Upload
from headway.errors import ConfigError
from headway.upload import Line, Remote, RemoteCheckpoint, remote_checkpoints
from headway.upload.lease import read as read_lease
from headway.upload.ledger import read_ledger, verified_copies
from headway.upload.restoring import UPLOAD_JOURNAL
from headway.upload.verifying import damage_in
from headway.viewing import CONFIG_FILE, config_tree, find_run


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


def remote_of(run_or_url: str, to: str | None) -> tuple[Remote, Path | None]:
    """The bucket of a run directory (or name), or the bucket at a URL that ends in the run.

    And the run's directory on this disk; None where only the bucket was named.
    """
    if "://" in run_or_url and to is None:
        return Remote(run_or_url), None
    if to is None and Path(run_or_url).is_dir() and not Path(run_or_url, CONFIG_FILE).exists():
        return Remote(run_or_url), None  # a bucket that is a folder
    run = find_run(run_or_url)
    return Remote(url_of(section_of(run, to), run)), run


def copies_of(remote: Remote, run: Path | None, *, verify: bool) -> list[RemoteCheckpoint]:
    """Every committed copy, oldest first; ``verify``: compared by checksums, else by sizes.

    ``run``: where the same checkpoints may lie on this disk. Verifying reads back what does not.
    """
    found = remote_checkpoints(remote)
    if not verify:
        return found
    local = CheckpointStore(run, attempt="reader").checkpoints() if run else []
    here = {parcel_of(checkpoint).prefix: checkpoint.path for checkpoint in local}
    return [
        each
        if each.problems
        else replace(
            each, problems=damage_in(each.copy, remote, Line(), here.get(each.copy.prefix))
        )
        for each in found
    ]


def sent_steps(run: Path, here: Sequence[Checkpoint]) -> tuple[set[int], set[int]]:
    """What the run's own ledger says was verified in a bucket and not deleted since.

    Asks no bucket. Returns the steps of ``here`` whose very content was sent, and those sent that
    are not here any more.
    """
    sent = verified_copies(read_ledger(run / UPLOAD_JOURNAL))
    same = {checkpoint.step for checkpoint in here if parcel_of(checkpoint).prefix in sent}
    return same, {*sent.values()} - {checkpoint.step for checkpoint in here}


def status_of(run: Path, remote: Remote, *, verify: bool = False) -> dict[str, Any]:
    """What is here, what is there, what is missing, and the rate of the last uploads."""
    local = {
        checkpoint.step: checkpoint
        for checkpoint in CheckpointStore(run, attempt="reader").checkpoints()
    }
    there = {copy.step: copy for copy in copies_of(remote, run, verify=verify) if copy.stands}
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
