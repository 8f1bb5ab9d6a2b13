"""A trained editor in use: a part and a sentence become the part that was asked for.

What the edited latent says need not be a part: the nearest one is taken, and it is said what was
moved for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headway.data.cad import Graphs, nearest_valid, one_part
from headway.data.cad.families import FAMILIES, Family, Values
from headway.data.cad.reading import Unreadable, read
from headway.engine.precision import autocast
from headway.errors import ConfigError, DataError
from headway.recipes.editor_files import told_of
from headway.recipes.graph_use import STEP, Part, latents, part_asked, read_latents
from headway.system import write_whole

if TYPE_CHECKING:
    from headway.recipes.latent_editor import LatentEditorTask

KEYS = ("instruction", "part", "family", "parameters", "z_src", "out")
MOVED_MM = 0.05
"""A dimension that was moved by less to make the part valid is not worth a word."""
OFF_MM = 0.5
"""An edit that is off by more than this from what its sentence says is said to be."""


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody wants changed."""

    instruction: str
    graphs: Graphs | None
    """The part's graph; None where its latent was given."""
    part: Part | None
    """Its dimensions; None where its latent was given."""
    z_src: tuple[float, ...] | None
    out: Path | None
    notes: tuple[str, ...] = ()
    """What was done to read it."""


def asked(request: Mapping[str, Any]) -> Request:
    """Raise ConfigError for what ``predict`` does not take."""
    unknown = [str(key) for key in request if key not in KEYS]
    if unknown:
        raise ConfigError(
            f"predict: an edit takes no {' and no '.join(unknown)} (it takes {', '.join(KEYS)})"
        )
    instruction = request.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        raise ConfigError("predict needs instruction: what should change, as a sentence")
    given = [key for key in ("part", "family", "z_src") if request.get(key) is not None]
    if len(given) != 1:
        raise ConfigError(
            "predict needs one of part (a STEP or JSON file), family with parameters, and z_src; "
            f"found {' and '.join(given) or 'none'}"
        )
    out = Path(str(request["out"])) if request.get("out") else None
    refuse_unwritable(out)
    if given == ["z_src"]:
        z = request["z_src"]
        if not isinstance(z, list | tuple) or not all(map(_is_number, z)):
            raise ConfigError("predict: z_src must be a list of numbers")
        return Request(instruction, None, None, tuple(map(float, z)), out)
    part, notes = part_asked(request)
    return Request(instruction, one_part(part.family, part.values), part, None, out, notes)


