"""The back of the report: how the run went, what it ran on, how to go on from here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from headway.report.page import table
from headway.report.summary import Summary, best_evaluation, hardware_name
from headway.report.timeline import Event, Timeline
from headway.report.words import clock, count, duration, instant, size

NOTICES = 20


def attempts(told: Timeline) -> str:
    """A table of process lifetimes, when there was more than one."""
    if len(told.attempts) < 2:
        return ""
    head = [
        ("", "attempt"),
        ("", "began"),
        ("", "from step"),
        ("text", "hardware"),
        ("text", "host"),
    ]
    rows = [
        (
            "",
            [
                count(attempt.get("attempt", n)),
                clock(instant(attempt.get("at"))),
                count(attempt.get("restored_step") or 0),
                hardware_name(attempt.get("hardware")) or "–",
                str(attempt.get("host") or "–"),
            ],
        )
        for n, attempt in enumerate(told.attempts, 1)
    ]
    redone = (
        f'<p class="note">{count(told.redone_steps)} steps lay after the checkpoint that a restart '
        "went back to, and were done again. The curves show them once; time and cost count them "
        "twice.</p>"
        if told.redone_steps
        else ""
    )
    return f"<section><h2>Attempts</h2>{redone}{table(head, rows)}</section>"


def checkpoints(told: Timeline, on_disk: Mapping[int, int] | None) -> str:
    """The checkpoints that are there (or were saved, where nobody looked), and what saving cost."""
    saves = {int(save["step"]): save for save in told.saves}
    steps = sorted(saves if on_disk is None else on_disk)
    if not steps:
        return ""
    best = best_evaluation([e for e in told.evaluations if e["step"] in steps])
    head = [
        ("", "step"),
        ("", "size"),
        ("", "training stood still"),
        ("", "write took"),
        ("text", ""),
    ]
    rows = []
    for step in steps[-30:]:
        save = saves.get(step, {})
        is_best = best is not None and best["step"] == step
        size_bytes = (on_disk or {}).get(step, save.get("bytes"))
        cells = [count(step), size(size_bytes), duration(save.get("stall_seconds"))]
        cells += [duration(save.get("write_seconds")), "best" if is_best else ""]
        rows.append(("best" if is_best else "", cells))
    gone = len(set(saves) - set(steps))
    words = f"{count(len(steps))} on disk" if on_disk is not None else f"{count(len(steps))} saved"
    ones = "one" if gone == 1 else "ones"
    words += f", {count(gone)} older {ones} deleted by retention" if gone else ""
    return f'<section><h2>Checkpoints</h2><p class="note">{words}.</p>{table(head, rows)}</section>'


def notices(told: Timeline) -> str:
    """What the run warned of, in its own words."""
    if not told.notices:
        return ""
    shown = told.notices[-NOTICES:]
    items = "".join(
        f"<dt>{escape(clock(instant(notice.get('at'))))}</dt><dd>{escape(_notice(notice))}</dd>"
        for notice in shown
    )
    left_out = len(told.notices) - len(shown)
    note = f'<p class="note">{count(left_out)} earlier ones are in journal.jsonl.</p>' * bool(
        left_out
    )
    return f'<section><h2>Warnings</h2>{note}<dl class="facts">{items}</dl></section>'


def _notice(notice: Event) -> str:
    kind = str(notice.get("event", "")).replace("_", " ")
    what = notice.get("what") or notice.get("message") or notice.get("why")
    if kind == "warning" and what:
        return str(what)
    if kind == "alert":
        name, advice = str(notice.get("kind")).replace("_", " "), notice.get("advice")
        return f"{name} at step {count(notice.get('step'))}: {what}. What to do: {advice}"
    if kind == "rollback":
        back, last = count(notice.get("back_to")), count(notice.get("step"))
        return f"went back to step {back} and left out the steps up to {last}: {what}"
    rest = {key: notice[key] for key in notice if key not in ("event", "at", "attempt")}
    kind += f" at step {count(notice['step'])}" if what and "step" in notice else ""
    return f"{kind}: {what or ', '.join(f'{key} {value}' for key, value in rest.items())}"


def data(told: Timeline) -> str:
    """What became of the rows, line by line, as it was said before step 1."""
    facts = told.plan.get("facts") or {}
    lines, warnings = (
        [str(line) for line in found] if isinstance(found := facts.get(key), list | tuple) else []
        for key in ("data", "warnings")
    )
    if not lines and not warnings:
        return ""
    noted = "".join(f"<li>{escape(line)}</li>" for line in warnings)
    noted = f'<ul class="warned">{noted}</ul>' if noted else ""
    items = "".join(
        f"<li{' class=inner' * line.startswith(' ')}>{escape(line.strip())}</li>" for line in lines
    )
    return f'<section><h2>Data</h2>{noted}<ul class="lines">{items}</ul></section>'


def config(lines: Sequence[str]) -> str:
    """The config keys set to something else than their default, and all keys of the recipe."""
    if not lines:
        return ""
    return (
        '<section><h2>Config</h2><p class="note">What differs from the defaults, and the '
        "recipe’s own section (task) in full; config.yaml has all of it."
        f"</p><pre>{escape(chr(10).join(lines))}</pre></section>"
    )


def environment(told: Timeline) -> str:
    """Hardware and versions of the last attempt, and the plan's facts."""
    last = told.attempts[-1] if told.attempts else {}
    facts: list[tuple[str, Any]] = []
    for key in ("hardware", "versions"):
        value = last.get(key)
        facts += _flat(value, "") if isinstance(value, Mapping) else [(key, value)] if value else []
    plan = [
        *((key, told.plan.get(key)) for key in ("batch_size", "rows_per_epoch")),
        ("parameters", told.plan.get("parameters")),
        ("trainable parameters", told.plan.get("trainable")),
        *_flat(_facts(told), ""),
    ]
    sections = (("What was trained", plan), ("Environment", facts))
    return "".join(
        f'<section><h2>{title}</h2><dl class="facts">{items}</dl></section>'
        for title, pairs in sections
        if (items := _pairs(pairs))
    )


