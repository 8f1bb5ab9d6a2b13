"""Train a language model from random weights on a stream of tokens.

Shapes of GPT-NeoX, Llama and GPT-2; token shards, the seed's NPZ files, or plain text.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from headway.config import CLOSED
from headway.data.order import rows_at
from headway.data.shards import tokenize
from headway.data.sources import Source, fingerprint, read_records
from headway.data.tokenizers import identity, train_characters
from headway.data.tokens import TokenStream
from headway.engine.precision import weights_dtype
from headway.engine.task import BuildContext, GoOn
from headway.errors import ConfigError, DataError
from headway.models.attention import checkpoint_activations, isolate
from headway.models.backbone import backbone, prove_backbone
from headway.models.lora_linear import fuse_gelu
from headway.models.rms_norm import fuse_rms_norm
from headway.recipes.batching import drawn
from headway.recipes.checks import shortened
from headway.recipes.export import export_model
from headway.recipes.generate import check, generate
from headway.recipes.language_model import count
from headway.recipes.text import TextTask, TokenRow, TokenRows
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


class StreamData(BaseModel):
    """Where tokens come from: folders of shards or NPZ files, or text to tokenise now."""

    model_config = CLOSED

    train: str
    """A folder of token shards (`headway data tokenize`), of NPZ files, or text files."""
    eval: str | None = None
    """The same, held out."""
    eval_tail: float | None = Field(default=None, gt=0, lt=1)
    """Hold out this share of the training tokens, at the end."""
    isolate_documents: bool = True
    """Attention does not cross from one document to the next."""


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


@dataclass(frozen=True)
class StreamRows:
    """Consecutive windows of a token stream; every token but the first is a target once."""

    stream: TokenStream
    length: int
    isolated: bool
    tokenizer: Any
    chosen: np.ndarray[Any, np.dtype[np.int64]] | None = None
    """Only these windows, or None: all."""

    def __len__(self) -> int:
        return self.stream.rows(self.length) if self.chosen is None else len(self.chosen)

    def __getitem__(self, row: int) -> TokenRow:
        window = self.stream.window(self._window(row), self.length)
        tokens = len(window.ids) - 1
        at = np.arange(tokens)
        cuts: list[int] = []
        if self.isolated:  # then nothing predicts a document's first token
            cuts = [int(start) for start in window.starts if 0 < start < tokens]
            at = np.setdiff1d(at, window.starts - 1)
        return TokenRow(
            ids=window.ids[:-1], ends=(*cuts, tokens), at=at, targets=window.ids[at + 1]
        )

    def shown(self, row: int) -> dict[str, Any]:
        """Which tokens of the stream, and their text."""
        start = self._window(row) * self.length
        text = self.tokenizer.decode(self[row].targets.tolist()) if self.tokenizer else ""
        return {"where": f"token {start}", "prompt": "", "reference": text}

    def lengths(self) -> NDArray[np.int64]:
        """[rows] tokens of each window; only the last of the stream may be shorter."""
        return np.full(len(self), self.length, dtype=np.int64)

    def _window(self, row: int) -> int:
        return row if self.chosen is None else int(self.chosen[row])


class PretrainRecipe:
    """The recipe ``pretrain``."""

    Config = PretrainConfig

    def build(self, config: PretrainConfig, context: BuildContext) -> TextTask:
        """Tokenizer, streams and a model with random weights drawn from the run's seed."""
        tokenizer = load_tokenizer(config, context)
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
            Check("data", lambda: look_at_streams(config, context), needs=("tokenizer",)),
        ]

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


def load_tokenizer(config: PretrainConfig, context: BuildContext) -> Any:
    """The configured tokenizer. Raises ConfigError or DataError when there is none."""
    if config.tokenizer == "characters":
        folder = Path(config.data.train)
        if (folder / "index.json").exists():
            raise ConfigError("task.tokenizer: shards have theirs in tokenizer/; name that folder")
        text = "".join(str(record.data["text"]) for record in read_records(config.data.train))
        return train_characters(text)
    try:
        return AutoTokenizer.from_pretrained(config.tokenizer, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"task.tokenizer: {config.tokenizer} cannot be loaded: {error}"
        ) from error


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
    tokenizer = load_tokenizer(config, context)
    make_config(config.model, len(tokenizer), config.sequence_tokens)  # its sizes fit each other
    yield Finding(level="note", name="tokenizer", what=f"{len(tokenizer):,} tokens")


def look_at_streams(config: PretrainConfig, context: BuildContext) -> Iterator[Finding]:
    """What preflight finds in the tokens: how many there are, and how the first ones read."""
    tokenizer = load_tokenizer(config, context)
    train, held = open_streams(config, tokenizer, context)
    for line in stream_lines(config, train, held):
        yield Finding(level="note", name="data", what=line)
    text = tokenizer.decode(train.window(0, config.sequence_tokens).ids.tolist())
    what = f"the first row, every token but the first learned:\n{shortened(text, 300)}"
    yield Finding(level="note", name="data", what=what)


def with_streams(task: TextTask, config: PretrainConfig, context: BuildContext) -> TextTask:
    """The task with its training and held-out windows."""
    data, length = config.data, config.sequence_tokens
    train, held = open_streams(config, task.tokenizer, context)
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
            "data": stream_lines(config, train, held),
            "samples": config.samples,
            "sample_tokens": config.sample_tokens,
            "identities": {
                **task.described["identities"],
                "data": train.identity[:16],
                **({"held_out": held.identity[:16]} if held is not None else {}),
            },
        },
    )


def open_streams(
    config: PretrainConfig, tokenizer: Any, context: BuildContext
) -> tuple[TokenStream, TokenStream | None]:
    """Tokens to train on, and those held out."""
    data = config.data
    train = open_stream(data.train, tokenizer, context)
    if data.eval_tail:
        cut = int(len(train) * (1 - data.eval_tail))
        return train.part(0, cut), train.part(cut, len(train))
    return train, open_stream(data.eval, tokenizer, context) if data.eval else None


def stream_lines(config: PretrainConfig, train: TokenStream, held: TokenStream | None) -> list[str]:
    """How many tokens there are."""
    lines = [f"train: {config.data.train}: {len(train):,} tokens, {train.documents:,} documents"]
    return lines if held is None else [*lines, f"held-out: {len(held):,} tokens"]


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


def open_stream(place: str, tokenizer: Any, context: BuildContext) -> TokenStream:
    """The tokens of a folder of shards or NPZ files; text is tokenised into the cache first."""
    folder = Path(place)
    if folder.is_dir() and ((folder / "index.json").exists() or any(folder.glob("*.npz"))):
        return TokenStream.open(folder, tokenizer)
    if not folder.exists() and "://" not in place:
        raise DataError(f"task.data: there is no file or folder {place}")
    source = Source(path=place)
    to = context.cache / "tokens" / tokens_key(source, tokenizer)
    tokenize([source], tokenizer, to)
    return TokenStream.open(to, tokenizer)


def tokens_key(source: Source, tokenizer: Any) -> str:
    """Names the cache folder by what the tokens are a function of."""
    return hashlib.sha256(f"{fingerprint(source)} {identity(tokenizer)}".encode()).hexdigest()[:24]


def bytes_of(task: TextTask) -> int:
    """UTF-8 bytes of the held-out targets, as the tokenizer writes them."""
    assert task.held is not None and task.tokenizer is not None
    rows = [task.held[row].targets for row in range(len(task.held))]
    text = task.tokenizer.decode(np.concatenate(rows).tolist(), skip_special_tokens=True)
    return max(1, len(text.encode()))


RECIPE = PretrainRecipe()
