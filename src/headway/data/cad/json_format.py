"""The seed system's JSON of edits, read and written: one list of objects in a file.

``instruction``, ``z_src``, ``z_tgt``, ``delta_z``, ``param_deltas`` {name: mm}, ``direction`` (1
more, 0 less, 0.5 neither), ``edit_type``; or the paired form, whose keys end in ``_inc`` and
``_dec`` and which is two edits. Files of ours add ``family`` and ``parameters`` {name: mm}; a
``metadata.json`` beside the file names the weights that made its latents: without it nobody could
tell whether an autoencoder is theirs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headway.data.cad.families import FAMILIES, MOST_PARAMETERS, find_family
from headway.data.cad.rows import EditRows
from headway.errors import DataError
from headway.system import write_whole

THEIRS = {"leg1_length": "leg1", "leg2_length": "leg2"}
"""Names of the seed system, as they are called here."""
PAIRED = ("inc", "dec")


def read_json_edits(path: Path) -> tuple[EditRows, str]:
    """(edits, hash of the file). Raises DataError with the place of what is wrong."""
    try:
        data = path.read_bytes()
        tree = json.loads(data)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(tree, list) or not tree:
        raise DataError(f"{path}: a list of edits was expected, not {type(tree).__name__}")
    found = [row for number, item in enumerate(tree) for row in _rows(item, f"{path}[{number}]")]
    widths = {len(row["z_src"]) for row in found} | {len(row["z_tgt"]) for row in found}
    if len(widths) != 1:
        raise DataError(f"{path}: latents of different lengths: {sorted(widths)}")
    rows = EditRows(
        instructions=tuple(row["instruction"] for row in found),
        z_src=np.array([row["z_src"] for row in found], dtype=np.float32),
        z_tgt=np.array([row["z_tgt"] for row in found], dtype=np.float32),
        changes=tuple(row["changes"] for row in found),
        kinds=tuple(row["kind"] for row in found),
        family=np.array([row["family"] for row in found], dtype=np.int64),
        values=np.array([row["values"] for row in found], dtype=np.float64),
        vae_sha256=_weights(path),
    )
    if not (np.isfinite(rows.z_src).all() and np.isfinite(rows.z_tgt).all()):
        raise DataError(f"{path}: a latent holds a number that is none")
    return rows, hashlib.sha256(data).hexdigest()


def _rows(item: Any, where: str) -> Iterator[dict[str, Any]]:
    """The edits of one object: one, or the two of a pair."""
    if not isinstance(item, dict):
        raise DataError(f"{where}: an object was expected, not {type(item).__name__}")
    if "instruction_inc" not in item:
        yield _row(item, where)
        return
    for way in PAIRED:
        keys = {"instruction": f"instruction_{way}", "z_tgt": f"z_tgt_{way}"}
        one = {key: _there(item, name, where) for key, name in keys.items()}
        deltas = {str(_there(item, "param", where)): _there(item, f"delta_{way}", where)}
        given = {**item, **one, "param_deltas": deltas, "delta_z": item.get(f"delta_z_{way}")}
        yield _row(given, where)


def _row(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    source = _numbers(_there(item, "z_src", where), f"{where}.z_src")
    target = _numbers(_there(item, "z_tgt", where), f"{where}.z_tgt")
    if item.get("delta_z") is not None and len(target) == len(source):
        stated = _numbers(item["delta_z"], f"{where}.delta_z")
        off = max(
            (abs(b - a - d) for a, b, d in zip(source, target, stated, strict=False)), default=0
        )
        if len(stated) != len(source) or off > 1e-3:
            raise DataError(f"{where}: delta_z is not z_tgt - z_src (off by {off:.2g})")
    deltas = item.get("param_deltas", {})
    if not isinstance(deltas, dict):
        raise DataError(f"{where}.param_deltas: an object was expected")
    changes = dict(
        zip((THEIRS.get(n, n) for n in deltas), _numbers(list(deltas.values()), where), strict=True)
    )
    family, values = _part(item, where)
    instruction = _there(item, "instruction", where)
    if not isinstance(instruction, str) or not instruction.strip():
        raise DataError(f"{where}.instruction: a text was expected, not {instruction!r}")
    return {
        "instruction": instruction,
        "z_src": source,
        "z_tgt": target,
        "changes": changes,
        "kind": str(item.get("edit_type", "single")),
        "family": family,
        "values": values,
    }


def _part(item: Mapping[str, Any], where: str) -> tuple[int, list[float]]:
    """(family, dimensions) where they are said; (-1, NaN) where they are not."""
    unknown = [math.nan] * MOST_PARAMETERS
    if item.get("family") is None:
        return -1, unknown
    family = find_family(str(item["family"]))
    given = item.get("parameters") or {}
    missing = [name for name in family.names if name not in given]
    if missing:
        raise DataError(f"{where}.parameters: a {family.name} has a {missing[0]} too")
    values = _numbers([given[name] for name in family.names], f"{where}.parameters")
    return FAMILIES.index(family), values + [0.0] * (MOST_PARAMETERS - len(values))


def _there(item: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in item:
        raise DataError(f"{where}: no {key}; it has {', '.join(map(str, item))}")
    return item[key]


def _numbers(values: Any, where: str) -> list[float]:
    if not isinstance(values, list) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in values
    ):
        raise DataError(f"{where}: a list of numbers was expected")
    return [float(value) for value in values]


def _weights(path: Path) -> str | None:
    """The hash that ``metadata.json`` beside the file states; None where it states none."""
    beside = path.parent / "metadata.json"
    if not beside.is_file():
        return None
    try:
        stated = json.loads(beside.read_text(encoding="utf-8")).get("vae_sha256")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{beside}: not readable as JSON: {error}") from error
    return None if stated is None else str(stated)


def json_edits(rows: EditRows) -> list[dict[str, Any]]:
    """The rows as a list to be written, in the seed system's fields and ours."""
    found = []
    for row in range(len(rows)):
        before, after = rows.z_src[row].tolist(), rows.z_tgt[row].tolist()
        changes = dict(rows.changes[row])
        item: dict[str, Any] = {
            "instruction": rows.instructions[row],
            "z_src": before,
            "z_tgt": after,
            "delta_z": (rows.z_tgt[row] - rows.z_src[row]).tolist(),
            "param_deltas": changes,
            "direction": direction(changes),
            "edit_type": rows.kinds[row],
        }
        family = rows.family_of(row)
        if family:
            values = rows.values[row, : len(family.parameters)].tolist()
            item |= {
                "family": family.name,
                "parameters": dict(zip(family.names, values, strict=True)),
            }
        found.append(item)
    return found


