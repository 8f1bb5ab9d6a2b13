"""``report.html``: one run as a page of words, curves and tables, rendered from its journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

from headway.report import appendix
from headway.report.charts import Chart, Marks, reach, svg
from headway.report.curves import in_words, run_charts, run_marks
from headway.report.page import PAGE, STYLE, table
from headway.report.prose import key_figures, lead
from headway.report.summary import Summary, best_evaluation, summarise
from headway.report.timeline import Event, Timeline, measured, timeline
from headway.report.words import count, duration, number

TABLE_ROWS = 30
TOKEN_LIMIT = 400
"""Tokens of a worst row that are shown; the rest is counted."""
TEXT_LIMIT = 1500
"""Characters of one text of a worst row that are shown; the rest is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What a report shows beside the journal; each may be left out."""

    config_lines: Sequence[str] = ()
    """Config keys that differ from their defaults, one ``key: value`` a line."""
    commands: Sequence[tuple[str, str]] = ()
    """(what it does, command)."""
    checkpoints: Mapping[int, int] | None = None
    """Step -> bytes of the checkpoints on disk; None: not looked at."""
    written_at: datetime | None = None


def report_html(
    events: Iterable[Event] | Timeline,
    *,
    name: str,
    writer_pid: int | None = None,
    extras: Extras | None = None,
) -> str:
    """The whole page. ``writer_pid``: the process that holds the run's lock, None for nobody."""
    told = events if isinstance(events, Timeline) else timeline(events)
    extras = extras or Extras()
    summary = summarise(told, name=name, writer_pid=writer_pid)
    marks = run_marks(told, extras.checkpoints)
    sections = (
        _header(summary, told),
        _curves(told, marks),
        _evaluations(told),
        _worst_rows(told),
        appendix.attempts(told),
        appendix.checkpoints(told, extras.checkpoints),
        appendix.notices(told),
        appendix.config(extras.config_lines),
        appendix.environment(told),
        appendix.commands(extras.commands),
        appendix.footer(summary, extras.written_at or datetime.now(UTC)),
    )
    body = "\n".join(section for section in sections if section)
    return PAGE.substitute(title=escape(f"{name} · headway"), style=STYLE, body=body)


def _header(summary: Summary, told: Timeline) -> str:
    tone = summary.state.replace(" ", "-")
    word = summary.state + (f": {summary.reason}" if summary.state == "stopped" else "")
    if summary.state == "dead":
        word = "ended without a word; nobody is writing this run"
    figures = "".join(
        f"<div><dt>{escape(title)}</dt><dd>{escape(value)}<span>{escape(below)}</span></dd></div>"
        for title, value, below in key_figures(summary, told)
    )
    paragraphs = "".join(f'<p class="lead">{escape(text)}</p>' for text in lead(summary, told))
    return (
        f'<header><p class="kicker">headway training report</p><h1>{escape(summary.name)}</h1>'
        f'<p class="state {tone}">{escape(word)}</p>{paragraphs}'
        f'<dl class="figures">{figures}</dl></header>'
    )


def _curves(told: Timeline, marks: Marks) -> str:
    charts = run_charts(told)
    if not charts:
        return ""
    first, rest = charts[0], charts[1:]
    pairs = "".join(_figure(chart, marks) for chart in rest)
    legend = ["Triangles on the step axis: checkpoints (hollow: deleted since)."]
    if marks.restarts:
        legend.insert(0, "Dashed lines: where a later attempt went back to and continued.")
    return (
        f"<section><h2>Curves</h2>{_loss_figure(first, marks)}"
        f'<div class="pair">{pairs}</div>'
        f'<p class="note" style="margin-top:1.2rem">{" ".join(legend)}</p></section>'
    )


def _loss_figure(chart: Chart, marks: Marks) -> str:
    keys = "".join(
        f'<span class="key {escape(line.colour)}">{escape(line.label)}</span>'
        for line in chart.lines
    )
    says = in_words(chart)
    noisy = [line for line in chart.lines if line.look == "noisy" and len(line.values) > 60]
    if noisy:
        near = reach(len(noisy[0].values))
        keys += f"<span>pale: every step; strong: mean over ±{count(near)} steps</span>"
    return (
        f"<figure><h3>{escape(chart.title)}</h3><figcaption>{keys}</figcaption>"
        f'<div class="wide">{svg(chart, marks, 920, 330, says)}</div>'
        f'<div class="narrow">{svg(chart, marks, 400, 290, says)}</div></figure>'
    )


def _figure(chart: Chart, marks: Marks) -> str:
    unit = f' <span class="unit">{escape(chart.unit)}</span>' if chart.unit else ""
    unit += ' <span class="unit">(logarithmic)</span>' if chart.logarithmic else ""
    drawing = svg(chart, marks, 440, 200, in_words(chart))
    return f"<figure><h3>{escape(chart.title)}{unit}</h3>{drawing}</figure>"


