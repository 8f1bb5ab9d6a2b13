"""``headway data``: the same facts as the library, printed."""

import json

import pytest
from typer.testing import CliRunner

from headway.cli.data import app
from headway.config import load_config
from headway.data.tokens import Index, TokenStream
from headway.errors import ConfigError, DataError
from tiny import tiny_tokenizer


def run(*arguments):
    result = CliRunner().invoke(
        app, [str(a) for a in arguments], catch_exceptions=False, color=True
    )
    return result.output


@pytest.fixture
def model(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"question": "What is 1 + 1?", "answer": "It is 2."}
    path.write_text("".join(json.dumps({**row, "id": i}) + "\n" for i in range(4)))
    return path


def test_show_colours_what_is_supervised(model, rows):
    shown = run("show", rows, "--tokenizer", model, "--rows", 2, "--start", 1)
    assert shown.count("\x1b[32m") == 2
    assert "It is 2.<|im_end|>" in shown
    assert f"{rows}:2" in shown and f"{rows}:3" in shown and f"{rows}:4" not in shown


def test_show_reads_the_data_section_of_a_config(model, rows, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "recipe: sft\nrun: {name: x, seed: 1}\n"
        f"train: {{horizon: {{steps: 1}}, batch_size: 1, learning_rate: 1.0e-3}}\n"
        f"task: {{base_model: {model}, max_tokens: 64, data: {{train: {rows}, train_on: all}}}}\n"
    )
    shown = run("show", config, "--rows", 1)
    assert "\x1b[32m" in shown and "What is 1 + 1?" in shown.partition("\x1b[32m")[2]
    assert "4 of 4 rows" in run("lint", config)
    (tmp_path / "run.json").write_text(json.dumps(load_config(config).tree()))
    assert "4 of 4 rows" in run("lint", tmp_path / "run.json")


def test_lint_counts_and_refuses(model, rows):
    assert "4 of 4 rows (question 4)" in run("lint", rows, "--tokenizer", model)
    tree = json.loads(run("lint", rows, "--tokenizer", model, "--json"))
    assert tree["tallies"][0]["duplicates"] == 3
    with pytest.raises(DataError, match="no train row is left of 4"):
        run("lint", rows, "--tokenizer", model, "--max-tokens", 12)


def test_a_file_without_a_tokenizer_is_refused(rows):
    with pytest.raises(ConfigError, match="give --tokenizer"):
        run("show", rows)


@pytest.mark.parametrize("kind", ["characters", "bpe:300", "model"])
def test_tokenize_writes_shards_with_their_tokenizer(model, rows, tmp_path, kind):
    tokenizer = model if kind == "model" else kind
    arguments = ("tokenize", rows, "--to", tmp_path / "t", "--tokenizer", tokenizer)
    assert "4 documents in 1 shards" in run(*arguments, "--text", "question")
    assert run(*arguments, "--text", "question") == run(*arguments, "--text", "question")
    assert Index.read(tmp_path / "t").tokens == len(TokenStream.open(tmp_path / "t"))


def test_a_vocabulary_without_a_size_is_refused(rows, tmp_path):
    with pytest.raises(ConfigError, match="bpe:8192"):
        run("tokenize", rows, "--to", tmp_path / "t", "--tokenizer", "bpe:²")


def test_importing_the_verbs_loads_neither_torch_nor_transformers():
    import subprocess
    import sys

    code = "import sys, headway.cli.data; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_shards_that_cannot_be_written_are_refused_in_words(rows, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path / "notes.txt", tmp_path / "notes.txt/below"):
        with pytest.raises(ConfigError, match=r"--to .*notes\.txt.*give a folder"):
            run("tokenize", rows, "--to", place, "--tokenizer", "characters", "--text", "question")
    assert (tmp_path / "notes.txt").read_text() == "mine"
