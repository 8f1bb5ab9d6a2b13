"""The command line: parses and prints. Every verb is a thin door to a function you can import.

Nothing heavy is imported before a verb runs, so ``headway --help`` and ``headway status`` answer in
a blink.
"""

from __future__ import annotations

import sys

import typer

from headway.errors import HeadwayError


def build_app() -> typer.Typer:
    """All verbs. Each file of this package holds one group of them."""
    from headway.cli import (
        check,
        checkpoints,
        data,
        init,
        plan,
        predict,
        report,
        status,
        track,
        train,
        upload,
        use,
        watch,
    )

    app = typer.Typer(
        name="headway",
        help="Train models on rented GPUs and lose nothing: not a step, not a dollar, "
        "not an experiment.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.command("demo")(train.demo)
    app.command("init")(init.init_command)
    app.command("check")(check.check)
    app.command("doctor")(check.doctor)
    app.command("plan")(plan.plan)
    app.command("train")(train.train)
    app.command("watch")(watch.watch)
    app.command("status")(status.status)
    app.command("report")(report.report)
    app.command("track")(track.track)
    app.add_typer(checkpoints.app, name="checkpoints")
    app.add_typer(upload.app, name="upload")
    app.command("restore")(upload.restore)
    app.command("evaluate")(use.evaluate)
    app.command("predict")(predict.predict)
    app.command("export")(use.export)
    app.add_typer(data.app, name="data")
    return app


def main() -> None:
    """Run one command; a HeadwayError becomes one message on stderr and its exit code."""
    try:
        build_app()()
    except HeadwayError as error:
        sys.stderr.write(f"headway: {error}\n")
        leave(error.exit_code)


def leave(exit_code: int) -> None:
    """Exit; a rank of torchrun leaves in its own way (``engine.world.leave``)."""
    if "torch.distributed" in sys.modules:
        from headway.engine.world import leave as leave_world

        leave_world(exit_code)
    sys.exit(exit_code)
