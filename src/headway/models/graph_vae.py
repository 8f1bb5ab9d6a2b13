"""A variational autoencoder of face graphs; heads read family and dimensions off a latent.

The encoder sees a set: attention over faces, whose scores are shifted by the edge between two
faces, and no positions; so the order of the faces cannot matter. The decoder answers in ordered
slots. A generated part's faces have an order of their own (``data.cad.faces``), so there is nothing
to match: Hungarian matching would search every graph, every step, for a permutation that is known.

Numbers are scaled inside of the model, by buffers that are saved with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SLOTS, FEATURES, PAIR, FACE_TYPES, FAMILIES, PARAMETERS = 11, 12, 2, 4, 6, 9
"""Faces of a part at most, numbers on each, numbers on each edge, types of faces, families, and
dimensions of a part at most: as ``data.cad`` has them."""
LOG_SIGMA_RANGE = (-8.0, 2.0)
"""Of the posterior's log standard deviation: exp of it can neither vanish nor explode."""


class VaeShape(BaseModel):
    """The size of encoder, latent and decoder."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    latent: int = Field(default=32, ge=1)
    """Numbers in a latent."""
    width: int = Field(default=128, ge=4)
    """Numbers on each face inside of the model."""
    layers: int = Field(default=3, ge=1)
    """Attention layers of the encoder."""
    decoder_layers: int = Field(default=2, ge=1)
    """Attention layers of the decoder."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; a divisor of the width."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """In each layer, after attention and after the feed-forward part."""


class Decoded(NamedTuple):
    """What a latent says of a part; the first dimension is the graph's."""

    types: Tensor
    """[n, SLOTS, FACE_TYPES + 1] logits; the last is "no face"."""
    faces: Tensor
    """[n, SLOTS, FEATURES], scaled."""
    joined: Tensor
    """[n, SLOTS, SLOTS] logits of an edge."""
    edges: Tensor
    """[n, SLOTS, SLOTS, PAIR], scaled."""
    family: Tensor
    """[n, FAMILIES] logits."""
    shares: Tensor
    """[n, FAMILIES, PARAMETERS]: dimensions as shares of their ranges, were it that family."""


class Layer(nn.Module):
    """Attention over a set, of faces say, then a feed-forward part; both on top of what was."""

    def __init__(self, width: int, heads: int, dropout: float, *, paired: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.pair = nn.Linear(PAIR + 1, heads) if paired else None
        self.forth, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, there: Tensor | None, pairs: Tensor | None) -> Tensor:
        """[n, f, width]; ``there`` [n, f]: where a face is; ``pairs`` [n, f, f, PAIR + 1]."""
        n, faces, width = x.shape
        parts = self.qkv(self.before(x)).view(n, faces, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        shift = None
        if there is not None:
            shift = torch.zeros(n, 1, 1, faces, dtype=x.dtype, device=x.device)
            shift = shift.masked_fill(~there[:, None, None], -1e4)
        if self.pair is not None and pairs is not None:
            shift = self.pair(pairs).permute(0, 3, 1, 2) + (0.0 if shift is None else shift)
        shift = None if shift is None else shift.to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=shift)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(n, faces, width)))
        found: Tensor = x + self.dropout(self.back(F.gelu(self.forth(self.between(x)))))
        return found


