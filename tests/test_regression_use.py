"""The recipe ``regression`` in use: predict on the command line, exports, checkpoints, warm start.

What a scorer is made of works together or not at all.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from chain_runs import FULL, awake, chain_of, config_of, record, task_of, write
from headway.api import load_run, train
from headway.cli import build_app
from headway.cli.init import starter
from headway.data.chains import ChainSource, ChainTally, read_chains
from headway.errors import CheckpointError, ConfigError
from headway.opening import opened
from headway.recipes.chain_view import asked, scores_of
from headway.recipes.regression import RECIPE, RegressionConfig
from headway.recipes.score_export import load_scorer
from toy import Cut, CutAt, assert_same_state, final_state

ASKED = {"problem": "What is red 3?", "steps": ["red green 0", "blue 1", "pink grey 2"]}


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in bf16, the default precision, whose scores lie on both sides of the middle."""
    folder = tmp_path_factory.mktemp("use")
    config = config_of(folder, hardware={"precision": "bf16"}, evaluate={"every_steps": 4})
    with opened(config) as opening:
        from headway.run import train as loop

        awake(opening.task)  # type: ignore[arg-type]
        with torch.no_grad():
            opening.task.model.head.layers[-1].bias.zero_()  # type: ignore[union-attr]
        loop(opening)
    return folder / "runs/run"


