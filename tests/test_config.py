"""The config: what can be written, what is refused and how, what makes two runs the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from headway.cli.init import init, starter, starter_names
from headway.config import (
    InvalidConfig,
    RunConfig,
    difference,
    find_recipe,
    fingerprint,
    identity,
    load_config,
    schema,
)
from headway.config.load import merge
from headway.config.reference import documented_recipes, reference
from headway.config.sources import Layer
from headway.errors import ConfigError

ROOT = Path(__file__).parents[1]
RECIPE = '''
from typing import Annotated, Any, Literal
from pydantic import BaseModel, ConfigDict, Field
from headway.config import CLOSED

class Full(BaseModel):
    model_config = CLOSED
    kind: Literal["full"]

class Lora(BaseModel):
    model_config = CLOSED
    kind: Literal["lora"]
    rank: int = 16
    alpha: int = 32

class QLora(BaseModel):
    model_config = CLOSED
    kind: Literal["qlora"]
    rank: int = 16
    alpha: int = 32

class Source(BaseModel):
    model_config = CLOSED
    path: str
    weight: float = 1.0

class Data(BaseModel):
    model_config = CLOSED
    train: str | list[Source]
    notes: dict[str, str] = {}

class Config(BaseModel):
    model_config = CLOSED
    base_model: str
    """Name of the model."""
    tuning: Annotated[Full | Lora | QLora, Field(discriminator="kind")] = Lora(kind="lora")
    max_tokens: int = 2048
    data: Data

class Toy:
    Config = Config

class Other:
    class Config(BaseModel):
        model_config = CLOSED
        size: int = 3

class Open:
    class Config(BaseModel):
        model_config = ConfigDict(extra="allow")

TOY, OTHER, OPEN = Toy(), Other(), Open()
'''
GOOD = """\
recipe: toy
train:
  horizon: {steps: 10}
  batch_size: 16
  learning_rate: 2e-4
task:
  base_model: some/model
  tuning: {kind: qlora, rank: 8}
  data: {train: rows.jsonl}
"""


@pytest.fixture(scope="module", autouse=True)
def strangers_recipes(tmp_path_factory):
    """A stranger's package, installed by the same door as our own recipes: an entry point."""
    site = tmp_path_factory.mktemp("site")
    info = site / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    names = ["toy = stranger_recipes:TOY", "other = stranger_recipes:OTHER"]
    names += ["open = stranger_recipes:OPEN", "broken = stranger_missing:TOY"]
    (info / "entry_points.txt").write_text("\n".join(["[headway.recipes]", *names]))
    (site / "stranger_recipes.py").write_text(RECIPE)
    sys.path.insert(0, str(site))
    yield
    sys.path.remove(str(site))
    sys.modules.pop("stranger_recipes", None)


@pytest.fixture
def write(tmp_path):
    def write_file(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def tree(**train) -> dict:
    task = {"base_model": "some/model", "data": {"train": "rows.jsonl"}}
    base = {"horizon": {"steps": 10}, "batch_size": 16, "learning_rate": 2e-4}
    return {"recipe": "toy", "train": {**base, **train}, "task": task}


# ---------------------------------------------------------------- reading


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


# ---------------------------------------------------------------- extends and overrides


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


# ---------------------------------------------------------------- refusals

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


def test_the_caret_stands_under_the_key(write):
    lines = refusal(write(BAD)).splitlines()
    at = next(i for i, line in enumerate(lines) if "task.tuning.rnak" in line)
    source, caret = lines[at + 1], lines[at + 2]
    assert source[caret.index("^") :].startswith("rnak: 8")


def test_a_problem_in_an_extended_file_is_placed_in_that_file(write):
    base = write(GOOD.replace("batch_size: 16", "batch_size: x"), "base.yaml")
    assert f"{base}:4:3: train.batch_size" in refusal(write("extends: base.yaml\n"))
    assert load_config(write("extends: base.yaml\ntrain: {batch_size: 3}\n")).train.batch_size == 3


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


# ---------------------------------------------------------------- identity


def test_the_fingerprint_ignores_key_order_and_how_numbers_are_written(write):
    whole = tree(batch_size=16, weight_decay=0, learning_rate=0.0002)
    turned = {key: whole[key] for key in reversed(whole)}
    written = GOOD.replace("2e-4", "0.00020").replace("batch_size: 16", "batch_size: 16.0")
    written = written.replace("  tuning: {kind: qlora, rank: 8}\n", "")
    prints = {fingerprint(RunConfig(**whole)), fingerprint(RunConfig(**turned))}
    assert prints | {fingerprint(load_config(write(written)))} == prints and len(prints) == 1


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


# ---------------------------------------------------------------- schema, reference, starters


def test_the_schema_has_the_recipes_task_in_place():
    whole = schema("toy")
    json.dumps(whole)
    task = whole["$defs"]["task"]
    assert "base_model" in task["properties"] and task["additionalProperties"] is False
    refs = set(json.dumps(whole).split('"$ref": "#/$defs/')[1:])
    assert {ref.split('"')[0] for ref in refs} <= set(whole["$defs"])
    assert find_recipe("toy").Config.__name__ == "Config"


@pytest.mark.parametrize("recipe", [None, "toy"])
def test_every_key_is_described(recipe):
    for name, part in schema(recipe)["$defs"].items():
        for key, field in part.get("properties", {}).items():
            if not name.startswith("task"):
                assert field.get("description"), f"{name}.{key}"


def test_the_reference_page_is_up_to_date():
    written = (ROOT / "docs/config.md").read_text(encoding="utf-8")
    again = reference(documented_recipes())
    assert written == again, "run: python -m headway.config.reference docs/config.md"


def test_the_reference_page_shows_a_unions_members_and_a_lists_items():
    page = reference(["toy"])
    assert "| `task.tuning (qlora).rank` | whole number | `16` |" in page
    assert "| `task.data.train[].weight` | number | `1.0` |" in page
    assert "| `task.base_model` | text | **required** | Name of the model. |" in page


@pytest.mark.parametrize("recipe", starter_names())
def test_a_starters_sections_are_valid(write, recipe):
    text = starter(recipe).replace(f"recipe: {recipe}", "recipe: open")
    assert load_config(write(text)).train.schedule == "cosine"


@pytest.mark.parametrize("recipe", starter_names())
def test_a_starter_is_valid_for_its_recipe(write, recipe):
    if recipe not in documented_recipes():
        pytest.skip(f"headway.recipes.{recipe} is not there yet")
    assert load_config(write(starter(recipe))).recipe == recipe


def test_init_writes_the_starter_and_never_over_a_file(tmp_path):
    written = init("sft", tmp_path / "new" / "mine.yaml")
    assert written.read_text(encoding="utf-8") == starter("sft")
    written.write_text("precious")
    with pytest.raises(ConfigError, match="exists"):
        init("sft", written)
    assert written.read_text() == "precious"
    assert init("sft", written, force=True).read_text(encoding="utf-8") == starter("sft")
    assert init("pretrain", tmp_path).name == "pretrain.yaml"
    with pytest.raises(ConfigError, match="did you mean 'sft'"):
        init("stf", tmp_path)
    with pytest.raises(ConfigError, match="has no starter"):
        init("toy", tmp_path)


def test_importing_the_config_imports_no_torch():
    code = "import sys, headway.config, headway.cli.init; print('torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert ran.stdout.strip() == "False"
