"""``headway data show`` and ``lint`` on files and folders that no config describes."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cases import tree_of
from headway.cli.bare_data import kind_of
from headway.config import RunConfig
from headway.data.cad import write_edits, write_parts
from headway.data.token_survey import counted
from headway.data.tokens import TokenStream
from headway.errors import ConfigError, DataError
from test_cli_data import run
from tiny import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("own_cache")
TEXTS = ["red and green", "blue", "red and green", ""]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    run("tokenize", rows, "--to", tmp_path / "shards", "--tokenizer", "characters",
        "--shard-tokens", 10)  # fmt: skip
    return tmp_path / "shards"


def png(width: int, height: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(stream, "PNG")
    return stream.getvalue()


def picture_rows(folder: Path, **damaged: Any) -> Path:
    (folder / "a.png").write_bytes(png(30, 20))
    rows: list[dict[str, Any]] = [
        {"image": "a.png", "instruction": "Read.", "answer": "one"},
        {"image_base64": base64.b64encode(png(8, 9)).decode(), "answer": "two", **damaged},
    ]
    (folder / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pages.jsonl"


# ------------------------------------------------------------------ token shards


def test_documents_of_shards_are_shown_as_text_across_shards(shards: Path) -> None:
    assert len(list(shards.glob("*.bin"))) > 1, "one shard: nothing is proved"
    shown = run("show", shards, "--rows", 2, "--start", 1)
    assert "document 1  (5 tokens)" in shown and "document 2  (14 tokens)" in shown
    assert "blue" in shown and "red and green" in shown and "document 0" not in shown
    cut = run("show", shards, "--rows", 1, "--max-tokens", 3)
    assert "red" in cut and "red and" not in cut and "11 more tokens" in cut


def test_shards_are_counted_and_what_is_there_twice_is_said(shards: Path) -> None:
    said = run("lint", shards)
    assert "34 tokens in 4 documents of 1 to 14 tokens" in said
    assert "1 empty documents" in said and "the first of them document 2" in said
    tree = json.loads(run("lint", shards, "--json"))
    assert (tree["doubled"], tree["empty"], tree["first_doubled"]) == (1, 1, 2)


def test_a_shard_that_changed_is_refused_by_lint(shards: Path) -> None:
    file = sorted(shards.glob("*.bin"))[0]
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match="its content changed"):
        run("lint", shards)


def test_tokens_without_a_tokenizer_are_shown_as_ids_and_with_one_as_text(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    ids = np.array(tokenizer("red fish")["input_ids"])[None]
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "a.npz", input_ids=ids, sequence_lengths=[ids.shape[1]])
    assert " ".join(map(str, ids[0])) in run("show", tmp_path / "npz")
    assert "red fish" in run("show", tmp_path / "npz", "--tokenizer", tmp_path / "model")
    assert "1 documents" in run("lint", tmp_path / "npz")


def test_each_document_is_there_once_in_a_part_of_a_stream_too(shards: Path) -> None:
    stream = TokenStream.open(shards)
    whole = np.concatenate(list(stream.each_document()))
    part = stream.part(3, 25)
    pieces = list(part.each_document())
    np.testing.assert_array_equal(np.concatenate(pieces), whole[3:25])
    assert [len(piece) for piece in pieces] == [11, 5, 6]
    assert counted(part, None).documents == 3


def test_rows_of_a_pretraining_config_are_shown_and_counted(tmp_path: Path) -> None:
    config = RunConfig(**tree_of("pretrain", tmp_path))
    config.save(tmp_path / "run.yaml")
    shown = run("show", tmp_path / "run.yaml", "--rows", 2)
    assert "16 tokens learned" in shown and "\x1b[32med and red and" in shown
    said = run("lint", tmp_path / "run.yaml")
    assert "train: " in said and "held-out: " in said and "rows of 16 tokens" in said


# ------------------------------------------------------------------ pictures


def test_rows_with_pictures_are_shown_without_a_model(tmp_path: Path) -> None:
    rows = picture_rows(tmp_path)
    shown = run("show", rows)
    assert "[picture 30x20]" in shown and "Read." in shown and "\x1b[32mone" in shown
    assert "[picture 8x9]" in shown and "\x1b[32mtwo" in shown
    said = run("lint", rows)
    assert "2 of 2 rows (answer 2), 2 pictures" in said and "headway init vision" in said
    assert json.loads(run("lint", rows, "--json"))["unreadable"] == []


def test_a_picture_that_cannot_be_read_is_named_by_lint(tmp_path: Path) -> None:
    rows = picture_rows(tmp_path, image_base64=base64.b64encode(b"no picture").decode())
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be read: .*pages\.jsonl:2"):
        run("lint", rows)


# ------------------------------------------------------------------ the rest


@pytest.mark.parametrize("verb", ["show", "lint"])
def test_what_only_a_config_explains_names_the_config_to_write(tmp_path: Path, verb: str) -> None:
    chains = tmp_path / "chains.jsonl"
    chains.write_text(json.dumps({"problem": "?", "steps": ["a"], "targets": [1.0]}) + "\n")
    write_parts(tmp_path / "parts", count=3, seed=0)
    write_edits(
        tmp_path / "edits", count=3, seed=0, vae_sha256="none",
        encode=lambda graphs: graphs.values[:, :6].astype("f4"),
    )  # fmt: skip
    for what, recipe in ((chains, "regression"), (tmp_path / "parts", "graph_vae"),
                         (tmp_path / "edits", "latent_editor")):  # fmt: skip
        assert kind_of(str(what)) == recipe
        with pytest.raises(ConfigError, match=f"`headway init {recipe}`.*`headway data {verb} "):
            run(verb, what)


def test_parts_of_a_config_are_shown_and_counted(tmp_path: Path) -> None:
    RunConfig(**tree_of("graph_vae", tmp_path)).save(tmp_path / "run.yaml")
    assert " mm" in run("show", tmp_path / "run.yaml", "--rows", 1)
    assert "train: 40 parts" in run("lint", tmp_path / "run.yaml")


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        run("show", tmp_path / "nowhere.jsonl")
