"""Train a language model from random weights on a stream of tokens.

Shapes of GPT-NeoX, Llama and GPT-2; token shards, the seed's NPZ files, or plain text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from headway.config import CLOSED
from headway.data.order import rows_at
from headway.data.tokenizers import identity
from headway.data.tokens import TokenStream
from headway.engine.precision import weights_dtype
from headway.engine.task import BuildContext, GoOn, RowAsRead, Survey
from headway.errors import ConfigError
from headway.models.attention import checkpoint_activations, isolate
from headway.models.backbone import backbone, prove_backbone
from headway.models.lora_linear import fuse_gelu
from headway.models.rms_norm import fuse_rms_norm
from headway.recipes.batching import drawn
from headway.recipes.export import export_model
from headway.recipes.generate import check, generate
from headway.recipes.language_model import count
from headway.recipes.streams import (
    StreamData,
    StreamRows,
    load_tokenizer,
    look_at_streams,
    open_streams,
    stream_lines,
    surveyed,
    windows_as_read,
)
from headway.recipes.text import TextTask, TokenRows
from headway.records import Check, Evaluation, Finding


class Shape(BaseModel):
    """The model's architecture and size."""

    model_config = CLOSED

    family: Literal["gpt_neox", "llama", "gpt2"]
    """Which architecture of transformers."""
    layers: int = Field(ge=1)
    """Transformer layers."""
    hidden_size: int = Field(ge=1)
    """Width of the residual stream."""
    heads: int = Field(ge=1)
    """Attention heads."""
    kv_heads: int | None = Field(default=None, ge=1)
    """Key and value heads (llama); left out: as many as heads."""
    ffn_size: int | None = Field(default=None, ge=1)
    """Width of the feed-forward layer; left out: 4 times the hidden size."""
    tied_embeddings: bool = False
    """Whether input embedding and output head are one matrix."""
    rotary_fraction: float = Field(default=0.25, gt=0, le=1)
    """Share of each head that is rotated (gpt_neox)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """On embeddings, attention and residuals (gpt2, gpt_neox)."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights."""


class PretrainConfig(BaseModel):
    """What to train from scratch, and on what."""

    model_config = CLOSED

    model: Shape
    """Architecture and size."""
    tokenizer: str
    """`characters` (one token each, made from the training text), a folder, or a hub name."""
    sequence_tokens: int = Field(ge=2)
    """Tokens in a row."""
    samples: tuple[str, ...] = Field(default=(), strict=False)
    """Prompts to continue greedily at each evaluation."""
    sample_tokens: int = Field(default=100, ge=1)
    """Tokens in each of these continuations."""
    data: StreamData
    """Where tokens come from."""


