"""How many rows there are: counted where that is cheap, stated where it is not.

Cheap is: all of ``task.data`` lies on this disk and is not large, the pictures that its rows name
included. It is then prepared as the run would prepare it, and kept in the same cache, so that the
run need not do it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headway.config import RunConfig, find_recipe
from headway.engine.task import Task
from headway.errors import DataError
from headway.planning.memory import Rows

CHEAP_BYTES = 32 * 2**20
PLACES = ("train", "eval", "path")
"""Keys of a ``data`` section under which places stand, alone or in lists."""


def why_not_counted(config: RunConfig) -> str | None:
    """None where the rows can be counted cheaply; else the reason in words."""
    section = getattr(config.task, "data", None)
    if section is None:
        return None  # a recipe that has no files makes its own rows
    total = 0
    for place in places(section.model_dump(mode="json")):
        path = Path(place.removeprefix("file://")).expanduser()
        if "://" in str(path) or place.startswith("hf:"):
            return f"{place} is not on this disk"
        if not path.exists():
            return f"{place} is not there"
        files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
        total += sum(file.stat().st_size for file in files)
    if total > CHEAP_BYTES:
        return f"{total / 1e6:,.0f} MB would have to be read (--count reads them)"
    for file in named_by_rows(config):
        total += file.stat().st_size if file.is_file() else 0
        if total > CHEAP_BYTES:
            return f"more than {CHEAP_BYTES / 1e6:.0f} MB would have to be read (--count reads)"
    return None


def named_by_rows(config: RunConfig) -> Iterator[Path]:
    """Files that the rows name, for a recipe whose rows do; what cannot be read is said later."""
    named = getattr(find_recipe(config.recipe), "named_by_rows", None)
    try:
        yield from named(config.task) if named else ()
    except DataError:
        return


def places(tree: Any, under: str = "") -> Iterator[str]:
    """Every place that a plain ``data`` section names."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from places(value, under)
    elif isinstance(tree, str) and under in PLACES:
        yield tree


def rows_of(task: Task, *, read: bool, why: str | None, given: int | None) -> Rows:
    """What is known of the rows: from the task that read them, or from what was ``given``."""
    longest = task.longest(1).tokens
    if read:
        held_out = sum(m.tokens for m in task.held_out())
        mean = task.tokens_per_epoch / max(1, task.rows_per_epoch)
        said = (
            f"{task.rows_per_epoch:,} rows of {mean:,.0f} tokens, {longest:,} at most: read from "
            "the config's data"
        )
        return Rows(
            per_epoch=task.rows_per_epoch,
            tokens_per_row=mean,
            longest_tokens=longest,
            held_out_tokens=held_out,
            read=True,
            said=said,
        )
    count = "--rows says" if given else "unknown"
    said = f"rows {count}, each taken as the longest possible ({longest:,} tokens): {why}"
    return Rows(
        per_epoch=given,
        tokens_per_row=longest,
        longest_tokens=longest,
        held_out_tokens=0,
        read=False,
        said=said,
    )
