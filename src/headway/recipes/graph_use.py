"""A trained autoencoder in use: a part's latent, what a latent says, and the model on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from headway.data.cad import Family, Graphs, find_family, nearest_valid, one_part
from headway.data.cad.families import FAMILIES, Values, in_mm
from headway.data.cad.rows import tables
from headway.engine.evaluate import undisturbed
from headway.engine.state import safetensors_chunks
from headway.errors import CheckpointError, ConfigError, DataError
from headway.models.graph_vae import GraphVae, VaeShape, weights_sha256
from headway.recipes.graph_rows import GraphRows

MODEL_FILE, SHAPE_FILE = "model.safetensors", "graph_vae.json"
AT_ONCE = 512
STEP = (".step", ".stp")
"""How a file's name ends that the kernel reads."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part that somebody asks about."""

    family: Family
    values: tuple[float, ...]
    """In mm, in the family's order."""

    def named(self) -> dict[str, float]:
        """By name."""
        return dict(zip(self.family.names, self.values, strict=True))


def asked(request: Mapping[str, Any]) -> Part:
    """The part that ``part``, or ``family`` and ``parameters``, describe. Raises ConfigError, and
    DataError for a STEP file that holds no such part."""
    keys = ("part", "family", "parameters")
    unknown = [str(key) for key in request if key not in keys]
    if unknown or ("part" not in request and not {"family", "parameters"} <= set(request)):
        raise ConfigError(
            "predict needs part (a STEP or JSON file), or family and parameters {name: mm}"
            + (f", and takes no {' and no '.join(unknown)}" if unknown else "")
        )
    return part_asked(request)[0]


def part_asked(request: Mapping[str, Any]) -> tuple[Part, tuple[str, ...]]:
    """The part in the file ``part``, or of ``family`` and ``parameters``; and what was done to read
    it. Raises as ``asked``."""
    if request.get("part") is None:
        return _described(request), ()
    file = Path(str(request["part"]))
    if file.suffix.lower() in STEP:
        from headway.data.cad.recognise import part_of_step

        found = part_of_step(file)
        turned = f"{file} lies another way: it was turned, as a {found.family.name} lies here"
        return Part(found.family, found.values), (turned,) if found.turned else ()
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--part {file}: not readable as JSON or STEP: {error}") from error
    if not isinstance(tree, dict) or not {"family", "parameters"} <= set(tree):
        raise ConfigError(f"--part {file}: an object with family and parameters was expected")
    return _described(tree), ()


def _described(tree: Mapping[str, Any]) -> Part:
    try:
        family = find_family(str(tree.get("family")))
    except DataError as error:
        raise ConfigError(f"predict: {error}") from error
    given = tree.get("parameters")
    if not isinstance(given, Mapping) or set(given) != set(family.names):
        raise ConfigError(
            f"predict: a {family.name} has exactly the parameters {', '.join(family.names)}"
        )
    try:
        values = tuple(float(given[name]) for name in family.names)
        one_part(family, values)
    except (TypeError, ValueError, DataError) as error:
        raise ConfigError(f"predict: {error}") from error
    return Part(family, values)


@torch.no_grad()
def latents(model: GraphVae, graphs: Graphs) -> NDArray[np.float32]:
    """[n, latent] posterior means of graphs; the model's mode is as before."""
    rows, device = GraphRows.of(graphs), next(model.parameters()).device
    found = []
    with undisturbed(model, device):
        for start in range(0, len(rows), AT_ONCE):
            given = rows.tensors(np.arange(start, min(len(rows), start + AT_ONCE)))
            keys = ("types", "faces", "pairs")
            mu, _ = model.posterior_of(*(given[key].to(device) for key in keys))
            found.append(mu.cpu().numpy())
    return np.concatenate(found).astype(np.float32)