class PretrainRecipe:
    """The recipe ``pretrain``."""

    Config = PretrainConfig

    def build(self, config: PretrainConfig, context: BuildContext) -> TextTask:
        """Tokenizer, streams and a model with random weights drawn from the run's seed."""
        tokenizer = load_tokenizer(config.tokenizer, config.data)
        torch.manual_seed(context.seed)
        layers, all_layers = context.layers, config.model.layers
        if layers is not None and layers < all_layers:
            config = config.model_copy(
                update={"model": config.model.model_copy(update={"layers": layers})}
            )
        model = make_model(config, len(tokenizer), weights_dtype(context.precision))
        model.to(torch.device(context.device))
        prove_backbone(model)
        fuse_gelu(model)
        fuse_rms_norm(model)
        isolate(model)
        if context.activation_checkpointing:
            checkpoint_activations(model)
        if context.compile:
            backbone(model).body.compile()
        total = sum(count(p) for p in model.parameters())
        task = TextTask(
            model=model,
            tokenizer=tokenizer,
            context=context,
            base_model=f"{config.model.family} {total / 1e6:.3g}M",
            described={"identities": {"tokenizer": identity(tokenizer)[:16]}, "layers": all_layers},
            most_tokens=config.sequence_tokens,
        )
        return with_streams(task, config, context) if context.data else task

    def checks(self, config: PretrainConfig, context: BuildContext) -> list[Check]:
        """The tokenizer, and the streams of tokens."""
        return [
            Check("tokenizer", lambda: look_at_tokenizer(config, context)),
            Check("data", lambda: look_at_streams(config, context.cache), needs=("tokenizer",)),
        ]

    def rows_as_read(self, config: PretrainConfig, cache: Path) -> Iterator[RowAsRead]:
        """Windows of the training tokens in the order of the files, document by document."""
        yield from windows_as_read(config, cache)

    def survey(self, config: PretrainConfig, seed: int, cache: Path) -> Survey:
        """Tokens and documents counted, those that are empty or there twice too."""
        return surveyed(config, cache)

    def measure(self, task: TextTask, evaluation: Evaluation, go_on: GoOn) -> Evaluation:
        """Perplexity, bits per byte, samples, and the worst windows as text."""
        loss = evaluation.metrics["loss"]
        assert task.held is not None
        metrics = {
            **evaluation.metrics,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": loss * evaluation.weight / math.log(2) / bytes_of(task),
        }
        samples = []
        for prompt in self._prompts(task):
            go_on()
            asked = {"prompt": prompt, "max_new_tokens": task.described["sample_tokens"]}
            samples.append((prompt, str(self.predict(task, asked)["text"])))
        vocabulary = {"loss/uniform": math.log(len(task.tokenizer))}  # type: ignore[arg-type]
        return task.show_worst(
            replace(
                evaluation,
                metrics=metrics,
                samples=tuple(samples),
                baselines={**evaluation.baselines, **vocabulary},
            )
        )

    def _prompts(self, task: TextTask) -> tuple[str, ...]:
        return tuple(task.described["samples"])

    def check_request(self, request: Mapping[str, Any]) -> None:
        """Raise ConfigError for what ``predict`` does not take."""
        check(request)

    def predict(self, task: TextTask, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """``prompt`` -> ``text`` that follows; greedy unless ``temperature`` is given."""
        return generate(task, request, chat=False)

    def export(
        self, task: TextTask, config: PretrainConfig, to: Path, format: str
    ) -> Mapping[str, Any]:
        """``full``: a folder for ``AutoModelForCausalLM``, reloaded and compared."""
        return export_model(task, None, to, format)


def make_config(shape: Shape, vocabulary: int, positions: int) -> PretrainedConfig:
    """The shape as transformers writes it."""
    ffn = shape.ffn_size or 4 * shape.hidden_size
    if shape.hidden_size % shape.heads:
        raise ConfigError(
            f"task.model: hidden_size {shape.hidden_size} is not divisible by {shape.heads} heads"
        )
    if shape.family == "gpt2":
        return AutoConfig.for_model(
            "gpt2", n_layer=shape.layers, n_embd=shape.hidden_size, n_head=shape.heads, n_inner=ffn,
            vocab_size=vocabulary, n_positions=positions, resid_pdrop=shape.dropout,
            embd_pdrop=shape.dropout, attn_pdrop=shape.dropout, bos_token_id=None,
            eos_token_id=None, tie_word_embeddings=shape.tied_embeddings,
            initializer_range=shape.init_std,
        )  # fmt: skip
    shared = {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.heads,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "tie_word_embeddings": shape.tied_embeddings,
        "initializer_range": shape.init_std,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if shape.family == "llama":
        if shape.dropout:
            raise ConfigError("task.model.dropout: llama has none; set it to 0")
        return AutoConfig.for_model(
            "llama", num_key_value_heads=shape.kv_heads or shape.heads, **shared
        )
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": shape.rotary_fraction,
    }
    return AutoConfig.for_model(
        "gpt_neox", rope_parameters=rope, hidden_dropout=shape.dropout,
        attention_dropout=shape.dropout, **shared,
    )  # fmt: skip


def make_model(config: PretrainConfig, vocabulary: int, dtype: torch.dtype) -> Any:
    """The model with random weights, in training mode."""
    made = make_config(config.model, vocabulary, config.sequence_tokens)
    return AutoModelForCausalLM.from_config(made, dtype=dtype)


def look_at_tokenizer(config: PretrainConfig, context: BuildContext) -> Iterator[Finding]:
    """What preflight finds in the tokenizer."""
    tokenizer = load_tokenizer(config.tokenizer, config.data)
    make_config(config.model, len(tokenizer), config.sequence_tokens)  # its sizes fit each other
    yield Finding(level="note", name="tokenizer", what=f"{len(tokenizer):,} tokens")


def with_streams(task: TextTask, config: PretrainConfig, context: BuildContext) -> TextTask:
    """The task with its training and held-out windows."""
    data, length = config.data, config.sequence_tokens
    train, held = open_streams(config.data, task.tokenizer, context.cache)
    rows = StreamRows(train, length, data.isolate_documents, task.tokenizer)
    total = len(rows)
    return replace(
        task,
        train=rows,
        held=held_windows(held, config, context, task.tokenizer),
        held_total=held.rows(length) if held is not None else 0,
        order=lambda positions: rows_at(context.seed, positions, total),
        rows_per_epoch=total,
        tokens_per_epoch=len(train) - 1,
        described={
            **task.described,
            "model": task.base_model,
            "data": stream_lines(config.data, train, held),
            "samples": config.samples,
            "sample_tokens": config.sample_tokens,
            "identities": {
                **task.described["identities"],
                "data": train.identity[:16],
                **({"held_out": held.identity[:16]} if held is not None else {}),
            },
        },
    )


def held_windows(
    stream: TokenStream | None, config: PretrainConfig, context: BuildContext, tokenizer: Any
) -> TokenRows | None:
    """All held-out windows, or with ``held_out_rows`` a part of them, drawn by the seed."""
    if stream is None:
        return None
    chosen = drawn(stream.rows(config.sequence_tokens), context)
    return StreamRows(
        stream, config.sequence_tokens, config.data.isolate_documents, tokenizer, chosen
    )


def bytes_of(task: TextTask) -> int:
    """UTF-8 bytes of the held-out targets, as the tokenizer writes them."""
    assert task.held is not None and task.tokenizer is not None
    rows = [task.held[row].targets for row in range(len(task.held))]
    text = task.tokenizer.decode(np.concatenate(rows).tolist(), skip_special_tokens=True)
    return max(1, len(text.encode()))


RECIPE = PretrainRecipe()
