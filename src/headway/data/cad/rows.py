"""Parts and edits as arrays on disk, made from (seed, number), and read again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from headway.data.cad import store
from headway.data.cad.checks import refuse_inconsistent
from headway.data.cad.edits import MIX, Edit, Kind, Readings, edits, wording_sha256
from headway.data.cad.faces import Graphs, graphs_of
from headway.data.cad.families import FAMILIES, MOST_PARAMETERS, Family, Values
from headway.data.cad.sampling import parts
from headway.data.cad.store import Arrays, Manifest
from headway.errors import DataError

Encode = Callable[[Graphs], NDArray[np.float32]]
"""Graphs -> latents [n, dimensions]."""
SMALL = {"family": np.int8, "types": np.int8, "ends": np.int8, "faces": "f4", "edges": "f4"}
"""How arrays of graphs are stored; dimensions in mm stay float64."""


@runtime_checkable
class EncodesParts(Protocol):
    """A trained model that puts parts into latents."""

    def encode(self, graphs: Graphs) -> NDArray[np.float32]:
        """[n, dimensions] of graphs."""
        ...

    def weights_sha256(self) -> str:
        """Names the weights, on which the meaning of a latent depends."""
        ...


@dataclass(frozen=True, slots=True)
class EditRows:
    """Edits as the latent editor reads them."""

    instructions: tuple[str, ...]
    z_src: NDArray[np.float32]
    """[n, dimensions]"""
    z_tgt: NDArray[np.float32]
    """[n, dimensions]"""
    changes: tuple[Mapping[str, float], ...]
    """By parameter, in mm."""
    kinds: tuple[str, ...]
    """``single``, ``compound``, ``noop``, or the seed system's own words."""
    family: NDArray[np.int64]
    """[n] index into FAMILIES; -1: not said."""
    values: Values
    """[n, MOST_PARAMETERS] the part before, in mm; NaN where it is not said."""
    vae_sha256: str | None
    """The weights that made the latents, where the data says so."""

    def __len__(self) -> int:
        return len(self.instructions)

    def where(self, rows: Sequence[int] | NDArray[np.int64]) -> EditRows:
        """Only these rows."""
        at = np.asarray(rows, dtype=np.int64)
        picked: dict[str, Any] = {
            field.name: tuple(getattr(self, field.name)[row] for row in at.tolist())
            if isinstance(getattr(self, field.name), tuple)
            else getattr(self, field.name)[at]
            for field in fields(self)
            if field.name != "vae_sha256"
        }
        return EditRows(**picked, vae_sha256=self.vae_sha256)

    def family_of(self, row: int) -> Family | None:
        """The family of a row's part, where it is said."""
        return FAMILIES[self.family[row]] if self.family[row] >= 0 else None


def tables() -> list[dict[str, Any]]:
    """The families' ranges, so that a manifest says what its rows were drawn from."""
    shown = ("name", "low", "high", "most_change")
    return [
        {"family": f.name, "parameters": [{k: getattr(p, k) for k in shown} for p in f.parameters]}
        for f in FAMILIES
    ]


# ------------------------------------------------------------------ parts


def part_arrays(seed: int, first: int, count: int) -> Arrays:
    """Parts ``first`` to ``first + count - 1`` as they are stored, each checked."""
    family, values = parts(seed, np.arange(first, first + count))
    graphs = graphs_of(family, values)
    refuse_inconsistent(graphs)
    return stored_graphs(graphs)


def kernel_part_arrays(seed: int, first: int, count: int) -> Arrays:
    """The same parts built as solids, each compared; their numbers are the kernel's."""
    from headway.data.cad.equality import kernel_graphs

    return stored_graphs(kernel_graphs(seed, first, count))


def stored_graphs(graphs: Graphs) -> Arrays:
    """Graphs as arrays, small."""
    given = {field.name: getattr(graphs, field.name) for field in fields(graphs)}
    return {name: array.astype(SMALL.get(name, array.dtype)) for name, array in given.items()}


def graphs_in(arrays: Arrays) -> Graphs:
    """The reverse of ``stored_graphs``; lengths have been rounded to float32 there."""
    whole = {"family": np.int64, "types": np.int64, "ends": np.int64}
    names = [field.name for field in fields(Graphs)]
    found: Any = {name: arrays[name].astype(whole.get(name, np.float64)) for name in names}
    return Graphs(**found)


def write_parts(
    to: Path,
    *,
    count: int,
    seed: int,
    workers: int = 1,
    shard_rows: int = 5000,
    kernel: bool = False,
) -> tuple[Manifest, bool]:
    """A folder of parts; (its manifest, whether any was made).

    ``kernel``: each part is built as a solid and its graph read from that. Its numbers depend on
    the kernel's version in their last places, so the manifest holds the version. Raises DataError,
    and ConfigError where there is no kernel.
    """
    made_of: dict[str, Any] = {"seed": seed, "families": tables()}
    make = partial(part_arrays, seed)
    if kernel:
        from headway.data.cad.kernel import kernel_version

        made_of["kernel"] = kernel_version()
        make = partial(kernel_part_arrays, seed)
    return store.write(to, "parts", made_of, count, make, workers=workers, shard_rows=shard_rows)


