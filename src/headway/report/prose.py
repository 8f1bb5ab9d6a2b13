"""A run told in a few sentences and six figures: what a person reads first."""

from __future__ import annotations

import math

from headway.report.figures import figures
from headway.report.summary import Summary, best_evaluation, held_out_loss
from headway.report.timeline import Event, Timeline, measured
from headway.report.words import (
    count,
    duration,
    money,
    number,
    rows_in_words,
    short_count,
    size,
)


def lead(summary: Summary, told: Timeline) -> list[str]:
    """The paragraphs: how far and at what price; how good; what to know."""
    return [
        text for text in (_progress(summary), _quality(summary, told), _ending(summary)) if text
    ]


def _progress(summary: Summary) -> str:
    if not summary.step:
        return "No step has been recorded yet."
    of = f" of {count(summary.steps)}" if summary.steps else ""
    text = f"{count(summary.step)}{of} steps"
    if summary.tokens:
        text += f" over {short_count(summary.tokens)} tokens"
    text += f", {duration(summary.training_seconds)} of training"
    if summary.attempts > 1:
        text += f" in {count(summary.attempts)} attempts"
    text += f" on {summary.hardware}" if summary.hardware else ""
    if summary.cost_usd:
        text += f", for {money(summary.cost_usd)}"
    if summary.redone_steps:
        text += f". Restarts did {count(summary.redone_steps)} steps again"
    return text + "."


def _quality(summary: Summary, told: Timeline) -> str:
    best = best_evaluation(told.evaluations)
    if best is None:
        return "Nothing has been measured on held-out rows." if summary.step else ""
    first = told.evaluations[0]
    text = f"Held-out loss is best at step {count(best['step'])}: {number(held_out_loss(best))}"
    start = held_out_loss(first)
    if first is not best and start is not None:
        text += f", from {number(start)} at step {count(first['step'])}"
    rows = rows_in_words(best.get("rows"), best.get("of_rows"))
    text += f" (N = {rows} rows, {count(best.get('weight'))} loss units)."
    for name, value in (best.get("baselines") or {}).items():
        if name.startswith("loss/"):
            text += f" Baseline “{name.removeprefix('loss/')}”: {number(measured(value))}."
    text += _figures(best)
    last = held_out_loss(told.evaluations[-1])
    if last is not None and summary.best_loss and last > summary.best_loss * 1.02:
        since = told.evaluations[-1]["step"] - best["step"]
        text += f" It has risen to {number(last)} in the {count(since)} steps since."
    return text


def _figures(evaluation: Event) -> str:
    """The other main figures that have a baseline to be read against."""
    found = figures(evaluation)
    words = []
    for name in found.main:
        beside = [f"{kind} {number(value, 3)}" for kind, value in found.beside(name).items()]
        if beside and name != "loss":
            value = number(found.values["", name], 3)
            words.append(f"{name.replace('_', ' ')} {value} ({', '.join(beside)})")
    return f" There: {', '.join(words)}." if words else ""


def _ending(summary: Summary) -> str:
    if summary.message and summary.state != "finished":
        return f"Stopped ({summary.reason}): {summary.message}"
    if summary.reason == "early stop":
        return f"Stopped early: {summary.message or 'held-out loss no longer improved'}."
    return ""


def key_figures(summary: Summary, told: Timeline) -> list[tuple[str, str, str]]:
    """(title, figure, what stands below it), those that were measured."""
    share = f"{100 * summary.step / summary.steps:.0f} %" if summary.steps else ""
    memory = max((step.get("memory_bytes") or 0 for step in told.steps[-50:]), default=0)
    left = left_seconds(summary, told)
    epochs = ""
    if told.plan.get("rows_per_epoch") and told.plan.get("batch_size"):
        done = summary.step * told.plan["batch_size"] / told.plan["rows_per_epoch"]
        epochs = f"{number(done, 3)} epochs"
    figures = [
        ("Progress", share or count(summary.step), epochs),
        ("Best held-out loss", number(summary.best_loss), f"step {count(summary.best_step)}"),
        ("Training loss", number(summary.loss), "last step"),
        ("Tokens per second", count(summary.tokens_per_second), "median of the last 50 steps"),
        ("Peak memory", size(memory), summary.hardware),
        (
            "Training time",
            duration(summary.training_seconds),
            f"{duration(left)} left" if left else "",
        ),
        ("Cost", money(summary.cost_usd), "all attempts"),
    ]
    return [figure for figure in figures if figure[1] not in ("–", "0 B")]


def left_seconds(summary: Summary, told: Timeline) -> float | None:
    """Steps left × mean seconds of the last 50 steps, while the run is running."""
    recent = told.steps[-50:]
    if summary.state != "running" or not summary.steps or not recent:
        return None
    mean = sum(float(step.get("seconds") or 0) for step in recent) / len(recent)
    return mean * max(0, summary.steps - summary.step) if math.isfinite(mean) else None
