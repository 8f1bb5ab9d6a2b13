"""Two runs or more as one page: curves over each other, what differs, the best, and its price."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html import escape

from headway.report import appendix
from headway.report.charts import DASHES, Chart, Line, Marks, Role
from headway.report.figures import said
from headway.report.html import small_figure, wide_figure
from headway.report.page import page, table
from headway.report.side_by_side import LOSS, TEST, Comparison, Contender
from headway.report.words import (
    clock,
    count,
    duration,
    money,
    number,
    rows_in_words,
    short_count,
)

COLOURS: tuple[Role, ...] = ("run1", "run2", "run3", "run4", "run5")
MOST = len(COLOURS) * len(DASHES)
"""Runs whose lines can be told apart."""


def comparison_html(found: Comparison, written_at: datetime | None = None) -> str:
    """The whole page."""
    names = [run.name for run in found.runs]
    sections = (
        _header(found),
        _runs(found),
        _figures(found),
        _price(found),
        _curves(found),
        _config(found),
        appendix.commands(_commands(found)),
        _footer(written_at or datetime.now(UTC)),
    )
    title = f"{', '.join(names[:3])}{' …' * (len(names) > 3)} · headway"
    return page(title, "\n".join(section for section in sections if section))


def _header(found: Comparison) -> str:
    paragraphs = "".join(f'<p class="lead">{escape(text)}</p>' for text in in_words(found))
    title = " · ".join(run.name for run in found.runs)
    return (
        '<header><p class="kicker">headway comparison</p>'
        f"<h1>{escape(title)}</h1>{paragraphs}</header>"
    )


def in_words(found: Comparison) -> list[str]:
    """What a person should know first."""
    runs = found.runs
    recipe = next((run.recipe for run in runs if run.recipe), "")
    text = f"{count(len(runs))} runs{f' of the recipe {recipe}' * bool(recipe)}"
    measured = [run for run in runs if run.best is not None]
    if found.same_rows:
        best = measured[0].best or {}
        of = rows_in_words(best.get("rows"), best.get("of_rows"))
        text += f", measured on the same {of} held-out rows. {_who_is_best(found)}"
    elif len(measured) > 1:
        text += (
            ". Their held-out rows are not the same ones, so their figures stand beside each other "
            "and none is called the best."
        )
    else:
        text += ". Fewer than two of them were measured on held-out rows."
    differ = [key for key in found.config if not key.startswith(("hardware ", "versions "))]
    shown = ", ".join(differ[:4]) + (f" and {count(len(differ) - 4)} more" * (len(differ) > 4))
    config = f"They differ in {shown}." if differ else "Their configs are the same."
    return [text, " ".join(filter(None, (_who_is_cheapest(found), config)))]


def _who_is_best(found: Comparison) -> str:
    at = found.best.get(LOSS)
    if at is None:
        return "Their losses are alike, or cannot be compared."
    run, losses = found.runs[at], found.values[LOSS]
    others = sorted(v for n, v in enumerate(losses) if n != at and v is not None)
    text = f"{run.name} has the lowest held-out loss: {number(losses[at])}"
    text += f" at step {count(run.summary.best_step)}, the next {number(others[0])}."
    also = [
        f"{name.replace('_', ' ')} ({found.runs[n].name})"
        for name, n in found.best.items()
        if n != at and name != LOSS
    ]
    return text + (f" Others are best by {', '.join(also)}." if also else "")


def _who_is_cheapest(found: Comparison) -> str:
    if found.level is None:
        return ""
    prices = [r.cost_usd for r in found.reached]
    by_cost = all(price is not None for price in prices) and any(prices)
    order = sorted(
        range(len(found.runs)),
        key=lambda n: (prices[n] or 0.0) if by_cost else found.reached[n].seconds,
    )
    first, last = order[0], order[-1]

    def price(n: int) -> str:
        time = duration(found.reached[n].seconds)
        return f"{money(prices[n])} and {time}" if by_cost else time

    return (
        f"All reached a loss of {number(found.level)}: {found.runs[first].name} for "
        f"{price(first)} of training, {found.runs[last].name} for {price(last)}."
    )


def _runs(found: Comparison) -> str:
    head = [
        ("name", "run"),
        ("text", "state"),
        ("", "steps"),
        ("", "tokens"),
        ("", "training time"),
    ]
    head += [("", "cost"), ("", "tokens/s"), ("", "best at step"), ("text", "hardware")]
    rows = []
    for run in found.runs:
        summary = run.summary
        of = f" of {count(summary.steps)}" if summary.steps else ""
        cells = [run.name, summary.state, f"{count(summary.step)}{of}"]
        cells += [short_count(summary.tokens), duration(summary.training_seconds)]
        cells += [money(summary.cost_usd), count(summary.tokens_per_second)]
        cells += [count(summary.best_step), summary.hardware or "–"]
        rows.append(("", cells))
    return f"<section><h2>Runs</h2>{table(head, rows)}</section>"


def _figures(found: Comparison) -> str:
    """A row per figure, a column per run; the best one strong."""
    if not found.values:
        return ""
    head = [("name", ""), *(("", run.name) for run in found.runs)]
    head += [("text", "best")] if found.best else []
    rows = []
    for name, values in found.values.items():
        at = found.best.get(name)
        cells = [name.replace("_", " "), *(said(name, value) for value in values)]
        cells += [found.runs[at].name if at is not None else "–"] if found.best else []
        rows.append(("", cells))
    note = (
        "Each run at its best checkpoint: the one with its lowest held-out loss."
        + " Test rows chose nothing." * any(name.startswith(TEST) for name in found.values)
        + " –: the figures are not of the same rows, alike, or nothing says which way is better."
        * (0 < len(found.best) < len(found.values))
    )
    strong = {
        (n, found.best[name] + 1) for n, name in enumerate(found.values) if name in found.best
    }
    return (
        f"<section><h2>{'Which is best' if found.best else 'Figures'}</h2>"
        f'<p class="note">{note}</p>'
        f"{table(head, rows, strong)}</section>"
    )


def _price(found: Comparison) -> str:
    """What each paid for the loss that all reached."""
    if found.level is None:
        return ""
    head = [("name", "run"), ("", "step"), ("", "loss there"), ("", "training"), ("", "cost")]
    head += [("", "cost in all"), ("", "per million tokens")]
    rows = []
    for run, result in zip(found.runs, found.reached, strict=True):
        tokens, cost = run.summary.tokens, run.summary.cost_usd
        each = cost / tokens * 1e6 if cost is not None and tokens else None
        cells = [run.name, count(result.step), number(result.loss), duration(result.seconds)]
        rows.append(("", [*cells, money(result.cost_usd), money(cost), money(each)]))
    return (
        f"<section><h2>What a result cost</h2>"
        f'<p class="note">When each run was first measured at a held-out loss of '
        f"{number(found.level)} or below, the lowest that all of them reached.</p>"
        f"{table(head, rows)}</section>"
    )


def _curves(found: Comparison) -> str:
    charts = overlaid(found.runs)
    keys = "".join(
        f'<span class="key {line.colour} dash{line.dash}">{escape(line.label)}</span>'
        for line in (_line_of(n, run.name, [], []) for n, run in enumerate(found.runs))
    )
    first, rest = charts[0], charts[1:]
    pairs = "".join(small_figure(chart, Marks()) for chart in rest)
    over = any(chart.over != "step" for chart in charts)
    note = (
        "Training curves are running means." + " Across: steps, where nothing else is said." * over
    )
    return (
        f'<section><h2>Curves</h2><p class="legend">{keys}</p>{wide_figure(first, Marks())}'
        f'<div class="pair">{pairs}</div><p class="note after">{note}</p></section>'
    )


def overlaid(runs: Sequence[Contender]) -> list[Chart]:
    """Held-out loss first, over steps and over what was paid; then every curve of the runs."""
    charts: dict[str, Chart] = {}
    for n, run in enumerate(runs):
        for chart in run.charts:
            for line in chart.lines:
                if line.colour == "mark":
                    continue  # a baseline: each run has it in its own report
                held_out = chart.name == "loss" and line.colour == "heldout"
                title = "Held-out loss" if held_out else chart.title
                title = "Training loss" if chart.name == "loss" and not held_out else title
                same = charts.setdefault(title, replace(chart, title=title, lines=[]))
                drawn = _line_of(n, run.name, line.steps, line.values)
                look = "mean" if line.look == "noisy" else line.look
                same.lines.append(replace(drawn, look=look))
    ordered = [charts.pop("Held-out loss")] if "Held-out loss" in charts else []
    return _numbered([*ordered, *_over_price(runs), *charts.values()])


def _over_price(runs: Sequence[Contender]) -> list[Chart]:
    """Held-out loss over US dollars, or over hours where a run has no price."""
    if not all(run.results for run in runs):
        return []
    paid = all(result.cost_usd is not None for run in runs for result in run.results)
    paid = paid and any(run.results[-1].cost_usd for run in runs)
    lines = []
    for n, run in enumerate(runs):
        places = [(r.cost_usd or 0.0) if paid else r.seconds / 3600 for r in run.results]
        line = _line_of(n, run.name, places, [r.loss for r in run.results])
        lines.append(replace(line, look="points"))
    over = "USD" if paid else "hours"
    return [Chart(name="price", title=f"Held-out loss over {over}", lines=lines, over=over)]


def _numbered(charts: Sequence[Chart]) -> list[Chart]:
    """Each with a name of its own, since runs of other metrics may have used the same."""
    return [replace(chart, name=f"chart{n}") for n, chart in enumerate(charts)]


def _line_of(n: int, label: str, steps: Sequence[float], values: Sequence[float]) -> Line:
    colour, dash = COLOURS[n % len(COLOURS)], n // len(COLOURS)
    return Line(label=label, steps=steps, values=values, colour=colour, dash=dash)


def _config(found: Comparison) -> str:
    if not found.config:
        return ""
    head = [("name", "key"), *(("text", run.name) for run in found.runs)]
    rows = [("", [key, *values]) for key, values in found.config.items()]
    return (
        '<section class="settings"><h2>What differs</h2><p class="note">Keys of the configs, data '
        f"and machines that are not the same in all of them.</p>{table(head, rows)}</section>"
    )


def _commands(found: Comparison) -> list[tuple[str, str]]:
    quoted = [(run.name, shlex.quote(run.folder)) for run in found.runs]
    pairs = [("each run by itself", "\n".join(f"headway report {path}" for _, path in quoted))]
    at = found.best.get(LOSS)
    if at is not None:
        name, path = quoted[at]
        to = shlex.quote(f"{name.replace('/', '-')}-model")
        command = appendix.export_command(path, found.runs[at].config, to, "best")
        pairs.append(("weights of the best", command))
    return pairs


def _footer(written_at: datetime) -> str:
    return (
        f'<footer class="note">Rendered from the runs’ journals; page written {clock(written_at)}. '
        "Every number was measured in its run.</footer>"
    )