def read_parts(folder: Path) -> tuple[Graphs, str]:
    """(graphs, hash of the content) of a folder of parts. Raises DataError."""
    manifest, arrays = store.read(folder)
    _of_kind(folder, manifest, "parts")
    return graphs_in(arrays), manifest.sha256


def _of_kind(folder: Path, manifest: Manifest, kind: str) -> None:
    if manifest.kind != kind:
        raise DataError(f"{folder} holds {manifest.kind}, not {kind}")


# ------------------------------------------------------------------ edits


def edit_arrays(seed: int, mix: Mapping[Kind, float], first: int, count: int) -> Arrays:
    """Edits as they are stored, without latents."""
    return arrays_of(edits(seed, first, count, dict(mix)))


def arrays_of(made: Sequence[Edit]) -> Arrays:
    """Edits as arrays: parts before and after, texts, kinds."""
    before, after = np.zeros((2, len(made), MOST_PARAMETERS))
    for row, edit in enumerate(made):
        before[row, : len(edit.values)] = edit.values
        after[row, : len(edit.values)] = edit.target
    return {
        "index": np.array([edit.index for edit in made], dtype=np.int64),
        "family": np.array([FAMILIES.index(edit.family) for edit in made], dtype=np.int8),
        "values": before,
        "target": after,
        "instruction": np.array([edit.instruction for edit in made], dtype=np.str_),
        "kind": np.array([edit.kind for edit in made], dtype=np.str_),
    }


def write_edits(
    to: Path,
    *,
    count: int,
    seed: int,
    encode: Encode,
    vae_sha256: str,
    mix: Mapping[Kind, float] | None = None,
    workers: int = 1,
    shard_rows: int = 5000,
    max_unreadable: float = 0.0,
    write_vae: Callable[[Path], object] | None = None,
) -> tuple[Manifest, bool]:
    """A folder of edits with the latents of the parts before and after.

    Each label is read back from its text by ``reading``; DataError where a file has more than the
    share ``max_unreadable`` of labels that are not there. ``write_vae`` writes the autoencoder into
    a new folder: it is kept beside the latents that it made, as ``vae/``.
    """
    mix = dict(mix or MIX)

    def with_latents(arrays: Arrays) -> Arrays:
        readings = Readings()
        readable = [readings.look(edit) for edit in edits_in(arrays)]
        readings.refuse_beyond(max_unreadable)
        family = arrays["family"].astype(np.int64)
        latents = {
            f"z_{name}": encode(graphs_of(family, arrays[key])).astype(np.float32)
            for name, key in (("src", "values"), ("tgt", "target"))
        }
        return {**arrays, **latents, "readable": np.array(readable)}

    def vae_beside(folder: Path) -> None:
        if write_vae and not (folder / "vae").is_dir():
            write_vae(folder / ".partial-vae")
            (folder / ".partial-vae").rename(folder / "vae")

    made_of = {
        "seed": seed, "mix": mix, "families": tables(), "wording": wording_sha256(),
        "vae_sha256": vae_sha256,
    }  # fmt: skip
    return store.write(
        to,
        "edits",
        made_of,
        count,
        partial(edit_arrays, seed, mix),
        finish=with_latents,
        beside=vae_beside,
        workers=workers,
        shard_rows=shard_rows,
    )


def edits_in(arrays: Arrays) -> list[Edit]:
    """Stored edits again."""
    found = []
    for row in range(len(arrays["family"])):
        family = FAMILIES[arrays["family"][row]]
        n = len(family.parameters)
        before, after = arrays["values"][row, :n], arrays["target"][row, :n]
        changes = {
            name: float(change)
            for name, change in zip(family.names, after - before, strict=True)
            if change != 0
        }
        kind: Any = str(arrays["kind"][row])
        values = tuple(before.tolist())
        text = str(arrays["instruction"][row])
        found.append(Edit(int(arrays["index"][row]), family, values, changes, text, kind))
    return found


def read_edits(folder: Path) -> tuple[EditRows, str]:
    """(edits, hash of the content) of a folder of edits. Raises DataError."""
    manifest, arrays = store.read(folder)
    _of_kind(folder, manifest, "edits")
    made = edits_in(arrays)
    rows = EditRows(
        instructions=tuple(edit.instruction for edit in made),
        z_src=arrays["z_src"],
        z_tgt=arrays["z_tgt"],
        changes=tuple(edit.changes for edit in made),
        kinds=tuple(edit.kind for edit in made),
        family=arrays["family"].astype(np.int64),
        values=arrays["values"],
        vae_sha256=manifest.made_of["vae_sha256"],
    )
    return rows, manifest.sha256
