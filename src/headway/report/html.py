"""``report.html``: one run as a page of words, curves and tables, rendered from its journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape

from headway.report import appendix
from headway.report.charts import Chart, Marks, reach, svg
from headway.report.curves import in_words, run_charts, run_marks
from headway.report.evaluations import evaluations
from headway.report.page import page
from headway.report.prose import key_figures, lead
from headway.report.samples import samples
from headway.report.summary import Summary, summarise
from headway.report.timeline import Event, Timeline, timeline
from headway.report.words import count
from headway.report.worst import worst_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What a report shows beside the journal; each may be left out."""

    config_lines: Sequence[str] = ()
    """Config keys that differ from their defaults, one ``key: value`` a line."""
    commands: Sequence[tuple[str, str]] = ()
    """(what it does, command)."""
    checkpoints: Mapping[int, int] | None = None
    """Step -> bytes of the checkpoints on disk; None: not looked at."""
    tested: Sequence[Event] = ()
    """What was measured on test rows, by step."""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """The worst rows' pictures by name."""
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
        evaluations(told, extras.tested),
        samples(told),
        worst_rows(told, extras.pictures),
        appendix.data(told),
        appendix.attempts(told),
        appendix.checkpoints(told, extras.checkpoints),
        appendix.notices(told),
        appendix.config(extras.config_lines),
        appendix.environment(told),
        appendix.commands(extras.commands),
        appendix.footer(summary, extras.written_at or datetime.now(UTC)),
    )
    body = "\n".join(section for section in sections if section)
    return page(f"{name} · headway", body, acts='id="orders"' in body)


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
    pairs = "".join(
        small_figure(chart, marks, key_spans(chart) if len(chart.lines) > 1 else "")
        for chart in rest
    )
    legend = ["Triangles on the step axis: checkpoints (hollow: deleted since)."]
    if marks.restarts:
        legend.insert(0, "Dashed lines: where a later attempt went back to and continued.")
    return (
        f"<section><h2>Curves</h2>{_loss_figure(first, marks)}"
        f'<div class="pair">{pairs}</div>'
        f'<p class="note after">{" ".join(legend)}</p></section>'
    )


def _loss_figure(chart: Chart, marks: Marks) -> str:
    keys = key_spans(chart)
    noisy = [line for line in chart.lines if line.look == "noisy" and len(line.values) > 60]
    if noisy:
        near = reach(len(noisy[0].values))
        keys += f"<span>pale: every step; strong: mean over ±{count(near)} steps</span>"
    return wide_figure(chart, marks, keys)


def wide_figure(chart: Chart, marks: Marks, caption: str = "") -> str:
    """A figure as broad as the page, and another drawing of it for a phone."""
    says = in_words(chart)
    return (
        f"<figure><h3>{title_of(chart)}</h3><figcaption>{caption}</figcaption>"
        f'<div class="wide">{svg(chart, marks, 920, 330, says)}</div>'
        f'<div class="narrow">{svg(chart, marks, 400, 290, says)}</div></figure>'
    )


def small_figure(chart: Chart, marks: Marks, caption: str = "") -> str:
    """One of two figures side by side."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    drawing = svg(chart, marks, 440, 200, in_words(chart))
    return f"<figure><h3>{title_of(chart)}</h3>{below}{drawing}</figure>"


def title_of(chart: Chart) -> str:
    """What is drawn, and in which unit."""
    unit = f' <span class="unit">{escape(chart.unit)}</span>' if chart.unit else ""
    unit += ' <span class="unit">(logarithmic)</span>' if chart.logarithmic else ""
    return escape(chart.title) + unit


def key_spans(chart: Chart) -> str:
    """Which line is which."""
    return "".join(
        f'<span class="key {line.colour} dash{line.dash}">{escape(line.label)}</span>'
        for line in chart.lines
    )
