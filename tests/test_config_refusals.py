"""A config that cannot be meant is refused: every problem, at its line, with what to write."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.config import (
    InvalidConfig,
    RunConfig,
    load_config,
)
from headway.errors import ConfigError
from strangers import GOOD, refusal, strangers_recipes, tree, write

__all__ = ["strangers_recipes", "write"]
pytestmark = pytest.mark.usefixtures("strangers_recipes")


BAD = """\
recipe: toy
train:
  horizon: {steps: 10, epochs: 2}
  batch_size: "16"
  warmup: 3.0
  schedule: cosin
hardware: {compile: no, microbatch_size: many}
evaluate: {every_steps: 3, seed: 4}
lerning_rate: 3
task:
  base_model: x
  tuning: {kind: qlora, rnak: 8}
  data: {train: [{path: a, wieght: 3}]}
"""


def test_all_problems_are_said_at_once_in_the_order_of_the_file_each_at_its_key(write):
    path = write(BAD)
    said = refusal(path, "train.eps=a").replace(f"{path}", "run.yaml")
    expected = [
        "run.yaml:2:1: train.learning_rate: is required: Peak learning rate, per optimizer step",
        "run.yaml:3:3: train.horizon: write exactly one of steps, epochs and tokens",
        "run.yaml:4:3: train.batch_size: should be a valid integer (got '16')",
        "run.yaml:5:3: train.warmup: a share of the run is below 1",
        "run.yaml:6:3: train.schedule: should be one of linear, cosine, constant, wsd "
        "(got 'cosin'); did you mean 'cosine'?",
        "run.yaml:7:12: hardware.compile: should be a valid boolean (got 'no'); YAML 1.2 reads",
        "run.yaml:7:25: hardware.microbatch_size: should be 'auto' or a valid integer (got 'many')",
        "run.yaml:8:28: evaluate.seed: unknown key; this key belongs at run.seed",
        "run.yaml:9:1: lerning_rate: unknown key; did you mean train.learning_rate?",
        "run.yaml:12:25: task.tuning.rnak: unknown key; did you mean 'rank'?",
        "run.yaml:13:28: task.data.train[0].wieght: unknown key; did you mean 'weight'?",
    ]
    places = [said.find(line) for line in expected]
    assert -1 not in places, expected[places.index(-1)] + "\nnot in\n" + said
    assert places == sorted(places)
    assert said.startswith("12 problems in the config")
    assert "command line: train.eps: should be a valid number (got 'a')" in said


names = st.sampled_from(["recipe", "run", "train", "horizon", "steps", "task", "tuning", "kind"])
names |= st.sampled_from(["data", "betas", "evaluate", "early_stop", "lora_r", "training", "0"])
values = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["toy", "qlora"])


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        names,
        st.recursive(
            values,
            lambda inner: st.dictionaries(names, inner, max_size=3) | st.lists(inner, max_size=2),
        ),
        max_size=5,
    )
)
def test_whatever_is_written_it_is_a_config_or_a_config_error(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("any") / "run.json"
    path.write_text(json.dumps(tree | {"recipe": "toy"}))
    with pytest.raises(ConfigError) as caught:  # train is never whole, so it is never a config
        load_config(path, ["train.eps=1"])
    assert str(caught.value)


def test_the_caret_stands_under_the_key(write):
    lines = refusal(write(BAD)).splitlines()
    at = next(i for i, line in enumerate(lines) if "task.tuning.rnak" in line)
    source, caret = lines[at + 1], lines[at + 2]
    assert source[caret.index("^") :].startswith("rnak: 8")


def test_a_problem_in_an_extended_file_is_placed_in_that_file(write):
    base = write(GOOD.replace("batch_size: 16", "batch_size: x"), "base.yaml")
    assert f"{base}:4:3: train.batch_size" in refusal(write("extends: base.yaml\n"))
    assert load_config(write("extends: base.yaml\ntrain: {batch_size: 3}\n")).train.batch_size == 3


def test_a_problem_in_a_replaced_list_is_not_placed_in_the_file_it_was_replaced_in(write):
    path = write(GOOD.replace("rows.jsonl", "[{path: a}]"))
    said = refusal(path, "task.data.train=[{path: 3}]")
    assert "command line: task.data.train[0].path: should be a valid string" in said


def test_a_problem_in_toml_or_json_has_its_line(write):
    toml = 'recipe = "toy"\n[train]\nbatch_size = "x"\nhorizon = {steps = "y"}\n'
    toml += "[[task.data.train]]\nwieght=1\n"
    said = refusal(write(toml, "run.toml"))
    assert "run.toml:3:1: train.batch_size" in said and "run.toml:4:1: train.horizon.steps" in said
    assert "run.toml:6:1: task.data.train[0].wieght" in said
    said = refusal(write(json.dumps(tree(batch_size="x"), indent="\t"), "run.json"))
    assert "run.json:7:3: train.batch_size" in said


def test_a_python_config_reports_its_problems_as_a_config_error(write):
    said = refusal(write(f"config = {tree(batch_size='x')!r}", "run.py"))
    assert "run.py: train.batch_size: should be" in said
    with pytest.raises(InvalidConfig, match=r"^train\.batch_size: should be") as caught:
        RunConfig(**tree(batch_size="x"))
    assert caught.value.exit_code == 78


def test_an_unknown_kind_and_a_missing_kind_name_the_known_ones(write):
    said = refusal(write(GOOD), "task.tuning.kind=qlra")
    assert "task.tuning: kind should be one of full, lora, qlora (got 'qlra')" in said
    assert "did you mean 'qlora'?" in said
    said = refusal(write(GOOD.replace("kind: qlora, ", "")))
    assert "run.yaml:8:3: task.tuning: kind is required here" in said


def test_an_unknown_recipe_lists_the_known_ones_and_the_rest_is_still_checked(write):
    said = refusal(write(GOOD.replace("toy", "tyo")), "train.eps=a")
    assert "run.yaml:1:1: recipe: unknown recipe 'tyo'; did you mean 'toy'?" in said
    assert "other" in said and "train.eps" in said
    assert "cannot be loaded: No module named 'stranger_missing'" in refusal(
        write(GOOD), "recipe=broken"
    )
    assert "recipe: is required" in refusal(write(GOOD.replace("recipe: toy\n", "")))


def test_a_missing_task_says_what_the_recipe_needs(write):
    said = refusal(write(GOOD.split("task:")[0]))
    assert "task.base_model: is required: Name of the model" in said
    assert "task.data: is required" in said


def test_a_secret_in_a_refused_key_is_not_printed(write):
    said = refusal(write(GOOD + "hf_token: hf_abcdef\n"), "wandb_api_key=abcdef")
    assert "secrets stay in the environment" in said
    assert "abcdef" not in said


@pytest.mark.parametrize(
    "override",
    [
        "train.batch_size=0",
        "train.batch_size=true",
        "train.learning_rate=.nan",
        "train.learning_rate=.inf",
        "train.learning_rate=0",
        "train.warmup=-1",
        "train.horizon={}",
        "train.horizon.steps=0",
        "train.betas=[0.9, 1.0]",
        "run.name=../up",
        "checkpoint.keep_last=0",
        "checkpoint=null",
        "cost={}",
        "evaluate=3",
        "hardware=[]",
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_at_its_key(write, override):
    said = refusal(write(GOOD), override)
    assert f"command line: {override.partition('=')[0]}" in said
    assert "problems" not in said


def test_a_warm_up_keeps_its_unit():
    assert RunConfig(**tree(warmup=0.03)).train.warmup == 0.03
    steps = RunConfig(**tree(warmup=100)).train.warmup
    assert steps == 100 and isinstance(steps, int)
    one = RunConfig(**tree(warmup=1)).train.warmup
    assert one == 1 and isinstance(one, int)
