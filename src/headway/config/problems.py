"""What is wrong with a config, said so that a person can mend it: where, what, what to write."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headway.config.shape import Path, Schema, all_paths, child, keys_at
from headway.config.translate import VALUES, translate
from headway.errors import ConfigError

Details = Mapping[str, Any]
"""One entry of ``pydantic.ValidationError.errors()``."""
SECRET = re.compile(r"token$|secret|password|api_key|credential", re.IGNORECASE)
IN_URL = re.compile(
    r"(?<=://)[^\s\"']*@"
    r"|(?<=[?&#])[^\s\"'=&]*(?:sig|token|key|secret|password|credential|auth)[^\s\"']*",
    re.I,
)
"""What a URL may hold of credentials: not shown where a problem is said."""
CREDENTIALS = re.compile(
    r"://[^/?#@\s]*@"  # user:password@host
    r"|://[^/?#@\s:]+:(?!\d*/)[^?#@\s]*@"  # the same with a / in the password; not host:8080/a@b
    r"|[?&#](?:[^=&#]*(?:signature|token|secret|password|credential|auth)[^=&#]*"
    r"|[^=&#]*key(?:_?id)?|(?:[^=&#]*[_-])?sig)=",
    re.I,
)
"""A URL that surely holds some."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key was written."""

    file: str
    """Path of the file as given, or the words ``command line``."""
    line: int = 0
    """1 for the first line; 0: unknown."""
    column: int = 0
    """1 for the first character; 0: unknown."""
    text: str = ""
    """The source line, or the override as typed."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a config."""

    path: Path
    message: str
    place: Place | None = None

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        said = f"{where}{spell(self.path)}: {self.message}" if self.path else where + self.message
        said = masked(said)
        if not self.place or not self.place.text or any(SECRET.search(str(p)) for p in self.path):
            return said
        text = masked(self.place.text.rstrip())
        caret = " " * (self.place.column - 1) + "^" if self.place.column else ""
        return "\n    ".join(line for line in (said, text, caret) if line)


class InvalidConfig(ConfigError):
    """A config with problems, all of them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problems in the config" if len(self.problems) > 1 else ""
        super().__init__("\n".join([count, *map(str, self.problems)]).strip())

    def placed(self, places: Mapping[Path, Place]) -> InvalidConfig:
        """The same problems in the file's order, each with the place of its key or the nearest."""
        placed = [_placed(problem, places) for problem in self.problems]
        return InvalidConfig(sorted(placed, key=_reading_order))


def masked(text: str) -> str:
    """``text`` without what may be credentials in its URLs."""
    return IN_URL.sub(lambda found: "…@" if found[0].endswith("@") else "…", text)


def spell(path: Path) -> str:
    """``task.data.train[0].path``."""
    said = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return said.removeprefix(".").replace(".[]", "[]")


