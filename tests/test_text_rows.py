"""The worst rows of text: each token's loss, the model's choice, where the label is doubtful."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import tree_of
from headway.api import train
from headway.config import RunConfig
from headway.evals import place
from headway.journal import read_events
from headway.recipes.text import JudgedRow, shaded
from toy import assert_same_state, final_state

pytestmark = pytest.mark.usefixtures("own_cache")


class Letters:
    """A tokenizer of the letters a, b, c …"""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(ord("a") + token) for token in ids)


def row(losses: list[float], choices: list[int], of_choices: list[float]) -> JudgedRow:
    """Two tokens that are only read, then the supervised ones, all ``c``."""
    at = list(range(2, 2 + len(losses)))
    return JudgedRow([0, 1, *[2] * len(losses)], at, losses, choices, of_choices)


def worst_of(folder: Path, name: str, **sections: Any) -> tuple[RunConfig, list[dict[str, Any]]]:
    tree = tree_of(name, folder)
    tree["evaluate"] = {"every_steps": 2, "worst_rows": 3}
    for key, section in sections.items():
        tree[key] = {**tree.get(key, {}), **section}
    config = RunConfig(**tree)
    train(config)
    run = Path(config.run.root) / config.run.name
    newest = max(event["step"] for event in read_events(run / "journal.jsonl", {"evaluation"}))
    lines = (place(run, newest) / "worst.jsonl").read_text().split("\n")
    return config, [json.loads(line) for line in lines if line]


@pytest.mark.parametrize("name", ["sft", "pretrain"])
def test_the_losses_of_a_rows_tokens_are_its_loss_whatever_dropout_does_in_training(
    name: str, tmp_path: Path
) -> None:
    tree = tree_of(name, tmp_path)["task"]
    task = (
        {"tuning": {**tree["tuning"], "dropout": 0.5}}
        if name == "sft"
        else {"model": {**tree["model"], "dropout": 0.5}}
    )
    _, rows = worst_of(tmp_path, name, task=task)
    assert rows
    for found in rows:
        losses = [loss for _, loss in found["shown"]["tokens"] if loss is not None]
        assert len(losses) == found["weight"] == len(found["shown"]["choices"])
        assert sum(losses) / len(losses) == pytest.approx(found["loss"], abs=2e-3)
        marked = sum(mark == "changed" for _, mark in found["shown"]["choices"])
        assert found["shown"]["error"] == pytest.approx(marked / len(losses))
        assert found["shown"]["length"] == len(found["shown"]["tokens"])


def test_looking_at_the_worst_rows_changes_no_weight(tmp_path: Path) -> None:
    finals: list[dict[str, Any]] = []
    for worst in (0, 5):
        folder = tmp_path / str(worst)
        folder.mkdir()
        config, _ = worst_of(folder, "pretrain", evaluate={"worst_rows": worst})
        finals.append(final_state(Path(config.run.root) / config.run.name))
    assert len(finals[0]) > 3
    assert_same_state(*finals)


def test_a_row_is_suspicious_where_the_model_is_sure_of_another_token() -> None:
    letters: Any = Letters()
    found = shaded(row([5.0, 0.1, 6.0], [0, 2, 1], [0.01, 0.1, 2.0]), letters)
    assert found["suspicious"].startswith("at 1 of 3 tokens the model is sure of another")
    assert "'a' in place of 'c'" in found["suspicious"]
    assert found["choices"] == [("a", "changed"), ("c", None), ("b", "changed")]
    assert found["tokens"][:3] == [("a", None), ("b", None), ("c", 5.0)]
    assert found["error"] == pytest.approx(2 / 3) and found["length"] == 5


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 3), st.floats(0, 1.3)), max_size=8))
def test_a_row_is_never_suspicious_where_the_model_is_unsure_or_right(
    figures: list[tuple[float, int, float]],
) -> None:
    letters: Any = Letters()
    columns: Any = [[figure[n] for figure in figures] for n in range(3)]
    found = shaded(row(*columns), letters)
    doubtful = any(loss > 4.6 and mine < 0.105 for loss, _, mine in figures)
    assert ("suspicious" in found) == doubtful
    assert ("error" in found) == bool(figures)
