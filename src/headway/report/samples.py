"""What the model went on with, where its recipe asks it: one continuation for each prompt."""

from __future__ import annotations

from html import escape

from headway.report.shown import value
from headway.report.timeline import Timeline
from headway.report.words import count


def samples(told: Timeline) -> str:
    """Those of the newest evaluation that has any."""
    evaluation = next((e for e in reversed(told.evaluations) if e.get("samples")), None)
    if evaluation is None:
        return ""
    rows = "".join(
        f'<article class="row"><dl><dt>prompt</dt><dd>{value(prompt, {})}</dd>'
        f"<dt>the model</dt><dd>{value(text, {})}</dd></dl></article>"
        for prompt, text in evaluation["samples"]
    )
    step = escape(count(evaluation["step"]))
    return (
        f'<section><h2>Samples</h2><p class="note">What the model goes on with, greedily, at step '
        f"{step}. Chosen by the config, not by how good they are.</p>{rows}</section>"
    )
