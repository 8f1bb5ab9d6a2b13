"""Exactly what a checkpoint holds, and how it gets into files and back: safetensors and JSON only.

The format is written here rather than by the library because a save must hash and write the bytes
of a snapshot in memory without one more copy; it is read back by the library, which shares no code
with this writer. Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header
length, JSON header, raw tensors).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from headway.engine.task import SavedModel, Task
from headway.errors import CheckpointError

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
CHUNK_BYTES = 8 * 2**20
DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass
class TrainState:
    """What changes while a run trains. Everything else is a function of (config, step)."""

    task: Task
    optimizer: Optimizer
    step: int = 0
    rows: int = 0
    """Rows seen, over all attempts."""
    tokens: int = 0
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    """(step, held-out loss) so far; early stopping is a function of this list."""
    refused: list[int] = field(default_factory=list)
    """Steps that were no update, because their loss or gradient was not finite."""
    left_out: list[tuple[int, int]] = field(default_factory=list)
    """(first, last) of each stretch of steps that a roll back leaves out."""

    def leaves_out(self, step: int) -> bool:
        """Whether a roll back leaves this step out."""
        return any(first <= step <= last for first, last in self.left_out)

    def counters(self) -> dict[str, Any]:
        """The JSON part."""
        return {
            "step": self.step,
            "rows": self.rows,
            "tokens": self.tokens,
            "evaluations": [list(e) for e in self.evaluations],
            "refused": self.refused,
            "left_out": [list(stretch) for stretch in self.left_out],
        }


# ------------------------------------------------------------------ saving


class Snapshot:
    """A copy of the state in host memory, whose buffers are reused from save to save.

    ``take`` is the only part of a save that stalls training. The files may be written until the
    next ``take``; the caller sees to that.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._files: dict[str, bytes] = {}
        self._layout: dict[str, list[str]] = {}

    def take(self, state: TrainState) -> None:
        """Copy every tensor of the state to the host, and encode the counters."""
        saved: SavedModel = state.task.saved()
        numbers, tensors = optimizer_state(state)
        live = {f"model/{name}": parts for name, parts in saved.tensors.items()}
        live[OPTIMIZER_FILE] = tensors
        self._layout = {file: sorted(parts) for file, parts in live.items()}
        for file, parts in live.items():
            for name, tensor in parts.items():
                self._copy((file, name), tensor.detach())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._files = {f"model/{name}": data for name, data in saved.files.items()}
        counters = {**state.counters(), "optimizer": numbers}
        self._files[STATE_FILE] = json.dumps(counters, indent=1).encode()

    def _copy(self, key: tuple[str, str], tensor: Tensor) -> None:
        kept = self._buffers.get(key)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            pinned = tensor.is_cuda
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self._buffers[key] = kept
        kept.copy_(tensor, non_blocking=True)

    @property
    def size_bytes(self) -> int:
        """Size of all files together, headers not counted."""
        tensors = sum(
            self._buffers[f, n].nbytes for f, names in self._layout.items() for n in names
        )
        return tensors + sum(len(data) for data in self._files.values())

    def files(self) -> dict[str, Callable[[], Iterator[bytes | memoryview]]]:
        """File name -> a function that yields its bytes in order."""
        found: dict[str, Callable[[], Iterator[bytes | memoryview]]] = {}
        for name, data in self._files.items():
            found[name] = lambda data=data: iter([data])  # type: ignore[misc]
        for file, names in self._layout.items():
            parts = {name: self._buffers[file, name] for name in names}
            found[file] = lambda parts=parts: safetensors_chunks(parts)  # type: ignore[misc]
        return found


def safetensors_chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of one safetensors file, tensors in the given order, in pieces of a few MiB."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield len(encoded).to_bytes(8, "little") + encoded
    for tensor in tensors.values():
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        view = memoryview(raw)  # type: ignore[arg-type]  # numpy arrays are buffers
        for start in range(0, len(view), CHUNK_BYTES):
            yield view[start : start + CHUNK_BYTES]


def optimizer_state(state: TrainState) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """The optimizer's numbers and tensors, keyed by parameter **name**: ``exp_avg.layers.0.…``."""
    numbers: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    for name, parameter in state.task.model.named_parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{key}.{name}"] = value
            else:
                numbers.setdefault(name, {})[key] = value
    return numbers, tensors


def checkpoint_bytes(state: TrainState) -> int:
    """Size of a checkpoint of this state: exact after a step; before it, two moments are foreseen.

    File headers and the manifest, some kB, are not counted.
    """
    saved = state.task.saved()
    tensors = [t for parts in saved.tensors.values() for t in parts.values()]
    model = sum(t.nbytes for t in tensors) + sum(len(data) for data in saved.files.values())
    _, moments = optimizer_state(state)
    if moments:
        return model + sum(tensor.nbytes for tensor in moments.values())
    in_bytes = type(state.optimizer).__module__.startswith("bitsandbytes")  # a byte each
    parameters: list[Tensor] = [p for g in state.optimizer.param_groups for p in g["params"]]
    return model + sum(2 * p.numel() * (1 if in_bytes else p.element_size()) for p in parameters)


