"""``headway checkpoints``: list, show, compare, plot and verify what a run has saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headway.checkpoint import Checkpoint
    from headway.viewing import RunView

app = typer.Typer(help="Look at a run's checkpoints.", no_args_is_help=True)

RunName = Annotated[str, typer.Argument(help="Run directory, or a run's name under runs/.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]
Step = Annotated[str, typer.Argument(help="500, step-00000500, newest or best.")]


@app.command("list")
def list_command(
    run: RunName,
    verify: Annotated[bool, typer.Option("--verify", help="Read and hash every file.")] = False,
    ask_bucket: Annotated[
        bool,
        typer.Option("--bucket", help="Ask the bucket; left out: what the run says it has sent."),
    ] = False,
    json: Json = False,
) -> None:
    """One line for each checkpoint: step, age, size, losses, which is the best, where it lies."""
    from headway.cli.tables import show_json
    from headway.report.checkpoint_view import checkpoint_rows, gone_row
    from headway.viewing import open_run, unreadable, verified

    view = open_run(run)
    there = view.checkpoints()
    rows = checkpoint_rows(view.told, [checkpoint.manifest for checkpoint in there])
    for row, checkpoint in zip(rows, there, strict=True):
        row["path"] = str(checkpoint.path)
        row["good"] = not verified(view, checkpoint)[checkpoint.path.name] if verify else None
    bucket = bucket_asked(view.path) if ask_bucket else bucket_as_sent(view.path, there)
    gone = sorted(bucket.keys() - {row["step"] for row in rows})
    rows += [gone_row(view.told, step) for step in gone]
    rows = [
        {**row, "here": "path" in row, "bucket": bucket.get(row["step"])}
        for row in sorted(rows, key=lambda row: row["step"])
    ]
    if json:
        show_json(rows)
        return
    damaged = unreadable(view)
    if rows:
        show_checkpoints(rows)
    elif not damaged:
        typer.echo(f"{view.path}: no checkpoint yet")
    for name in damaged:
        typer.echo(f"{name}: DAMAGED, its manifest cannot be read")


def bucket_as_sent(run: Path, there: Sequence[Checkpoint]) -> dict[int, str]:
    """Step -> ``sent`` for the copies that the run's ledger knows of."""
    if not (run / "upload.jsonl").exists():
        return {}
    from headway.copies import sent_steps

    same, others = sent_steps(run, there)
    return dict.fromkeys(same | others, "sent")


def bucket_asked(run: Path) -> dict[int, str]:
    """Step -> ``yes``, ``no``, ``other content`` or what is wrong with the copy."""
    from headway import bucket, copies
    from headway.upload import Remote

    remote = Remote(bucket.url_of(copies.section_of(run, None), run))
    return {row["step"]: row["there"] for row in copies.status_of(run, remote)["checkpoints"]}