def _evaluations(told: Timeline) -> str:
    if not told.evaluations:
        return ""
    best = best_evaluation(told.evaluations)
    shown = _spread(told.evaluations, TABLE_ROWS, best)
    columns = metric_columns(told.evaluations)
    head = [("", "step"), ("", "rows N"), ("", "weight")]
    head += [("baseline" if "/" in key else "", key.replace("/", ", ")) for key in columns]
    head += [("faint", "took"), ("text", "")]
    rows = []
    for evaluation in shown:
        values = {**evaluation.get("metrics", {}), **evaluation.get("baselines", {})}
        cells = [count(evaluation["step"]), count(evaluation.get("rows"))]
        cells += [count(evaluation.get("weight"))]
        cells += [number(measured(values.get(key))) for key in columns]
        cells += [duration(evaluation.get("seconds")), "best" if evaluation is best else ""]
        rows.append(("best" if evaluation is best else "", cells))
    left_out = len(told.evaluations) - len(shown)
    note = f" {count(left_out)} more are in journal.jsonl." if left_out else ""
    return (
        "<section><h2>Evaluations</h2>"
        '<p class="note">On held-out rows. Weight counts the loss units (for text, supervised '
        f"tokens). A baseline is the same measurement of something trivial.{note}</p>"
        f"{table(head, rows)}</section>"
    )


def metric_columns(evaluations: Iterable[Event]) -> list[str]:
    """Every metric that was measured, its baselines (``metric/baseline``) right after it."""
    metrics: dict[str, None] = {}
    baselines: dict[str, None] = {}
    for evaluation in evaluations:
        metrics.update(dict.fromkeys(evaluation.get("metrics") or {}))
        baselines.update(dict.fromkeys(evaluation.get("baselines") or {}))
    ordered = sorted(metrics, key=lambda name: name != "loss")
    grouped = [[m, *(b for b in baselines if b.split("/")[0] == m)] for m in ordered]
    placed = [name for group in grouped for name in group]
    return [*placed, *(b for b in baselines if b not in placed)]


def _spread(rows: Sequence[Event], limit: int, also: Event | None) -> list[Event]:
    """At most ``limit`` rows, evenly over all of them; first, last and ``also`` among them."""
    if len(rows) <= limit:
        return list(rows)
    chosen = {round(n * (len(rows) - 1) / (limit - 1)) for n in range(limit)}
    return [row for n, row in enumerate(rows) if n in chosen or row is also]


def _worst_rows(told: Timeline) -> str:
    evaluation = next((e for e in reversed(told.evaluations) if e.get("worst")), None)
    if evaluation is None:
        return ""
    rows = "".join(_worst_row(row) for row in evaluation["worst"])
    by_token = any("tokens" in (row.get("shown") or {}) for row in evaluation["worst"])
    note = " Tokens: the warmer, the higher the loss there." if by_token else ""
    return (
        "<section><h2>Worst held-out rows</h2>"
        f'<p class="note">The {len(evaluation["worst"])} rows with the highest loss of '
        f"{count(evaluation.get('rows'))}, at step {count(evaluation['step'])}.{note}</p>"
        f"{rows}</section>"
    )


def _worst_row(row: Mapping[str, Any]) -> str:
    shown = dict(row.get("shown") or {})
    where = shown.pop("where", None)
    if not shown.get("prompt", "-"):
        del shown["prompt"]  # plain text has none
    ordered = [key for key in ("prompt", "reference", "prediction") if key in shown]
    ordered += [key for key in shown if key not in ordered]
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{_shown(shown[key])}</dd>" for key in ordered)
    place = f" · {where}" if where is not None else ""
    return (
        f'<article class="row"><h3>loss {number(measured(row.get("loss")))}'
        f"<span>row {count(row.get('row'))} · weight {count(row.get('weight'))}"
        f"{escape(place)}</span></h3><dl>{facts}</dl></article>"
    )


def _shown(value: Any) -> str:
    """A text of the data, or one given as [token, loss] pairs, drawn warmer where it was worse."""
    pairs = value if isinstance(value, list) and value else []
    if not pairs or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        return _text(value)
    spans = "".join(_token(str(text), measured(loss)) for text, loss in pairs[:TOKEN_LIMIT])
    left_out = len(pairs) - TOKEN_LIMIT
    return spans + (f"<i> … {count(left_out)} more tokens</i>" if left_out > 0 else "")


def _token(text: str, loss: float | None) -> str:
    """One token; without a loss it was only read, not predicted."""
    if loss is None:
        return f"<i>{escape(text)}</i>"
    # From no colour at 0 to the strongest at 6 nats, a chance of 1 in 400.
    warmth = round(100 * min(1.0, max(0.0, loss / 6)))
    return f'<b style="--warmth:{warmth}%" title="loss {number(loss)}">{escape(text)}</b>'


def _text(value: Any) -> str:
    """A text of the data, cut and escaped; an empty one is said to be empty."""
    text = value if isinstance(value, str) else str(value)
    if not text.strip():
        return "<i>(empty)</i>"
    left_out = len(text) - TEXT_LIMIT
    cut = escape(text[:TEXT_LIMIT])
    return cut + (f"<i> … {count(left_out)} more characters</i>" if left_out > 0 else "")
