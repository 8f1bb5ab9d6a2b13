"""Rows of numbers and texts as numbered files: made in parallel, continued after a kill, hashed.

A folder is finished when its ``manifest.json`` is there; it is written last and holds the SHA-256
of every file and of all of them. What is in which file depends on the rows alone, so any number of
workers, killed any number of times, writes the same folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.errors import DataError
from headway.system import write_whole

Arrays = dict[str, NDArray[Any]]
Make = Callable[[int, int], Arrays]
"""(first row, count) -> arrays [count, …]; a pure function that a worker process can be given."""
Finish = Callable[[Arrays], Arrays]
"""What is added to a file's rows in this process, such as a model's answer to them."""
MANIFEST, VERSION = "manifest.json", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One finished file."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a folder holds."""

    version: int
    kind: str
    """``parts`` or ``edits``."""
    made_of: dict[str, Any]
    """Everything that the rows are a function of."""
    shards: tuple[Shard, ...] = ()

    @property
    def rows(self) -> int:
        """In all files."""
        return sum(shard.rows for shard in self.shards)

    @property
    def sha256(self) -> str:
        """Names the content."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(bytes.fromhex(shard.sha256))
        return digest.hexdigest()

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a finished folder. Raises DataError where there is none."""
        file = folder / MANIFEST
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
            shards = tuple(Shard(**shard) for shard in tree.pop("shards"))
            stated = tree.pop("sha256")
            found = cls(**tree, shards=shards)
        except FileNotFoundError as error:
            raise DataError(
                f"{folder}: no {MANIFEST}: not a folder of `headway data cad-parts` or "
                "`cad-edits`, or it was interrupted; run the same command again to finish it"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file}: damaged ({error}); make the folder again") from error
        if found.version != VERSION or found.sha256 != stated:
            raise DataError(f"{file}: damaged, or of another version; make the folder again")
        return found


def write(
    to: Path,
    kind: str,
    made_of: Mapping[str, Any],
    count: int,
    make: Make,
    *,
    finish: Finish | None = None,
    beside: Callable[[Path], None] | None = None,
    shard_rows: int = 5000,
    workers: int = 1,
) -> tuple[Manifest, bool]:
    """Rows 0 to ``count - 1`` in files of ``shard_rows``; (the manifest, whether any was made).

    ``beside`` puts what belongs to the rows into the folder before they are made; it is asked again
    after a kill. Raises DataError where ``to`` holds something else.
    """
    plan: dict[str, Any] = {
        "kind": kind,
        "made_of": dict(made_of),
        "shard_rows": shard_rows,
        "count": count,
    }
    if (to / MANIFEST).exists():
        there = Manifest.read(to)
        _same(to, there.kind == kind and there.made_of == plan["made_of"] and there.rows == count)
        return there, False
    _begin(to, plan)
    if beside:
        beside(to)
    starts = list(range(0, count, shard_rows))
    done = _finished(to, len(starts))
    missing = [number for number in range(len(starts)) if number not in done]
    spans = [(starts[n], min(shard_rows, count - starts[n])) for n in missing]
    for number, arrays in zip(missing, _made(make, spans, workers), strict=True):
        done[number] = _commit(to, number, finish(arrays) if finish else arrays)
    manifest = Manifest(
        version=VERSION,
        kind=kind,
        made_of=plan["made_of"],
        shards=tuple(done[number] for number in range(len(starts))),
    )
    tree = {**asdict(manifest), "sha256": manifest.sha256}
    write_whole(to / MANIFEST, json.dumps(tree, indent=1).encode())
    for leftover in [to / "plan.json", *to.glob("rows-*.json")]:
        leftover.unlink()
    return manifest, True


def read(folder: Path) -> tuple[Manifest, Arrays]:
    """Everything in a folder, every file compared with its hash. Raises DataError."""
    manifest = Manifest.read(folder)
    parts: list[Arrays] = []
    for shard in manifest.shards:
        try:
            data = (folder / shard.file).read_bytes()
        except OSError as error:
            raise DataError(f"{folder / shard.file}: {error}") from error
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            raise DataError(f"{folder / shard.file} is not what was written; make the folder again")
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            parts.append({name: stored[name] for name in stored.files})
    if not parts:
        raise DataError(f"{folder} holds no rows")
    return manifest, {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


# ------------------------------------------------------------------ the files


def _begin(to: Path, plan: Mapping[str, Any]) -> None:
    """Claim the folder for this plan, or see that it already is."""
    mark = to / "plan.json"
    if mark.exists():
        _same(to, json.loads(mark.read_text(encoding="utf-8")) == json.loads(json.dumps(plan)))
    elif to.exists() and any(not file.name.startswith(".partial-") for file in to.iterdir()):
        raise DataError(f"{to}: not empty, and not begun by this command; choose another folder")
    else:
        to.mkdir(parents=True, exist_ok=True)
        write_whole(mark, json.dumps(plan).encode())
    for unfinished in to.glob(".partial-*"):
        shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()


def _same(to: Path, same: bool) -> None:
    if not same:
        raise DataError(
            f"{to}: holds rows of another kind, seed or count, or made another way (ranges, "
            "wording, autoencoder, kernel). Choose another folder, or delete it"
        )


def _finished(to: Path, count: int) -> dict[int, Shard]:
    """Files already committed, by number."""
    found = {}
    for number in range(count):
        mark = to / f"rows-{number:05d}.json"
        if mark.exists():
            found[number] = Shard(**json.loads(mark.read_text(encoding="utf-8")))
    return found


def _made(make: Make, spans: Sequence[tuple[int, int]], workers: int) -> Iterator[Arrays]:
    """The rows of each span, in order."""
    if workers == 1 or len(spans) < 2:
        yield from (make(first, count) for first, count in spans)
        return
    # Spawned: a fork would inherit the locks of torch's threads.
    with multiprocessing.get_context("spawn").Pool(min(workers, len(spans))) as pool:
        waiting = [pool.apply_async(make, span) for span in spans]
        for one in waiting:
            yield one.get()


def _commit(to: Path, number: int, arrays: Arrays) -> Shard:
    """Write a file, then the mark that says so."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes a flag by that name
    data = buffer.getvalue()
    rows = len(next(iter(arrays.values())))
    name = f"rows-{number:05d}.npz"
    shard = Shard(file=name, rows=rows, sha256=hashlib.sha256(data).hexdigest())
    write_whole(to / name, data)
    write_whole(to / f"rows-{number:05d}.json", json.dumps(asdict(shard)).encode())
    return shard
