"""Rows share a forward pass without padding, and attention cannot cross from one row to the next.

A microbatch is flat: its rows lie end to end in one sequence [1, tokens], and ``row_ends`` says
where each stops (where each document stops, in a packed row). The attention function registered
here cuts queries, keys and values at those ends and attends within each piece: isolation by
construction, with no mask to get wrong (Transformers' own packing by position ids is silently off
when ``use_cache`` is left at its default or when any mask is given). Without ``row_ends`` it
raises. On CUDA the pieces go through PyTorch's variable-length flash attention in one call.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.engine.fake import is_fake, kind_of
from headway.engine.precision import autocast
from headway.errors import ConfigError
from headway.models.backbone import backbone, base_model
from headway.models.cpu_attention import grouped_attention

NAME = "headway"
GENERATING = "sdpa"
GROUPED_TOKENS = 1024
"""Longest segment for which matrix products beat PyTorch's flash kernel on CPU."""
REFUSED = ("softcap", "s_aux", "position_bias", "cache")
"""What a family may ask of its attention function that none of the paths here computes."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Where attention is cut: the sequence dimension, at the same places for every batch row."""

    ends: tuple[int, ...]
    """Cumulative, strictly rising; the last is the number of tokens."""
    cumulative: Tensor | None = field(default=None, compare=False)
    """0 and the ends as int32 [segments + 1] on the GPU, made once per forward; None on CPU."""

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(start, end) of each segment."""
        return list(zip((0, *self.ends[:-1]), self.ends, strict=True))

    @property
    def lengths(self) -> list[int]:
        """Tokens in each segment."""
        return [end - start for start, end in self.spans]


def segments(
    row_ends: Sequence[int],
    tokens: int,
    device: torch.device | str = "cpu",
    kind: str | None = None,
) -> Segments:
    """Checked segments for a sequence of ``tokens``. ValueError when they do not tile it.

    ``kind``: of the device, where that is not its own (``engine.fake.kind_of``).
    """
    ends = tuple(int(end) for end in row_ends)
    rising = all(a < b for a, b in zip((0, *ends), ends, strict=False))
    if not ends or not rising or ends[-1] != tokens:
        raise ValueError(f"row_ends {list(ends)} do not cut {tokens} tokens into non-empty rows")
    if (kind or torch.device(device).type) != "cuda":
        return Segments(ends)
    # Made on the host and sent without waiting: made on the GPU, it would wait for all work before.
    cumulative = torch.tensor((0, *ends), dtype=torch.int32)
    return Segments(ends, cumulative.to(device, non_blocking=True))


def hidden_states(
    model: nn.Module,
    given: Tensor,
    position_ids: Tensor,
    row_ends: Sequence[int],
) -> Tensor:
    """Last hidden states [tokens, hidden] of a flat microbatch, each row seeing only itself.

    ``given`` are token ids [1, tokens], or embeddings [1, tokens, width] in their place;
    ``position_ids`` [1, tokens] restart in every row. A model that ``isolate`` could not switch
    runs one row per forward pass instead: slower, never wrong.
    """
    body = backbone(model).body
    cuts = segments(row_ends, given.shape[1], given.device, kind_of(given))
    name = "inputs_embeds" if given.is_floating_point() else "input_ids"
    if is_isolated(model):
        called = {name: given, "position_ids": position_ids}
        return body(**called, segments=cuts, use_cache=False).last_hidden_state[0]
    rows = [
        body(
            **{name: given[:, start:end]},
            position_ids=position_ids[:, start:end],
            use_cache=False,
        ).last_hidden_state[0]
        for start, end in cuts.spans
    ]
    return torch.cat(rows)


def is_isolated(model: nn.Module) -> bool:
    """True when rows may share a forward pass of this model."""
    return bool(base_model(model).config.get_text_config()._attn_implementation == NAME)


def isolate(model: nn.Module) -> bool:
    """Switch a loaded model to isolated attention and prove it once on random tokens.

    True: rows share a forward pass. False: this family cannot (its layers do not hand ``segments``
    down, mix tokens outside attention, or need an attention feature that is not here), so the model
    is left as it was and ``hidden_states`` runs one row at a time. Nothing in between exists.
    """
    base = base_model(model)
    if not getattr(base, "_supports_sdpa", False):
        return False
    before = base.config.get_text_config()._attn_implementation
    _register()
    attend_by(base, NAME)
    proof = _runs if is_fake(model) else _proved
    if is_isolated(model) and proof(model):
        return True
    attend_by(base, before)
    return False


def attend_by(base: Any, name: str) -> None:
    """Switch the language model's attention; a vision tower beside it keeps its own, which looks in
    both directions and knows nothing of rows."""
    text = base.config.get_text_config()
    parts = getattr(base.config, "sub_configs", None) or {}
    own = next((part for part in parts if getattr(base.config, part, None) is text), None)
    base.set_attn_implementation(name if own is None else {own: name})


@contextmanager
def generating(model: nn.Module) -> Iterator[nn.Module]:
    """Let the model attend through its cache, for ``generate``; isolation is back afterwards."""
    base, isolated = base_model(model), is_isolated(model)
    if isolated:
        attend_by(base, GENERATING)
    try:
        yield model
    finally:
        if isolated:
            attend_by(base, NAME)


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only each layer's input and recompute the rest in backward: less memory, more time."""
    base = base_model(model)
    if not getattr(base, "supports_gradient_checkpointing", False):
        raise ConfigError(
            f"{type(base).__name__} cannot recompute activations; "
            "set hardware.activation_checkpointing: false"
        )
    recent = getattr(base, "activation_checkpointing_enable", None)  # named so since 5.23
    enable = recent or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def recompute(model: nn.Module) -> bool:
    """``checkpoint_activations`` if it is not on yet; False if it is, or the model cannot."""
    base = base_model(model)
    able = getattr(base, "supports_gradient_checkpointing", False)
    if not able or getattr(base, "is_gradient_checkpointing", False):
        return False
    checkpoint_activations(model)
    return True


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Segments | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment; the signature is Transformers' attention interface.

    ``query`` [batch, heads, tokens, width], ``key`` and ``value`` [batch, kv heads, tokens, width];
    returns [batch, tokens, heads, width]. RuntimeError when segments did not arrive.
    """
    if segments is None or attention_mask is not None or key.shape[2] != query.shape[2]:
        raise RuntimeError(
            "isolated attention was called without segments, with a mask, or with a cache: "
            "go through headway.models.attention.hidden_states, or generating(model) to generate"
        )
    asked = [name for name in REFUSED if unused.get(name) is not None]
    if asked or not getattr(module, "is_causal", True):
        raise RuntimeError(f"isolated attention computes no {asked or 'bidirectional attention'}")
    if _varlen_fits(query, value, dropout, segments):
        return _varlen(query, key, value, scaling, segments, sliding_window), None
    out = _by_segment(query, key, value, dropout, scaling, segments, sliding_window)
    return out.transpose(1, 2), None


def _by_segment(query, key, value, dropout, scaling, cuts: Segments, window: int | None) -> Tensor:
    """One attention call per segment, or one for all when they are equally long."""
    lengths = cuts.lengths
    if _grouped_fits(query, dropout, lengths, window):
        return _grouped(query, key, value, scaling, lengths)
    if len(set(lengths)) == 1 and query.shape[0] == 1:
        q, k, v = (_stack(t, len(lengths)) for t in (query, key, value))
        out = _causal(q, k, v, dropout, scaling, window)
        return out.transpose(0, 1).flatten(1, 2).unsqueeze(0)
    pieces = zip(*(t.split(lengths, dim=2) for t in (query, key, value)), strict=True)
    return torch.cat([_causal(q, k, v, dropout, scaling, window) for q, k, v in pieces], dim=2)


def _grouped(query, key, value, scaling: float | None, lengths: list[int]) -> Tensor:
    """The CPU's matrix products; equally long rows become one more batch dimension of them."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kind, rows = torch.bfloat16, len(lengths)
    if rows == 1 or len(set(lengths)) > 1:
        out = grouped_attention(query[0], key[0], value[0], lengths, scale, kind)
        return out.unsqueeze(0)
    q, k, v = (_stack(t, rows).flatten(0, 1) for t in (query, key, value))
    out = grouped_attention(q, k, v, lengths[:1], scale, kind)
    return out.unflatten(0, (rows, -1)).transpose(0, 1).flatten(1, 2).unsqueeze(0)


