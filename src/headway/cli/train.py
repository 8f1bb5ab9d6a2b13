"""``headway train`` and ``headway demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headway.config import RunConfig

ASK = """\
import signal, sys
for number in (signal.SIGINT, signal.SIGPIPE):  # end without a word with the one who asked
    signal.signal(number, signal.SIG_DFL)
from headway.claim import run_folder
from headway.config import load_config
from headway.errors import HeadwayError
from headway.viewing import JOURNAL_FILE
try:
    print(run_folder(load_config(sys.argv[1], sys.argv[2:])).absolute() / JOURNAL_FILE)
except HeadwayError as error:
    sys.stderr.write(f"headway: {error}\\n")
    sys.exit(error.exit_code)
"""
"""A program that prints where the journal of a config's run is."""

HangMinutes = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        help="Silence that --supervise takes for a hang; left out: 30, or 20 median steps if "
        "that is longer. Before the first step, four times that.",
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="Try it: 10 steps on 100 rows, as a run of its own (NAME-quick), begun anew.",
    ),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        help="key.path=value,value,…: a run for each value, one after the other; given again, "
        "for each combination. Each is named after its values; the budget is for all."
    ),
]


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
    quick: Quick = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON line a step.")] = False,
    supervise: Annotated[
        bool, typer.Option("--supervise", help="Start again by itself after a crash or a hang.")
    ] = False,
    hang_minutes: HangMinutes = None,
    sweep: Sweep = None,
) -> None:
    """Start the run that CONFIG describes, or continue it.

    Exit codes: 0 finished, 75 stopped with a checkpoint (run it again), 76 budget reached,
    65 data or checkpoint bad, 77 storage full, 78 config bad, 70 it hung (run it again). With
    --supervise 70 means that it died again and again at one place.
    """
    from headway.cli import leave
    from headway.errors import ConfigError
    from headway.signals import Signals
    from headway.supervise import answer_with_stacks

    if hang_minutes is not None and not supervise:
        raise ConfigError("--hang-minutes: only --supervise looks for hangs; give both")
    if fresh and from_step:
        raise ConfigError("--fresh starts over and --from goes on from a checkpoint: give one")
    if quick and (supervise or from_step):
        raise ConfigError("--quick tries a config from step 1: leave --supervise and --from out")
    if sweep:
        from headway.cli.sweep import swept

        if from_step or quick:
            raise ConfigError("--sweep: has several runs; leave --from and --quick out")
        options = again(fresh, json, supervise, hang_minutes)
        leave(swept(str(config), overrides or [], sweep, options))
    if supervise:
        once = (["--fresh"] if fresh else []) + (["--from", from_step] if from_step else [])
        words = [str(config), *(overrides or []), *(["--json"] if json else [])]
        leave(supervised(config, overrides or [], words, once, hang_minutes))
    answer_with_stacks()
    with Signals():  # torch takes seconds to load: a signal then is one before step 1 too
        from headway.api import train_run
        from headway.cli.progress import progress

        loaded = loaded_config(config, overrides or [], quick)
    with progress(json) as show:
        step = None if from_step is None else step_number(from_step)
        folder, reason = train_run(loaded, fresh=fresh or quick, from_step=step, show=show)
        show.ended(folder, reason, written_report(folder))
    leave(reason.exit_code)


def again(fresh: bool, json: bool, supervise: bool, hang_minutes: float | None) -> list[str]:
    """The same options for each run of a sweep."""
    given = {"--fresh": fresh, "--json": json, "--supervise": supervise}
    hang = [] if hang_minutes is None else ["--hang-minutes", str(hang_minutes)]
    return [name for name, is_given in given.items() if is_given] + hang


def loaded_config(config: Path, overrides: list[str], quick: bool) -> RunConfig:
    """The config, made small where that was asked for."""
    from headway.config import load_config
    from headway.config.quick import quick as made_quick

    loaded = load_config(config, overrides)
    return made_quick(loaded) if quick else loaded


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


def supervised(
    config: Path, overrides: list[str], given: list[str], once: list[str], minutes: float | None
) -> int:
    """``headway train *given`` as a child process, as often as it takes; ``once`` until it opened.

    The config is read by a process of its own: that loads the recipe, and torch, which would stay.
    """
    import os
    import subprocess
    import sys

    from headway.errors import ConfigError
    from headway.journal import read_events
    from headway.signals import Signals
    from headway.supervise import EVENTS, Ears, Patience, Supervisor

    if "RANK" in os.environ:
        raise ConfigError(
            "--supervise starts one process, and here torchrun starts several: leave it out and "
            "use torchrun --max-restarts"
        )
    python = [sys.executable, "-P"]
    with Signals():
        asked = subprocess.run([*python, "-c", ASK, config, *overrides], stdout=subprocess.PIPE)
        if asked.returncode != 0:
            return abs(asked.returncode)
        journal = Path(asked.stdout.decode().splitlines()[-1])
        train = [*python, "-X", "faulthandler", "-m", "headway.cli", "train"]
        with Ears() as ears:
            supervisor = Supervisor(
                journal,
                lambda again: [*train, *given, *([] if again else once)],
                lambda: read_events(journal, EVENTS),
                say_supervisor,
                Patience(hang_seconds=None if minutes is None else 60 * minutes),
                wait=ears.wait,
            )
            return supervisor.run()


def say_supervisor(line: str) -> None:
    """To stderr, whether or not there is still somebody who reads it."""
    import contextlib
    import sys

    with contextlib.suppress(OSError):
        sys.stderr.write(f"supervisor: {line}\n")
        sys.stderr.flush()


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
