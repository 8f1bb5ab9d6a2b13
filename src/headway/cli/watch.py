"""``headway watch``: a run while it trains, from its journal alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType

    from headway.following import Following
    from headway.report.live import View
    from headway.report.live_text import Line

LOG_EVERY_SECONDS = 10.0
"""Between two lines about steps in a log."""
FIRST_LINES = 10
"""What happened last, when a log begins."""
STYLES = {"plain": "", "good": "green", "warning": "yellow", "bad": "bold red"}
BAR = 24


def watch(
    run: Annotated[str, typer.Argument(help="Run directory, or its name under runs/.")],
    refresh: Annotated[
        float, typer.Option(min=0.2, help="Seconds between two looks at the journal.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show it once and leave.")] = False,
    logs_only: Annotated[
        bool, typer.Option("--logs-only", help="A line for whatever happens, and no picture.")
    ] = False,
) -> None:
    """Show a run as it trains, on this machine or on another one that shares its folder.

    Reads the journal, so it can come and go at any time and the run does not notice. Where the
    output is no terminal it is plain lines, until nobody writes the run any more; in a terminal it
    stays until the run is finished. Ctrl-C leaves.
    """
    import time

    from rich.console import Console

    from headway.following import Following

    with leaving_politely():
        following = Following(run)
        console = Console(highlight=False)
        if once:
            following.look()
            show(following, console)
        elif logs_only or not console.is_terminal:
            if not logs_only:
                following.look()
                show(following, console)
            for text in log(following, refresh, time.sleep, past=logs_only):
                typer.echo(text)
        else:
            picture(following, refresh, console, time.sleep)


@contextlib.contextmanager
def leaving_politely() -> Iterator[None]:
    """Ctrl-C, a signal to end and a reader that is gone all just end the block."""
    import os
    import signal
    import sys

    def leave(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - the interpreter flushes it last
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(following: Following, console: Console) -> None:
    """The run now: as the picture where there is a terminal, else one plain line a subject."""
    found = following.lines()
    if console.is_terminal:
        console.print(drawn(following.name, "", found))
        return
    typer.echo(following.name)
    for line in found:
        typer.echo(f"{line.label:<9} {line.text}")


def picture(
    following: Following, refresh: float, console: Console, wait: Callable[[float], object]
) -> None:
    """The whole terminal, drawn again and again until the run is finished; then it once more."""
    from rich.live import Live

    hint = f"every {refresh:g} s; Ctrl-C leaves"
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                following.look()
                view = following.view()
                live.update(drawn(following.name, hint, following.lines(view)), refresh=True)
                if view.state == "finished":
                    break
                wait(refresh)
    finally:
        show(following, console)  # the other screen is gone with what stood on it


def log(
    following: Following, refresh: float, wait: Callable[[float], object], *, past: bool
) -> Iterator[str]:
    """A line for each thing that happens, and now and then where the steps are.

    ``past``: what happened last comes first. Ends when nobody writes the run.
    """
    from headway.report.live_text import event_line, step_line

    said = [line for event in following.look() if (line := event_line(event))]
    yield from said[-FIRST_LINES:] if past else said
    shown_step, waited = 0, LOG_EVERY_SECONDS  # nothing to say of a step before the first
    while True:
        view = following.view()
        over = view.state != "running"
        if view.step != shown_step and (waited >= LOG_EVERY_SECONDS or over):
            shown_step, waited = view.step, 0.0
            yield step_line(view)
        if over:
            yield ended(view)
            return
        wait(refresh)
        waited += refresh
        yield from (line for event in following.look() if (line := event_line(event)))


def ended(view: View) -> str:
    """Why there is nothing more to follow."""
    reason = f" ({view.reason})" if view.reason and view.reason != view.state else ""
    return f"{view.state}{reason}: nobody trains this run now"


def drawn(name: str, hint: str, found: Sequence[Line]) -> RenderableType:
    """The lines as a table of two columns under the run's name."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text.assemble((name, "bold"), (f"   {hint}" if hint else "", "dim"))
    table = Table.grid(padding=(0, 2, 0, 0), expand=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for line in found:
        text = Text(line.text, style=STYLES[line.mood])
        if line.share is not None:
            full = round(BAR * min(1.0, line.share))
            text.append("  " + "━" * full, style="bold").append("─" * (BAR - full), style="dim")
        table.add_row(line.label, text)
    return Group(head, table)
