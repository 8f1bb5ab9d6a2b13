"""What an editor is made of, on disk: language model, head, what it was trained with, and its
autoencoder.

They travel together. A folder that lacks one of them cannot be loaded.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from headway.data.cad.families import FAMILIES, MOST_PARAMETERS
from headway.data.tokenizers import identity
from headway.engine.evaluate import undisturbed
from headway.engine.precision import autocast
from headway.engine.state import safetensors_chunks
from headway.engine.task import SavedModel
from headway.errors import CheckpointError, ConfigError
from headway.models.backbone import keep_first_layers
from headway.models.exported import adapted_model, whole_model
from headway.models.graph_vae import GraphVae
from headway.models.latent_editor import EditorShape, LatentEditor, Told
from headway.models.tuning import ADAPTER_FILE, MODEL_FILE, saved_model
from headway.recipes.edit_rows import NAMES, EditText, numbers_of
from headway.recipes.export import export_model
from headway.recipes.graph_use import SHAPE_FILE, load_vae, shape_file
from headway.recipes.text import TextTask

if TYPE_CHECKING:
    from headway.recipes.latent_editor import LatentEditorTask

HEAD_FILE, MEANING_FILE, VAE_FILE = "editor.safetensors", "editor.json", "vae.safetensors"
PROBE = "make it 12 mm longer"


def dimensions_of(vae: GraphVae) -> Callable[[Tensor], Tensor]:
    """Latents [n, latent] -> [n, NAMES] in mm as ``vae`` reads them; 0 for what a part has not."""
    low, high = np.zeros((2, len(FAMILIES), len(NAMES)), dtype=np.float32)
    place = np.zeros((len(FAMILIES), MOST_PARAMETERS), dtype=np.int64)
    there = np.zeros((len(FAMILIES), MOST_PARAMETERS), dtype=np.float32)
    for number, family in enumerate(FAMILIES):
        for at, parameter in enumerate(family.parameters):
            name = NAMES.index(family.names[at])
            low[number, name], high[number, name] = parameter.low, parameter.high
            place[number, at], there[number, at] = name, 1.0

    @functools.cache
    def tables(device: torch.device) -> list[Tensor]:
        return [torch.from_numpy(table).to(device) for table in (low, high - low, place, there)]

    def read(z: Tensor) -> Tensor:
        device = next(vae.parameters()).device
        lows, ranges, places, has = tables(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            logits, shares = vae.read(z.to(device).float())
            of = logits.argmax(-1)
            mine = shares[torch.arange(len(of), device=device), of] * has[of]
            by_name = torch.zeros_like(lows[of]).scatter_add(1, places[of], mine)
            return (lows[of] + by_name * ranges[of]).to(z.device)

    return read


def saved_editor(task: LatentEditorTask) -> SavedModel:
    """``model/`` of a checkpoint: what PEFT or transformers read; head and autoencoder beside."""
    language = saved_model(task.model.language, task.text.tokenizer, task.config.base_model)
    tensors = {**language.tensors, HEAD_FILE: task.model.head.state_dict()}
    files = {**language.files, MEANING_FILE: meaning(task)}
    if task.vae is not None:
        tensors[VAE_FILE] = task.vae.state_dict()
        files[SHAPE_FILE] = shape_file(task.vae.shape)[SHAPE_FILE]
    return SavedModel(tensors=tensors, files=files)


def meaning(task: LatentEditorTask) -> bytes:
    """How the head is built, what is written before it, and whose latents it changes."""
    tree = {
        "editor": task.config.editor.model_dump(),
        "latent": task.config.latent,
        "layers": task.config.layers,
        "names": list(NAMES),
        "text_format": task.text.text_format,
        "max_tokens": task.text.max_tokens,
        "vae_sha256": task.vae_sha256,
        "reads_dimensions": task.vae is not None,
        "tokenizer": identity(task.text.tokenizer),
    }
    return json.dumps(tree, indent=2).encode()


def export_editor(task: LatentEditorTask, base: Any, to: Path, format: str) -> Mapping[str, Any]:
    """Write the language model as ``export_model`` does, the rest beside it, and load it all."""
    language = TextTask(
        model=task.model.language,
        tokenizer=task.text.tokenizer,
        context=task.context,
        base_model=task.config.base_model,
    )
    found = dict(export_model(language, base, to, format))
    saved = saved_editor(task)
    for name in (HEAD_FILE, VAE_FILE):
        if name in saved.tensors:
            parts = {key: value.detach().cpu() for key, value in saved.tensors[name].items()}
            with (to / name).open("wb") as file:
                file.writelines(safetensors_chunks(parts))
    for name in (MEANING_FILE, SHAPE_FILE):
        if name in saved.files:
            (to / name).write_bytes(saved.files[name])
    if format == "merged":
        task.text.tokenizer.save_pretrained(to)
    again, text = with_head(to, whole_model(to) if base is None or format == "merged" else base)
    if replace(text, tokenizer=task.text.tokenizer) != task.text:
        raise CheckpointError(f"{to / MEANING_FILE} was read back as something else")
    kept = task.model.head.state_dict()
    for name, tensor in again.head.state_dict().items():
        if not torch.equal(tensor.cpu(), kept[name].detach().cpu()):
            raise CheckpointError(f"{to}: {name} of the head was read back with other values")
    if task.config.tuning.kind == "qlora":
        return found | {"answers": "not compared: the base is not in four bits there"}
    return found | same_answers(task, again, to)


def same_answers(task: LatentEditorTask, again: LatentEditor, to: Path) -> dict[str, Any]:
    """The largest difference in what is said of one edit; CheckpointError if it is not rounding."""
    device = next(task.model.parameters()).device
    z = torch.linspace(-1, 1, task.config.latent, device=device)
    said = []
    for editor in (task.model, again.to(device)):
        with undisturbed(editor, device), autocast(task.context.precision, device):
            said.append(said_of(editor, task.text, PROBE, z))
    off = max(
        float((mine - other).abs().max() / mine.abs().max().clamp(min=1))
        for mine, other in zip(*said, strict=True)
    )
    limit = 1e-3 if task.context.precision == "fp32" else 5e-2
    if not off <= limit:
        raise CheckpointError(
            f"{to}: what was read back answers differently (off by {off:.2g} of the largest "
            "answer); do not use it"
        )
    return {"largest_difference": off}


def said_of(editor: LatentEditor, text: EditText, instruction: str, z: Tensor) -> list[Tensor]:
    """All answers of every kind to one instruction about the latent ``z`` [latent].

    The latent's change is the one by the usual amounts, in usual changes: an editor that is not
    sure of any dimension changes nothing.
    """
    told = told_of(editor, text, instruction, z, editor.head.amount_scale)
    return [
        told.named, told.choice.of_row, told.choice.of_row_logits, told.choice.of_number,
        told.choice.of_number_logits, told.direction, told.taught / editor.head.delta_scale,
    ]  # fmt: skip


@torch.no_grad()
def told_of(
    editor: LatentEditor,
    text: EditText,
    instruction: str,
    z: Tensor,
    amounts: Tensor | None = None,
) -> Told:
    """What the editor says of one row: a latent [latent], labels [names] where they are given."""
    (written,) = text.write([instruction])
    tokens = len(written.ids)
    given = {
        "input_ids": written.ids[None].astype(np.int64),
        "position_ids": np.arange(tokens)[None],
        "latent_at": np.arange(text.latent_tokens)[None],
        "last_at": np.array([tokens - 1]),
        **numbers_of([written], np.zeros(1, dtype=np.int64)),
    }
    there = {name: torch.from_numpy(value).to(z.device) for name, value in given.items()}
    labels = None if amounts is None else amounts[None]
    told: Told = editor(**there, row_ends=[tokens], z=z[None], amounts=labels)
    return told


def load_editor(folder: Path, *, base: Any = None) -> tuple[LatentEditor, EditText]:
    """An exported editor, ready to use; see ``told_of``.

    ``base``: the untouched base model, for an ``adapter`` export; it is changed: it gets the
    adapters, and loses the layers that the editor does without. Raises CheckpointError where a part
    is missing or does not fit.
    """
    weights = MODEL_FILE if base is None else ADAPTER_FILE
    missing = [n for n in (weights, HEAD_FILE, MEANING_FILE) if not (folder / n).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {', '.join(missing)} missing: weights, head and its meaning only work "
            "together; export the run again"
        )
    try:
        if base is not None and (layers := _means(folder).get("layers")) is not None:
            keep_first_layers(base, layers)
        language = whole_model(folder) if base is None else adapted_model(folder, base)
    except (
        OSError, KeyError, RuntimeError, ValueError, SafetensorError, ConfigError,
    ) as error:  # fmt: skip
        raise CheckpointError(f"{folder / weights}: does not fit: {error}") from error
    editor, text = with_head(folder, language)
    return editor.eval(), text


def _means(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MEANING_FILE).read_text(encoding="utf-8"))
    return found


def with_head(folder: Path, language: nn.Module) -> tuple[LatentEditor, EditText]:
    """The language model with the head in ``folder``; CheckpointError where it does not fit."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        means = _means(folder)
        shape = EditorShape.model_validate(means["editor"])
        text = EditText(
            tokenizer, means["text_format"], shape.latent_tokens, int(means["max_tokens"])
        )
        if means["names"] != list(NAMES) or means["tokenizer"] != identity(tokenizer):
            raise ValueError("other dimensions, or another tokenizer, than it was trained with")
        editor = LatentEditor(language, int(means["latent"]), len(NAMES), shape)
        editor.head.load_state_dict(load_file(folder / HEAD_FILE), strict=True)
        if means["reads_dimensions"]:
            editor.dimensions_of = dimensions_of(load_vae(folder, VAE_FILE))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the editor's head does not fit: {error}") from error
    return editor, text
