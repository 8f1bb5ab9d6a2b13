from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import fake_run
from headway.cli.checkpoints import app
from headway.errors import CheckpointError, ConfigError, HeadwayError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return fake_run.make_run(tmp_path)


def checkpoints(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refusal(*arguments: str | Path) -> HeadwayError:
    with pytest.raises(HeadwayError) as caught:
        checkpoints(*arguments)
    return caught.value


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_list_shows_each_checkpoint_with_its_losses_and_marks_the_best(run: Path) -> None:
    title, *lines = checkpoints("list", run).output.splitlines()
    assert title.split() == ["step", "saved", "size", "loss", "held-out", "verified"]
    assert [line.split()[0] for line in lines] == ["400", "500", "600"]
    assert lines[0].endswith("best") and "1.450" in lines[0]
    assert not any(line.endswith("best") for line in lines[1:])
    assert all("not read" in line for line in lines)


def test_list_verifies_only_when_asked_and_says_what_it_found(run: Path) -> None:
    flip_a_bit(run / "checkpoints/step-00000500/model/adapter_model.safetensors")
    rows = json.loads(checkpoints("list", run, "--verify", "--json").output)
    assert [row["good"] for row in rows] == [True, False, True]
    assert "DAMAGED" in checkpoints("list", run, "--verify").output
    assert [row["good"] for row in json.loads(checkpoints("list", run, "--json").output)] == [
        None
    ] * 3


def test_list_names_what_was_a_checkpoint_once(run: Path) -> None:
    (run / "checkpoints/step-00000500/manifest.json").write_bytes(b"")
    said = checkpoints("list", run).output
    assert "step-00000500: DAMAGED" in said and [x.split()[0] for x in said.splitlines()[1:3]] == [
        "400",
        "600",
    ]
    for step in (400, 600):
        (run / f"checkpoints/step-{step:08d}/manifest.json").unlink()
    said = checkpoints("list", run).output
    assert said.count("DAMAGED") == 3 and "no checkpoint yet" not in said


def test_verify_promises_a_good_checkpoint_only_where_there_is_one(run: Path) -> None:
    flip_a_bit(run / "checkpoints/step-00000500/model/adapter_model.safetensors")
    assert "goes on from the newest good one" in str(refusal("verify", run))
    for step in (400, 600):
        flip_a_bit(run / f"checkpoints/step-{step:08d}/model/adapter_model.safetensors")
    assert "stops: none is good" in str(refusal("verify", run))


@pytest.mark.parametrize(
    ("which", "step"),
    [("500", 500), ("step-00000500", 500), ("newest", 600), ("best", 400), ("0500", 500)],
)
def test_a_checkpoint_can_be_named_by_number_by_directory_or_by_rank(
    run: Path, which: str, step: int
) -> None:
    assert json.loads(checkpoints("show", run, which, "--json").output)["step"] == step


def test_show_has_all_that_the_old_viewer_had(run: Path) -> None:
    told = json.loads(checkpoints("show", run, "600", "--json").output)
    training = told["training"]
    assert told["epoch"] == pytest.approx(600 * 16 / 4188)
    assert training["loss"] and training["lowest_loss"] < training["mean_loss_of_50_steps"]
    assert training["trend"] in ("improving", "flat", "worsening")
    assert training["learning_rate"] == 0.0 and training["tokens"] == 600 * 4096
    assert told["held_out"]["best_step_so_far"] == 400
    assert told["held_out"]["evaluations_since_best"] == 2
    assert told["system"]["gpu"] == "NVIDIA RTX 4090" and told["system"]["torch"]
    assert told["config"]["train"]["batch_size"] == 16
    assert told["cost"]["cost_usd"] > 0 and told["files"]["state.json"]["sha256"]
    text = checkpoints("show", run, "600").output
    for words in ("NVIDIA RTX 4090", "train.learning_rate", "0.0002", "trend", "sha256"):
        assert words in text, words


def test_show_puts_many_figures_in_tables_and_few_in_a_list(run: Path) -> None:
    assert "\n  loss " in checkpoints("show", run, "400").output.partition("held-out")[2]
    journal = run / "journal.jsonl"
    names = [f"source_{n}" for n in range(12)]
    metrics = {"loss": 1.4, "mae": 0.5, "n": 40, **{f"{name}/mae": 0.25 for name in names}}
    event = {"event": "evaluation", "step": 400, "rows": 40, "weight": 40.0, "metrics": metrics,
             "baselines": {"mae/constant mean": 0.75}, "seconds": 1.0}  # fmt: skip
    lines = journal.read_text().splitlines(keepends=True)
    last = max(n for n, line in enumerate(lines) if json.loads(line).get("step") == 400)
    attempt = json.loads(lines[last])["attempt"]
    journal.write_text(
        "".join([*lines[: last + 1], json.dumps({**event, "attempt": attempt}) + "\n",
                 *lines[last + 1 :]])
    )  # fmt: skip
    said = checkpoints("show", run, "400").output.partition("held-out")[2]
    assert "mae     0.500     0.750  constant mean" in said, said
    assert "source_7" in said
    assert "rows " in said and "source_7/mae" not in said
    assert (
        "source_7/mae" in json.loads(checkpoints("show", run, "400", "--json").output)["held_out"]
    )


def test_compare_measures_how_far_each_module_moved(run: Path) -> None:
    told = json.loads(checkpoints("compare", run, "400", "600", "--json").output)
    weights = told["weights"]["support-bot@600"]
    moved = {each["name"]: each["relative_l2"] for each in weights["modules"]}
    assert moved["base.layers.0.v_proj"] == 0.0 and moved["base.layers.0.q_proj"] > 0.01
    assert weights["whole"]["parameters"] == 64 and weights["unmatched"] == []
    assert told["metrics"]["held_out_loss"][0] < told["metrics"]["held_out_loss"][1]
    assert told["config"] == {"support-bot@600": []}
    text = checkpoints("compare", run, "400", "500", "600").output
    assert text.count("relative L2") == 2 and "no difference" in text


def test_compare_reaches_into_another_run_and_shows_its_other_config(run: Path) -> None:
    other = fake_run.make_run(run.parent, name="second", steps=300, every=50)
    told = json.loads(checkpoints("compare", run, "400", f"{other}@300", "--json").output)
    assert "train.horizon.steps: 600 -> 300" in told["config"]["second@300"]
    assert told["checkpoints"] == ["support-bot@400", "second@300"]


def test_verify_reads_every_file_and_names_the_bad_one(run: Path) -> None:
    assert checkpoints("verify", run).output.count("good") == 3
    flip_a_bit(run / "checkpoints/step-00000500/optimizer.safetensors")
    error = refusal("verify", run)
    assert isinstance(error, CheckpointError) and error.exit_code == 65
    assert "step-00000500/optimizer.safetensors" in str(error)
    assert checkpoints("verify", run, "400").output == "step-00000400  good\n"


def test_verify_does_not_overlook_a_checkpoint_whose_manifest_is_gone(run: Path) -> None:
    (run / "checkpoints/step-00000600/manifest.json").unlink()
    assert len(json.loads(checkpoints("list", run, "--json").output)) == 2
    assert "step-00000600/manifest.json" in str(refusal("verify", run))


def test_verify_as_json_still_ends_with_65(run: Path) -> None:
    (run / "checkpoints/step-00000400/state.json").unlink()
    result = CliRunner().invoke(app, ["verify", str(run), "--json"])
    told = json.loads(result.stdout)
    assert [told[name]["good"] for name in sorted(told)] == [False, True, True]
    assert isinstance(result.exception, CheckpointError)


def test_plot_draws_in_the_terminal_and_saves_a_picture(run: Path) -> None:
    text = checkpoints("plot", run).output
    assert "Loss, held-out" in text and "Learning rate" in text and "⠀" in text
    target = run / "curves.png"
    assert checkpoints("plot", run, "--save", target).output == f"{target}\n"
    assert target.read_bytes().startswith(b"\x89PNG")
    curves = json.loads(checkpoints("plot", run, "--json").output)
    assert curves["loss"][0]["steps"][-1] == 600


def test_a_missing_run_or_step_is_one_clear_error(run: Path) -> None:
    for arguments, words in (
        (("list", run / "none"), "is not there"),
        (("list", run / "checkpoints"), "no run"),
        (("show", run, "7"), "there are 400, 500, 600"),
        (("show", run, "seven"), "no checkpoint 'seven'"),
        (("verify", run, "1"), "no checkpoint '1'"),
        (("compare", run, "400"), "two checkpoints or more"),
        (("compare", run, "400", "nowhere@400"), "nowhere"),
    ):
        error = refusal(*arguments)
        assert isinstance(error, ConfigError) and error.exit_code == 78
        assert words in str(error)


def test_a_run_without_checkpoints_is_not_an_error_to_list(tmp_path: Path) -> None:
    fake_run.write_journal(tmp_path / "young", fake_run.journal()[:20])
    assert "no checkpoint yet" in checkpoints("list", tmp_path / "young").output
    assert json.loads(checkpoints("list", tmp_path / "young", "--json").output) == []
    assert "no checkpoint yet" in str(refusal("show", tmp_path / "young", "best"))


def test_nothing_is_changed_by_looking(run: Path) -> None:
    flip_a_bit(run / "checkpoints/step-00000600/state.json")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    checkpoints("list", run, "--verify")
    refusal("verify", run)
    checkpoints("compare", run, "400", "500")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