def _stack(flat: Tensor, rows: int) -> Tensor:
    """[1, heads, rows * length, width] -> [rows, heads, length, width], without a copy."""
    return flat[0].unflatten(1, (rows, -1)).transpose(0, 1)


def _causal(q, k, v, dropout: float, scaling: float | None, window: int | None) -> Tensor:
    mask = None
    tokens = q.shape[2]
    if window is not None and tokens > window:
        distance = torch.arange(tokens, device=q.device)[:, None] - torch.arange(
            tokens, device=q.device
        )
        mask = (distance >= 0) & (distance < window)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _grouped_fits(query: Tensor, dropout: float, lengths: list[int], window: int | None) -> bool:
    """Whether the CPU's matrix products are the faster way: bf16, segments of ordinary length."""
    return (
        kind_of(query) == "cpu"
        and query.shape[0] == 1
        and dropout == 0.0
        and max(lengths) <= min(GROUPED_TOKENS, window or GROUPED_TOKENS)
        and _half_type(query) == torch.bfloat16
    )


def _varlen_fits(query: Tensor, value: Tensor, dropout: float, cuts: Segments) -> bool:
    """Whether PyTorch's variable-length flash attention can take this call (Ampere and later)."""
    return (
        cuts.cumulative is not None
        and kind_of(query) == "cuda"
        and query.shape[0] == 1
        and dropout == 0.0
        and query.shape[-1] == value.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
        and _half_type(query) is not None
        and (is_fake(query) or torch.cuda.get_device_capability(query.device) >= (8, 0))
    )


