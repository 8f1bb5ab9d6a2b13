"""``headway upload`` and ``headway restore``: the bucket, seen and used by hand."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from headway.upload import Progress, Remote, RemoteCheckpoint, Uploader

app = typer.Typer(help="Copies of a run in a bucket: look, send, clean.")

RunName = Annotated[str, typer.Argument(help="Run directory, or a run's name under runs/.")]
Place = Annotated[
    str, typer.Argument(help="Run directory, a run's name under runs/, or the URL of a run's copy.")
]
To = Annotated[
    str | None,
    typer.Option("--to", help="Bucket instead of the config's upload.to; the run's name is added."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]
Verify = Annotated[
    bool,
    typer.Option("--verify", help="Compare checksums too; reads back what is not on this disk."),
]


@app.callback(invoke_without_command=True)
def follow(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Option("--follow", help="Run directory: send what its trainer saves, until stopped."),
    ] = None,
    to: To = None,
) -> None:
    """Look at the copies of a run in its bucket, send more, or clean up."""
    if run is None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())
        return
    from headway import bucket, copies, viewing
    from headway.checkpoint import Follower
    from headway.upload import Remote

    with asked_to_stop() as stop:
        while not (run / viewing.CONFIG_FILE).is_file() and not stop.wait(1.0):
            continue  # the trainer has not begun yet
        if stop.is_set():
            return
        section = copies.section_of(run, to)
        remote = Remote(bucket.url_of(section, run))
        with (
            Follower(run) as follower,
            bucket.leased(remote, section, 1, typer.echo) as lease,
            bucket.open_uploader(remote, section, run, lease) as uploader,
        ):
            typer.echo(f"following {run}, sending to {remote.url}; Ctrl-C ends it")
            bucket.follow(
                run,
                uploader,
                until=stop.is_set,
                wait=stop.wait,
                collected=say_events,
                follower=follower,
            )
            stop.clear()
            finish(uploader, stop, remote)


@app.command("status")
def status(run: RunName, to: To = None, verify: Verify = False, json: Json = False) -> None:
    """What of a run is in its bucket, what is not, and how fast it goes there."""
    from datetime import UTC, datetime

    from headway import bucket, copies
    from headway.cli.tables import show_facts, show_json, show_table
    from headway.report.words import ago, count, duration, instant, size
    from headway.upload import Remote
    from headway.viewing import find_run

    folder = find_run(run)
    remote = Remote(bucket.url_of(copies.section_of(folder, to), folder))
    found = copies.status_of(folder, remote, verify=verify)
    if json:
        show_json(found)
        return
    now = datetime.now(UTC)
    show_table(
        ("step", "saved", "size", "here", "in the bucket"),
        [
            (
                count(row["step"]),
                ago(instant(row["created_at"]), now),
                size(row["bytes"]),
                "yes" if row["here"] else "",
                row["there"],
            )
            for row in found["checkpoints"]
        ],
        left=0,
    )
    rate = found["bytes_per_second"]
    facts = {
        "bucket": found["url"],
        "written by": found["holder"] or "nobody",
        "backlog": f"{count(len(found['backlog']))} ({size(found['backlog_bytes'])})",
        "rate": f"{size(rate)}/s" if rate else "–",
        "time left": duration(found["backlog_bytes"] / rate) if rate else "–",
    }
    if found["last_failure"]:
        facts["last failure"] = found["last_failure"]
    show_facts(facts, " ")


@app.command("list")
def list_command(place: Place, to: To = None, verify: Verify = False, json: Json = False) -> None:
    """Every copy in the bucket: size, age, and whether it is whole."""
    from datetime import UTC, datetime

    from headway import copies
    from headway.cli.tables import show_json, show_table
    from headway.report.words import ago, count, instant, size

    remote, run = copies.remote_of(place, to)
    found = copies.copies_of(remote, run, verify=verify)
    if json:
        show_json([row_of(each, remote) for each in found])
        return
    if not found:
        typer.echo(f"{remote.url}: no copy yet")
        return
    now = datetime.now(UTC)
    show_table(
        ("step", "attempt", "sent", "size", "files", "every byte" if verify else "whole"),
        [
            (
                count(each.step),
                count(each.copy.attempt),
                ago(instant(each.copy.modified_at), now),
                size(each.copy.bytes),
                count(len(each.copy.files)),
                state_of(each),
            )
            for each in found
        ],
        left=0,
    )


@app.command("push")
def push(
    run: RunName,
    step: Annotated[str, typer.Argument(help="500, step-00000500, newest or best.")] = "newest",
    everything: Annotated[
        bool, typer.Option("--all", help="Every checkpoint on this disk.")
    ] = False,
    to: To = None,
) -> None:
    """Send one checkpoint, or all, now. Refused while another process sends this run.

    Nothing is deleted from the bucket; a training that goes on keeps there what upload.keep_last
    and keep_best say.
    """
    from headway import bucket, copies
    from headway.upload import Remote
    from headway.viewing import open_run

    view = open_run(run)
    chosen = view.checkpoints() if everything else [view.checkpoint(step)]
    section = copies.section_of(view.path, to)
    remote = Remote(bucket.url_of(section, view.path))
    with (
        asked_to_stop() as stop,
        bucket.leased(remote, section, 1, typer.echo) as lease,
        bucket.open_uploader(remote, section, view.path, lease, keep_all=True) as uploader,
    ):
        for checkpoint in chosen:
            uploader.submit(bucket.parcel_of(checkpoint))
        finish(uploader, stop, remote)
        there = uploader.verified() & {checkpoint.step for checkpoint in chosen}
    typer.echo(f"{len(there)} of {len(chosen)} verified in {remote.url}")
    if len(there) < len(chosen):
        from headway.errors import RemoteError

        raise RemoteError("not everything is in the bucket; the lines above say why")


@app.command("clean")
def clean_command(
    place: Place,
    to: To = None,
    older_than_hours: Annotated[
        float, typer.Option(help="Age of an unfinished upload that counts as dead.")
    ] = 24.0,
    damaged: Annotated[bool, typer.Option("--damaged", help="Also copies that are bad.")] = False,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Also copies that training went back behind.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; left out: only say what.")] = False,
) -> None:
    """Delete what dead uploads left in the bucket: copies without a manifest, unfinished parts.

    With --yes: refused while another process sends this run.
    """
    import time

    from headway import bucket, copies
    from headway.report.words import size
    from headway.upload import Line, clean, leftovers, remote_checkpoints

    remote, _ = copies.remote_of(place, to)
    line = Line()
    with bucket.leased_to_clean(remote, typer.echo) if yes else contextlib.nullcontext() as lease:
        known = remote_checkpoints(remote, line) if damaged else []
        found = leftovers(
            remote,
            line,
            now=time.time(),
            older_than_seconds=3600 * older_than_hours,
            damaged=[each.copy.prefix for each in known if each.problems],
            superseded=superseded,
        )
        for each in found:
            typer.echo(f"{each.copy.prefix}  {size(each.copy.bytes)}  {each.why}")
        if yes:
            clean(found, remote, line, lease.check if lease else lambda: None)
            parts = remote.abandon(time.time() - 3600 * older_than_hours)
            typer.echo(f"deleted {len(found)} copies and {len(parts)} unfinished uploads")
    if not yes:
        more = "--yes deletes these and" if found else "--yes also ends"
        typer.echo(
            f"{remote.url}: {'nothing was deleted' if found else 'no leftovers'}; "
            f"{more} unfinished uploads of that age"
        )


def restore(
    url: Annotated[str, typer.Argument(help="URL of a run's copy: upload.to and the run's name.")],
    to: Annotated[
        Path | None, typer.Option("--to", help="Run directory to restore to; left out: runs/NAME.")
    ] = None,
) -> None:
    """Bring a run back from its bucket: the newest whole checkpoint, config and journal.

    What is here already and newer stays. Training goes on, there, with the command it prints.
    """
    import shlex

    from headway import bucket, viewing
    from headway.report.words import size
    from headway.upload import Remote

    remote = Remote(url)
    folder = to or Path("runs") / url.rstrip("/").rpartition("/")[2]
    config = folder / viewing.CONFIG_FILE
    if config.is_file():
        refuse_another(remote, config)
    found = bucket.restore_run(remote, folder, typer.echo)
    if bucket.settled(folder):
        typer.echo(
            f"{config} now names {folder} (run.root, run.name), and sends its copies under it"
        )
    if found is None:
        here = bucket.newest_here(folder)
        if here is None:
            from headway.errors import CheckpointError

            raise CheckpointError(f"{remote.url} holds no copy of a run; `headway upload list`")
        typer.echo(f"{folder} is as new as the bucket: step {here[1]}. Nothing was fetched")
        return
    if not config.is_file():
        typer.echo(
            f"WARNING: the bucket has no {viewing.CONFIG_FILE}: training needs the one it had"
        )
    files = "".join(f", {name} ({size(count)})" for name, count in found.run_files.items())
    typer.echo(f"restored {found.name} ({size(found.bytes)}){files} to {folder}")
    typer.echo(f"go on with: headway train {shlex.quote(str(config))}")


def refuse_another(remote: Remote, config: Path) -> None:
    """ConfigError if the folder of this saved config is another run's than the bucket."""
    from headway.claim import same_run_there
    from headway.config import load_config
    from headway.errors import ConfigError

    try:
        mine = load_config(config)
    except ConfigError:
        return  # training will say so; what is restored may be to look at
    try:
        same_run_there(remote, mine)
    except ConfigError as error:
        raise ConfigError(f"{error}. Or restore to another folder: --to DIR") from None


