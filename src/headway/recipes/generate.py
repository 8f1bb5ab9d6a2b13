"""One answer of a trained language model, with the prompt built as it was for training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from headway.engine.evaluate import undisturbed
from headway.engine.precision import autocast
from headway.errors import ConfigError
from headway.models.attention import generating
from headway.models.backbone import base_model

if TYPE_CHECKING:
    from headway.recipes.text import TextTask

KEYS = ("prompt", "messages", "max_new_tokens", "temperature", "seed")


def check(request: Mapping[str, Any]) -> None:
    """Raise ConfigError for what ``generate`` does not take, or cannot answer."""
    unknown = [str(key) for key in request if key not in KEYS]
    if unknown:
        raise ConfigError(
            f"predict: a language model takes no {' and no '.join(unknown)}; leave it out "
            f"(it takes {', '.join(KEYS)})"
        )
    if not isinstance(request.get("prompt", ""), str):
        raise ConfigError(f"predict: prompt must be a text, not {request['prompt']!r}")
    if not ("prompt" in request or "messages" in request):
        raise ConfigError("predict needs prompt (a text) or messages (a conversation)")


def generate(task: TextTask, request: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
    """``prompt`` or ``messages`` -> ``text`` (the answer alone), ``tokens``, ``seconds``; of a
    ``chat`` also ``finished``: the answer came to its end and was not cut off.

    Greedy unless ``temperature`` is above 0; then drawn by ``seed``. Raises ConfigError for unknown
    keys, or where there is nothing to answer.
    """
    check(request)
    assert task.tokenizer is not None
    device = next(task.model.parameters()).device
    ids = prompt_ids(task, request, chat).to(device)
    temperature = float(request.get("temperature", 0.0))
    new_tokens = int(request.get("max_new_tokens", 128))
    started = time.perf_counter()
    with undisturbed(task.model, device), autocast(task.context.precision, device):
        torch.manual_seed(int(request.get("seed", 0)))
        with generating(task.model) as model:
            made = continued(base_model(model), ids, new_tokens, temperature, pad_id(task))
    answer = made[0, ids.shape[1] :].tolist()
    ends = base_model(task.model).generation_config.eos_token_id
    finished = bool({*answer[-1:]} & {*(ends if isinstance(ends, list) else [ends])})
    return {
        "text": task.tokenizer.decode(answer, skip_special_tokens=True),
        "tokens": len(answer),
        **({"finished": finished} if chat else {}),
        "seconds": time.perf_counter() - started,
    }


def continued(
    model: Any, ids: torch.Tensor, new_tokens: int, temperature: float, pad: int
) -> torch.Tensor:
    """``ids`` [1, tokens] and what follows; beyond the model's context the oldest tokens drop
    out."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is None or ids.shape[1] + new_tokens <= context:
        options: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            options["temperature"] = temperature
        made: torch.Tensor = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            pad_token_id=pad,
            **options,
        )
        return made
    for _ in range(new_tokens):
        logits = model(input_ids=ids[:, -context:], use_cache=False).logits[0, -1].float()
        if temperature > 0:
            following = torch.multinomial(torch.softmax(logits / temperature, -1), 1)
        else:
            following = logits.argmax(keepdim=True)
        ids = torch.cat([ids, following[None]], dim=1)
    return ids


def prompt_ids(task: TextTask, request: Mapping[str, Any], chat: bool) -> torch.Tensor:
    """Token ids [1, tokens] of what the model is given, through the template it was trained
    with."""
    tokenizer = task.tokenizer
    assert tokenizer is not None
    messages = request.get("messages")
    if messages is None and chat and task.template is not None:
        messages = [{"role": "user", "content": request["prompt"]}]
    if messages is None:
        return torch.tensor([tokenizer(request["prompt"])["input_ids"]])
    text = tokenizer.apply_chat_template(
        messages, chat_template=task.template, tokenize=False, add_generation_prompt=True
    )
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


def pad_id(task: TextTask) -> int:
    """Any id will do for one row; generate only wants to be told."""
    config = base_model(task.model).generation_config
    assert task.tokenizer is not None
    found = config.pad_token_id if config.pad_token_id is not None else task.tokenizer.eos_token_id
    return int(found or 0)