def show_checkpoints(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table; the bucket has a column where there is anything to say of it."""
    from datetime import UTC, datetime

    from headway.cli.tables import show_table
    from headway.report.words import ago, count, instant, number, size

    now = datetime.now(UTC)
    say = {True: "yes", False: "DAMAGED", None: "not read"}
    bucket = any(row["bucket"] for row in rows)
    head = ["step", "saved", "size", "loss", "held-out", "verified"]
    cells = [
        [
            count(row["step"]),
            ago(instant(row["created_at"]), now),
            size(row["bytes"]),
            number(row["loss"]),
            number(row["held_out_loss"]),
            say[row["good"]] if row["here"] else "not here",
            *[row["bucket"] or "–"] * bucket,
            "best" if row["best"] else "",
        ]
        for row in rows
    ]
    show_table((*head, *["bucket"] * bucket, ""), cells, left=0)


@app.command("show")
def show_command(run: RunName, step: Step, json: Json = False) -> None:
    """Everything that is known of one checkpoint."""
    from headway.cli.tables import show_facts, show_json
    from headway.report.checkpoint_view import checkpoint_details, evaluation_at
    from headway.viewing import config_tree, open_run

    view = open_run(run)
    checkpoint = view.checkpoint(step)
    details = checkpoint_details(view.told, checkpoint.manifest)
    details |= {"path": str(checkpoint.path), "config": config_tree(view.path)}
    if json:
        show_json(details)
        return
    typer.echo(f"{view.name}, step {details['step']}")
    sections = {key: value for key, value in details.items() if isinstance(value, dict)}
    show_facts(readable({k: v for k, v in details.items() if k not in sections}))
    for title, section in sections.items():
        if title == "held_out" and section:
            show_held_out(section, evaluation_at(view.told, details["step"]))
        elif section:
            form = leaves if title == "config" else readable
            show_facts(form(section), title.replace("_", "-"))


def show_held_out(section: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> None:
    """What was measured at a checkpoint's step: figures in tables where they are many."""
    from headway.cli.tables import show_facts, show_figures
    from headway.report.figures import figures

    found = figures(evaluation or {})
    if evaluation is None or not found.many:
        show_facts(readable(section), "held-out")
        return
    in_tables = {*evaluation["metrics"], *evaluation.get("baselines", {})}
    rest = {key: value for key, value in section.items() if key not in in_tables}
    show_facts(readable(rest), "held-out")
    show_figures(found)


@app.command("compare")
def compare_command(
    run: RunName,
    steps: Annotated[
        list[str], typer.Argument(help="Two or more: 500, newest, best, or OTHER_RUN@500.")
    ],
    modules: Annotated[int, typer.Option(help="How many modules to show; 0: all.")] = 20,
    json: Json = False,
) -> None:
    """Metrics, configs and the distance of the weights, against the first of the checkpoints."""
    from headway.cli.tables import show_json
    from headway.errors import ConfigError
    from headway.report.checkpoint_view import checkpoint_details
    from headway.report.distance import compare_weights

    if len(steps) < 2:
        raise ConfigError("compare needs two checkpoints or more: `compare RUN 100 200`")
    chosen = [pick(run, step) for step in steps]
    details = [checkpoint_details(view.told, point.manifest) for view, point in chosen]
    names = [f"{view.name}@{point.step}" for view, point in chosen]
    first = chosen[0][1]
    found: dict[str, Any] = {
        "checkpoints": names,
        "metrics": metrics(details),
        "config": config_difference(chosen),
        "weights": {
            name: compare_weights(first.path / "model", point.path / "model")
            for name, (_, point) in zip(names[1:], chosen[1:], strict=True)
        },
    }
    if json:
        show_json(found)
    else:
        show_comparison(found, modules)


@app.command("plot")
def plot_command(
    run: RunName,
    save: Annotated[Path | None, typer.Option(help="PNG file to write instead.")] = None,
    json: Json = False,
) -> None:
    """Loss and learning rate over steps, in the terminal or as a PNG."""
    from headway.cli.tables import show_json
    from headway.report.charts import FEW, reach, save_png
    from headway.report.curves import run_charts, run_marks
    from headway.report.terminal import plot
    from headway.report.timeline import smoothed
    from headway.viewing import open_run

    view = open_run(run)
    charts = [chart for chart in run_charts(view.told) if chart.name in ("loss", "lr")]
    if json:
        show_json({chart.name: chart.lines for chart in charts})
    elif not charts:
        typer.echo(f"{view.path}: no step has been recorded yet")
    if save is not None and charts:
        steps = {checkpoint.step: checkpoint.bytes for checkpoint in view.checkpoints()}
        save_png(charts, run_marks(view.told, steps), save, view.name)
        typer.echo(str(save), err=json)
    elif not json:
        for chart in charts:
            for curve in chart.lines:
                values, title = curve.values, f"{chart.title}, {curve.label}"
                if curve.look == "noisy" and len(values) > FEW:
                    each_side = reach(len(values))
                    values = smoothed(values, each_side)
                    title += f" (mean of {2 * each_side + 1} steps)"
                typer.echo(f"\n{title}")
                typer.echo("\n".join(plot(curve.steps, values)))


@app.command("verify")
def verify_command(
    run: RunName,
    step: Annotated[str | None, typer.Argument(help="Only this one; left out: all.")] = None,
    json: Json = False,
) -> None:
    """Read and hash every file of every checkpoint; exit code 65 if one is bad."""
    from headway.cli.tables import show_json
    from headway.errors import CheckpointError
    from headway.viewing import open_run, verified

    view = open_run(run)
    found = verified(view, view.checkpoint(step) if step else None)
    bad = {name: problems for name, problems in found.items() if problems}
    if json:
        show_json({name: {"good": not bad.get(name), "problems": found[name]} for name in found})
    else:
        for name in found:
            typer.echo(f"{name}  {'DAMAGED' if name in bad else 'good'}")
    if bad:
        problems = [problem for problems in bad.values() for problem in problems]
        then = "goes on from the newest good one"
        raise CheckpointError(
            f"{len(bad)} of {len(found)} checkpoints in {view.path} are damaged: "
            f"{'; '.join(problems)}. Nothing was changed; `headway train` sets damaged ones aside "
            f"and {'stops: none is good' if len(bad) == len(found) else then}."
        )


def pick(run: str, which: str) -> tuple[RunView, Checkpoint]:
    """The checkpoint ``which`` of a run, or ``OTHER_RUN@which`` of another."""
    from headway.viewing import open_run

    other, at, step = which.rpartition("@")
    view = open_run(other if at else run)
    return view, view.checkpoint(step)


def metrics(details: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Name -> its value in each checkpoint, for every number that one of them has."""
    flat = [
        {"epoch": each["epoch"], "bytes": each["bytes"]}
        | {
            key if section != "held_out" else f"held_out_{key}": value
            for section in ("training", "held_out", "cost")
            for key, value in each[section].items()
        }
        for each in details
    ]
    names = dict.fromkeys(name for each in flat for name in each)
    return {name: [each.get(name) for each in flat] for name in names}


def config_difference(chosen: Sequence[tuple[RunView, Checkpoint]]) -> dict[str, list[str]]:
    """Lines ``key: here -> there`` between the first checkpoint and each other one.

    Between two runs their configs; within one, what the manifests say of machine and versions.
    """
    from headway.config import difference
    from headway.viewing import config_tree

    first_view, first = chosen[0]
    found = {}
    for view, point in chosen[1:]:
        lines = []
        if view.path.resolve() != first_view.path.resolve():
            lines += difference(config_tree(first_view.path), config_tree(view.path))
        keys = ("fingerprint", "identities", "hardware", "versions")
        here, there = (
            {key: facts[key] for key in keys if key in facts}
            for facts in (first.manifest.facts, point.manifest.facts)
        )
        found[f"{view.name}@{point.step}"] = lines + difference(here, there)
    return found


def show_comparison(found: Mapping[str, Any], modules: int) -> None:
    """Three parts: metrics side by side, config lines, distances with the largest first."""
    from headway.cli.tables import show_table
    from headway.report.words import count, number

    rows = [
        (name.replace("_", " "), *(readable({name: value})[name] for value in values), "")
        for name, values in found["metrics"].items()
    ]
    show_table(("", *found["checkpoints"], ""), rows)
    for name, lines in found["config"].items():
        typer.echo(f"\nconfig, {found['checkpoints'][0]} -> {name}")
        typer.echo("\n".join(f"  {text}" for text in lines) or "  no difference")
    for name, weights in found["weights"].items():
        typer.echo(f"\nweights, {found['checkpoints'][0]} -> {name}")
        if not weights.unmatched and not any(each.relative_l2 for each in weights.modules):
            typer.echo(f"  all {count(weights.whole.parameters)} are the same")
            continue
        ordered = sorted(weights.modules, key=lambda each: -each.relative_l2)
        shown = ordered[: modules or None]
        show_table(
            ("module", "parameters", "relative L2", "cosine", ""),
            [
                (
                    each.name,
                    count(each.parameters),
                    number(each.relative_l2),
                    f"{each.cosine:.6f}",
                    "",
                )
                for each in (weights.whole, *shown)
            ],
        )
        if len(shown) < len(ordered):
            more = len(ordered) - len(shown)
            typer.echo(f"  {more} more modules moved no further; --modules 0 shows all")
        if weights.unmatched:
            typer.echo(f"  not comparable: {', '.join(weights.unmatched)}")


def leaves(tree: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """``outer.inner`` -> the value as it is written."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        found |= (
            leaves(value, f"{above}{key}.")
            if isinstance(value, dict) and value
            else {f"{above}{key}": str(value)}
        )
    return found


def readable(facts: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Facts as text, nested ones under ``outer.inner``, units taken from the keys."""
    from headway.report.words import count, duration, money, number, size

    forms = {"_bytes": size, "_seconds": duration, "_usd": money}
    found: dict[str, str] = {}
    for key, value in facts.items():
        name = f"{above}{key}"
        unit = next((each for each in forms if f"_{key}".endswith(each)), None)
        if isinstance(value, dict) and set(value) == {"bytes", "sha256"}:
            found[name] = f"{size(value['bytes']):>8}  sha256 {value['sha256'][:16]}…"
        elif isinstance(value, dict):
            found |= readable(value, f"{name}.")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            found[name] = "–" if value is None else str(value)
        elif unit is not None:
            found[name] = forms[unit](value)
        else:
            found[name] = count(value) if isinstance(value, int) else number(value)
    return found
