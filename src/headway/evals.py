"""Evaluations: on disk (``evals/step-…/metrics.json``, ``worst.jsonl``), and what they decide.

*Promises.* What the journal leaves out of an evaluation to stay small is here in full: the worst
rows' tokens, texts in pieces and pictures, and every table (``predictions.jsonl``,
``reliability.jsonl`` …). What is asked for later has a place of its own, so that what training
measured stays.

*Does not promise.* Durability: an evaluation that is lost is made again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from headway.errors import NonFiniteStep
from headway.records import Evaluation, Picture, RowLoss, picture_kind

PICTURES = "pictures"
"""The folder beside ``worst.jsonl`` that holds the worst rows' pictures."""
PICTURE_NAME = re.compile(r"pictures/[a-z0-9-]+\.(png|jpg)", re.ASCII)
ONE_PICTURE_BYTES, ALL_PICTURES_BYTES = 600_000, 3_000_000
"""What a page takes in of one picture and of all; as text they are a third larger there."""
DRAWN = ("reliability",)
"""Tables that a report shows; the others may be long."""
EVALS = "evals"
"""The folder in a run's."""
ASKED, TEST = "asked", "test"
"""Below ``evals/``: what ``headway evaluate`` measured, on held-out rows and on test rows."""


def place(run: Path, step: int, under: str = "") -> Path:
    """The folder of the evaluation at a step: training's own, or that below ``evals/under``."""
    return run / EVALS / under / f"step-{step:08d}"


def write(
    run: Path, evaluation: Evaluation, under: str = "", also: Mapping[str, Any] | None = None
) -> Path:
    """Write the evaluation and say where; one in the same place is replaced, its tables too.

    ``also``: more to keep in ``metrics.json``. Raises ValueError for a table whose name is no plain
    word, or that of a file that is there.
    """
    worst, files = filed(evaluation.worst)
    tables = {"worst": worst}
    for name, rows in evaluation.tables.items():
        if name in tables or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"a table of an evaluation cannot be named {name!r}")
        tables[name] = [dict(row) for row in rows]
    folder = place(run, evaluation.step, under)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jsonl"):
        if old.stem not in tables:
            old.unlink()
    _write_pictures(folder, files)
    facts = _plain(asdict(replace(evaluation, worst=(), tables={}, observed=())))
    for key in ("worst", "tables", "observed"):
        del facts[key]
    facts |= _plain(also or {})
    (folder / "metrics.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    for name, rows in tables.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in rows)
    return folder


def filed(worst: Sequence[RowLoss]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Rows as JSON has them, and their pictures by the name that stands there in their place.

    A picture becomes ``{"picture": "pictures/row-7-1.png", "says": …}``.
    """
    files: dict[str, bytes] = {}

    def plain(row: int, value: Any) -> Any:
        if isinstance(value, Picture):
            n = sum(name.startswith(f"{PICTURES}/row-{row}-") for name in files) + 1
            name = f"{PICTURES}/row-{row}-{n}.{value.kind}"
            files[name] = value.data
            return {"picture": name, "says": value.says}
        if isinstance(value, Mapping):
            return {key: plain(row, item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(row, item) for item in value]
        return value

    rows = [asdict(replace(r, shown=plain(r.row, r.shown))) for r in worst]
    return rows, files


def _write_pictures(folder: Path, files: Mapping[str, bytes]) -> None:
    """Exactly these, and no folder where there are none."""
    if files:
        (folder / PICTURES).mkdir(exist_ok=True)
    for old in (folder / PICTURES).glob("*"):
        if f"{PICTURES}/{old.name}" not in files:
            old.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def brief(evaluation: Evaluation) -> Evaluation:
    """The evaluation as the journal keeps it."""
    worst = tuple(
        replace(row, shown={key: item for key, item in row.shown.items() if not _long(item)})
        for row in evaluation.worst
    )
    return replace(evaluation, worst=worst, tables={}, observed=())


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation in plain values; a picture is there by its name alone."""
    return asdict(replace(evaluation, worst=())) | {"worst": filed(evaluation.worst)[0]}


def _long(item: Any) -> bool:
    """Pictures, and texts in pieces: what the journal can do without."""
    if isinstance(item, Mapping):
        return any(map(_long, item.values()))
    if isinstance(item, list | tuple):
        return any(isinstance(part, list | tuple) or _long(part) for part in item)
    return isinstance(item, Picture)


def pictures(run: Path, event: Mapping[str, Any]) -> dict[str, bytes]:
    """Name -> picture of the worst rows of ``whole(run, event)``, as many as a page has room for.

    The worst row's first. What is not there, is no picture, or is too large is left out.
    """
    folder = place(run, int(event["step"]))
    found: dict[str, bytes] = {}
    left_bytes = ALL_PICTURES_BYTES
    for name in _picture_names(event.get("worst")):
        try:
            size_bytes = (folder / name).stat().st_size
            if name in found or size_bytes > min(left_bytes, ONE_PICTURE_BYTES):
                continue
            data = (folder / name).read_bytes()
        except OSError:
            continue
        if picture_kind(data):
            found[name] = data
            left_bytes -= len(data)
    return found


def _picture_names(value: Any) -> Iterator[str]:
    """Every name of a picture in plain JSON; none that leads out of its folder."""
    if isinstance(value, Mapping):
        name = value.get("picture")
        if isinstance(name, str) and PICTURE_NAME.fullmatch(name):
            yield name
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _picture_names(item)


def whole(run: Path, event: Mapping[str, Any]) -> Mapping[str, Any]:
    """A journal's evaluation with its worst rows in full and the tables that are drawn.

    As far as they are on disk: what is not, or cannot be read, stays as the journal has it.
    """
    folder = place(run, int(event["step"]))
    worst = _rows(folder / "worst.jsonl")
    tables = {name: rows for name in DRAWN if (rows := _rows(folder / f"{name}.jsonl"))}
    found = {**event, "tables": {**event.get("tables", {}), **tables}}
    return found if worst is None else {**found, "worst": worst}


def facts_of(run: Path, step: int, under: str = "") -> Mapping[str, Any] | None:
    """What ``metrics.json`` of an evaluation says; None if it is not there or cannot be read."""
    try:
        found = json.loads((place(run, step, under) / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _rows(file: Path) -> list[Any] | None:
    """A file's JSON lines; None if it is not there or cannot be read."""
    try:
        with file.open(encoding="utf-8") as lines:  # splitlines would cut at a text's U+2028 too
            return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return None


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinity as text, a NumPy number as a number."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain(value.item()) if hasattr(value, "item") else value


def refuse_no_number(evaluation: Evaluation) -> None:
    """Raise NonFiniteStep when the held-out loss is NaN or infinite; name the rows."""
    if not math.isfinite(evaluation.metrics["loss"]):
        rows = [row.row for row in evaluation.worst if not math.isfinite(row.loss)]
        raise NonFiniteStep(
            f"the held-out loss at step {evaluation.step} is {evaluation.metrics['loss']} "
            f"(rows {rows}); look at these rows (headway data show), or lower train.learning_rate"
        )


def stale(losses: Sequence[float], patience: int, min_delta: float) -> bool:
    """Whether the last ``patience`` losses brought no improvement of at least ``min_delta``."""
    best, since = math.inf, 0
    for loss in losses:
        if loss < best - min_delta:
            best, since = loss, 0
        else:
            since += 1
    return since >= patience