def _is_number(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and math.isfinite(value)


def refuse_unwritable(out: Path | None) -> None:
    """Raise ConfigError for a file that nothing here writes, before a model is asked."""
    if out is None:
        return
    if out.suffix.lower() in STEP:
        from headway.data.cad.kernel import kernel

        kernel()
    elif out.suffix.lower() != ".json":
        raise ConfigError(f"--out {out}: write .step (extra cad) or .json")


@torch.no_grad()
def edited(task: LatentEditorTask, request: Request) -> dict[str, Any]:
    """The changed latent, and the part that it is read as, made valid; written to ``out``."""
    z = _latent(task, request)
    device = next(task.model.parameters()).device
    at = torch.tensor(np.asarray(z), dtype=torch.float32, device=device)
    with autocast(task.context.precision, device):
        delta = told_of(task.model, task.text, request.instruction, at).delta
    after = (at + delta).float().cpu().numpy()
    found: dict[str, Any] = {
        "z_src": list(z),
        "z_tgt": after[0].tolist(),
        "delta_z": delta[0].float().tolist(),
    }
    if task.vae is None:
        norm = float(np.square(found["delta_z"]).sum() ** 0.5)
        text = f"the latent changes by {norm:.4f} (no autoencoder: it is read as no part)"
        return {**found, "text": text}
    family, before, now, notes = _read(task, request, np.asarray(z, np.float32)[None], after)
    found |= {
        "family": family.name,
        "before": dict(zip(family.names, before.tolist(), strict=True)),
        "parameters": dict(zip(family.names, now.tolist(), strict=True)),
        "notes": notes,
    }
    if request.out is not None:
        found["written"] = [str(path) for path in _written(request.out, family, before, now)]
    return {**found, "text": _told(family, before, now, notes)}


def _latent(task: LatentEditorTask, request: Request) -> tuple[float, ...]:
    if request.z_src is not None:
        if len(request.z_src) != task.config.latent:
            raise ConfigError(
                f"predict: z_src has {len(request.z_src)} numbers, a latent {task.config.latent}"
            )
        return request.z_src
    if task.vae is None:
        raise ConfigError(
            "predict: this run has no autoencoder to read a part with; give z_src, or train with "
            "edits of headway data cad-edits"
        )
    assert request.graphs is not None
    return tuple(latents(task.vae, request.graphs)[0].tolist())


def _read(
    task: LatentEditorTask, request: Request, z: np.ndarray[Any, Any], after: np.ndarray[Any, Any]
) -> tuple[Family, Values, Values, list[str]]:
    """(family, dimensions before, dimensions after made valid, what was done for that)."""
    assert task.vae is not None
    told, said = read_latents(task.vae, after)
    family = FAMILIES[told[0]]
    was, read = read_latents(task.vae, z, told)
    notes = list(request.notes)
    if was[0] != told[0]:
        notes.append(f"the edited latent is read as a {family.name}, not a {FAMILIES[was[0]].name}")
    before = read[0]
    if request.part is not None and request.part.family == family:
        before = np.array(request.part.values)
    now = nearest_valid(family, said[0])[0]
    for name, wanted, valid in zip(family.names, said[0], now, strict=True):
        if abs(wanted - valid) > MOVED_MM:
            notes.append(f"{name} {wanted:.2f} mm makes no part: {valid:.2f} mm, the nearest, does")
    return family, before, now, [*notes, *off_from(request.instruction, family, before, now)]


def off_from(instruction: str, family: Family, before: Values, now: Values) -> list[str]:
    """A line where the part is not what the sentence says, if that can be read without a model."""
    was = dict(zip(family.names, before.tolist(), strict=True))
    try:
        asked_for = read(instruction, family, was)
    except Unreadable:
        return []
    off = {n: to - was[n] - asked_for.get(n, 0.0) for n, to in zip(family.names, now, strict=True)}
    far = [f"{name} {mm:+.2f} mm" for name, mm in off.items() if abs(mm) > OFF_MM]
    if not far:
        return []
    said = ", ".join(f"{name} {mm:+.2f} mm" for name, mm in asked_for.items()) or "no change"
    return [f"the sentence says {said}; the part is off from that by {', '.join(far)}"]


def _written(out: Path, family: Family, before: Values, now: Values) -> list[Path]:
    """STEP through the kernel, JSON without it; a picture of before and after beside either."""
    from headway.data.cad.picture import draw_before_after

    dimensions = dict(zip(family.names, now.tolist(), strict=True))
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() in STEP:
        from headway.data.cad.kernel import write_step

        write_step(out, family, now.tolist())
    else:
        tree = {"family": family.name, "parameters": dimensions}
        write_whole(out, json.dumps(tree, indent=2).encode())
    picture = out.with_suffix(".png")
    try:
        draw_before_after(picture, family, nearest_valid(family, before)[0], now)
    except DataError:
        return [out]
    return [out, picture]


def _told(family: Family, before: Values, now: Values, notes: list[str]) -> str:
    lines = [family.name]
    for name, was, new in zip(family.names, before, now, strict=True):
        change = f"  {new - was:+.2f}" if abs(new - was) >= MOVED_MM else ""
        lines.append(f"  {name:<16} {was:8.2f} -> {new:8.2f} mm{change}")
    return "\n".join([*lines, *notes])