# ------------------------------------------------------------------ restoring


def restore(state: TrainState, checkpoint: Path) -> None:
    """Put a verified checkpoint's content into the live state.

    Raises CheckpointError: a tensor is missing, unexpected, or of another shape or type. Nothing is
    ever filled in silently; a missing optimizer state is an error too.
    """
    load_model(state.task, checkpoint / "model")
    path = checkpoint / STATE_FILE
    try:
        counters = json.loads(path.read_text())
        numbers = dict(counters["optimizer"])
        step, rows, tokens = (int(counters[key]) for key in ("step", "rows", "tokens"))
        evaluations = [(int(at), float(loss)) for at, loss in counters["evaluations"]]
        # Checkpoints of headway 0.1 before refusals were counted have neither.
        refused = [int(at) for at in counters.get("refused", [])]
        left_out = [(int(a), int(b)) for a, b in counters.get("left_out", [])]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a run's counters ({error!r})") from error
    # Without a row there was no update: every step so far was refused or left out.
    _restore_optimizer(state, checkpoint / OPTIMIZER_FILE, numbers, rows > 0)
    state.step, state.rows, state.tokens, state.evaluations = step, rows, tokens, evaluations
    state.refused, state.left_out = refused, left_out


@torch.no_grad()
def load_model(task: Task, folder: Path) -> None:
    """Copy ``model/`` of a checkpoint into the live model, strictly, file by file."""
    for file, live in task.saved().tensors.items():
        with _opened(folder / file) as stored:
            _same_names(set(live), set(stored.keys()), folder / file)
            for name, tensor in live.items():
                _fill(tensor, stored.get_tensor(name), f"{folder / file}: {name}")


@torch.no_grad()
def _restore_optimizer(
    state: TrainState, path: Path, numbers: dict[str, dict[str, Any]], trained: bool
) -> None:
    with _opened(path) as stored:
        keys = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    rebuilt: dict[str, dict[str, Any]] = {name: dict(values) for name, values in numbers.items()}
    parameters = {n: p for n, p in state.task.model.named_parameters() if p.requires_grad}
    for key, tensor in keys.items():
        kind, name = key.split(".", 1)
        if name not in parameters:
            raise CheckpointError(f"{path}: {key} belongs to no trained parameter of this model")
        rebuilt.setdefault(name, {})[kind] = placed(state.optimizer, parameters[name], tensor)
    missing = [name for name in parameters if name not in rebuilt]
    if trained and missing:
        raise CheckpointError(
            f"{path}: no optimizer state for {missing[:3]} ({len(missing)} in all)"
        )
    unknown = [name for name in rebuilt if name not in parameters]
    kinds = {frozenset(values) for values in rebuilt.values()}
    if unknown or len(kinds) > 1:
        raise CheckpointError(
            f"{path}: the optimizer state fits no trained parameter ({unknown[:3]}), or is not "
            f"whole (moments found: {sorted(map(sorted, kinds))})"
        )
    for name, values in rebuilt.items():
        state.optimizer.state[parameters[name]] = values


def placed(optimizer: Optimizer, parameter: Tensor, stored: Tensor) -> Tensor:
    """A stored tensor where this optimizer keeps such state.

    That of bitsandbytes' paged optimizers lies in memory that may leave the GPU, which only they
    can give; elsewhere a resumed run would need what the run before it did not.
    """
    if not getattr(optimizer, "is_paged", False) or stored.shape != parameter.shape:
        return stored.to(parameter.device)
    kept: Tensor = optimizer.get_state_buffer(parameter, dtype=stored.dtype)  # type: ignore[attr-defined]
    if parameter.is_cuda:
        torch.cuda.synchronize(parameter.device)  # it is being filled with zeros
    return kept.copy_(stored)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error


def _same_names(wanted: set[str], stored: set[str], path: Path) -> None:
    missing, extra = sorted(wanted - stored), sorted(stored - wanted)
    if missing or extra:
        raise CheckpointError(
            f"{path} does not fit this model: {len(missing)} tensors missing {missing[:10]}, "
            f"{len(extra)} unexpected {extra[:10]}. Was it saved with another task.tuning or model?"
        )


def _fill(live: Tensor, stored: Tensor, where: str) -> None:
    if live.shape != stored.shape or live.dtype != stored.dtype:
        raise CheckpointError(
            f"{where}: {stored.dtype} {list(stored.shape)} in the checkpoint, "
            f"{live.dtype} {list(live.shape)} in the model"
        )
    live.copy_(stored)


@torch.no_grad()
def non_finite(state: TrainState) -> list[str]:
    """Names of saved tensors that hold NaN or infinity; a checkpoint of these is refused."""
    named = [
        (name, tensor)
        for parts in state.task.saved().tensors.values()
        for name, tensor in parts.items()
        if tensor.is_floating_point()
    ]
    finite = torch.stack([tensor.sum(dtype=torch.float32).isfinite() for _, tensor in named])
    return [name for (name, _), fine in zip(named, finite.tolist(), strict=True) if not fine]