@torch.no_grad()
def read_latents(
    model: GraphVae, z: Tensor | NDArray[np.float32], family: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], list[Values]]:
    """(families [n], dimensions in mm of each) that latents say, before anything is made valid.

    ``family`` [n]: read the dimensions as if it were this one.
    """
    device = next(model.parameters()).device
    with undisturbed(model, device):
        logits, shares = model.read(torch.as_tensor(z).to(device))
    told = logits.argmax(-1).cpu().numpy()
    of = told if family is None else family
    numbers = shares.double().cpu().numpy()
    dimensions = [in_mm(FAMILIES[k], numbers[row, k][None])[0] for row, k in enumerate(of)]
    return told, dimensions


def sureness(model: GraphVae, z: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n]: how probable the family that each latent is read as is to the model."""
    device = next(model.parameters()).device
    with undisturbed(model, device):
        logits, _ = model.read(torch.as_tensor(z).to(device))
    return np.asarray(logits.softmax(-1).amax(-1).cpu().numpy())


def described_part(model: GraphVae, part: Part) -> dict[str, Any]:
    """A part's latent, and what is read back from it; ``text`` for the terminal."""
    z = latents(model, one_part(part.family, part.values))
    told, dimensions = read_latents(model, z)
    family = FAMILIES[told[0]]
    valid = nearest_valid(family, dimensions[0])[0]
    read = dict(zip(family.names, valid.tolist(), strict=True))
    lines = [f"{family.name}"] + [
        f"  {name:<16} {value:8.2f} mm" + _was(part, family, name) for name, value in read.items()
    ]
    return {
        "latent": z[0].tolist(),
        "family": family.name,
        "parameters": read,
        "text": "\n".join(lines),
    }


def _was(part: Part, family: Family, name: str) -> str:
    return f"  (given {part.named()[name]:.2f})" if family == part.family else ""


# ------------------------------------------------------------------ on disk


def shape_file(shape: VaeShape) -> dict[str, bytes]:
    """The small file beside the weights: the shape, and the ranges that shares are of."""
    tree = {"model": shape.model_dump(), "families": tables()}
    return {SHAPE_FILE: json.dumps(tree, indent=2).encode()}


def export_vae(model: GraphVae, to: Path, format: str) -> dict[str, Any]:
    """Write the model into the empty folder ``to``, read it back and compare what it answers."""
    if format != "full":
        raise ConfigError(f"--format {format}: this run exports full")
    tensors = {name: t.detach().cpu() for name, t in model.state_dict().items()}
    with (to / MODEL_FILE).open("wb") as file:
        file.writelines(safetensors_chunks(tensors))
    for name, data in shape_file(model.shape).items():
        (to / name).write_bytes(data)
    again = load_vae(to)
    probe = one_part(FAMILIES[0], (100.0, 80.0, 40.0, 6.0, 4.0, 8.0, 30.0, 6.0, 20.0))
    off = float(np.abs(latents(model, probe) - latents(again, probe)).max())
    if weights_sha256(again) != weights_sha256(model) or not off <= 1e-3:
        raise CheckpointError(f"{to}: what was read back is not what was written; do not use it")
    return {"format": format, "to": str(to), "sha256": weights_sha256(model)}


def load_vae(folder: Path, file: str = MODEL_FILE) -> GraphVae:
    """An exported autoencoder, or the ``model/`` folder of a checkpoint, ready to use.

    Raises CheckpointError where a part is missing, or was trained for other families.
    """
    try:
        tree = json.loads((folder / SHAPE_FILE).read_text(encoding="utf-8"))
        shape = VaeShape(**tree["model"])
        model = GraphVae(shape)
        model.load_state_dict(load_file(folder / file))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: no graph VAE can be read there: {error}") from error
    if tree["families"] != json.loads(json.dumps(tables())):
        raise CheckpointError(
            f"{folder}: this graph VAE was trained with other families or ranges than this headway "
            "has, so its dimensions would be read wrongly; train it again"
        )
    return model.eval()