def find_credentials(tree: Any, path: Path = ()) -> Iterator[Problem]:
    """A problem for each URL with a secret in it: a config is copied into run and bucket."""
    if isinstance(tree, str) and "://" in tree and CREDENTIALS.search(tree):
        yield Problem(path, "credentials do not belong in a config; set them in the environment")
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from find_credentials(value, (*path, key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from find_credentials(value, (*path, index))


def find_problems(errors: Iterable[Details], tree: Any, root: Schema) -> list[Problem]:
    """Pydantic's errors as problems, in the order of the file's keys as far as known.

    A value that fits no member of a union has one error per member: they are said together.
    """
    together: dict[Path, list[Details]] = {}
    for error in errors:
        together.setdefault(_written_path(error, tree, root), []).append(error)
    found: list[Problem] = []
    for path, group in together.items():
        if group[0]["type"].endswith("_type") and any(_inside(path, other) for other in together):
            continue  # another member of this union came further, and says more
        if group[0]["type"] == "extra_forbidden":
            found += _unknown_key(path, group[0]["input"], tree, root)
        else:
            found.append(Problem(path, _say(path, group, tree, root)))
    return found


def _reading_order(problem: Problem) -> tuple[str, int, int]:
    place = problem.place
    return (place.file, place.line, place.column) if place else ("", 0, 0)


def _inside(path: Path, other: Path) -> bool:
    return len(other) > len(path) and other[: len(path)] == path


def _placed(problem: Problem, places: Mapping[Path, Place]) -> Problem:
    for length in range(len(problem.path), -1, -1):
        place = places.get(problem.path[:length])
        if place is not None:
            return dataclasses.replace(problem, place=place)
    return problem


def _written_path(error: Details, tree: Any, root: Schema) -> Path:
    """Pydantic's location without the parts (union tags, type names) that are no keys."""
    path: Path = ()
    here = tree
    for part in error["loc"]:
        is_key = isinstance(here, Mapping) and part in here
        is_item = isinstance(here, list | tuple) and isinstance(part, int)
        if is_key or is_item or part in keys_at(root, path, tree):
            path = (*path, part)
            here = child(here, part)
    return path


def _unknown_key(path: Path, value: Any, tree: Any, root: Schema) -> Iterator[Problem]:
    siblings = ", ".join(keys_at(root, path[:-1], tree)) or "nothing"
    yield Problem(path, f"unknown key; {_hint(path, tree, root) or f'known here: {siblings}'}")
    for inner in _leaves(path, value):  # an unknown section hides what is in it: say that too
        inner_hint = _hint(inner, tree, root)
        if inner_hint:
            yield Problem(inner, inner_hint)


def _leaves(path: Path, value: Any) -> Iterator[Path]:
    for key, inner in value.items() if isinstance(value, Mapping) else ():
        if isinstance(inner, Mapping):
            yield from _leaves((*path, key), inner)
        else:
            yield (*path, key)


def _hint(path: Path, tree: Any, root: Schema) -> str:
    """Its right level, what another tool's name means, or the nearest name; '' if none."""
    name = str(path[-1]).lstrip("-").replace("-", "_").lower()
    known = [found for found, _ in all_paths(root) if found != path]
    elsewhere = list(dict.fromkeys(spell(found) for found in known if found[-1] == name))
    if elsewhere:
        return f"this key belongs at {' or '.join(elsewhere[:3])}"
    said = translate(name)
    if said:
        return said
    near = difflib.get_close_matches(name, keys_at(root, path[:-1], tree), n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    names = {str(found[-1]): spell(found) for found in reversed(known)}
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    return f"did you mean {names[near[0]]}?" if near else ""


def _say(path: Path, group: Sequence[Details], tree: Any, root: Schema) -> str:
    first = group[0]
    match first["type"]:
        case "missing":
            described = keys_at(root, path[:-1], tree).get(str(path[-1]), {}).get("description", "")
            meaning = " ".join(described.split()).rstrip(".")
            return f"is required{f': {meaning}' if meaning else ''}"
        case "union_tag_invalid":
            key = first["ctx"]["discriminator"].strip("'")
            tags = [tag.strip(" '") for tag in first["ctx"]["expected_tags"].split(",")]
            return f"{key} {_not_one_of(first['ctx']['tag'], tags)}"
        case "union_tag_not_found":
            return f"{first['ctx']['discriminator'].strip(chr(39))} is required here"
        case "value_error" | "recipe":
            return str(first["msg"]).removeprefix("Value error, ")
        case "model_type" | "model_attributes_type" | "dict_type":
            keys = ", ".join(keys_at(root, path, tree))
            return f"should be a section with the keys {keys} (got {_short(first['input'])})"
    return _wrong_value(path, group)


def _wrong_value(path: Path, group: Sequence[Details]) -> str:
    value = group[0]["input"]
    said = VALUES.get((str(path[-1]) if path else "", str(value).lower()))
    if said:
        return f"{value!r} is not known here; {said}"
    choices = [re.findall(r"'([^']*)'", e["msg"]) for e in group if e["type"] == "literal_error"]
    if len(choices) == len(group) and isinstance(value, str):
        return _not_one_of(value, [choice for each in choices for choice in each])
    wanted = " or ".join(dict.fromkeys(_wanted(error["msg"]) for error in group))
    wants_bool = any(error["type"].startswith("bool") for error in group)
    hint = ""
    if wants_bool and value in ("yes", "no", "on", "off", "Yes", "No", "On", "Off"):
        hint = "; YAML 1.2 reads yes, no, on and off as text: write true or false"
    return f"should be {wanted} (got {_short(value)}){hint}"


def _wanted(message: str) -> str:
    said = message.removeprefix("Input should be ").removeprefix("String should ")
    return said.split(", unable to parse")[0].replace("match pattern", "text of the form")


def _not_one_of(value: Any, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value).lower(), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"should be one of {', '.join(choices)} (got {_short(value)}){hint}"


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else said[:57] + "…"
