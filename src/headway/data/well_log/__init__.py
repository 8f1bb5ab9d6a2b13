"""Scanned well-log headers that never were, with the exact text beside each picture.

A page is a pure function of (seed, side, index): ``pages`` says how. Here they are written, by any
number of processes, in chunks that a killed generation finds again; the manifest comes last, so a
folder with a manifest is whole. Train and eval share no well, which is asserted on what was
written. The same options give the same bytes with the same Pillow and NumPy, which the manifest
names, on the same kind of machine.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any, get_args

from headway.data.well_log import las, wells
from headway.data.well_log.pages import SIZES, Options, Page, Side, page_at
from headway.data.well_log.wells import Sources
from headway.errors import ConfigError, DataError
from headway.system import write_whole

MANIFEST = "manifest.json"
_PARTIAL = ".partial"
_KIND = "well-log headers"
_OURS = ("train.jsonl", "eval.jsonl", "images")
_CHUNK_PAGES = 32
_SIDES: tuple[Side, ...] = get_args(Side)


@dataclass(frozen=True, slots=True)
class _Work:
    """Some pages of one side, for one process."""

    options: Options
    headers: str
    """What the real headers hash to: other headers are not taken from an earlier call."""
    folder: Path
    side: Side
    start: int
    stop: int

    @property
    def part(self) -> Path:
        """The file that is there once all of them are written."""
        return self.folder / _PARTIAL / f"{self.side}-{self.start:07}.jsonl"


def write(
    options: Options,
    folder: Path,
    *,
    workers: int = 1,
    force: bool = False,
    done: Callable[[int], None] = lambda pages: None,
) -> dict[str, Any]:
    """Pages, ``train.jsonl``, ``eval.jsonl`` and the manifest, which is returned.

    A generation that was cut goes on; a whole one is left as it is. ``done`` hears how many pages
    were written. DataError where the folder holds another one, unless ``force``.
    """
    options = options.checked()
    identity = _identity(options)
    if found := _finished(folder, identity, force):
        return found
    try:
        (folder / _PARTIAL).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error.strerror}; give a folder to write") from error
    write_whole(folder / _PARTIAL / "options.json", _json(identity))
    chunks = list(_chunks(options, identity, folder))
    for pages in _mapped([work for work in chunks if not _whole(work)], workers):
        done(pages)
    rows = {
        side: [row for work in chunks if work.side == side for row in _rows(work)]
        for side in _SIDES
    }
    manifest = {**identity, **_measured(rows)}
    for side in _SIDES:
        lines = b"".join(_json(row["row"]) + b"\n" for row in rows[side])
        write_whole(folder / f"{side}.jsonl", lines)
        digest = hashlib.sha256(lines).hexdigest()
        manifest["files"][f"{side}.jsonl"] = {"rows": len(rows[side]), "sha256": digest}
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
    shutil.rmtree(folder / _PARTIAL)
    return manifest


def sources_of(options: Options) -> dict[Side, Sources]:
    """What each side may draw on; DataError where ``options.las`` has no usable file."""
    if options.las is None:
        return {"train": Sources(), "eval": Sources()}
    train, held_out = wells.split(las.read_headers(Path(options.las)), Random(options.seed))
    return {"train": train, "eval": held_out}


def _identity(options: Options) -> dict[str, Any]:
    """What decides every byte."""
    described = asdict(options)
    if options.las is not None:
        # The folder's name may differ between machines; what is in its headers may not.
        headers = las.read_headers(Path(options.las))
        digest = hashlib.sha256(repr(headers).encode()).hexdigest()
        described["las"] = {"files": len(headers), "sha256": digest}
    versions = {name: version(name) for name in ("pillow", "numpy", "matplotlib")}
    return {"kind": _KIND, "format": 1, "options": described, "versions": versions}


def _finished(folder: Path, identity: dict[str, Any], force: bool) -> dict[str, Any] | None:
    """The manifest of the same generation; another one is removed by ``force``, nothing else is."""
    markers = [folder / MANIFEST, folder / _PARTIAL / "options.json"]
    known = next(((file, _read(file)) for file in markers if file.exists()), None)
    foreign = [name for name in _OURS if (folder / name).exists()]
    if known is None and foreign:
        raise DataError(
            f"{folder / foreign[0]}: is there already, and no {MANIFEST} says it was made here. "
            "Choose another folder; this one is not touched, with --force neither"
        )
    if known is None:
        return None
    file, tree = known
    if tree.get("kind") != _KIND:
        raise DataError(f"{file}: is of something else. Choose another folder")
    if all(tree.get(name) == value for name, value in identity.items()):
        if file.name != MANIFEST:
            return None
        shutil.rmtree(folder / _PARTIAL, ignore_errors=True)
        return tree
    if not force:
        raise DataError(
            f"{file}: pages made with other options, or by other versions of Pillow or NumPy. "
            "Choose another folder, or replace them with --force"
        )
    _clear(folder)
    return None


def _clear(folder: Path) -> None:
    """Remove a generation; killed in between, what is left still says that it is one."""
    shutil.rmtree(folder / _PARTIAL, ignore_errors=True)
    (folder / _PARTIAL).mkdir()
    write_whole(folder / _PARTIAL / "options.json", _json({"kind": _KIND}))
    for name in (MANIFEST, "train.jsonl", "eval.jsonl"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "images", ignore_errors=True)


def _read(file: Path) -> dict[str, Any]:
    """A JSON object, empty where the file is none."""
    try:
        tree = json.loads(file.read_bytes())
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _chunks(options: Options, identity: dict[str, Any], folder: Path) -> Iterator[_Work]:
    headers = json.dumps(identity["options"]["las"])
    for side in _SIDES:
        count = options.train if side == "train" else options.eval
        for start in range(0, count, _CHUNK_PAGES):
            stop = min(count, start + _CHUNK_PAGES)
            yield _Work(options, headers, folder, side, start, stop)


def _mapped(waiting: list[_Work], workers: int) -> Iterator[int]:
    if workers == 1 or len(waiting) < 2:
        yield from map(_write_chunk, waiting)
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(waiting))) as pool:
        yield from pool.imap_unordered(_write_chunk, waiting)


def _write_chunk(work: _Work) -> int:
    """The pages of a chunk, then the file that says so; runs in a worker process."""
    sources = _sources(work.options, work.headers)[work.side]
    lines = []
    for index in range(work.start, work.stop):
        page = page_at(work.options, sources, work.side, index)
        row = _row(page, work.side, index)
        file = work.folder / row["image"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(page.image)
        facts = {"bytes": len(page.image), "sha256": hashlib.sha256(page.image).hexdigest()}
        lines.append(_json({"row": row, "name": page.well.name, **facts}) + b"\n")
    write_whole(work.part, b"".join(lines))
    return work.stop - work.start


@lru_cache(maxsize=1)
def _sources(options: Options, headers: str) -> dict[Side, Sources]:
    return sources_of(options)


def _row(page: Page, side: Side, index: int) -> dict[str, Any]:
    name = f"{index:06}{page.suffix}"
    return {
        "image": f"images/{side}/{index // 1000:03}/{name}",
        "instruction": page.instruction,
        "answer": page.answer,
        "filename": name,
        "well": page.well.key,
        "width": page.width_px,
        "height": page.height_px,
        "template": page.template,
    }


def _whole(work: _Work) -> bool:
    """Whether the chunk was written, and its pictures are there in full length."""
    if not work.part.exists():
        return False
    for made in _rows(work):
        file = work.folder / made["row"]["image"]
        if not file.exists() or file.stat().st_size != made["bytes"]:
            return False
    return True


def _rows(work: _Work) -> list[dict[str, Any]]:
    return [json.loads(line) for line in work.part.read_bytes().splitlines()]


def _measured(rows: dict[Side, list[dict[str, Any]]]) -> dict[str, Any]:
    """What the manifest says of the pages; DataError where both sides have a well."""
    for what, of in (("well", _key), ("well's name", _name)):
        if shared := sorted({of(row) for row in rows["train"]} & {of(row) for row in rows["eval"]}):
            raise DataError(
                f"{len(shared)} in train and eval both: the {what} {shared[0]}. This is a fault of "
                "the generator, and nothing is finished; please report it with the options"
            )
    every = [row for side in _SIDES for row in rows[side]]
    templates = Counter(row["row"]["template"] for row in every)
    trained_on = {row["row"]["answer"] for row in rows["train"]}
    known = sum(row["row"]["answer"] in trained_on for row in rows["eval"])
    images = hashlib.sha256("".join(row["sha256"] for row in every).encode()).hexdigest()
    return {
        "pages": len(every),
        "wells": {side: len({_key(row) for row in rows[side]}) for side in _SIDES},
        "templates": len(templates),
        "pages_of_a_template_used_before": sum(templates.values()) - len(templates),
        "eval_answers_also_in_train": known,
        "answer_characters": sum(len(row["row"]["answer"]) for row in every),
        "image_bytes": sum(row["bytes"] for row in every),
        "images_sha256": images,
        "files": {},
    }


def _key(row: dict[str, Any]) -> str:
    return str(row["row"]["well"])


def _name(row: dict[str, Any]) -> str:
    return str(row["name"]).casefold()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


__all__ = ["MANIFEST", "SIZES", "Options", "Page", "page_at", "sources_of", "write"]
