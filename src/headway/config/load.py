"""From files and overrides to one RunConfig: extend, merge, validate, say what is wrong where."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headway.config import shape
from headway.config.problems import InvalidConfig, Place, Problem
from headway.config.run_config import RunConfig
from headway.config.sources import Layer, read, read_override
from headway.errors import ConfigError

TAG = "kind"
"""The key that says which member of a union a mapping is (``tuning.kind``)."""
WHOLE = (("train", "horizon"),)
"""Mappings of which one key excludes the others: a later one replaces an earlier one whole."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in ``path``, over what it extends, under ``key.path=value`` overrides.

    YAML, JSON, TOML, or a Python file that defines ``config``. ``extends`` is relative to the file
    it stands in; every other path is relative to the working directory. Without ``run.name`` the
    run is named after the file. Raises ConfigError with all problems, each at its line.
    """
    path = Path(path)
    layer = _extended(path, ())
    for override in overrides:
        layer = merge(layer, read_override(override))
    layer = merge(Layer({"run": {"name": _name_of(path)}}), layer)
    try:
        return RunConfig(**layer.tree)
    except InvalidConfig as error:
        raise error.placed(layer.places) from None


def merge(under: Layer, over: Layer) -> Layer:
    """``over`` laid on ``under``: mappings merge key by key, everything else is replaced.

    A mapping whose tag (``kind``) changes is replaced whole, as are ``train.horizon`` and, when
    ``recipe`` changes, ``task``: their keys would not fit together.
    """
    replaced: list[shape.Path] = []
    tree = _merged(under.tree, over.tree, (), replaced)
    kept = {
        path: place
        for path, place in under.places.items()
        if not any(path[: len(whole)] == whole for whole in replaced)
    }
    return Layer(tree, {**kept, **over.places})


def write_yaml(tree: Mapping[str, Any], path: Path) -> None:
    """Write a plain tree as YAML 1.2; a reader sees the old file or the new one, never a half."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 100
    text = io.StringIO()
    yaml.dump(dict(tree), text)
    partial = path.with_name(f".partial-{path.name}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _extended(path: Path, chain: tuple[Path, ...]) -> Layer:
    if path.resolve() in chain:
        names = " -> ".join(each.name for each in (*chain, path))
        raise ConfigError(f"{path}: extends itself in a circle: {names}")
    layer = read(path)
    if "extends" not in layer.tree:
        return layer
    base = layer.tree["extends"]
    place = layer.places.get(("extends",), Place(str(path)))
    if not isinstance(base, str):
        raise InvalidConfig([Problem(("extends",), "should be the path of one file", place)])
    found = path.parent / base
    if not found.is_file():
        message = f"there is no file {found} ({base!r} is relative to {path.name})"
        raise InvalidConfig([Problem(("extends",), message, place)])
    own = {key: value for key, value in layer.tree.items() if key != "extends"}
    return merge(_extended(found, (*chain, path.resolve())), Layer(own, layer.places))


def _merged(under: Any, over: Any, path: shape.Path, replaced: list[shape.Path]) -> Any:
    both = isinstance(under, dict) and isinstance(over, dict)
    if not both or path in WHOLE or _other_kind(under, over):
        replaced.append(path)
        return over
    if not path and over.get("recipe", under.get("recipe")) != under.get("recipe"):
        under = {key: value for key, value in under.items() if key != "task"}
        replaced.append(("task",))
    tree = dict(under)
    for key, value in over.items():
        inner = (*path, key)
        tree[key] = _merged(under[key], value, inner, replaced) if key in under else value
    return tree


def _other_kind(under: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    return TAG in under and TAG in over and under[TAG] != over[TAG]


def _name_of(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "run"
