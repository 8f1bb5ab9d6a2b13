"""The config's JSON schema: for editors, for the reference page, and for naming the nearest key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from headway.config.recipes import find_recipe

Schema = Mapping[str, Any]
Path = tuple[str | int, ...]
MAX_DEPTH = 8
"""How deep keys are listed; stops at a schema that contains itself."""


def schema_of(config: type[BaseModel], recipe: str | None = None) -> dict[str, Any]:
    """JSON schema of a whole config file, with the recipe's ``task`` section in place.

    Raises ConfigError: the recipe is not installed.
    """
    whole = config.model_json_schema()
    whole["properties"]["extends"] = {
        "type": "string",
        "description": "Another config file, relative to this one, that this one changes.",
    }
    if recipe is None:
        return whole
    task = find_recipe(recipe).Config.model_json_schema(ref_template="#/$defs/task.{model}")
    for name, part in task.pop("$defs", {}).items():
        whole["$defs"][f"task.{name}"] = part
    whole["$defs"]["task"] = task
    whole["properties"]["recipe"]["const"] = recipe
    whole["properties"]["task"] = {"$ref": "#/$defs/task"}
    return whole


def keys_at(root: Schema, path: Path, tree: Any) -> dict[str, Schema]:
    """The keys that may stand at ``path``; a union's member is chosen by its tag in ``tree``."""
    objects = list(_objects(root, root, tree))
    for part in path:
        tree = child(tree, part)
        inner = [_step(each, part) for each in objects]
        objects = [found for each in inner if each for found in _objects(root, each, tree)]
    return {key: part for each in objects for key, part in each.get("properties", {}).items()}


def all_paths(root: Schema) -> Iterator[tuple[Path, Schema]]:
    """Every key that a config can have: its path ('[]' for a list's items) and its schema."""
    yield from _paths(root, root, (), MAX_DEPTH)


def _paths(root: Schema, part: Schema, at: Path, depth: int) -> Iterator[tuple[Path, Schema]]:
    for found in _objects(root, part, None) if depth else ():
        for key, inner in found.get("properties", {}).items():
            yield (*at, key), inner
            yield from _paths(root, inner, (*at, key), depth - 1)
        if "items" in found:
            yield from _paths(root, found["items"], (*at, "[]"), depth - 1)


def _objects(root: Schema, part: Schema, tree: Any) -> Iterator[Schema]:
    """The mappings and lists that ``part`` may be, references and unions resolved."""
    if "$ref" in part:
        name = part["$ref"].removeprefix("#/$defs/")
        yield from _objects(root, root["$defs"][name], tree)
        return
    yield part
    if "items" in part and isinstance(tree, Mapping):  # one item written without its list
        yield from _objects(root, part["items"], tree)
    members = part.get("anyOf") or part.get("oneOf") or ()
    tag = part.get("discriminator", {})
    chosen = child(tree, tag["propertyName"]) if tag else None
    if isinstance(chosen, str) and chosen in tag.get("mapping", {}):
        members = [{"$ref": tag["mapping"][chosen]}]
    for member in members:
        yield from _objects(root, member, tree)


def _step(part: Schema, key: str | int) -> Schema | None:
    inner = part.get("items") if isinstance(key, int) else part.get("properties", {}).get(key)
    return inner or (part["additionalProperties"] if _is_open(part) else None)


def _is_open(part: Schema) -> bool:
    return isinstance(part.get("additionalProperties"), Mapping)


def child(tree: Any, part: str | int) -> Any:
    """What stands at ``part`` of a mapping or list; None if nothing does."""
    if isinstance(tree, Mapping):
        return tree.get(part)
    if isinstance(tree, list | tuple) and isinstance(part, int) and part < len(tree):
        return tree[part]
    return None
