"""What a scorer is made of, on disk: language model, token row, head, and what its number means.

They travel together. A folder that lacks one of them cannot be loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from headway.engine.state import safetensors_chunks
from headway.engine.task import SavedModel
from headway.errors import CheckpointError
from headway.models.score import HeadShape, Scorer
from headway.models.tuning import ADAPTER_FILE, MODEL_FILE, saved_model
from headway.recipes.chain_rows import ChainText
from headway.recipes.export import export_model
from headway.recipes.text import TextTask

if TYPE_CHECKING:
    from headway.recipes.regression import RegressionTask

HEAD_FILE, MEANING_FILE = "head.safetensors", "head.json"


def saved_scorer(task: RegressionTask) -> SavedModel:
    """``model/`` of a checkpoint: what PEFT or transformers read, and the head beside it."""
    language = saved_model(task.model.language, task.tokenizer, task.config.base_model)
    return SavedModel(
        tensors={**language.tensors, HEAD_FILE: task.model.head.state_dict()},
        files={**language.files, MEANING_FILE: meaning(task)},
    )


def meaning(task: RegressionTask) -> bytes:
    """How the head is built, what is written before it, and the range of its number."""
    config = task.config
    tree = {
        "head": config.head.model_dump(),
        "target_range": list(config.target_range),
        "token": task.text.token,
        "problem_format": config.problem_format,
        "evidence_format": config.evidence_format,
        "max_tokens": config.max_tokens,
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
    again, text = with_head(to, task.model.language)
    for name, tensor in again.head.state_dict().items():
        if not torch.equal(tensor.cpu(), head[name]):
            raise CheckpointError(f"{to}: {name} of the head was read back with other values")
    if replace(text, tokenizer=task.tokenizer) != task.text:
        raise CheckpointError(f"{to / MEANING_FILE} was read back as something else")
    return found


def load_scorer(folder: Path, *, base: Any = None) -> tuple[Scorer, ChainText]:
    """An exported scorer, ready to use, and how chains are written for it.

    ``base``: the untouched base model, for an ``adapter`` export; it is changed: it gets a row for
    the special token and the adapters. Raises CheckpointError where a part is missing.
    """
    weights = MODEL_FILE if base is None else ADAPTER_FILE
    missing = [n for n in (weights, HEAD_FILE, MEANING_FILE) if not (folder / n).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {', '.join(missing)} missing: weights, head and the head's meaning only "
            "work together; export the run again"
        )
    if base is None:
        language = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        rows = len(AutoTokenizer.from_pretrained(folder))
        if rows > base.get_input_embeddings().weight.shape[0]:
            base.resize_token_embeddings(rows, mean_resizing=False)
        language = PeftModel.from_pretrained(base, folder)
    scorer, text = with_head(folder, language)
    return scorer.eval(), text


def with_head(folder: Path, language: nn.Module) -> tuple[Scorer, ChainText]:
    """The language model with the head in ``folder``; CheckpointError where it does not fit."""
    means = json.loads((folder / MEANING_FILE).read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if means["token"] and means["token"] not in tokenizer.get_vocab():
        raise CheckpointError(f"{folder}: the tokenizer does not know {means['token']}")
    scorer = Scorer(language, HeadShape.model_validate(means["head"]))
    try:
        scorer.head.load_state_dict(load_file(folder / HEAD_FILE), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / HEAD_FILE}: does not fit: {error}") from error
    low, high = means["target_range"]
    written = ("problem_format", "evidence_format", "token", "max_tokens")
    text = ChainText(
        tokenizer=tokenizer, low=low, high=high, **{name: means[name] for name in written}
    )
    return scorer, text
