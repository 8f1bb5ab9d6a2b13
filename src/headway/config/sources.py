"""Config files as plain trees that remember where each key was written."""

from __future__ import annotations

import io
import json
import re
import runpy
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headway.config import shape
from headway.config.problems import InvalidConfig, Place, Problem
from headway.config.run_config import RunConfig
from headway.errors import ConfigError

ENDINGS = (".yaml", ".yml", ".json", ".toml", ".py")
NULLS = ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True, slots=True)
class Layer:
    """A tree of plain values, and the place of each key as far as it is known."""

    tree: dict[str, Any]
    places: Mapping[shape.Path, Place] = field(default_factory=dict)


def read(path: Path) -> Layer:
    """One config file, ``extends`` not yet followed.

    A ``.py`` file is run: it is the user's own program, and defines ``config``.
    Raises ConfigError: missing, not UTF-8, not valid in its format, not a mapping.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"{path}: a config is a file ending in {', '.join(ENDINGS)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {_reason(error)}") from error
    tree, places = _READERS[path.suffix.lower()](path, text)
    places[()] = Place(str(path))
    layer = Layer(tree, places)
    _refuse_odd_keys(layer)
    return layer


def read_override(text: str) -> Layer:
    """``train.batch_size=8`` as a layer; the value is YAML (``8``, ``true``, ``[a, b]``).

    Raises ConfigError: not of this form.
    """
    place = Place("command line", text=text)
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.strip().lstrip("-").split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"command line: {text!r}: an override is written key.path=value")
    node = _compose(value, place)[1]
    if node is None and value.strip() not in NULLS:
        node = value.strip()  # '#1' is a comment to YAML, but here it is what was meant
    places: dict[shape.Path, Place] = {tuple(parts): place}
    tree: Any = node
    for part in reversed(parts):
        tree = {part: tree}
    layer = Layer(tree, places)
    _refuse_odd_keys(layer)
    return layer


def _yaml(path: Path, text: str) -> tuple[dict[str, Any], dict[shape.Path, Place]]:
    node, tree = _compose(text, Place(str(path)))
    return _mapping(path, tree), dict(_node_places(node, (), str(path), text.splitlines()))


def _json(path: Path, text: str) -> tuple[dict[str, Any], dict[shape.Path, Place]]:
    try:
        tree = _mapping(path, json.loads(text, object_pairs_hook=_once))
    except json.JSONDecodeError as error:
        raise _broken(path, "JSON", error.msg, error.lineno, error.colno, text) from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    try:  # JSON is YAML, but for escapes of characters beyond U+FFFF
        node, _ = _compose(text, Place(str(path)))
    except ConfigError:
        return tree, {}
    return tree, dict(_node_places(node, (), str(path), text.splitlines()))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, _ in pairs:
        if sum(key == other for other, _ in pairs) > 1:
            raise ValueError(f"found duplicate key {key!r}")
    return dict(pairs)


def _toml(path: Path, text: str) -> tuple[dict[str, Any], dict[shape.Path, Place]]:
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", str(error))
        what, line, column = found.groups() if found else (str(error), "0", "0")
        raise _broken(path, "TOML", what, int(line), int(column), text) from error
    return tree, dict(_toml_places(path, text))


def _python(path: Path, _text: str) -> tuple[dict[str, Any], dict[shape.Path, Place]]:
    try:
        made = runpy.run_path(str(path)).get("config")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:
        raise ConfigError(f"{path}: failed when run: {type(error).__name__}: {error}") from error
    if made is None:
        raise ConfigError(f"{path}: defines no 'config'; write config = RunConfig(...) or a dict")
    return _mapping(path, made.tree() if isinstance(made, RunConfig) else made), {}


_READERS = {".yaml": _yaml, ".yml": _yaml, ".json": _json, ".toml": _toml, ".py": _python}


def _compose(text: str, place: Place) -> tuple[Any, Any]:
    """YAML 1.2 (``2e-4`` is a number, ``no`` is text) as its node graph and its plain value."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(io.StringIO(text))
        return node, None if node is None else yaml.constructor.construct_document(node)
    except MarkedYAMLError as error:
        mark, what = error.problem_mark, str(error.problem)
        if place.text or mark is None:
            raise ConfigError(f"{place}: {place.text!r}: not valid YAML: {what}") from error
        line, column = mark.line + 1, mark.column + 1
        raise _broken(Path(place.file), "YAML", what, line, column, text) from error
    except YAMLError as error:
        raise ConfigError(f"{place}: not valid YAML: {error}") from error


def _node_places(
    node: Any, path: shape.Path, file: str, lines: list[str], depth: int = 0
) -> Iterator[tuple[shape.Path, Place]]:
    """Each key's place. An anchor that contains itself ends at the depth limit."""
    if node is None or depth > shape.MAX_DEPTH * 2:
        return
    if node.id == "sequence":
        for index, item in enumerate(node.value):
            yield (*path, index), _at(file, lines, item.start_mark)
            yield from _node_places(item, (*path, index), file, lines, depth + 1)
    elif node.id == "mapping":
        for key, value in node.value:
            if key.value == "<<":
                continue
            yield (*path, key.value), _at(file, lines, key.start_mark)
            yield from _node_places(value, (*path, key.value), file, lines, depth + 1)


def _toml_places(path: Path, text: str) -> Iterator[tuple[shape.Path, Place]]:
    """Places by a look at each line: tables and plain ``key = value``; the parser keeps none."""
    table: shape.Path = ()
    tables: dict[shape.Path, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        found = re.match(r"\s*(\[\[?)?\s*([\w\-.\"']+)\s*(\]|=)", line)
        if not found:
            continue
        key = tuple(part.strip("\"' ") for part in found[2].split("."))
        place = Place(str(path), number, found.start(2) + 1, line)
        if found[1] == "[[":
            tables[key] = tables.get(key, -1) + 1
            table = (*key, tables[key])
            yield table, place
        elif found[1]:
            table = key
            yield table, place
        else:
            yield (*table, *key), place


def _at(file: str, lines: list[str], mark: Any) -> Place:
    text = lines[mark.line] if mark.line < len(lines) else ""
    return Place(file, mark.line + 1, mark.column + 1, text)


def _mapping(path: Path, tree: Any) -> dict[str, Any]:
    if not isinstance(tree, dict):
        found = "it is empty" if tree is None else f"it is a {type(tree).__name__}"
        raise ConfigError(f"{path}: a config is a mapping of sections ({found})")
    return tree


def _refuse_odd_keys(layer: Layer) -> None:
    odd = list(_odd_keys(layer.tree, ()))
    if odd:
        raise InvalidConfig([Problem(path, "a key must be text") for path in odd]).placed(
            layer.places
        )


def _odd_keys(value: Any, path: shape.Path) -> Iterator[shape.Path]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                yield (*path, str(key))
            yield from _odd_keys(inner, (*path, str(key)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _odd_keys(inner, (*path, index))


def _broken(path: Path, kind: str, what: str, line: int, column: int, text: str) -> ConfigError:
    lines = text.splitlines()
    source = lines[line - 1] if 0 < line <= len(lines) else ""
    place = Place(str(path), line, column, source)
    return InvalidConfig([Problem((), f"not valid {kind}: {what}", place)])


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return str(error.strerror) if isinstance(error, OSError) else "it is not UTF-8 text"