def _facts(told: Timeline) -> dict[str, Any]:
    """The plan's facts that are said nowhere else on the page."""
    said = ("data", "warnings", "parameters", "trainable")
    return {k: v for k, v in (told.plan.get("facts") or {}).items() if k not in said}


def _flat(tree: Mapping[str, Any], above: str) -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{above} {key}".strip()
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            yield name, value


def _pairs(pairs: Iterable[tuple[str, Any]]) -> str:
    return "".join(
        f"<dt>{escape(_title(name))}</dt><dd>{escape(_value(name, value))}</dd>"
        for name, value in pairs
        if value is not None and value != ""
    )


def _title(name: str) -> str:
    """A key as words, its unit left to the value: ``memory_bytes`` -> ``memory``."""
    return name.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")


def _value(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and name.endswith("_bytes"):
        return size(value)
    if isinstance(value, int | float) and name.endswith("_seconds"):
        return duration(value)
    if isinstance(value, int):
        return count(value)
    if isinstance(value, list | tuple):
        return "\n".join(str(item) for item in value)
    return str(value)


def predict_command(run: str, recipe: str) -> str:
    """A question that the recipe answers, with the words to replace in capitals."""
    asked = {
        "sft": '--prompt "QUESTION"',
        "pretrain": '--prompt "BEGINNING"',
        "regression": '--steps "TEXT"',
        "vision": "--image FILE",
        "latent_editor": '--part FILE --instruction "WHAT TO CHANGE"',
    }
    return f"headway predict {run} {asked.get(recipe, '--file REQUESTS.jsonl')}"


def export_command(run: str, config: Mapping[str, Any], to: str, step: str = "") -> str:
    """The export that this run can make: its adapter, or the model where all of it trained."""
    task = config.get("task")
    tuning = task.get("tuning") if isinstance(task, Mapping) else None
    kind = tuning.get("kind") if isinstance(tuning, Mapping) else None
    whole = kind == "full" or (kind is None and config.get("recipe") in ("pretrain", "graph_vae"))
    words = [
        "headway export",
        run,
        step and f"--step {step}",
        "--format full" * whole,
        f"--to {to}",
    ]
    return " ".join(word for word in words if word)


def commands(pairs: Sequence[tuple[str, str]]) -> str:
    """How to go on from here, ready to paste."""
    if not pairs:
        return ""
    text = "\n\n".join(f"# {what}\n{command}" for what, command in pairs)
    return f"<section><h2>Go on from here</h2><pre>{escape(text)}</pre></section>"


def footer(summary: Summary, written_at: datetime) -> str:
    """When the page was written and how fresh its journal was."""
    last = f"last event {clock(summary.last_at)}; " if summary.last_at else ""
    return (
        f'<footer class="note">Rendered from journal.jsonl ({last}page written '
        f"{clock(written_at)}). Every number was measured in this run.</footer>"
    )
