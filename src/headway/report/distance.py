"""How far two sets of weights lie apart, module by module, read from safetensors without torch.

The distance is over parameters as vectors: ‖b - a‖ / ‖a‖ and the cosine of the angle. For a LoRA
adapter that is the distance of its factors, which may differ while their product agrees.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np

NUMPY_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|u1",
}
CHUNK = 1 << 20
"""Numbers summed at a time in float64: exact enough, and 24 MB at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far module ``name`` of checkpoint b lies from that of a."""

    name: str
    parameters: int
    relative_l2: float
    """‖b - a‖ / ‖a‖; infinite where a is all zeros and b is not."""
    cosine: float
    """NaN where one of the two is all zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All modules, the whole, and what could not be compared."""

    modules: tuple[Distance, ...]
    whole: Distance
    unmatched: tuple[str, ...]
    """Tensors in only one of the two, of another shape, or of a type that numpy cannot read."""


def compare_weights(a: Path, b: Path) -> Comparison:
    """Compare all ``*.safetensors`` under two ``model/`` folders, tensor by tensor of one name."""
    left, right = _tensors(a), _tensors(b)
    unmatched = sorted(left.keys() ^ right.keys())
    sums: dict[str, list[float]] = {}
    for name in sorted(left.keys() & right.keys()):
        (file_a, header_a), (file_b, header_b) = left[name], right[name]
        readable = {header_a["dtype"], header_b["dtype"]} <= {*NUMPY_TYPES, "BF16"}
        if header_a["shape"] != header_b["shape"] or not readable:
            unmatched.append(name)
            continue
        total = sums.setdefault(module_of(name), [0.0] * 5)
        for x, y in zip(_chunks(file_a, header_a), _chunks(file_b, header_b), strict=True):
            gap = y - x
            parts = (x.size, gap @ gap, x @ x, y @ y, x @ y)
            total[:] = [old + float(part) for old, part in zip(total, parts, strict=True)]
    modules = tuple(_distance(name, total) for name, total in sums.items())
    everything = [math.fsum(column) for column in zip(*sums.values(), strict=True)] or [0.0] * 5
    return Comparison(
        modules=modules, whole=_distance("all", everything), unmatched=tuple(unmatched)
    )


def module_of(tensor: str) -> str:
    """The module a tensor belongs to: its name less ``.weight``, ``.bias`` and the LoRA factor."""
    parts = tensor.split(".")[:-1]
    while parts and parts[-1] in ("lora_A", "lora_B", "default"):
        parts.pop()
    return ".".join(parts) or tensor


def _distance(name: str, total: list[float]) -> Distance:
    size, gap, left, right, dot = total
    if left:
        relative = math.sqrt(gap / left)
    else:
        relative = math.inf if right else 0.0
    norm = math.sqrt(left) * math.sqrt(right)
    cosine = max(-1.0, min(1.0, dot / norm)) if norm else math.nan
    return Distance(name=name, parameters=int(size), relative_l2=relative, cosine=cosine)


def _tensors(folder: Path) -> dict[str, tuple[Path, Mapping[str, Any]]]:
    """Tensor name -> its file and header entry (with ``begin`` and ``end`` counted in the file)."""
    found: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in read_header(path).items():
            found[f"{path.name}:{name}" if name in found else name] = (path, entry)
    if not found:
        raise CheckpointError(f"{folder}: no *.safetensors file; there are no weights to compare")
    return found


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors file: name -> dtype, shape, begin and end byte in the file.

    Format: 8 bytes little-endian length, that much JSON, then the data
    (huggingface.co/docs/safetensors).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if not 2 <= length <= size - 8:
                raise ValueError(f"header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for entry in header.values():
                begin, end = entry.pop("data_offsets")
                entry["begin"], entry["end"] = begin + 8 + length, end + 8 + length
                if not 8 + length <= entry["begin"] <= entry["end"] <= size:
                    raise ValueError("a tensor lies outside the file")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: not a safetensors file ({error}); "
                "`headway checkpoints verify` says which checkpoints are whole"
            ) from error
    return dict(header)


def _chunks(path: Path, entry: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """A tensor's numbers in order, flat, as float64 pieces of at most ``CHUNK``."""
    import numpy as np

    if entry["begin"] == entry["end"]:
        return
    bf16 = entry["dtype"] == "BF16"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        # A copy of the slice: an array over the map would keep it from closing.
        kind = np.dtype("<u2" if bf16 else NUMPY_TYPES[entry["dtype"]])
        for begin in range(entry["begin"], entry["end"], CHUNK * kind.itemsize):
            end = min(entry["end"], begin + CHUNK * kind.itemsize)
            piece = np.frombuffer(view[begin:end], dtype=kind)
            if bf16:
                # bfloat16 is the upper half of a float32.
                piece = (piece.astype("<u4") << 16).view("<f4")
            yield piece.astype(np.float64)
