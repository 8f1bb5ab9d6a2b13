"""Models without numbers: tensors that have a shape and a type, and nothing else.

Within ``weightless`` every tensor that torch makes is such a tensor (torch's ``FakeTensorMode``):
what a model does to shapes is its real code, and whatever would look at a number raises. Code that
proves something on random numbers asks ``is_fake`` first and leaves the proof to the run.

A torch built without CUDA cannot even pretend that a tensor is on a GPU, and a plan is wanted where
there is none. So all of them say they are on the CPU, and code of ours that does one thing on a CPU
and another on a GPU asks ``kind_of``, which answers with the device that is being planned for.

Some numbers are shapes: how large a picture is, which tokens stand for it. A model that reads them
can be followed where they are real and everything else is not: within ``knowing`` whatever is
computed from real tensors alone is real too.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_leaves

PICKING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""Operations whose second argument may be a mask: the shape of what is picked is in its numbers."""


class Weightless(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Torch's mode, which can be told that real tensors are to stay real."""

    knows = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do it on shapes; on numbers where all that it is given has them."""
        if self.knows:
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            if given and not any(isinstance(each, FakeTensor) for each in given):
                return func(*args, **(kwargs or {}))
            if func._schema.name in PICKING:
                args = (args[0], _places(args[1]), *args[2:])
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def weightless(planned_for: str = "cpu") -> Iterator[FakeTensorMode]:
    """Everything made within has no numbers and takes no memory; backward passes work too.

    ``planned_for``: the kind of device that ``kind_of`` answers with, ``cpu`` or ``cuda``.
    """
    mode = Weightless(allow_non_fake_inputs=True)
    mode.planned_for = planned_for  # type: ignore[attr-defined]
    # It would keep a weak reference to every new tensor, and with one `Module.to` and `.float()`
    # refuse to work (`torch.utils.swap_tensors`, torch 2.13). Nothing here is converted twice.
    mode.fake_tensor_converter.set_tensor_memo = _keep_none  # type: ignore[assignment,method-assign]
    collects = gc.isenabled()
    gc.disable()  # a fifth of the time, and what is freed when would depend on it
    try:
        with mode, torch.autograd.set_multithreading_enabled(False):
            yield mode
    finally:
        if collects:
            gc.enable()


@contextmanager
def knowing(known: bool = True) -> Iterator[None]:
    """Within ``weightless``: what is computed from real tensors alone is real, not only a shape."""
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    if not known or not isinstance(mode, Weightless):
        yield
        return
    before, mode.knows = mode.knows, True
    try:
        yield
    finally:
        mode.knows = before


@contextmanager
def with_numbers() -> Iterator[None]:
    """Tensors made within have numbers, also where all around is ``weightless``."""
    with unset_fake_temporarily():
        yield


def is_fake(what: Tensor | nn.Module) -> bool:
    """Whether this tensor, or this model's first parameter, has no numbers."""
    if isinstance(what, nn.Module):
        first = next(what.parameters(), None)
        return first is not None and is_fake(first)
    return isinstance(what, FakeTensor)


def kind_of(tensor: Tensor) -> str:
    """``cuda`` or ``cpu``: where this tensor is, or for one without numbers, is planned to be."""
    if isinstance(tensor, FakeTensor):
        return str(getattr(tensor.fake_mode, "planned_for", tensor.device.type))
    return tensor.device.type


def _places(indices: Any) -> list[Any]:
    """Masks that are known as the places where they are true: so the shape is known too."""
    found: list[Any] = []
    for index in indices:
        masks = index is not None and index.dtype == torch.bool and not is_fake(index)
        found += index.nonzero().unbind(1) if masks else [index]
    return found


def _keep_none(tensor: Any, fake: Any) -> None:
    """Remembers nothing."""
