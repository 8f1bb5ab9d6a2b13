"""The config: how it is read, put together and saved, and what makes two runs the same."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from headway.config import (
    RunConfig,
    difference,
    fingerprint,
    identity,
    load_config,
)
from headway.config.load import merge
from headway.config.sources import Layer
from headway.errors import ConfigError
from strangers import GOOD, refusal, strangers_recipes, tree, write

__all__ = ["strangers_recipes", "write"]
pytestmark = pytest.mark.usefixtures("strangers_recipes")


def test_yaml_json_toml_and_python_give_the_same_config(write):
    whole = tree()
    toml = (
        'recipe = "toy"\n[train]\nbatch_size = 16\nlearning_rate = 2e-4\n'
        "[train.horizon]\nsteps = 10\n"
        '[task]\nbase_model = "some/model"\n[task.data]\ntrain = "rows.jsonl"\n'
    )
    files = [
        write(GOOD.replace("  tuning: {kind: qlora, rank: 8}\n", "")),
        write(json.dumps(whole), "run.json"),
        write(json.dumps(whole, indent="\t"), "tabs/run.json"),
        write(toml, "run.toml"),
        write(f"config = {whole!r}", "run.py"),
        write(
            f"from headway.config import RunConfig\nconfig = RunConfig(**{whole!r})", "made/run.py"
        ),
    ]
    read = [load_config(file, ["run.name=same"]) for file in files]
    assert all(config == read[0] for config in read)
    assert read[0] == RunConfig(**tree(), run={"name": "same"})


def test_a_number_in_exponent_form_is_a_number_and_1e9_is_whole(write):
    path = write(GOOD.replace("steps: 10", "tokens: 1e9"))
    config = load_config(path)
    assert config.train.learning_rate == 0.0002
    assert config.train.horizon.tokens == 1_000_000_000
    assert "should be a valid integer" in refusal(path, "train.batch_size=1.5")


def test_the_run_is_named_after_its_file_unless_it_says_otherwise(write):
    assert load_config(write(GOOD, "support bot.yaml")).run.name == "support-bot"
    assert load_config(write(GOOD + "run: {name: mine}\n")).run.name == "mine"
    assert load_config(write(GOOD), ["run.name=typed"]).run.name == "typed"


@given(
    rate=st.floats(1e-300, 1e300),
    name=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20),
    notes=st.dictionaries(
        st.text("abc :#'\"-", min_size=1), st.text("no1e5. :#\n\t'é"), max_size=3
    ),
)
def test_a_saved_config_loads_to_an_equal_one(tmp_path_factory, rate, name, notes):
    whole = tree(learning_rate=rate)
    whole["task"] |= {"base_model": name, "data": {"train": name, "notes": notes}}
    config = RunConfig(**whole)
    path = tmp_path_factory.mktemp("saved") / "config.yaml"
    config.save(path)
    again = RunConfig.load(path)
    assert again == config
    assert fingerprint(again) == fingerprint(config)
    assert [file.name for file in path.parent.iterdir()] == ["config.yaml"]


def test_a_config_is_frozen():
    config = RunConfig(**tree())
    with pytest.raises(ValidationError, match="frozen"):
        config.train.batch_size = 3


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("run.yaml", "", "it is empty"),
        ("run.yaml", "- a\n", "it is a list"),
        ("run.yaml", "recipe: [toy\ntask: 3\n", "run.yaml:2:5: not valid YAML"),
        (
            "run.yaml",
            "recipe: toy\nrecipe: other\n",
            "run.yaml:2:1: not valid YAML: found duplicate",
        ),
        ("run.yaml", "recipe: toy\n3: x\n", "a key must be text"),
        ("run.json", '{"recipe": "toy",}', "run.json:1:18: not valid JSON"),
        ("run.json", '{"recipe": "toy", "recipe": "b"}', "found duplicate key 'recipe'"),
        ("run.toml", "recipe = \n", "run.toml:1:10: not valid TOML"),
        ("run.py", "x = 1\n", "defines no 'config'"),
        ("run.py", "1/0\n", "ZeroDivisionError"),
        ("run.txt", "recipe: toy", "a config is a file ending in .yaml"),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_why(write, name, text, says):
    assert says in refusal(write(text, name))


def test_a_missing_file_and_a_file_that_is_not_text_are_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(tmp_path / "bytes.yaml")


def test_extends_merges_mappings_and_replaces_lists_and_values(write):
    write(GOOD.replace("rows.jsonl", "[{path: a}, {path: b}]"), "base/base.yaml")
    text = "extends: base/base.yaml\ntrain: {batch_size: 4, betas: [0.8, 0.9]}\n"
    config = load_config(write(text + "task: {data: {train: [{path: c}]}}\n"))
    assert config.train.batch_size == 4 and config.train.learning_rate == 0.0002
    assert [source.path for source in config.task.data.train] == ["c"]


def test_a_changed_kind_replaces_the_whole_mapping_and_the_same_kind_merges(write):
    write(GOOD, "base.yaml")
    full = load_config(write("extends: base.yaml\ntask: {tuning: {kind: full}}\n"))
    assert full.tree()["task"]["tuning"] == {"kind": "full"}
    same = load_config(write("extends: base.yaml\ntask: {tuning: {kind: qlora, alpha: 5}}\n"))
    assert same.tree()["task"]["tuning"] == {"kind": "qlora", "rank": 8, "alpha": 5}
    naive = {"kind": "full", "rank": 8}  # what a merge key by key would give
    with pytest.raises(ConfigError, match=r"task\.tuning\.rank: unknown key"):
        RunConfig(**tree() | {"task": {**tree()["task"], "tuning": naive}})


def test_another_horizon_replaces_the_first_and_another_recipe_its_task(write):
    path = write(GOOD)
    config = load_config(path, ["train.horizon.epochs=3"])
    assert config.tree()["train"]["horizon"] == {"epochs": 3.0}
    assert load_config(path, ["recipe=other"]).tree()["task"] == {"size": 3}


def test_a_circle_of_extends_and_a_missing_base_are_clear_errors(write):
    write("extends: run.yaml\n", "b.yaml")
    assert "in a circle: run.yaml -> b.yaml -> run.yaml" in refusal(write("extends: b.yaml\n"))
    write("extends: ../run.yaml\n", "deep/c.yaml")
    assert "in a circle" in refusal(write("extends: deep/c.yaml\n"))
    said = refusal(write("recipe: toy\nextends: none.yaml\n"))
    assert "run.yaml:2:1: extends: there is no file" in said and "none.yaml" in said
    assert "should be the path of one file" in refusal(write("extends: [a.yaml]\n"))


def test_an_override_is_yaml_and_comes_last(write):
    path = write(GOOD)
    overrides = ["train.betas=[0.5, 0.6]", "evaluate={every_steps: 5}", "train.batch_size=8"]
    config = load_config(path, [*overrides, "evaluate.at_start=false", "cost=null"])
    assert config.train.betas == (0.5, 0.6) and config.train.batch_size == 8
    assert config.evaluate is not None and config.evaluate.every_steps == 5
    assert config.evaluate.at_start is False
    assert load_config(path, ["task.base_model=#1"]).task.base_model == "#1"
    for bad in ("train.batch_size", "=3", "train..x=3", "train=[1"):
        assert "command line" in refusal(path, bad)


trees = st.recursive(
    st.integers(0, 3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from("abcd"), trees, max_size=3)


@given(mappings, mappings)
def test_the_later_layer_wins_and_what_it_does_not_name_stays(one, two):
    def holds(under, over, laid):
        for key in {**under, **over}:
            if key not in over:
                assert laid[key] == under[key]
            elif isinstance(over[key], dict) and isinstance(under.get(key), dict):
                holds(under[key], over[key], laid[key])
            else:
                assert laid[key] == over[key]
        assert set(laid) == {*under, *over}

    laid = merge(Layer(one), Layer(two)).tree
    holds(one, two, laid)
    assert merge(Layer(laid), Layer(two)).tree == laid


def test_the_fingerprint_ignores_key_order_and_how_numbers_are_written(write):
    whole = tree(batch_size=16, weight_decay=0, learning_rate=0.0002)
    turned = {key: whole[key] for key in reversed(whole)}
    written = GOOD.replace("2e-4", "0.00020").replace("batch_size: 16", "batch_size: 16.0")
    written = written.replace("  tuning: {kind: qlora, rank: 8}\n", "")
    prints = {fingerprint(RunConfig(**whole)), fingerprint(RunConfig(**turned))}
    assert prints | {fingerprint(load_config(write(written)))} == prints and len(prints) == 1


@pytest.mark.fault(43)
@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("hardware.microbatch_size=2", True),
        ("hardware.precision=fp32", True),
        ("evaluate={every_steps: 3}", True),
        ("checkpoint.keep_last=9", True),
        ("cost={usd_per_hour: 1, budget_usd: 3}", True),
        ("run.root=elsewhere", True),
        ("run.name=other", True),
        ("train.shorten_rows_to=64", True),
        ("run.seed=18", False),
        ("train.learning_rate=3e-4", False),
        ("train.horizon.steps=11", False),
        ("train.warmup=1", False),
        ("task.base_model=other", False),
        ("task.tuning.kind=full", False),
    ],
)
def test_only_what_decides_what_is_learned_is_identity(write, override, same):
    before, after = load_config(write(GOOD)), load_config(write(GOOD), [override])
    assert (fingerprint(before) == fingerprint(after)) is same
    assert (not difference(identity(before.tree()), identity(after.tree()))) is same
    assert difference(before.tree(), after.tree())


def test_a_difference_is_one_readable_line_per_key():
    old = {"train": {"rate": 0.0002, "betas": [0.9, 0.95], "eps": 1.0}, "gone": 1}
    new = {"train": {"rate": 0.0003, "betas": [0.9, 0.99], "eps": 1}, "new": "x"}
    assert difference(old, new) == [
        "train.rate: 0.0002 -> 0.0003",
        "train.betas: [0.9, 0.95] -> [0.9, 0.99]",
        "gone: 1 -> (absent)",
        'new: (absent) -> "x"',
    ]
    sources = [{"train": [{"path": "a"}, {"path": "b"}]}, {"train": [{"path": "a"}, {"path": "c"}]}]
    assert difference(*sources) == ['train[1].path: "b" -> "c"']
    assert difference({"x": True}, {"x": 1}) == ["x: true -> 1"]


@given(mappings, mappings)
def test_there_is_no_difference_exactly_when_trees_are_equal(one, two):
    assert difference(one, one) == []
    assert bool(difference(one, two)) is (one != two)
