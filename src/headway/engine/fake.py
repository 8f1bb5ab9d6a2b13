"""Models without numbers: tensors that have a shape and a type, and nothing else.

Within ``weightless`` every tensor that torch makes is such a tensor (torch's ``FakeTensorMode``):
what a model does to shapes is its real code, and whatever would look at a number raises. Code that
proves something on random numbers asks ``is_fake`` first and leaves the proof to the run.

A torch built without CUDA cannot even pretend that a tensor is on a GPU, and a plan is wanted where
there is none. So all of them say they are on the CPU, and code of ours that does one thing on a CPU
and another on a GPU asks ``kind_of``, which answers with the device that is being planned for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


@contextmanager
def weightless(planned_for: str = "cpu") -> Iterator[FakeTensorMode]:
    """Everything made within has no numbers and takes no memory; backward passes work too.

    ``planned_for``: the kind of device that ``kind_of`` answers with, ``cpu`` or ``cuda``.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.planned_for = planned_for  # type: ignore[attr-defined]
    # It would keep a weak reference to every new tensor, and with one `Module.to` and `.float()`
    # refuse to work (`torch.utils.swap_tensors`, torch 2.13). Nothing here is converted twice.
    mode.fake_tensor_converter.set_tensor_memo = _keep_none  # type: ignore[assignment,method-assign]
    with mode, torch.autograd.set_multithreading_enabled(False):
        yield mode


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


def _keep_none(tensor: Any, fake: Any) -> None:
    """Remembers nothing."""