class GraphVae(nn.Module):
    """Encoder, decoder and heads."""

    face_mean: Tensor
    face_scale: Tensor
    pair_mean: Tensor
    pair_scale: Tensor

    def __init__(self, shape: VaeShape) -> None:
        super().__init__()
        self.shape, self.recomputes = shape, False
        width, layer = shape.width, (shape.width, shape.heads, shape.dropout)
        for name, numbers in (("face", 2 * FEATURES), ("pair", PAIR)):
            self.register_buffer(f"{name}_mean", torch.zeros(numbers))
            self.register_buffer(f"{name}_scale", torch.ones(numbers))
        self.face_type = nn.Embedding(FACE_TYPES, width)
        self.enter = nn.Linear(2 * FEATURES, width)
        self.encoder = nn.ModuleList(Layer(*layer, paired=True) for _ in range(shape.layers))
        self.encoded = nn.LayerNorm(width)
        self.posterior = nn.Sequential(
            nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, 2 * shape.latent)
        )
        self.slots = nn.Parameter(torch.randn(SLOTS, width) * width**-0.5)
        self.leave = nn.Sequential(
            nn.Linear(shape.latent, width), nn.GELU(), nn.Linear(width, width)
        )
        self.decoder = nn.ModuleList(Layer(*layer) for _ in range(shape.decoder_layers))
        self.decoded = nn.LayerNorm(width)
        self.face_head = nn.Linear(width, FACE_TYPES + 1 + FEATURES)
        self.edge_head = nn.Linear(width, 2 * (1 + PAIR) * (width // 2))
        self.edge_bias = nn.Parameter(torch.zeros(1 + PAIR))
        self.family_head = _mlp(shape.latent, width, FAMILIES)
        self.share_head = _mlp(shape.latent, 2 * width, FAMILIES * PARAMETERS)

    # ------------------------------------------------------------- scaling

    @torch.no_grad()
    def fit_scales(self, types: Tensor, faces: Tensor, pairs: Tensor) -> None:
        """Take means and deviations of what is there in these graphs (see ``posterior_of``)."""
        there = types >= 0
        for name, rows in (
            ("face", _with_logarithms(faces)[there].double()),
            ("pair", pairs[..., 1:][pairs[..., 0] > 0].double()),
        ):
            deviation = rows.std(0, correction=0)
            # What does not vary is shifted to 0 and left there.
            scale = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
            getattr(self, f"{name}_mean").copy_(rows.mean(0))
            getattr(self, f"{name}_scale").copy_(scale)

    def scaled(self, faces: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Faces [n, SLOTS, 2 FEATURES], logarithms beside; edges [n, SLOTS, SLOTS, PAIR]."""
        one = (_with_logarithms(faces) - self.face_mean) / self.face_scale
        other = (pairs[..., 1:] - self.pair_mean) / self.pair_scale
        return one, other * pairs[..., :1]

    # ------------------------------------------------------------- there and back

    def posterior_of(self, types: Tensor, faces: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log standard deviation), both [n, latent], of graphs.

        ``types`` [n, SLOTS], -1 where there is no face; ``faces`` [n, SLOTS, FEATURES] in mm;
        ``pairs`` [n, SLOTS, SLOTS, 1 + PAIR]: whether there is an edge, its length, its dihedral.
        """
        there = types >= 0
        rows, edges = self.scaled(faces, pairs)
        x = self.enter(rows) + self.face_type(types.clamp(min=0))
        between = torch.cat([pairs[..., :1], edges], -1)
        for layer in self.encoder:
            x = self._through(layer, x, there, between)
        x = self.encoded(x).masked_fill(~there[..., None], 0.0)
        mean = x.sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        most = x.masked_fill(~there[..., None], -1e4).amax(1)
        mu, log_sigma = self.posterior(torch.cat([mean, most], -1)).float().chunk(2, -1)
        return mu, log_sigma.clamp(*LOG_SIGMA_RANGE)

    def decode(self, z: Tensor) -> Decoded:
        """What latents [n, latent] say."""
        x = self.slots + self.leave(z)[:, None]
        for layer in self.decoder:
            x = self._through(layer, x, None, None)
        x = self.decoded(x)
        types, faces = self.face_head(x).float().split([FACE_TYPES + 1, FEATURES], -1)
        one, other = self.edge_head(x).float().unflatten(-1, (2, 1 + PAIR, -1)).unbind(2)
        pairs = torch.einsum("nikw,njkw->nijk", one, other) / one.shape[-1] ** 0.5
        # The same from either face; a product of one vector with itself could only be positive.
        pairs = (pairs + pairs.transpose(1, 2)) / 2 + self.edge_bias
        family, shares = self.read(z)
        return Decoded(types, faces, pairs[..., 0], pairs[..., 1:], family, shares)

    def read(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(family logits [n, FAMILIES], shares [n, FAMILIES, PARAMETERS]) of latents alone."""
        shares = self.share_head(z).float().unflatten(-1, (FAMILIES, PARAMETERS))
        return self.family_head(z).float(), shares

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Decoded]:
        """(mean, log standard deviation, what is decoded); of a drawn latent while training."""
        mu, log_sigma = self.posterior_of(inputs["types"], inputs["faces"], inputs["pairs"])
        z = mu + log_sigma.exp() * torch.randn_like(mu) if self.training else mu
        return mu, log_sigma, self.decode(z)

    def _through(self, layer: nn.Module, *given: Any) -> Tensor:
        if self.recomputes and self.training:
            found: Tensor = checkpoint(layer, *given, use_reentrant=False)
            return found
        found = layer(*given)
        return found


def _mlp(inside: int, width: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inside, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
        nn.Linear(width, outside),
    )  # fmt: skip


def _with_logarithms(faces: Tensor) -> Tensor:
    """Each number, and beside it log(1 + |x|) with its sign: 3 mm and 200 mm both count."""
    return torch.cat([faces, faces.sign() * faces.abs().log1p()], -1)


def kl_nats(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """[n, latent] of KL(N(mu, sigma²) || N(0, 1))."""
    return 0.5 * (mu.square() + (2 * log_sigma).exp() - 1) - log_sigma


def weights_sha256(model: nn.Module) -> str:
    """Names a model's weights and buffers: what latents mean depends on every one of them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
