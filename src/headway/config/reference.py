"""The config reference page, written from the field descriptions so that it cannot go stale.

``python -m headway.config.reference docs/config.md`` writes it.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headway.config.presets import presets
from headway.config.recipes import known_recipes
from headway.config.run_config import schema
from headway.config.translate import NAMES, VALUES

Row = tuple[str, Mapping[str, Any], bool]
"""A key's path, its schema, and whether it is required."""
OWN_RECIPES = ("sft", "pretrain", "regression", "vision", "graph_vae", "latent_editor")
"""The recipes that headway documents; a stranger's documents its own."""
RULES = """\
# The config

<!-- Written by `make docs` (python -m headway.config.reference docs/config.md): do not edit. -->

A config states the mathematics of a run; the machine decides the mechanics. It is a YAML (1.2),
JSON or TOML file, or a Python file that defines `config`. Any key can be given on the command line
as `key.path=value` (the value is read as YAML).

- A section left out means that this room is absent; only `monitor` is then there with its defaults,
  because NaN must be refused in every run. An unknown key is an error, with its line, the nearest
  known key, and the translation of other tools' names (last table).
- `extends: other.yaml` starts from another file (relative to the file it stands in) and changes it:
  mappings merge key by key, lists and values are replaced. `train.horizon`, a mapping whose `kind`
  changes, and `task` when `recipe` changes are replaced whole.
- Every other path is relative to the working directory.
- `"16"` is text and not a number; `2e-4` is a number; `true` and `false` are the only booleans.
- The run keeps the resolved config, defaults included, in `config.yaml`; loading it gives an equal
  config. `recipe`, `train` (but for `shorten_rows_to`), `task` and `run.seed` are the run's
  identity (its fingerprint): a run is never continued with another. Everything else may change
  between attempts.
"""


def reference(recipes: Sequence[str]) -> str:
    """The whole page, with the ``task`` section of each of ``recipes``. Markdown."""
    root = schema()
    tops = [key for key in root["properties"] if key not in ("task", "extends")]
    parts = [RULES, "## All recipes\n", *_table(root, _rows(root, root, "", tops))]
    parts += ["## Hardware presets\n", *_preset_rows(), ""]
    for recipe in recipes:
        whole = schema(recipe)
        parts += [f"## `task` of the recipe `{recipe}`\n"]
        parts += _table(whole, _rows(whole, whole, "", ["task"]))
    parts += ["## Other tools' names\n", "| name | known from | here |", "|---|---|---|"]
    parts += [f"| `{name}` | {tool} | {_cell(says)} |" for name, (tool, says) in NAMES.items()]
    parts += ["", "| value | here |", "|---|---|"]
    parts += [f"| `{key}: {value}` | {_cell(says)} |" for (key, value), says in VALUES.items()]
    return "\n".join(parts) + "\n"


def documented_recipes() -> list[str]:
    """Those of headway's own recipes that are there and can be imported."""
    return [name for name in OWN_RECIPES if name in known_recipes() and _is_importable(name)]


def main(arguments: Sequence[str]) -> None:
    """Write the page to the path in ``arguments``."""
    Path(arguments[0]).write_text(reference(documented_recipes()), encoding="utf-8")


def _is_importable(recipe: str) -> bool:
    try:
        importlib.import_module(f"headway.recipes.{recipe}")
    except ModuleNotFoundError as error:
        if error.name == f"headway.recipes.{recipe}":
            return False
        raise
    return True


def _preset_rows() -> list[str]:
    """What each ``hardware.preset`` fills in, for which model, and who says so."""
    found = presets()
    keys = list(next(iter(found.values())).hardware())
    head = ["`hardware.preset`", *(f"`{key}`" for key in keys), "suits", "source"]
    rows = [
        [f"`{name}`", *map(json.dumps, each.hardware().values()), each.suits, each.source]
        for name, each in found.items()
    ]
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def _table(
    root: Mapping[str, Any], rows: Iterator[tuple[str, Mapping[str, Any], bool]]
) -> list[str]:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for path, part, required in rows:
        default = "**required**" if required else _default(part)
        meaning = _cell(part.get("description", ""))
        lines.append(f"| `{path}` | {_cell(_type(root, part))} | {default} | {meaning} |")
    return [*lines, ""]


def _rows(
    root: Mapping[str, Any], part: Mapping[str, Any], at: str, only: Sequence[str] = ()
) -> Iterator[Row]:
    """Every key at and below ``part``, unions' members one by one."""
    for name, member in _members(root, part):
        if "items" in member:
            yield from _rows(root, member["items"], f"{at}[]")
        where = f"{at} ({name})" if name else at
        for key, inner in member.get("properties", {}).items():
            is_tag = name and name in (inner.get("const"), ", ".join(inner.get("enum", ())))
            if (only and key not in only) or is_tag:
                continue
            path = f"{where}.{key}".removeprefix(".")
            yield path, inner, key in member.get("required", ()) or (key == "task")
            yield from _rows(root, inner, path)


def _members(
    root: Mapping[str, Any], part: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(tags or '', schema) of the mappings and lists that ``part`` may be."""
    if "$ref" in part:
        yield from _members(root, _resolved(root, part))
    elif "discriminator" in part:
        mapping = part["discriminator"]["mapping"]
        for ref in dict.fromkeys(mapping.values()):
            tags = [tag for tag, other in mapping.items() if other == ref]
            yield ", ".join(tags), _resolved(root, {"$ref": ref})
    elif "anyOf" in part:
        for member in part["anyOf"]:
            yield from _members(root, member)
    else:
        yield "", part


def _type(root: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    part = _resolved(root, part)
    if "const" in part:
        return f"`{part['const']}`"
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if "discriminator" in part:
        tags = ", ".join(f"`{tag}`" for tag in part["discriminator"]["mapping"])
        return f"section by `{part['discriminator']['propertyName']}`: {tags}"
    if "anyOf" in part:
        said = [_type(root, member) for member in part["anyOf"] if member.get("type") != "null"]
        return " or ".join(dict.fromkeys(said))
    if part.get("type") == "array":
        return f"list of {_type(root, part['items'])}" if "items" in part else "list"
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "boolean"}
    section = "section" if "properties" in part else "mapping"
    return names.get(part.get("type", ""), section) + _range(part)


def _range(part: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    said = [f"{sign} {part[key]:g}" for key, sign in signs.items() if key in part]
    return f" {', '.join(said)}" if said else ""


def _default(part: Mapping[str, Any]) -> str:
    default = part.get("default")
    if default is None or isinstance(default, dict):
        return "" if default else "left out"
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def _resolved(root: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = part
    while "$ref" in found:
        found = root["$defs"][found["$ref"].removeprefix("#/$defs/")]
    return found


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main(sys.argv[1:])
