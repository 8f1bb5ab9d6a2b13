"""A deep model's figures from two shallow ones: every layer that is added adds the same.

Tracing a model takes time in proportion to its layers. Where they are alike, each figure is a
straight line in their number: weights, state and arithmetic exactly. The peak is the highest of
many such lines, one for each operation: those early in forward and late in backward have no layer
or few behind them and do not rise, those at the loss have all. So the two traces are laid on each
other operation by operation (from the loss outwards as far as they are the same, from the outer
ends for what is left), and the highest is sought at the depth that is wanted, not at the depths
that were traced.

A model with a vision tower has two such stacks, and each step of depth adds a layer to both. They
are told apart by the operation between them, and each is laid on its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from headway.engine.fit.footprint import Footprint, Held, Timeline

SHALLOW = (2, 3)
"""Layers of the two that are traced: a first, a last, and one more between them."""
BETWEEN = ("aten::masked_scatter", "aten::masked_scatter_backward")
"""What puts a tower's features in the places of words, and its backward."""


def at_depth(layers: int, low: Footprint, high: Footprint) -> Footprint:
    """The footprint with ``layers`` layers, from those with ``SHALLOW`` many."""
    held = {
        each.name: line(layers, getattr(low.held, each.name), getattr(high.held, each.name))
        for each in fields(Held)
    }
    # Forward is the same from its end backwards, backward from its beginning.
    places = [
        pair
        for one, other in ((low.forward[::-1], high.forward[::-1]), (low.backward, high.backward))
        for few, more in zip(stacks(one), stacks(other), strict=True)
        for pair in aligned(few, more)
    ]
    return Footprint(
        rows=low.rows,
        tokens=low.tokens,
        held=Held(**held),
        activation_bytes=max(line(layers, a, b) for a, b in places),
        logits_bytes=max(low.logits_bytes, high.logits_bytes),
        flops=line(layers, low.flops, high.flops),
    )


def line(layers: int, low: int, high: int) -> int:
    """The straight line through the figures of the two shallow models."""
    few, more = SHALLOW
    return round(low + (high - low) * (layers - few) / (more - few))


def stacks(timeline: Timeline) -> list[Timeline]:
    """A timeline cut behind each operation that stands between two stacks of layers."""
    cuts = [at + 1 for at, (name, _) in enumerate(timeline) if name in BETWEEN]
    starts, stops = [0, *cuts], [*cuts, len(timeline)]
    return [timeline[start:stop] for start, stop in zip(starts, stops, strict=True)]


def aligned(low: Timeline, high: Timeline) -> Iterator[tuple[int, int]]:
    """Bytes alive at the same operation in both: counted from the start as long as the operations
    are the same, and from the end for the rest."""
    same = next(
        (at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a[0] != b[0]), len(low)
    )
    shift = len(high) - len(low)
    for at, (_, value) in enumerate(low):
        yield value, high[at if at < same else at + shift][1]