def write_json_edits(path: Path, rows: EditRows, seed: int) -> None:
    """The rows as a JSON file, and what they are in ``metadata.json`` beside it.

    Several files may lie beside one another, such as those of the splits, if one autoencoder made
    their latents; DataError where another did.
    """
    beside = path.parent / "metadata.json"
    if beside.is_file() and (stated := _weights(path)) != rows.vae_sha256:
        raise DataError(
            f"{beside} is of files whose latents another autoencoder made ({stated}); write "
            f"{path.name} into another folder"
        )
    there = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    files = {**there.get("files", {}), path.name: {"num_samples": len(rows), "seed": seed}}
    named = {name for changes in rows.changes for name in changes}
    tree = {
        **there,
        "vae_sha256": rows.vae_sha256,
        "latent_dim": rows.z_src.shape[1],
        "num_samples": sum(file["num_samples"] for file in files.values()),
        "paired": False,
        "edit_types": sorted({*there.get("edit_types", []), *rows.kinds}),
        "parameters": sorted({*there.get("parameters", []), *named}),
        "files": files,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(json_edits(rows)).encode())
    write_whole(beside, json.dumps(tree, indent=1).encode())


def direction(changes: Mapping[str, float]) -> float:
    """1 where the first change is to more, 0 to less, 0.5 where nothing changes."""
    first = next(iter(changes.values()), 0.0)
    return 0.5 if first == 0 else float(first > 0)
