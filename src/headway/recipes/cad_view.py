"""Parts and edits that came out worst, as people look at them: in words, and drawn to one scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from headway.data.cad import Graphs
from headway.data.cad.families import FAMILIES, Family, Values, are_valid, in_mm
from headway.data.cad.picture import AFTER, BEFORE, WANTED, Drawn, drawn
from headway.engine.task import RowAsRead
from headway.models.graph_vae import GraphVae
from headway.recipes.edit_metrics import NOOP_MM
from headway.recipes.edit_rows import NAMES, WrittenEdits, directions
from headway.recipes.graph_rows import GraphRows
from headway.recipes.graph_use import read_latents, sureness
from headway.records import Picture, RowLoss

SURE = 0.9
"""A model that gives an answer this probability is sure of it."""
FARTHEST_MM = 2000.0
"""A part with a larger dimension is not drawn: beside it the others were dots."""
SEEN_MM = 0.05
"""A difference that is worth a word."""

Said = Mapping[int, Mapping[str, Any]]
"""Row -> what ``measure`` found of it."""


def part_lines(train: GraphRows, held: GraphRows | None) -> list[str]:
    """How many parts of each family there are."""
    lines = []
    for split, rows in (("train", train), ("held-out", held)):
        if rows is not None:
            counts = np.bincount(rows.graphs.family, minlength=len(FAMILIES))
            each = ", ".join(f"{n:,} {f.name}" for f, n in zip(FAMILIES, counts, strict=True) if n)
            lines.append(f"{split}: {len(rows):,} parts ({each}), {rows.faces:,} faces")
    return lines


def parts_as_read(graphs: Graphs) -> Iterator[RowAsRead]:
    """Each part as a person looks at it: its family, and what is to be read from its latent."""
    for row, index in enumerate(graphs.family.tolist()):
        family = FAMILIES[index]
        listed = _listed(family, graphs.values[row, : len(family.parameters)])
        faces = int((graphs.types[row] >= 0).sum())
        yield RowAsRead(
            where=f"part {row}",
            facts=f"{faces} faces",
            runs=((f"{family.name}: ", "", None), (listed, "", 1.0)),
        )


def worst_parts(
    model: GraphVae, held: GraphRows, worst: Sequence[RowLoss], said: Said
) -> tuple[RowLoss, ...]:
    """Each part beside what is read from its latent. ``said``: ``latent`` and ``error_mm``."""
    if not worst:
        return ()
    z = np.stack([said[row.row]["latent"] for row in worst]).astype(np.float32)
    told, read = read_latents(model, z)
    sure = sureness(model, z)
    found = []
    for at, row in enumerate(worst):
        shown = _part(held, row.row, FAMILIES[told[at]], read[at], float(sure[at]))
        found.append(replace(row, shown={**shown, "error": said[row.row]["error_mm"]}))
    return tuple(found)


def _part(held: GraphRows, row: int, told: Family, read: Values, sure: float) -> dict[str, Any]:
    family = FAMILIES[held.graphs.family[row]]
    truth = held.graphs.values[row, : len(family.parameters)]
    shown: dict[str, Any] = {
        "where": f"held-out part {row}",
        "prompt": family.name,
        "reference": _listed(family, truth),
        "prediction": f"{told.name}: {_listed(told, read)}",
        "length": int((held.graphs.types[row] >= 0).sum()),
    }
    if told != family and sure >= SURE:
        shown["suspicious"] = f"labelled a {family.name}, and read as a {told.name} ({sure:.0%})"
    pictured = [
        Drawn("the part", family, truth, BEFORE),
        Drawn("read from its latent", told, read, AFTER, beneath=(family, truth)),
    ]
    says = f"A {family.name}; {_off(family, truth, told, read)}"
    return shown | _picture(pictured, says)


def worst_edits(
    held: WrittenEdits, worst: Sequence[RowLoss], said: Said, vae: GraphVae | None
) -> tuple[RowLoss, ...]:
    """Each edit: its text, what the model understood, and the part before, as wanted, as made.

    ``said``: ``amounts``, ``direction`` (a logit) and ``delta``. Parts are drawn where the data
    says them and there is an autoencoder to read the edited latent with.
    """
    rows = [row.row for row in worst]
    shown = {row: _edit(held, row, said[row]) for row in rows}
    known = [row for row in rows if held.edits.family[row] >= 0]
    if vae is not None and known:
        z = held.edits.z_src[known] + np.stack([said[row]["delta"] for row in known])
        family = held.edits.family[known]
        told, read = read_latents(vae, z.astype(np.float32))
        _, as_family = read_latents(vae, z.astype(np.float32), family)
        for at, row in enumerate(known):
            truth = in_mm(FAMILIES[family[at]], held.targets[row][None].astype(np.float64))[0]
            shown[row]["error"] = float(np.abs(as_family[at] - truth).mean())
            shown[row] |= _parts_of_edit(held, row, truth, FAMILIES[told[at]], read[at])
    return tuple(replace(row, shown=shown[row.row]) for row in worst)


def _edit(held: WrittenEdits, row: int, said: Mapping[str, Any]) -> dict[str, Any]:
    """An edit in words; its error is the largest misunderstanding, in mm."""
    edits, amounts = held.edits, said["amounts"]
    family, label = edits.family_of(row), edits.changes[row]
    names = [n for n in NAMES if n in label or abs(amounts[n]) >= NOOP_MM]
    shown: dict[str, Any] = {
        "where": f"held-out edit {row}" + (f", a {family.name}" if family else ""),
        "prompt": edits.instructions[row],
        "reference": _changes(label),
        "prediction": _changes({name: amounts[name] for name in names}),
        "error": max(abs(amounts[name] - label.get(name, 0.0)) for name in NAMES),
        "length": int(held.lengths[row]),
    }
    wanted = float(directions(held.amounts[row][None])[0])
    more = 1 / (1 + math.exp(-max(-50.0, min(50.0, said["direction"]))))
    sure = more if wanted == 0 else 1 - more
    if wanted != 0.5 and sure >= SURE:
        way, other = ("less", "more") if wanted == 0 else ("more", "less")
        shown["suspicious"] = f"the label says {way}, and the model is sure of {other} ({sure:.0%})"
    return shown


def _parts_of_edit(
    held: WrittenEdits, row: int, truth: Values, told: Family, read: Values
) -> dict[str, Any]:
    family = FAMILIES[held.edits.family[row]]
    before = held.edits.values[row, : len(family.parameters)]
    pictured = [
        Drawn("before", family, before, BEFORE),
        Drawn("wanted", family, truth, WANTED),
        Drawn("made", told, read, AFTER, beneath=(family, truth)),
    ]
    return _picture(pictured, f"A {family.name}; {_off(family, truth, told, read)}")


def _picture(parts: Sequence[Drawn], says: str) -> dict[str, Any]:
    """Nothing where a part is no part at all: an untrained or broken model reads anything."""
    if any(not (np.abs(part.values) <= FARTHEST_MM).all() for part in parts):
        return {}
    return {"parts": Picture(data=drawn(parts), says=says)}


def _off(family: Family, truth: Values, told: Family, read: Values) -> str:
    """How what was read differs from what it should be, the largest differences first."""
    if told != family:
        return f"read as a {told.name}"
    order = np.argsort(-np.abs(read - truth))[:3]
    off = [
        f"{family.names[k]} {read[k]:.1f} mm in place of {truth[k]:.1f}"
        for k in order.tolist()
        if abs(read[k] - truth[k]) >= SEEN_MM
    ]
    no_part = "" if are_valid(family, read)[0] else "; these dimensions make no valid part"
    return (", ".join(off) or "no difference") + no_part


def _listed(family: Family, values: Values) -> str:
    named = zip(family.names, values.tolist(), strict=True)
    return ", ".join(f"{name} {value:.2f} mm" for name, value in named)


def _changes(changes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {mm:+.2f} mm" for name, mm in changes.items()) or "no change"
