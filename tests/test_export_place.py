"""Where an export may be written, and that nothing unproved stays there."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.api import TrainedRun, load_run, train
from headway.errors import ConfigError
from toy import toy_config


@pytest.fixture
def trained(tmp_path: Path) -> TrainedRun:
    train(toy_config(tmp_path))
    return load_run(tmp_path / "run")


def test_a_place_that_is_no_folder_is_refused_in_words(trained: TrainedRun, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for place in (file, file / "below"):
        with pytest.raises(ConfigError, match=r"--to .*notes\.txt.*; give a folder"):
            trained.export(place, "weights")
    assert file.read_text() == "mine"


def test_a_folder_that_holds_something_is_refused_and_left_alone(
    trained: TrainedRun, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        trained.export(tmp_path / "kept", "weights")
    assert (tmp_path / "kept/notes.txt").read_text() == "mine"


def test_an_export_that_fails_leaves_nothing_behind(trained: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not onnx"):
        trained.export(tmp_path / "made", "onnx")
    assert not (tmp_path / "made").exists()
    trained.export(tmp_path / "made", "weights")
    assert (tmp_path / "made/model.safetensors").is_file()
