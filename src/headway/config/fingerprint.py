"""What makes two configs the same run, and how they differ where they are not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from headway.config.problems import spell
from headway.config.run_config import RunConfig
from headway.config.shape import Path

ABSENT = object()
PERMISSIONS = frozenset({"shorten_rows_to"})
"""Keys of ``train`` that say what may be done in need, not what is learned."""


def identity(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that decides what is learned: recipe, train, task and seed.

    The weights it begins from are a part, and so are the rows that held-out losses are compared
    on. Mechanics (hardware), other measurements, retention, money and names may change between
    attempts, and so may a permission: what was cut under ``shorten_rows_to`` is in the journal.
    """
    kept: dict[str, Any] = {key: tree.get(key) for key in ("recipe", "train", "task")}
    if isinstance(kept["train"], Mapping):
        kept["train"] = {k: v for k, v in kept["train"].items() if k not in PERMISSIONS}
    for section, key in (("run", "seed"), ("run", "warm_start"), ("evaluate", "max_rows")):
        value = (tree.get(section) or {}).get(key)
        if value is not None:
            kept.setdefault(section, {})[key] = value
    return kept


def fingerprint(config: RunConfig) -> str:
    """Sixteen hex digits that are equal for equal identities, however the config was written."""
    text = json.dumps(_plain(identity(config.tree())), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per key that differs: ``train.learning_rate: 0.0002 -> 0.0003``."""
    found = differing([old, new])
    return [f"{key}: {before} -> {after}" for key, (before, after) in found.items()]


def differing(trees: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Each key that is not the same in all of them -> its value in each, as JSON."""
    leaves = [dict(_leaves(_plain(tree))) for tree in trees]
    found = {
        path: [_show(each.get(path, ABSENT)) for each in leaves]
        for path in dict.fromkeys(path for each in leaves for path in each)
    }
    return {spell(path): values for path, values in found.items() if len(set(values)) > 1}


def _plain(value: Any) -> Any:
    """2.0 and 2 are one number, and a tuple is a list."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Lists of plain values are leaves, so that a changed list is one readable line."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, value


def _show(value: Any) -> str:
    return "(absent)" if value is ABSENT else json.dumps(value, ensure_ascii=False, sort_keys=True)
