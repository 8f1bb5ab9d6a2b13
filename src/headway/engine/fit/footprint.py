"""The memory and the arithmetic of one training step, by doing the step on tensors without numbers.

The model, the loss and the optimizer are the run's own code (``train_steps`` in short): what is
counted is what they would allocate. The peak is that of a step that accumulates: weights, optimizer
state and gradients are there when the microbatch begins, and its activations come on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from headway.engine.fake import is_fake, knowing
from headway.engine.fit.counting import Counted, bytes_of
from headway.engine.optim import clip
from headway.engine.precision import autocast
from headway.engine.task import Microbatch, Task

Timeline = Sequence[tuple[str, int]]
EIGHT_BIT_BLOCK, EIGHT_BIT_LEAST = 256, 4096
"""bitsandbytes' optimizers keep one fp32 scale per block of 8-bit state, and keep tensors of fewer
elements in 32 bits (``bitsandbytes/optim/optimizer.py``: ``min_8bit_size``, ``blockwise``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What is in memory all the time while a model trains, in bytes."""

    parameters: int
    trainable: int
    weights_bytes: int
    """Parameters and buffers, each storage once."""
    gradient_bytes: int
    optimizer_bytes: int
    update_bytes: int
    """Peak while the gradient is clipped and the optimizer runs."""

    @property
    def bytes(self) -> int:
        """Weights, gradients and optimizer state."""
        return self.weights_bytes + self.gradient_bytes + self.optimizer_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """One microbatch, forward and backward, on top of what is held."""

    rows: int
    tokens: int
    held: Held
    activation_bytes: int
    """At most alive on top of what is held: kept for backward, intermediate, inputs, logits."""
    logits_bytes: int
    """At most alive of the logits and what is computed from them."""
    flops: int
    """Floating point operations of this microbatch, recomputation counted."""
    forward: Timeline = field(default=(), repr=False, compare=False)
    """Each operation of forward and loss, and the bytes then alive on top of what is held."""
    backward: Timeline = field(default=(), repr=False, compare=False)
    """The same in backward."""

    @property
    def peak_bytes(self) -> int:
        """Of a whole step, the update included."""
        return max(self.held.bytes + self.activation_bytes, self.held.update_bytes)


@contextmanager
def gradients_there(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Every parameter has a gradient, as in the second microbatch of a step."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.grad = None


def held(task: Task, optimizer: Optimizer | None, *, max_grad_norm: float = 1.0) -> Held:
    """What the model and its optimizer hold. ``optimizer`` None: bitsandbytes' 8-bit kinds, whose
    kernels need numbers; their state is computed from their source (see ``eight_bit_bytes``)."""
    model = task.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    counted = Counted()
    weights = counted.hold([*model.parameters(), *model.buffers()])
    with gradients_there(parameters):
        gradients = counted.hold([p.grad for p in parameters if p.grad is not None])
        before = counted.live_bytes
        with counted:
            clip(parameters, max_grad_norm)
            if optimizer is not None:
                optimizer.step()
        update = counted.peak_bytes
    state = eight_bit_bytes(parameters) if optimizer is None else bytes_of(state_of(optimizer))
    return Held(
        parameters=sum(count(p) for p in model.parameters()),
        trainable=sum(count(p) for p in parameters),
        weights_bytes=weights,
        gradient_bytes=gradients,
        optimizer_bytes=state,
        update_bytes=max(update, before + state),
    )


def footprint(task: Task, microbatch: Microbatch, held: Held, *, precision: str) -> Footprint:
    """One microbatch through the model, forward and backward, with gradients already there."""
    model = task.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    vocabulary = task.facts().get("vocabulary")
    device = parameters[0].device
    model.train()
    with gradients_there(parameters):
        counted = Counted(watch_width=vocabulary)
        counted.hold([*model.parameters(), *model.buffers()])
        counted.hold([p.grad for p in parameters if p.grad is not None])
        start = counted.live_bytes
        shapes = microbatch.inputs.get("shapes", ()) if is_fake(model) else ()
        with counted, knowing(bool(shapes)):
            inputs = {
                name: value
                if not isinstance(value, Tensor) or not is_fake(model)
                else value.clone()
                if name in shapes
                else torch.empty(value.shape, dtype=value.dtype, device=device)
                for name, value in microbatch.inputs.items()
            }
            with autocast(precision, device):
                sums = task.loss(model, inputs)
            forward = len(counted.timeline)
            loss = sums["loss"].sum() * (1.0 / max(1.0, microbatch.weight))
            loss.backward()  # type: ignore[no-untyped-call]
            del loss, sums, inputs
    timeline = [(name, alive - start) for name, alive in counted.timeline]
    return Footprint(
        rows=len(microbatch.rows),
        tokens=microbatch.tokens,
        held=held,
        activation_bytes=max(alive for _, alive in timeline),
        logits_bytes=counted.watched_bytes,
        flops=counted.flops,
        forward=timeline[:forward],
        backward=timeline[forward:],
    )


def state_of(optimizer: Optimizer) -> list[Tensor]:
    """Every tensor of the optimizer's state."""
    return [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]


def eight_bit_bytes(parameters: list[nn.Parameter]) -> int:
    """Two moments in 8 bits with their scales, or in fp32 where the tensor is small."""
    total = 0
    for parameter in parameters:
        n = parameter.numel()
        total += 8 * n if n < EIGHT_BIT_LEAST else 2 * (n + 4 * -(-n // EIGHT_BIT_BLOCK))
    return total


def count(parameter: Tensor) -> int:
    """Weights in a parameter; 4-bit storage packs two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel() if state is not None else parameter.numel())
