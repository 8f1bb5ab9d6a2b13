"""What a vision-language model reads in pictures, greedily, with the prompt it was trained with.

Several rows are read at once, shorter prompts padded on the left: the model's places and its
attention leave the padding out. The prompt is never part of what was read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headway.data.page_text import fields_of
from headway.data.pictures import decoded, named, picture_of, question
from headway.engine.evaluate import undisturbed
from headway.engine.precision import autocast
from headway.engine.task import GoOn, no_stop
from headway.errors import ConfigError, DataError
from headway.models.attention import generating
from headway.models.backbone import base_model
from headway.models.eyes import Arrays
from headway.models.vision import flat_pictures

if TYPE_CHECKING:
    from headway.recipes.vision_task import VisionTask

KEYS = ("image", "images", "page", "instruction", "max_new_tokens")
AT_ONCE = 16
"""Rows that are read together."""


@dataclass(frozen=True, slots=True)
class Read:
    """What was read of one row."""

    text: str
    tokens: int
    finished: bool
    """Whether the model said that the answer ends, and was not cut off."""


def check(request: Mapping[str, Any]) -> None:
    """Raise ConfigError for what ``predict`` does not take."""
    unknown = [str(key) for key in request if key not in KEYS]
    if unknown:
        raise ConfigError(
            f"predict: the recipe vision takes no {' and no '.join(unknown)}; leave it out (it "
            f"takes {', '.join(KEYS)}, and reads greedily)"
        )
    if ("image" in request) == ("images" in request):
        raise ConfigError("predict needs image (a path, a data: URI or bytes), or a list: images")
    if not isinstance(request.get("instruction", ""), str):
        raise ConfigError(f"predict: instruction must be a text, not {request['instruction']!r}")
    several = request.get("images", [None])
    if not isinstance(several, list | tuple) or not several:
        raise ConfigError(f"predict: images must be a list of pictures, not {several!r}")
    for name, least in (("max_new_tokens", 1), ("page", 0)):
        value = request.get(name, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"predict: {name} must be a whole number from {least}, not {value!r}")


def predict(task: VisionTask, request: Mapping[str, Any]) -> dict[str, Any]:
    """``image`` -> ``text``, its ``fields``, ``tokens``, ``finished``, ``seconds``."""
    check(request)
    started = time.perf_counter()
    ids, pictures = prompt_of(task, request)
    read = read_rows(task, [(ids, pictures)], int(request.get("max_new_tokens", 1024)))[0]
    return {
        "text": read.text,
        "fields": [[field, value] for field, value in fields_of(read.text)],
        "tokens": read.tokens,
        "finished": read.finished,
        "prompt_tokens": len(ids),
        "seconds": time.perf_counter() - started,
    }


def prompt_of(
    task: VisionTask, request: Mapping[str, Any]
) -> tuple[NDArray[np.int32], list[Arrays]]:
    """Token ids [tokens] and pictures of a request, written as a training row is."""
    instruction = request.get("instruction", task.instruction)
    if instruction is None:
        raise ConfigError(
            "predict: this run's rows each had an instruction of their own; give --instruction"
        )
    given = request.get("images", None) or [request["image"]]
    images, features = [], []
    for number, value in enumerate(given, 1):
        picture = replace(picture_of(value, f"picture {number}", ""), page=request.get("page", 0))
        image = decoded(picture, task.reading)
        try:
            features.append(task.eyes.features(image.height, image.width))
        except ValueError as error:
            raise DataError(
                f"{named(picture)}: {image.width} x {image.height} pixels, which this model cannot "
                f"take: {error}. Crop it"
            ) from error
        images.append(image)
    messages = question(instruction, len(images))
    ids = task.writer.prompt(messages, features, "the request")
    return ids, [task.eyes.pixels(image) for image in images]


def read_held(
    task: VisionTask, rows: Sequence[int], new_tokens: int, go_on: GoOn = no_stop
) -> list[Read]:
    """What the model reads in these held-out rows."""
    assert task.held is not None
    chosen = [task.held[row] for row in rows]
    prompts = [(row.ids[: row.prompt_tokens], task.pictures(row, None)) for row in chosen]
    return read_rows(task, prompts, new_tokens, go_on)


def read_rows(
    task: VisionTask,
    prompts: Sequence[tuple[NDArray[Any], Sequence[Arrays]]],
    new_tokens: int,
    go_on: GoOn = no_stop,
) -> list[Read]:
    """Greedy answers to prompts, in their order; those of like length are read together.

    ``go_on`` is called at each token.
    """
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n][0]))
    found: dict[int, Read] = {}
    device = next(task.model.parameters()).device
    with undisturbed(task.model, device), autocast(task.context.precision, device):
        with generating(task.model) as model:
            for start in range(0, len(order), AT_ONCE):
                together = order[start : start + AT_ONCE]
                given = [prompts[n] for n in together]
                answers = _together(task, base_model(model), given, new_tokens, go_on)
                found.update(zip(together, answers, strict=True))
    return [found[n] for n in range(len(prompts))]


def _together(
    task: VisionTask,
    model: Any,
    prompts: Sequence[tuple[NDArray[Any], Sequence[Arrays]]],
    new_tokens: int,
    go_on: GoOn,
) -> list[Read]:
    device = next(model.parameters()).device
    ends = end_tokens(task)
    inputs = {key: value.to(device) for key, value in padded(task, prompts).items()}
    width = inputs["input_ids"].shape[1]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None:
        new_tokens = max(1, min(new_tokens, context - width))
    made: Tensor = model.generate(
        **inputs,
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=ends[0],
        eos_token_id=ends,
        stopping_criteria=[never_stopping(go_on)],
    )
    return list(_answers(task, made[:, width:].tolist(), ends))


def never_stopping(go_on: GoOn) -> Callable[..., Tensor]:
    """What ``generate`` asks after each token, [rows] of no: it only says that it goes on."""

    def asked(ids: Tensor, scores: Tensor, **more: Any) -> Tensor:
        go_on()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    return asked


def _answers(task: VisionTask, made: list[list[int]], ends: list[int]) -> Iterator[Read]:
    for ids in made:
        stop = next((n for n, token in enumerate(ids) if token in ends), None)
        answer = ids if stop is None else ids[:stop]
        text = task.tokenizer.decode(answer, skip_special_tokens=True)
        yield Read(text, len(answer), stop is not None)


def padded(
    task: VisionTask, prompts: Sequence[tuple[NDArray[Any], Sequence[Arrays]]]
) -> dict[str, Tensor]:
    """Prompts as the model's own ``generate`` reads them: [rows, tokens], padded on the left."""
    width = max(len(ids) for ids, _ in prompts)
    filler = end_tokens(task)[0]
    ids = np.full((len(prompts), width), filler, dtype=np.int64)
    mask = np.zeros((len(prompts), width), dtype=np.int64)
    for row, (given, _) in enumerate(prompts):
        ids[row, width - len(given) :] = given
        mask[row, width - len(given) :] = 1
    flat = flat_pictures([pictures for _, pictures in prompts])
    found = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    found |= {key: flat[key] for key in flat["picture_keys"]}
    if "image_grid_thw" in found:
        found["mm_token_type_ids"] = (found["input_ids"] == task.eyes.image_id).int()
    return found


def end_tokens(task: VisionTask) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and those that the model's own settings name."""
    own = base_model(task.model).generation_config.eos_token_id
    found = own if isinstance(own, list) else [own]
    every = [task.tokenizer.eos_token_id, *found]
    ends = list(dict.fromkeys(int(token) for token in every if token is not None))
    if not ends:
        raise ConfigError("the tokenizer has no EOS token, so an answer would never end")
    return ends
