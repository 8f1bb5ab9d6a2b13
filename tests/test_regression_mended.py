"""What a second reading of the recipe ``regression`` found wrong, each with its test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from cases import tree_of
from chain_runs import (
    FULL,
    LORA,
    QLORA,
    RECORDS,
    awake,
    chain_of,
    config_of,
    predictions_of,
    record,
    task_of,
    write,
)
from headway.api import load_run, train
from headway.cli import build_app
from headway.config import RunConfig
from headway.errors import CheckpointError, ConfigError
from headway.opening import opened
from headway.recipes.batching import drawn, groups
from headway.recipes.chain_rows import ChainRows
from headway.recipes.chain_view import scored_of
from headway.recipes.export import same_adapter
from headway.recipes.regression import RECIPE
from headway.recipes.score_export import same_scores
from toy import context

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mended")
    train(config_of(folder))
    return folder / "runs/run"


# ------------------------------------------------------------------ held-out chains


def test_a_capped_evaluation_draws_chains_and_measures_all_of_each(tmp_path: Path) -> None:
    long = [record(number, length=9) for number in range(40, 50)]
    data = {
        "train": write(tmp_path / "train.jsonl", RECORDS),
        "eval": write(tmp_path / "long.jsonl", long),
    }
    train(config_of(tmp_path, {"data": data, "max_steps": 3}, evaluate={"max_rows": 4}))
    steps: dict[int, list[int]] = {}
    for line in predictions_of(tmp_path):
        steps.setdefault(line["chain"], []).append(line["step"])
    assert len(steps) == 4 and all(sorted(found) == list(range(9)) for found in steps.values())


def test_a_chain_that_max_tokens_cut_is_known_to_be_measured_in_part(tmp_path: Path) -> None:
    held = [record(1, length=1), record(4, length=30), record(2, length=1)]
    data = {
        "train": write(tmp_path / "train.jsonl", RECORDS),
        "eval": write(tmp_path / "asked.jsonl", held),
    }
    task = task_of(tmp_path, data=data)
    rows = [tuple(v) for m in task.held_out() for v in task.observe(task.model, m.inputs)[1]]
    scored = scored_of(task.held, [tuple(map(float, row)) for row in rows])
    assert scored.whole is not None and len(scored.whole) > 2
    assert scored.whole.tolist() == (scored.chain != 1).tolist()


@pytest.mark.parametrize("kind", ["regression", "sft-lora", "pretrain"])
def test_held_out_rows_that_change_within_a_run_are_refused(tmp_path: Path, kind: str) -> None:
    if kind != "regression":
        tree = tree_of(kind, tmp_path)
        config = RunConfig(**{**tree, "run": {"name": "r", "root": tmp_path / "r"}})
        with opened(config) as run:
            assert "held_out" in run.facts["identities"]
        return
    config = config_of(tmp_path)
    train(config)
    write(tmp_path / "held.jsonl", [record(number) for number in range(200, 210)])
    with pytest.raises(CheckpointError, match="held_out: "):
        train(config)
    with pytest.raises(CheckpointError, match="held_out: "):
        load_run(tmp_path / "runs/run", data=True)
    load_run(tmp_path / "runs/run")


def test_no_rows_are_no_group_and_a_rank_without_held_out_rows_is_refused(tmp_path: Path) -> None:
    model = task_of(tmp_path).model.language
    assert list(groups([], lambda row: 1, model, context())) == []
    assert len(drawn(3, context(ranks=3))) == 3 and len(drawn(0, context(ranks=3))) == 0
    for total, wanted in ((2, None), (9, 2)):
        with pytest.raises(ConfigError, match=r"2 held-out rows are fewer than ranks \(3\)"):
            drawn(total, context(ranks=3, held_out_rows=wanted))


# ------------------------------------------------------------------ what is trained


def test_the_head_and_the_constant_start_at_the_mean_of_what_is_drawn(tmp_path: Path) -> None:
    right = [{**record(n, length=1), "targets": [1]} for n in range(30)]
    wrong = [{**record(n, length=2), "targets": [0, 0]} for n in range(50, 60)]
    sources = [
        {"path": write(tmp_path / "right.jsonl", right), "weight": 1.0},
        {"path": write(tmp_path / "wrong.jsonl", wrong), "weight": 1.0},
    ]
    task = task_of(tmp_path, {"batch_size": 100}, data={"train": sources})
    labels = [t for step in range(10) for m in task.batch_at(step) for t in m.inputs["targets"]]
    assert task.train_mean == pytest.approx(np.mean(labels)) == pytest.approx(1 / 3)
    assert task.model.head.layers[-1].bias.sigmoid().item() == pytest.approx(1 / 3)
    plain = task_of(tmp_path, data={"train": [s["path"] for s in sources]})
    assert plain.train_mean == pytest.approx(30 / 50)


@pytest.mark.parametrize("tuning", [LORA, QLORA], ids=["lora", "qlora"])
def test_the_row_of_a_token_that_the_base_has_already_trains_too(
    tmp_path: Path, tuning: dict[str, Any]
) -> None:
    if tuning is QLORA:
        pytest.importorskip("bitsandbytes")
    first = awake(task_of(tmp_path / "first"))
    merged = tmp_path / "merged"
    merged.mkdir()
    RECIPE.export(first, first.config, merged, "merged")
    task = task_of(tmp_path / "second", base_model=str(merged), tuning=tuning)
    token = task.tokenizer.convert_tokens_to_ids("<CONFIDENCE>")
    table = task.model.language.get_input_embeddings()
    row = AutoModelForCausalLM.from_pretrained(merged).get_input_embeddings().weight[token]
    assert torch.equal(table(torch.tensor([token]))[0], row), "it begins where it was"
    trained = [name for name, p in task.model.named_parameters() if p.requires_grad]
    assert any("trainable_tokens" in name for name in trained)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"token": ""}, "token"),
        ({"token": "two words"}, "token"),
        ({"huber_delta": 0.2}, "huber_delta has no effect"),
        ({"read_at": "last", "token": "<X>"}, "token has no effect"),
    ],
)
def test_a_setting_without_effect_is_refused(
    tmp_path: Path, wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        config_of(tmp_path, wrong)
    config_of(tmp_path, {"loss": "huber", "huber_delta": 0.2})


# ------------------------------------------------------------------ rows


def test_a_text_that_spells_the_token_is_not_the_token(tmp_path: Path) -> None:
    text = task_of(tmp_path).text
    said = {"problem": "What is <CONFIDENCE>?", "steps": ["a <CONFIDENCE>"], "targets": [1]}
    [row] = text.encode([chain_of(said)])
    token = text.tokenizer.convert_tokens_to_ids("<CONFIDENCE>")
    assert [n for n, i in enumerate(row.ids) if i == token] == row.at.tolist()
    assert text.tokenizer.decode(row.ids).count("<CONFIDENCE>") == 3, "it is read as it stands"


def test_context_that_makes_room_is_counted_and_predict_reads_the_same(tmp_path: Path) -> None:
    task = awake(task_of(tmp_path))
    long = record(3, length=12)
    chain = chain_of(long, [None] * 11 + [1.0])
    text = replace(task.text, max_tokens=64)
    rows = ChainRows([chain], text)
    assert 0 < rows.dropped_steps < 11 and rows.lost_steps == 0
    assert f"{rows.dropped_steps} unlabelled first steps are left" in rows.lines("train", "x")[0]
    inputs = rows.microbatch([0]).inputs
    trained = task.observe(task.model, inputs)[1][0, 2].item()
    found = replace(task, text=text).scores([chain])[0]
    assert found[-1] == pytest.approx(trained, abs=1e-6) and None not in found
    whole = task.scores([chain])[0]
    assert found[:2] == pytest.approx(whole[:2], abs=1e-6), "what fits is read with all before it"


def test_the_report_says_which_split_lost_steps_and_where_the_first_is(tmp_path: Path) -> None:
    held = [record(0), record(1), record(4, length=30)]
    data = {
        "train": write(tmp_path / "few.jsonl", [record(0), record(1)]),
        "eval": write(tmp_path / "asked.jsonl", held),
    }
    task = task_of(tmp_path, max_tokens=128, data=data | {"max_leaked": 1.0})
    lines = [line for line in task.facts()["data"] if "beyond max_tokens" in line]
    assert len(lines) == 1 and "held-out: " in lines[0] and "are not measured" in lines[0]
    assert "asked.jsonl:3" in lines[0], lines


# ------------------------------------------------------------------ exports


def test_an_export_compares_the_tokens_row_and_one_chains_scores(tmp_path: Path) -> None:
    task = awake(task_of(tmp_path, tuning=LORA))
    other = awake(task_of(tmp_path, tuning=LORA))
    same_adapter(task.model.language, other.model.language, tmp_path)
    assert same_scores(task, other.model, "adapter", tmp_path)["largest_score_difference"] < 1e-4
    with torch.no_grad():
        for name, parameter in other.model.named_parameters():
            if "trainable_tokens" in name:
                parameter += 0.5
    with pytest.raises(CheckpointError, match="trainable_tokens"):
        same_adapter(task.model.language, other.model.language, tmp_path)
    with pytest.raises(CheckpointError, match="scores a chain differently"):
        same_scores(task, other.model, "adapter", tmp_path)


@pytest.mark.parametrize(
    ("tuning", "precision", "format"),
    [(LORA, "fp32", "adapter"), (LORA, "bf16", "adapter"), (LORA, "bf16", "merged"),
     (FULL, "bf16_pure", "full"), (QLORA, "fp32", "merged"), (QLORA, "fp32", "adapter")],
    ids=str,
)  # fmt: skip
def test_an_export_says_how_far_its_scores_are_off(
    tmp_path: Path, tuning: dict[str, Any], precision: str, format: str
) -> None:
    if tuning is QLORA:
        pytest.importorskip("bitsandbytes")
    share = 1.0 if precision == "fp32" else 0.1
    task = awake(task_of(tmp_path, {"precision": precision}, tuning=tuning), share)
    (tmp_path / "out").mkdir()
    found = RECIPE.export(task, task.config, tmp_path / "out", format)
    if tuning is QLORA:
        assert ("scores differ" if format == "merged" else "not compared") in found["scores"]
    else:
        assert found["largest_score_difference"] < (1e-4 if precision == "fp32" else 2e-2)


# ------------------------------------------------------------------ the command line


STEPS = ["--steps", "red green"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--problem", "P"], "--problem needs --steps"),
        (["--evidence", "E"], "--evidence needs --steps"),
        (["--problem", "P", "--prompt", "red"], "--problem and --prompt"),
        ([*STEPS, "--prompt", "red"], "--steps and --prompt"),
        (["--problem", "P", "--file", "x.jsonl"], "--problem and --file"),
        (["--steps", " "], "a step is empty"),
        ([*STEPS, "--max-new-tokens", "3"], "takes no max_new_tokens"),
        ([*STEPS, "--temperature", "0.5"], "takes no temperature"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    run: Path, options: list[str], says: str
) -> None:
    done = CliRunner().invoke(build_app(), ["predict", str(run), *options])
    assert isinstance(done.exception, ConfigError) and says in str(done.exception)
    assert done.stdout == ""


def test_evidence_is_read_from_the_command_line(run: Path) -> None:
    arguments = ["predict", str(run), *STEPS, "--evidence", "It is.", "--evidence", "So.", "--json"]
    done = CliRunner().invoke(build_app(), arguments)
    assert json.loads(done.stdout)["evidence"] == ["It is.", "So."]


def test_an_odd_line_is_refused_with_its_place_before_the_first_answer(
    run: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "asked.jsonl", [{"steps": ["red"]}, {"steps": [1]}])
    done = CliRunner().invoke(build_app(), ["predict", str(run), "--file", file])
    assert isinstance(done.exception, ConfigError) and done.stdout == ""
    assert "asked.jsonl:2: predict: steps must be" in str(done.exception)
