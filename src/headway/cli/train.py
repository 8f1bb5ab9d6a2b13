"""``headway train`` and ``headway demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="YAML, JSON, TOML or Python config file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, as often as needed.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Move an existing run aside and start over.")
    ] = False,
    from_step: Annotated[
        str | None, typer.Option("--from", help="Continue from this checkpoint (step-00000500).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line a step.")] = False,
) -> None:
    """Start the run that CONFIG describes, or continue it.

    Exit codes: 0 finished, 75 stopped with a checkpoint (run it again), 76 budget reached,
    65 data or checkpoint bad, 77 storage full, 78 config bad.
    """
    from headway.signals import Signals

    with Signals():  # torch takes seconds to load: a signal then is one before step 1 too
        from headway.api import train_run
        from headway.cli import leave
        from headway.cli.progress import progress
        from headway.config import load_config

        loaded = load_config(config, overrides or [])
    with progress(json) as show:
        step = None if from_step is None else step_number(from_step)
        folder, reason = train_run(loaded, fresh=fresh, from_step=step, show=show)
        show.ended(folder, reason, written_report(folder))
    leave(reason.exit_code)


def demo(
    folder: Annotated[Path, typer.Option(help="Where the run goes.")] = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
) -> None:
    """Fine-tune a real small model on this machine's own Python documentation, in minutes."""
    from headway.cli import leave
    from headway.cli.progress import progress
    from headway.demo import run_demo

    with progress(json=False) as show:
        run, reason = run_demo(folder, fresh, show)
        show.ended(run, reason, written_report(run))
    leave(reason.exit_code)


def step_number(text: str) -> int:
    """``500`` or ``step-00000500``. Raises ConfigError for anything else."""
    from headway.errors import ConfigError

    digits = text.removeprefix("step-")
    if not (digits.isascii() and digits.isdigit()):
        raise ConfigError(f"--from {text}: write a checkpoint's step, as 500 or step-00000500")
    return int(digits)


def written_report(folder: Path) -> Path | None:
    """The run's report, rendered now; None on the ranks that do not write."""
    import os

    from headway.viewing import write_report

    return write_report(folder) if os.environ.get("RANK", "0") == "0" else None
