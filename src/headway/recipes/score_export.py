"""What a scorer is made of, on disk: language model, token row, head, and what its number means.

They travel together. A folder that lacks one of them cannot be loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from headway.data.chains import Chain
from headway.data.tokenizers import identity
from headway.engine.evaluate import undisturbed
from headway.engine.state import safetensors_chunks
from headway.engine.task import SavedModel
from headway.errors import CheckpointError
from headway.models.exported import adapted_model, whole_model
from headway.models.score import HeadShape, Scorer
from headway.models.surprise import alphabet_of
from headway.models.tuning import ADAPTER_FILE, MODEL_FILE, saved_model
from headway.recipes.chain_rows import ChainText
from headway.recipes.chain_view import scores_of
from headway.recipes.export import export_model
from headway.recipes.text import TextTask

if TYPE_CHECKING:
    from headway.recipes.regression import RegressionTask

HEAD_FILE, MEANING_FILE = "head.safetensors", "head.json"
WRITTEN = tuple(f.name for f in fields(ChainText) if f.name not in ("tokenizer", "checks"))
"""What of ``ChainText`` stands in ``MEANING_FILE``; the tokenizer has files of its own, and the
head's shape says whether steps are checked."""
PROBE = Chain(
    problem="", steps=("4", "2 + 2 = 4.", "4 + 3 = 8."), targets=(None,) * 3,
    source="export", where="export", group="export",
)  # fmt: skip
"""Scored before and after an export. Its first step fits into any ``max_tokens``."""
NOT_COMPARED = {
    "merged": "merged over the unquantised base: scores differ",
    "adapter": "not compared over the base in four bits; every tensor is as trained",
}
"""What the export of a ``qlora`` run says of its scores."""


def saved_scorer(task: RegressionTask) -> SavedModel:
    """``model/`` of a checkpoint: what PEFT or transformers read, and the head beside it."""
    language = saved_model(task.model.language, task.tokenizer, task.config.base_model)
    return SavedModel(
        tensors={**language.tensors, HEAD_FILE: task.model.head.state_dict()},
        files={**language.files, MEANING_FILE: meaning(task)},
    )


def meaning(task: RegressionTask) -> bytes:
    """How the head is built, what is written before it, and the range of its number."""
    tree = {
        "head": task.config.head.model_dump(),
        **{name: getattr(task.text, name) for name in WRITTEN},
        "tokenizer": identity(task.tokenizer),
    }
    return json.dumps(tree, indent=2).encode()


def export_scorer(task: RegressionTask, base: Any, to: Path, format: str) -> Mapping[str, Any]:
    """Write the language model as ``export_model`` does, the head beside it, and load it all."""
    language = TextTask(
        model=task.model.language,
        tokenizer=task.tokenizer,
        context=task.context,
        base_model=task.config.base_model,
    )
    found = dict(export_model(language, base, to, format))
    head = {name: tensor.detach().cpu() for name, tensor in task.model.head.state_dict().items()}
    with (to / HEAD_FILE).open("wb") as file:
        file.writelines(safetensors_chunks(head))
    (to / MEANING_FILE).write_bytes(meaning(task))
    if format == "merged":
        task.tokenizer.save_pretrained(to)
    again, text = with_head(to, whole_model(to) if base is None or format == "merged" else base)
    for name, tensor in again.head.state_dict().items():
        if not torch.equal(tensor.cpu(), head[name]):
            raise CheckpointError(f"{to}: {name} of the head was read back with other values")
    if replace(text, tokenizer=task.tokenizer) != task.text:
        raise CheckpointError(f"{to / MEANING_FILE} was read back as something else")
    return found | same_scores(task, again, format, to)


def same_scores(task: RegressionTask, again: Scorer, format: str, to: Path) -> dict[str, Any]:
    """The largest difference of one chain's scores; CheckpointError if rounding does not explain
    it.

    ``again`` holds the adapter of a ``qlora`` run over a base that is not in four bits: nothing can
    be compared then, and the result says so.
    """
    if task.config.tuning.kind == "qlora":
        return {"scores": NOT_COMPARED[format]}
    device = next(task.model.parameters()).device
    precision = task.context.precision
    scores = []
    for scorer in (task.model, again.to(device)):
        with undisturbed(scorer, device):
            scores += scores_of(scorer, task.text, [PROBE], precision)
    differences = [
        abs(one - other)
        for one, other in zip(*scores, strict=True)
        if one is not None and other is not None
    ]
    worst = max(differences, default=0.0) / (task.text.high - task.text.low)
    if not worst <= (1e-4 if precision == "fp32" else 2e-2):
        raise CheckpointError(
            f"{to}: what was read back scores a chain differently (off by {worst:.2g} of the "
            "range); do not use it"
        )
    return {"largest_score_difference": worst}


def load_scorer(folder: Path, *, base: Any = None) -> tuple[Scorer, ChainText]:
    """An exported scorer, ready to use, and how chains are written for it: see ``scores_of``.

    ``base``: the untouched base model, for an ``adapter`` export; it is changed: it gets a row for
    the special token and the adapters. Raises CheckpointError where a part is missing or does not
    fit.
    """
    weights = MODEL_FILE if base is None else ADAPTER_FILE
    missing = [n for n in (weights, HEAD_FILE, MEANING_FILE) if not (folder / n).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {', '.join(missing)} missing: weights, head and the head's meaning only "
            "work together; export the run again"
        )
    try:
        language = whole_model(folder) if base is None else _adapted(folder, base)
    except (OSError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder / weights}: does not fit: {error}") from error
    scorer, text = with_head(folder, language)
    return scorer.eval(), text


def _adapted(folder: Path, base: Any) -> nn.Module:
    """``base`` with the adapter, and with a row for the token that scores are read at."""
    rows = len(_tokenizer(folder))
    if rows > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(rows, mean_resizing=False)
    return adapted_model(folder, base)


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: no tokenizer: {error}; export the run again") from error


def with_head(folder: Path, language: nn.Module) -> tuple[Scorer, ChainText]:
    """The language model with the head in ``folder``; CheckpointError where it does not fit."""
    tokenizer = _tokenizer(folder)
    try:
        means = json.loads((folder / MEANING_FILE).read_text(encoding="utf-8"))
        shape = HeadShape.model_validate(means["head"])
        written = {name: means[name] for name in WRITTEN}
        text = ChainText(tokenizer=tokenizer, **written, checks=shape.checks)
        made_with = means["tokenizer"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / MEANING_FILE}: not whole: {error!r}") from error
    if identity(tokenizer) != made_with:
        raise CheckpointError(
            f"{folder}: the tokenizer is not the one that the scorer was trained with; export the "
            "run again"
        )
    alphabet = alphabet_of(tokenizer, text.token) if shape.surprise else None
    scorer = Scorer(language, shape, alphabet)
    try:
        scorer.head.load_state_dict(load_file(folder / HEAD_FILE), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / HEAD_FILE}: does not fit: {error}") from error
    return scorer, text