def _half_type(query: Tensor) -> torch.dtype | None:
    """The half precision that flash attention would run in here, or None in full precision."""
    half = (torch.bfloat16, torch.float16)
    if query.dtype in half:
        return query.dtype
    kind = query.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) in half:
        return torch.get_autocast_dtype(kind)
    return None


def _varlen(query, key, value, scaling, cuts: Segments, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    kind = _half_type(query)
    q, k, v = (t[0].transpose(0, 1).to(kind).contiguous() for t in (query, key, value))
    parameters = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"scale": scaling}
    if "window_size" in parameters:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        options["is_causal"] = True
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in parameters:
            options["enable_gqa"] = True
        else:
            k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    longest = max(cuts.lengths)
    bounds: Any = cuts.cumulative
    out: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest, **options)
    return out.unsqueeze(0)


def _register() -> None:
    """Make the function known to Transformers; no mask function, so that no mask is ever built."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


@torch.no_grad()
def _proved(model: nn.Module) -> bool:
    """Random rows together equal each alone, and new tokens in two leave the third as it was.

    The second test needs almost no tolerance, so it catches a faint leak even in half precision.
    """
    base = base_model(model)
    embedding = base.get_input_embeddings().weight
    lengths = [5, 9, 3]
    ends = [5, 14, 17]
    high = min(embedding.shape[0], 1000)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, high, (1, ends[-1]), generator=generator).to(embedding.device)
    others = ids.clone()
    others[0, :5] = (others[0, :5] + 1) % high
    others[0, 14:] = (others[0, 14:] + 1) % high
    positions = torch.cat([torch.arange(n) for n in lengths])[None].to(embedding.device)
    kinds = {parameter.dtype for parameter in base.parameters()}
    mixed = torch.bfloat16 in kinds and torch.float32 in kinds
    training = base.training
    base.eval()
    try:
        with torch.autocast(embedding.device.type, dtype=torch.bfloat16, enabled=mixed):
            with generating(model):  # an error here is the model's own, and is raised
                own = hidden_states(model, ids[:, 5:14], positions[:, 5:14], [9]).float()
            try:
                together = hidden_states(model, ids, positions, ends)[5:14].float()
                disturbed = hidden_states(model, others, positions, ends)[5:14].float()
                alone = hidden_states(model, ids[:, 5:14], positions[:, 5:14], [9]).float()
            except (RuntimeError, TypeError, ValueError):
                return False
    finally:
        base.train(training)
    size = together.abs().max()
    exact = 1e-4 if kinds == {torch.float32} else 5e-2
    near = [(together - disturbed, 1e-5), (together - alone, exact), (together - own, exact)]
    return all(bool((error.abs().max() <= limit * size).item()) for error, limit in near)


@torch.no_grad()
def _runs(model: nn.Module) -> bool:
    """Where there are no numbers to compare: whether rows together run through the model at all."""
    base = base_model(model)
    kinds = {parameter.dtype for parameter in base.parameters()}
    mixed = torch.bfloat16 in kinds and torch.float32 in kinds
    device = base.get_input_embeddings().weight.device
    ids = torch.zeros(1, 17, dtype=torch.long, device=device)
    try:
        with autocast("bf16" if mixed else "fp32", device):
            hidden_states(model, ids, ids, [5, 14, 17])
    except (RuntimeError, TypeError, ValueError):
        return False
    return True
