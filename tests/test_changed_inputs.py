"""A run goes on over the data and the words it was begun with, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cases import tree_of
from headway.api import train
from headway.config import RunConfig
from headway.errors import CheckpointError
from headway.journal import read_events
from headway.records import StopReason
from toy import Cut, CutAt, assert_same_state, final_state

pytestmark = pytest.mark.usefixtures("own_cache")


def cut(case: str, folder: Path) -> RunConfig:
    """A run that ended without a word after two saves."""
    config = RunConfig(**tree_of(case, folder))
    with pytest.raises(Cut):
        train(config, show=CutAt(3))
    return config


def refused_then_put_back(config: RunConfig, change: Callable[[], Callable[[], None]]) -> str:
    """The run is refused after the change and ends as ever once it is undone; what was said."""
    whole = RunConfig(**{**config.tree(), "run": {**config.tree()["run"], "name": "whole"}})
    train(whole)
    folder = Path(config.run.root) / "run"
    steps = len(read_events(folder / "journal.jsonl", {"step"}))
    undo = change()
    with pytest.raises(CheckpointError, match="changed") as refused:
        train(config)
    assert refused.value.exit_code == 65
    assert len(read_events(folder / "journal.jsonl", {"step"})) == steps, "no step was taken"
    undo()
    assert train(config) is StopReason.FINISHED
    assert_same_state(final_state(folder), final_state(folder.with_name("whole")))
    return str(refused.value)


def rewritten(file: Path, change: Callable[[str], str]) -> Callable[[], Callable[[], None]]:
    """Changes a file's text; the result undoes it."""

    def do() -> Callable[[], None]:
        before = file.read_text()
        assert change(before) != before
        file.write_text(change(before))
        return lambda: (file.write_text(before), None)[1]

    return do


def another_answer(text: str) -> str:
    """One word of one training row."""
    return text.replace("red green", "red black", 1)


def without_a_row(text: str) -> str:
    return text[: text.rindex("\n", 0, -1) + 1]


DATA: dict[str, tuple[str, str, Callable[[str], str]]] = {
    "a word": ("sft-lora", "rows.jsonl", another_answer),
    "a row less": ("sft-lora", "rows.jsonl", without_a_row),
    "rows in another order": (
        "sft-lora",
        "rows.jsonl",
        lambda text: "".join(reversed(text.splitlines(keepends=True))),
    ),
    "a letter of a text": ("pretrain", "text.txt", lambda text: text.replace("a", "e", 1)),
    "a label": ("regression-lora", "chains.jsonl", lambda text: text.replace("1.0", "0.0", 1)),
}


@pytest.mark.fault(63)
@pytest.mark.parametrize("change", DATA)
def test_changed_data_are_refused_until_they_are_put_back(tmp_path: Path, change: str) -> None:
    case, name, edit = DATA[change]
    config = cut(case, tmp_path)
    said = refused_then_put_back(config, rewritten(tmp_path / name, edit))
    assert "data" in said or "held_out" in said


def other_template(text: str) -> str:
    return text.replace("<|im_end|>", "<|im_end|>\n", 1)


def other_tokens(text: str) -> str:
    tree: dict[str, Any] = json.loads(text)
    merges = tree["model"]["merges"]
    tree["model"]["merges"] = [merges[1], merges[0], *merges[2:]]
    return json.dumps(tree)


@pytest.mark.fault(64)
@pytest.mark.parametrize(
    ("name", "edit"),
    [("chat_template.jinja", other_template), ("tokenizer.json", other_tokens)],
    ids=["template", "tokenizer"],
)
def test_another_tokenizer_or_template_is_refused_until_it_is_put_back(
    tmp_path: Path, name: str, edit: Callable[[str], str]
) -> None:
    config = cut("sft-lora", tmp_path)
    refused_then_put_back(config, rewritten(tmp_path / "base" / name, edit))
