"""An answer of a language model: where it ends, and whether it was cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cases import tree_of
from headway.config import RunConfig
from headway.models.attention import generating
from headway.models.backbone import base_model
from headway.opening import opened
from headway.recipes.generate import continued, generate, pad_id, prompt_ids
from headway.recipes.text import TextTask

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_chat_answer_says_whether_it_came_to_its_end(tmp_path: Path) -> None:
    asked = {"prompt": "What is red?", "max_new_tokens": 4}
    with opened(RunConfig(**tree_of("sft-lora", tmp_path))) as run:
        task: TextTask = run.task  # type: ignore[assignment]
        task.model.eval()
        settings = base_model(task.model).generation_config
        settings.eos_token_id = None
        ids = prompt_ids(task, asked, chat=True)
        with torch.no_grad(), generating(task.model) as model:
            said = continued(base_model(model), ids, 4, 0.0, pad_id(task))[0, ids.shape[1] :]
        never = next(n for n in range(100) if n not in said.tolist())
        first = int(said[0])
        for ends in (None, never, [never]):
            settings.eos_token_id = ends
            cut = generate(task, asked, chat=True)
            assert (cut["tokens"], cut["finished"]) == (4, False)
        for ends in (first, [never, first]):
            settings.eos_token_id = ends
            whole = generate(task, asked, chat=True)
            assert (whole["tokens"], whole["finished"]) == (1, True)
        assert "finished" not in generate(task, asked, chat=False), "a text has no end to reach"