# ------------------------------------------------------------------ what is shown


def row_of(each: RemoteCheckpoint, remote: Remote) -> dict[str, Any]:
    """One copy as JSON."""
    return {
        "step": each.step,
        "attempt": each.copy.attempt,
        "bytes": each.copy.bytes,
        "sent_at": each.copy.modified_at,
        "whole": not each.problems,
        "problems": each.problems,
        "stands": each.stands,
        "url": f"{remote.url}/{each.copy.prefix}",
    }


def state_of(each: RemoteCheckpoint) -> str:
    """In one cell."""
    if each.problems:
        return f"DAMAGED: {each.problems[0]}"
    return "yes" if each.stands else "yes; training went back behind it"


def say_events(uploader: Uploader) -> None:
    """What happened since the last time, one line each."""
    from headway.report.words import duration, size

    for event in uploader.collect():
        if event.kind == "sent":
            more = f", {event.retries} retries" if event.retries else ""
            typer.echo(
                f"sent step {event.step} ({size(event.bytes)} in {duration(event.seconds)}{more})"
            )
        else:
            why = f": {event.why}" if event.why else ""
            typer.echo(f"{event.kind} step {event.step}{why}")


def finish(uploader: Uploader, stop: threading.Event, remote: Remote) -> None:
    """Wait for what is left, visibly; Ctrl-C leaves it."""
    with waiting_line() as show:
        uploader.drain(until=stop.is_set, show=show)
    say_events(uploader)
    left = uploader.pending()
    if left:
        typer.echo(f"not in {remote.url} yet: step {', '.join(map(str, sorted(left)))}")


@contextlib.contextmanager
def waiting_line() -> Iterator[Any]:
    """One live line in a terminal, nothing in a pipe."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with console.status("") as status:
        yield lambda progress: status.update(progress_line(progress))


def progress_line(progress: Progress) -> str:
    """``2 checkpoints to go, 1.2 GB, about 40 s; Ctrl-C leaves``."""
    from headway.report.words import duration, size

    rate = progress.bytes_per_second
    eta = f", about {duration(progress.left_bytes / rate)}" if rate else ""
    trouble = f" [{progress.waiting_for}]" if progress.waiting_for else ""
    many = len(progress.steps)
    return (
        f"{many} checkpoint{'s' if many != 1 else ''} to go, {size(progress.left_bytes)}{eta}"
        f"; Ctrl-C leaves{trouble}"
    )


@contextlib.contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Set by SIGTERM or SIGINT."""
    import signal
    import threading

    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