def predict(run: Path, *arguments: str) -> str:
    """What ``headway predict`` prints; the error it ends with is raised."""
    done = CliRunner().invoke(build_app(), ["predict", str(run), *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


# ------------------------------------------------------------------ predict


def test_predict_prints_each_step_with_its_score_and_marks_the_first_doubtful_one(
    run: Path, tmp_path: Path
) -> None:
    trained = load_run(run)
    answers = [trained.predict({**ASKED, "problem": f"What is red {n}?"}) for n in range(12)]
    doubted = {answer["first_doubtful"] for answer in answers}
    assert len(doubted) > 1, "these chains are not all doubted at the same step"
    for number, answer in enumerate(answers):
        below = [n for n, score in enumerate(answer["scores"]) if score < 0.5]
        assert answer["first_doubtful"] == (below[0] if below else None)
        steps = "\n".join(ASKED["steps"])
        said = predict(run, "--problem", f"What is red {number}?", "--steps", steps)
        assert said.rstrip("\n") == answer["text"]
        lines = said.splitlines()
        assert [line.split()[0] for line in lines] == [f"{s:.3f}" for s in answer["scores"]]
        marked = [n for n, line in enumerate(lines) if line.split()[1] == ">"]
        assert marked == below[:1]


def test_predict_reads_and_writes_json_lines(run: Path, tmp_path: Path) -> None:
    requests = [ASKED, {"prompt": "red green"}, {**ASKED, "evidence": ["It is."]}]
    file = write(tmp_path / "asked.jsonl", requests)
    trained = load_run(run)
    lines = [json.loads(line) for line in predict(run, "--file", file, "--json").splitlines()]
    assert lines == [{**request, **trained.predict(request)} for request in requests]
    assert [len(line["scores"]) for line in lines] == [3, 1, 3]
    assert lines[0]["scores"] != lines[2]["scores"], "the evidence is read"
    several = predict(run, "--problem", "P", "--steps", "red", "--steps", "green", "--json")
    assert json.loads(several)["steps"] == ["red", "green"]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({}, "needs steps"),
        ({"problem": "P"}, "needs steps"),
        ({"steps": []}, "a step is empty"),
        ({"steps": ["a", "  "]}, "a step is empty"),
        ({"steps": "a\nb"}, "steps must be a list of texts"),
        ({"steps": [1]}, "steps must be a list of texts"),
        ({"steps": ["a"], "prompt": "b"}, "needs steps"),
        ({"steps": ["a"], "targets": [1]}, "takes no targets"),
        ({"steps": ["a"], "problem": 3}, "problem must be a text"),
        ({"steps": ["a"], "evidence": "e"}, "evidence must be a list of texts"),
        ({"prompt": "a", "temperature": 1.0}, "takes no temperature"),
    ],
)
def test_an_odd_request_is_one_clear_error(request_: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        asked(request_)


def test_an_odd_line_of_a_file_is_one_clear_error_on_the_command_line(
    run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"odd\.jsonl:1: predict: a score takes no labels"):
        predict(run, "--file", write(tmp_path / "odd.jsonl", [{**ASKED, "labels": [1]}]))
    with pytest.raises(ConfigError, match="needs --prompt"):
        predict(run)


def test_steps_beyond_max_tokens_have_no_score_and_the_text_says_so(run: Path) -> None:
    found = load_run(run).predict({"steps": ["red", "green " * 90, "blue"]})
    assert [score is None for score in found["scores"]] == [False, True, False]
    assert "?: beyond task.max_tokens" in found["text"]
    nothing = load_run(run).predict({"problem": "green " * 90, "steps": ["red"]})
    assert nothing["scores"] == [None] and nothing["first_doubtful"] is None


# ------------------------------------------------------------------ exports and checkpoints


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An export of each format, and the base model of the adapter."""
    folder = tmp_path_factory.mktemp("exports")
    found = {}
    for format, tuning in (("adapter", {}), ("merged", {}), ("full", {"tuning": FULL})):
        task = awake(task_of(folder / format, **tuning))
        to = folder / "out" / format
        to.mkdir(parents=True)
        RECIPE.export(task, task.config, to, format)
        found[format] = to
        [score] = task.scores([chain_of(record(7, length=5))])
        base = AutoModelForCausalLM.from_pretrained(folder / format / "base")
        scorer, text = load_scorer(to, base=base if format == "adapter" else None)
        assert scores_of(scorer, text, [chain_of(record(7, length=5))])[0] == pytest.approx(
            score, abs=1e-5
        )
    return found


def weights_of(folder: Path) -> Path:
    return next(f for f in folder.glob("*model.safetensors"))


def without(pattern: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        files = list(folder.glob(pattern))
        assert files
        for file in files:
            file.unlink()

    return damage


def edited(file: Callable[[Path], Path], change: Callable[[dict[str, Any]], Any]) -> Any:
    def damage(folder: Path) -> None:
        path = file(folder)
        if path.suffix == ".json":
            tree = json.loads(path.read_text())
            change(tree)
            path.write_text(json.dumps(tree))
            return
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def head_of(folder: Path) -> Path:
    return folder / "head.safetensors"


def meaning_of(folder: Path) -> Path:
    return folder / "head.json"


def one_gone(tree: dict[str, Any]) -> None:
    del tree[sorted(name for name in tree if "norm" in name or "lora" in name)[0]]


def token_row_gone(tensors: dict[str, Any]) -> None:
    [name] = [n for n in tensors if "trainable_tokens" in n]
    del tensors[name]


def reshaped(tensors: dict[str, Any]) -> None:
    name = sorted(n for n in tensors if "norm" in n or "lora_A" in n or n == "layers.0.weight")[0]
    tensors[name] = torch.zeros(3, *tensors[name].shape[1:])


def another_tokenizer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<OTHER>"], special_tokens=True)
    tokenizer.save_pretrained(folder)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no head": without("head.safetensors"),
    "no meaning": without("head.json"),
    "no tokenizer": without("tokenizer*"),
    "no weights": without("*model.safetensors"),
    "a weight gone": edited(weights_of, one_gone),
    "a weight of another shape": edited(weights_of, reshaped),
    "a head of another shape": edited(head_of, reshaped),
    "a tensor of the head gone": edited(head_of, lambda t: t.pop("layers.0.bias")),
    "another width in the meaning": edited(meaning_of, lambda t: t["head"].update(hidden=[8])),
    "no range in the meaning": edited(meaning_of, lambda t: t.pop("high")),
    "no shape in the meaning": edited(meaning_of, lambda t: t.pop("head")),
    "a meaning that is no JSON": lambda folder: meaning_of(folder).write_text("{") and None,
    "a torn head": lambda folder: head_of(folder).write_bytes(b"torn") and None,
    "another tokenizer": another_tokenizer,
}


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("format", ["adapter", "full"])
def test_an_export_that_is_not_whole_is_an_error(
    exports: dict[str, Path], format: str, damage: str, tmp_path: Path
) -> None:
    refuse_damaged(exports[format], format, DAMAGES[damage], tmp_path)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_an_adapter_without_the_tokens_row_is_an_error(
    exports: dict[str, Path], tmp_path: Path
) -> None:
    refuse_damaged(exports["adapter"], "adapter", edited(weights_of, token_row_gone), tmp_path)


def refuse_damaged(export: Path, format: str, damage: Callable[[Path], None], to: Path) -> None:
    folder = to / "damaged"
    shutil.copytree(export, folder)
    damage(folder)
    base = None
    if format == "adapter":
        base = AutoModelForCausalLM.from_pretrained(export.parent.parent / format / "base")
    with pytest.raises(CheckpointError, match="damaged"):
        load_scorer(folder, base=base)


def test_a_checkpoint_without_its_head_is_not_used_and_the_one_before_it_is(
    tmp_path: Path,
) -> None:
    train(config_of(tmp_path / "a"))
    config = config_of(tmp_path / "b")
    with pytest.raises(Cut):
        train(config, show=CutAt(3))
    run = tmp_path / "b/runs/run"
    (run / "checkpoints/step-00000002/model/head.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"head\.safetensors"):
        load_run(run)
    train(config)
    assert [q.name[:13] for q in (run / "quarantine").iterdir()] == ["step-00000002"]
    assert_same_state(final_state(tmp_path / "a/runs/run"), final_state(run))


def test_a_new_run_begins_with_another_runs_weights_head_and_token_row(tmp_path: Path) -> None:
    train(config_of(tmp_path))
    first = tmp_path / "runs/run"
    config = config_of(tmp_path, run={"name": "second", "warm_start": f"{first}@4"})
    with opened(config) as second:
        saved = second.task.saved().tensors
        for file, tensors in saved.items():
            stored = load_file(first / "checkpoints/step-00000004/model" / file)
            assert all(torch.equal(tensor, stored[name]) for name, tensor in tensors.items())
        assert second.state.step == 0
    assert {"head.safetensors", "adapter_model.safetensors"} == set(saved)


# ------------------------------------------------------------------ the guide


PAGE = (Path(__file__).parent.parent / "docs/regression.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", range(PAGE.count("\n```json\n") + PAGE.count("\n```csv\n")))
def test_every_example_of_data_on_the_guides_page_is_read(number: int, tmp_path: Path) -> None:
    kind, text = re.findall(r"\n```(json|csv)\n(.*?)```", PAGE, re.DOTALL)[number]
    file = tmp_path / f"example.{'csv' if kind == 'csv' else 'jsonl'}"
    file.write_text(text)
    columns = {"columns": {"text": "review", "targets": "stars"}} if kind == "csv" else {}
    label = {"label": "score"} if "chains" in text else {}
    source = ChainSource.model_validate({"path": str(file), **columns, **label})
    tally = ChainTally(source="example", path=str(file))
    chains = list(read_chains(source, tally))
    assert chains and all(chain.labels for chain in chains) and not tally.dropped


def test_the_starter_reads_as_the_recipes_defaults_where_it_states_them() -> None:
    tree = YAML(typ="safe", pure=True).load(starter("regression"))
    stated = RegressionConfig.model_validate(tree["task"])
    bare = {key: tree["task"][key] for key in ("base_model", "tuning", "data")}
    assert stated == RegressionConfig.model_validate(bare)
