"""The recipe vision: one prompt for everything, rows that see only themselves, and what trains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="pillow is not installed")
pytest.importorskip("jiwer", reason="jiwer is not installed")

from PIL import Image
from transformers import AutoModelForImageTextToText

from cases import tree_of
from headway.api import load_run, train
from headway.config import RunConfig
from headway.engine.task import no_stop
from headway.errors import ConfigError, DataError
from headway.models import vision as parts_of_it
from headway.models.attention import generating, is_isolated
from headway.models.backbone import backbone, base_model
from headway.models.eyes import load_eyes
from headway.models.vision import linear_layers, part_of, picture_states
from headway.opening import opened
from headway.recipes.ocr_metrics import score_page
from headway.recipes.vision import read_choice, with_reading
from headway.recipes.vision_reading import (
    AT_ONCE,
    check,
    padded,
    predict,
    prompt_of,
    read_held,
    read_rows,
)
from headway.recipes.vision_task import VisionTask
from tiny_vision import drawn, png, row_of, tiny_llava, tiny_qwen, write_rows

pytestmark = pytest.mark.usefixtures("own_cache")


def config_of(folder: Path, case: str = "vision-lora", **task: Any) -> RunConfig:
    tree = tree_of(case, folder)
    tree["task"] |= task
    if not {"eval", "eval_fraction"} & set(tree["task"]["data"]):
        del tree["evaluate"]
    return RunConfig(**tree)


def task_of(folder: Path, case: str = "vision-lora", **task: Any) -> VisionTask:
    with opened(config_of(folder, case, **task)) as run:
        return run.task  # type: ignore[return-value]


@pytest.fixture(params=["qwen", "llava"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def own_task(folder: Path, family: str, **task: Any) -> VisionTask:
    base = tiny_qwen(folder) if family == "qwen" else tiny_llava(folder)
    return task_of(folder, base_model=str(base), **task)


# ------------------------------------------------------------------ the model's own numbers


def stranger(eyes: Any, image: Any) -> dict[str, Any]:
    """What transformers' own image processor makes of a picture."""
    return dict(eyes.processor(images=[image], return_tensors="np"))


def noise(height: int, width: int) -> Any:
    drawn_at = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(drawn_at.integers(0, 256, (height, width, 3), dtype=np.uint8))


SIZES = [(16, 16), (1, 1), (7, 150), (33, 47), (64, 64), (200, 31), (100, 400), (15, 300)]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_the_models_own_processor_bit_for_bit(
    tmp_path: Path, family: str, size: tuple[int, int]
) -> None:
    base = tiny_qwen(tmp_path) if family == "qwen" else tiny_llava(tmp_path)
    eyes = load_eyes(str(base), None, tmp_path, min_pixels=None, max_pixels=None)
    image = noise(*size)
    found, own = eyes.pixels(image), stranger(eyes, image)
    if family == "llava":
        np.testing.assert_array_equal(found["pixel_values"], own["pixel_values"])
        return
    np.testing.assert_array_equal(found["image_grid_thw"], own["image_grid_thw"])
    frames = own["pixel_values"].reshape(len(own["pixel_values"]), 3, 2, 64)
    for frame in range(2):  # a still picture is two equal frames to Qwen
        ours = found["pixel_values"].reshape(-1, 3, 64)
        np.testing.assert_array_equal(ours, frames[:, :, frame])


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_has_as_many_tokens_as_the_model_makes_features_of_it(
    tmp_path: Path, family: str, size: tuple[int, int]
) -> None:
    base = tiny_qwen(tmp_path) if family == "qwen" else tiny_llava(tmp_path)
    eyes = load_eyes(str(base), None, tmp_path, min_pixels=None, max_pixels=None)
    model = AutoModelForImageTextToText.from_pretrained(base).eval()
    own = {key: torch.from_numpy(value) for key, value in stranger(eyes, noise(*size)).items()}
    with torch.no_grad():
        features = model.model.get_image_features(**own).pooler_output
    assert torch.cat(list(features)).shape[0] == eyes.features(*size)


def test_a_picture_beyond_what_the_model_takes_is_refused_with_its_row_or_skipped(
    tmp_path: Path,
) -> None:
    (tmp_path / "thin.png").write_bytes(png(Image.new("L", (500, 2))))
    thin = {"image": "thin.png", "instruction": "Read.", "answer": "RED"}
    file = write_rows(tmp_path / "thin.jsonl", [row_of(0), thin, row_of(2)])
    named = (
        r"thin\.jsonl:2, picture 1 \(.*thin\.png\): 500 x 2 pixels, which this model cannot take"
    )
    with pytest.raises(DataError, match=named + r".*ratio.*unreadable: skip"):
        task_of(tmp_path / "x", data={"train": str(file)})
    skip = {"images": {"unreadable": "skip"}, "max_dropped": 0.5}
    task = task_of(tmp_path / "y", data={"train": str(file), **skip})
    assert [row.row.filename for row in task.train] == ["0.png", "2.png"]
    told = "\n".join(task.facts()["data"])
    assert "1 dropped, a picture that the model cannot take" in told and "thin.jsonl:2" in told


def test_the_budget_of_pixels_decides_how_many_tokens_a_picture_has(tmp_path: Path) -> None:
    few, many = (
        task_of(tmp_path / str(most), max_pixels=most, min_pixels=256).train for most in (512, 4096)
    )
    assert max(sum(row.features) for row in few) <= 3 < max(sum(row.features) for row in many)
    with pytest.raises(ConfigError, match="the largest must not be less"):
        task_of(tmp_path / "c", max_pixels=300, min_pixels=900)
    with pytest.raises(ConfigError, match="every picture at one size"):
        own_task(tmp_path / "d", "llava", max_pixels=4096)


# ------------------------------------------------------------------ one prompt


def test_training_evaluation_and_prediction_give_the_model_the_same_bits(
    tmp_path: Path, family: str
) -> None:
    """Seed system 000 put the picture first in one of them and the text first in another."""
    task = own_task(tmp_path, family, augmentation=None)
    records = [row_of(n) for n in range(24)]
    by_name = {record["filename"]: record for record in records}
    assert task.held is not None
    for row in (*task.train[:4], *task.held[:2]):
        record = by_name[row.row.filename]
        uri = f"data:image/png;base64,{record['image_base64']}"
        ids, pictures = prompt_of(task, {"image": uri, "instruction": record["instruction"]})
        trained = task.microbatch([row], [0], None).inputs
        assert trained["input_ids"][0, : row.prompt_tokens].tolist() == ids.tolist()
        read = padded(task, [(row.ids[: row.prompt_tokens], task.pictures(row, None))])
        asked = padded(task, [(ids, pictures)])
        assert read.keys() == asked.keys()
        for key, value in asked.items():
            assert torch.equal(value, read[key]), key
        for key in trained["picture_keys"]:
            assert torch.equal(trained[key], asked[key]), key


def test_a_training_row_is_the_prompt_and_then_the_answer(tmp_path: Path, family: str) -> None:
    task = own_task(tmp_path, family)
    for row in task.train:
        said = row.ids[row.prompt_tokens :].tolist()
        text = task.tokenizer.decode(said, skip_special_tokens=True)
        assert text.strip() == row.row.answer and said[-1] in (0,)
        assert row.ids[row.prompt_tokens - 1] != 0 and row.supervised.sum() == len(said)


def test_prompt_tokens_carry_no_loss(tmp_path: Path, family: str) -> None:
    """Another word in the prompt changes the states, but no prompt token is ever a target."""
    task = own_task(tmp_path, family)
    (microbatch,) = task.batch_at(0)
    ids = microbatch.inputs["input_ids"][0]
    at, targets = microbatch.inputs["positions"], microbatch.inputs["targets"]
    assert torch.equal(ids[at + 1], targets)
    assert int((targets == task.eyes.image_id).sum()) == 0
    assert microbatch.weight == len(targets) < len(ids) / 2
    per_row = [task.train[row].weight for row in microbatch.rows]
    assert list(microbatch.weights) == per_row


# ------------------------------------------------------------------ rows that see only themselves


def own_losses(task: VisionTask, rows: list[int]) -> list[float]:
    """Each row's loss by the model's own forward, alone, logits and all."""
    model = AutoModelForImageTextToText.from_pretrained(task.base_model).eval()
    found = []
    for row in (task.train[n] for n in rows):
        from headway.models.vision import own_inputs
        from headway.recipes.vision_export import _whole_patches

        inputs = own_inputs(task.eyes, row.ids, task.pictures(row, None))
        inputs |= _whole_patches(task, inputs)
        labels = torch.from_numpy(np.where(row.supervised, row.ids, -100).astype(np.int64))
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits[0]
        found.append(
            torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum").item()
        )
    return found


def losses(task: VisionTask, rows: list[int]) -> list[float]:
    task.model.eval()
    with torch.no_grad():
        microbatch = task.microbatch(task.train, rows, None)
        found: list[float] = task.loss(task.model, microbatch.inputs)["loss"].tolist()
    return found


def test_rows_together_lose_what_each_loses_alone_in_the_models_own_forward(
    tmp_path: Path, family: str
) -> None:
    task = own_task(tmp_path, family)
    assert is_isolated(task.model)
    rows = [3, 0, 7, 5]
    assert losses(task, rows) == pytest.approx(own_losses(task, rows), rel=1e-4)


def test_a_model_whose_rows_cannot_be_kept_apart_runs_one_at_a_time(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = losses(own_task(tmp_path, family), [3, 0, 7, 5])
    monkeypatch.setattr(parts_of_it, "_proved", lambda model, eyes: False)
    task = own_task(tmp_path, family)
    assert not is_isolated(task.model)
    assert "one row at a time" in task.facts()["model"]
    assert losses(task, [3, 0, 7, 5]) == pytest.approx(together, rel=1e-4)


@pytest.mark.parametrize("leak", ["places", "pictures"])
def test_the_proof_sees_rows_that_leak(
    tmp_path: Path, leak: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: places counted through all rows, and pictures in the wrong order."""
    task = own_task(tmp_path, "qwen")
    assert parts_of_it._proved(task.model, task.eyes)
    whole = parts_of_it._laid

    def broken(*given: Any) -> dict[str, Any]:
        inputs = whole(*given)
        if leak == "places":
            tokens = inputs["input_ids"].shape[1]
            inputs["position_ids"] = torch.arange(tokens).expand(3, 1, tokens)
        else:
            inputs["pixel_values"] = inputs["pixel_values"].flip(0)
        return inputs

    monkeypatch.setattr(parts_of_it, "_laid", broken)
    assert not parts_of_it._proved(task.model, task.eyes)


def test_another_picture_in_one_row_changes_that_row_alone(tmp_path: Path, family: str) -> None:
    task = own_task(tmp_path, family)
    task.model.eval()
    before = task.microbatch(task.train, [0, 1, 2], None).inputs
    after = dict(before)
    cut = before["picture_ends"]["pixel_values"]
    pixels = before["pixel_values"].clone()
    pixels[cut[0] : cut[1]] = pixels[cut[0] : cut[1]].flip(-1) + 1
    after["pixel_values"] = pixels
    with torch.no_grad():
        one, other = (picture_states(task.model, inputs) for inputs in (before, after))
    ends = [0, *before["row_ends"]]
    changed = [bool((one - other)[a:b].abs().max() > 1e-6) for a, b in pairwise(ends)]
    assert changed == [False, True, False]


# ------------------------------------------------------------------ what trains


@pytest.mark.parametrize("part", ["language", "vision", "both"])
def test_adapters_are_on_the_chosen_part_and_counted(
    tmp_path: Path, family: str, part: str
) -> None:
    task = own_task(tmp_path, family, adapt=part)
    counted = task.facts()["adapted_by_part"]
    trained = {
        part_of(task.model, name)
        for name, parameter in base_model(task.model).named_parameters()
        if parameter.requires_grad
    }
    assert trained == ({"language", "vision"} if part == "both" else {part})
    # a language layer has 7 linear layers, one of Qwen's tower 4, one of CLIP's 6, a merger 2; of
    # CLIP's three layers the last is never looked at
    expected = {"language": 14, "vision": 2 * 4 + 3 * 2 if family == "qwen" else 2 * 6 + 2}
    assert counted == {k: n if part in (k, "both") else 0 for k, n in expected.items()}
    assert f"{counted['language']} language and {counted['vision']} vision" in task.facts()["model"]
    task.model.train()
    (microbatch,) = task.batch_at(0)
    task.loss(task.model, microbatch.inputs)["loss"].sum().backward()
    grads = [p.grad for p in task.model.parameters() if p.requires_grad]
    reached = sum(g is not None and bool(g.abs().max() > 0) for g in grads)
    # A gets none while B is zero. Nor does what feeds the last language layer's output at a picture
    # (Qwen's second deepstack merger).
    blind = 2 if family == "qwen" and part != "language" else 0
    assert reached == len(grads) // 2 - blind


@pytest.mark.parametrize("part", ["language", "vision", "both"])
def test_a_model_that_trains_whole_may_train_in_part(tmp_path: Path, part: str) -> None:
    task = own_task(tmp_path, "qwen", tuning={"kind": "full"}, adapt=part)
    trained = {
        part_of(task.model, name)
        for name, parameter in task.model.named_parameters()
        if parameter.requires_grad
    }
    assert trained - {"head"} == ({"language", "vision"} if part == "both" else {part})


def test_what_no_feature_passes_through_never_trains(tmp_path: Path) -> None:
    """LLaVA takes the features of its tower's last layer but one: what is behind would have no
    gradient, so no optimizer state, and the run could not be continued."""
    task = own_task(tmp_path, "llava", tuning={"kind": "full"}, adapt="both")
    (microbatch,) = task.batch_at(0)
    task.loss(task.model, microbatch.inputs)["loss"].sum().backward()
    trained = {n: p for n, p in task.model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    behind = [name for name in dict(task.model.named_parameters()) if parts_of_it.is_unread(
        task.model, name)]  # fmt: skip
    assert any(".layers.2." in name for name in behind) and not set(behind) & set(trained)
    assert any(".layers.1." in name for name in trained) and "vision_tower" in "".join(trained)


def test_chosen_endings_are_looked_for_in_the_chosen_part_alone(tmp_path: Path) -> None:
    tuning = {"kind": "lora", "rank": 2, "target_modules": ["q_proj", "qkv"]}
    for part, names in (("language", {"q_proj"}), ("vision", {"qkv"})):
        task = own_task(tmp_path / part, "qwen", tuning=tuning, adapt=part)
        adapted = {
            name.rsplit(".", 1)[-1]
            for name, module in base_model(task.model).named_modules()
            if hasattr(module, "lora_A")
        }
        assert adapted == names
    with pytest.raises(ConfigError, match="fits no linear layer of the part vision"):
        own_task(tmp_path / "z", "qwen", tuning={**tuning, "target_modules": ["q_proj"]},
                 adapt="vision")  # fmt: skip


def test_the_output_head_gets_no_adapter(tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_qwen(tmp_path))
    assert not [name for name in linear_layers(model, "both") if "head" in name]


def test_a_family_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    base = tiny_qwen(tmp_path)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "idefics3"}))
    with pytest.raises(ConfigError, match=r"qwen3_vl, llava|cannot be loaded"):
        own_task(tmp_path, "qwen")


def test_config_says_what_belongs_together(tmp_path: Path) -> None:
    for task, what in (
        ({"scratch": {}}, "base_model, or scratch"),
        ({"base_model": None}, "base_model, or scratch"),
        ({"base_model": None, "scratch": {}}, "tuning: {kind: full}"),
    ):
        with pytest.raises(ConfigError, match=what):
            config_of(tmp_path, **task)
    with pytest.raises(ConfigError, match="multiple of 4"):
        scratch = {"hidden_size": 30, "heads": 4}
        task_of(tmp_path, "vision-scratch", scratch=scratch)


@pytest.mark.parametrize("part", ["language", "vision", "both"])
def test_what_trains_is_printed_before_step_1_and_is_what_is_saved(
    tmp_path: Path, family: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seed system 000 asked for 4 bits and LoRA, and loaded full weights without a word."""
    import re

    from safetensors import safe_open
    from typer.testing import CliRunner

    from headway.cli import build_app

    base = tiny_qwen(tmp_path) if family == "qwen" else tiny_llava(tmp_path)
    config_of(tmp_path, base_model=str(base), adapt=part).save(tmp_path / "run.yaml")
    short = ["train.horizon.steps=1", "evaluate=null"]
    done = CliRunner().invoke(build_app(), ["train", str(tmp_path / "run.yaml"), *short])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    counted = re.search(r"(\d+) language and (\d+) vision layers adapted", said)
    assert counted and counted.end() < said.index("step 1")
    newest = sorted((tmp_path / "runs/run/checkpoints").glob("step-*"))[-1]
    with safe_open(newest / "model/adapter_model.safetensors", "np") as adapters:
        names = [name for name in adapters.keys() if name.endswith("lora_A.weight")]  # noqa: SIM118
    language = sum(".language_model." in name for name in names)
    assert (int(counted[1]), int(counted[2])) == (language, len(names) - language)
    there = {"language": language > 0, "vision": len(names) > language}
    assert there == {name: part in (name, "both") for name in there}


# ------------------------------------------------------------------ what seed system 000 did


def test_every_test_that_the_page_names_exists() -> None:
    import re

    root = Path(__file__).parent
    page = (root.parent / "docs/vision.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", page))
    there = {
        name
        for file in root.rglob("*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) > 25 and not named - there
    numbers = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    assert numbers == [str(n) for n in range(1, 15)], "every defect of the list has its row"


def test_a_run_of_500_steps_is_saved_long_before_its_end() -> None:
    """It saved every 500 steps, the trainer's default, in runs of at most 500."""
    from headway.config import load_config
    from headway.config.sections import Checkpoint

    config = load_config(Path(__file__).parent.parent / "configs/well_log_ocr.yaml")
    assert config.train.horizon.steps == 500
    assert config.checkpoint.every_steps and config.checkpoint.every_steps <= 50
    minutes = Checkpoint().every_minutes
    assert minutes and minutes <= 15, "also where a config says nothing"


def test_nothing_in_the_source_waits_for_a_person() -> None:
    """It asked for Enter on a machine where nobody was."""
    import ast

    asks = {"input", "confirm", "prompt", "getpass", "pause", "getchar"}
    source = Path(__file__).parent.parent / "src/headway"
    for file in source.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                name = node.func.attr if node.func.value.id in ("typer", "click", "getpass") else ""
            assert name not in asks, f"{file.name}:{node.lineno}"


# ------------------------------------------------------------------ reading aloud


def all_looking(folder: Path, family: str) -> VisionTask:
    """A task whose held-out rows are all 24, and whose model answers by what is in the picture."""
    task = own_task(folder, family, augmentation=None)
    assert task.held is not None
    rows = sorted((*task.train, *task.held), key=lambda row: int(row.row.filename[:-4]))
    loud(task)
    return replace(task, held=rows, held_total=len(rows))


def loud(task: VisionTask) -> None:
    """What is in the picture counts for more than the words: as its random weights are, the model
    would say the same to every row."""
    for name, weight in base_model(task.model).named_parameters():
        if "lora" in name or weight.ndim < 2:
            continue
        if "visual.blocks" in name or "vision_tower" in name:
            weight.data.mul_(30)
        elif "o_proj" in name or "down_proj" in name:
            weight.data.mul_(10)
        elif "embed_tokens" in name:
            weight.data.mul_(0.1)


def test_every_row_is_read_as_predict_reads_it_alone(tmp_path: Path, family: str) -> None:
    task = all_looking(tmp_path, family)
    assert task.held is not None and len(task.held) > AT_ONCE, "more than are read at once"
    read = read_held(task, range(len(task.held)), 6)
    asked = [row_of(n) for n in range(len(task.held))]
    for found, record in zip(read, asked, strict=True):
        uri = f"data:image/png;base64,{record['image_base64']}"
        request = {"image": uri, "instruction": record["instruction"], "max_new_tokens": 6}
        alone = predict(task, request)
        assert (found.text, found.tokens, found.finished) == (
            alone["text"], alone["tokens"], alone["finished"],
        )  # fmt: skip
    assert len({found.text for found in read}) > len(read) / 3, "the rows are told apart"


def test_the_rows_of_highest_error_are_those_that_predict_reads_worst(tmp_path: Path) -> None:
    from headway.engine.evaluate import evaluate
    from headway.engine.world import World

    task = all_looking(tmp_path, "qwen")
    assert task.held is not None
    total = len(task.held)
    read = read_held(task, range(total), 6)
    by_row = [
        score_page(found.text, row.row.answer).cer
        for found, row in zip(read, task.held, strict=True)
    ]
    for keep, limit in ((3, total), (4, 9), (1, total)):
        task = replace(task, read_limit=(limit, 6))
        found = evaluate(task, step=0, world=World(torch.device("cpu")), precision="fp32",
                         worst_rows=keep)  # fmt: skip
        assert found is not None
        by_loss = [row.row for row in found.worst]
        shown = with_reading(task, found, no_stop).worst
        chosen = read_choice(total, limit, task.context.seed)
        assert len(chosen) == limit
        worst = sorted(chosen, key=lambda row: (-by_row[row], row))[:keep]
        assert [row.row for row in shown[:keep]] == by_loss
        assert [row.row for row in shown] == [*by_loss, *(r for r in worst if r not in by_loss)]
        assert [row.shown["cer"] for row in shown] == [by_row[row.row] for row in shown]
        assert all(row.shown["where"] == task.held[row.row].row.where for row in shown)
        assert len({by_row[row] for row in chosen}) > 2, "no tie decides all of it"


def test_a_config_reads_at_least_as_many_rows_as_it_shows() -> None:
    """The rows of highest error are looked for among those that are read."""
    from headway.config import load_config
    from headway.config.sections import Evaluate
    from headway.recipes.vision import VisionConfig

    root = Path(__file__).parent.parent
    files = [*root.glob("configs/**/*.yaml"), root / "src/headway/starters/vision.yaml"]
    vision = [load_config(file) for file in files if "read_rows:" in file.read_text()]
    assert len(vision) >= 4
    for config in vision:
        assert config.evaluate.worst_rows <= config.task.read_rows, config.run.name
    assert Evaluate(every_steps=1).worst_rows <= VisionConfig.model_fields["read_rows"].default


def test_what_is_read_is_the_models_own_greedy_answer(tmp_path: Path, family: str) -> None:
    task = own_task(tmp_path, family)
    model = AutoModelForImageTextToText.from_pretrained(task.base_model).eval()
    row = task.train[0]
    from headway.models.vision import own_inputs
    from headway.recipes.vision_export import _whole_patches

    prompt = row.ids[: row.prompt_tokens]
    pictures = task.pictures(row, None)
    inputs = own_inputs(task.eyes, prompt, pictures)
    inputs |= _whole_patches(task, inputs)
    made = model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)
    own = task.tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True)
    assert read_rows(task, [(prompt, pictures)], 6)[0].text == own


def test_reading_leaves_the_model_ready_to_train(tmp_path: Path) -> None:
    task = own_task(tmp_path, "qwen")
    before = losses(task, [0, 1])
    task.model.train()
    read_held(task, [0], 3)
    assert task.model.training and is_isolated(task.model)
    assert losses(task, [0, 1]) == before
    with generating(task.model):
        assert not is_isolated(task.model)


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[Any]:
    config = config_of(tmp_path, "vision-scratch", augmentation=None)
    train(config)
    yield load_run(tmp_path / "runs/run", data=True)


def test_an_evaluation_has_error_rates_and_shows_its_worst_rows(trained: Any) -> None:
    from headway.records import Picture

    found = trained.evaluate(worst_rows=2)
    assert {"loss", "cer", "wer", "n", "unfinished", "reading_seconds"} <= set(found.metrics)
    assert any(name.startswith("cer/") for name in found.baselines)
    assert 2 <= len(found.worst) <= 4
    for row in found.worst:
        assert isinstance(row.shown["page"], Picture)
        wanted = "".join(t for t, mark in row.shown["difference"] if mark != "added")
        said = "".join(t for t, mark in row.shown["difference"] if mark != "missing")
        assert (wanted, said) == (row.shown["reference"], row.shown["prediction"])
        assert row.shown["error"] == row.shown["cer"] and row.loss > 0
    highest = sorted(found.worst, key=lambda row: -row.loss)[0]
    assert highest.row == found.worst[0].row


def test_predict_reads_a_file_and_says_how_long_it_took(trained: Any, tmp_path: Path) -> None:
    (tmp_path / "page.png").write_bytes(png(drawn("RED 3")))
    answer = trained.predict({"image": str(tmp_path / "page.png"), "max_new_tokens": 4})
    assert set(answer) == {"text", "fields", "tokens", "finished", "prompt_tokens", "seconds"}
    assert answer["tokens"] <= 4 and answer["seconds"] > 0
    json.dumps(answer)
    for request, what in (
        ({}, "needs image"),
        ({"image": "a", "images": ["a"]}, "needs image"),
        ({"image": "a", "temperature": 1.5}, "no temperature"),
        ({"image": "a", "instruction": 3}, "must be a text"),
    ):
        with pytest.raises(ConfigError, match=what):
            trained.recipe.check_request(request)
    with pytest.raises(DataError, match="no such file"):
        trained.predict({"image": str(tmp_path / "none.png")})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"images": []}, "images must be a list"),
        ({"images": 5}, "images must be a list"),
        ({"image": "x.png", "max_new_tokens": "x"}, "max_new_tokens must be a whole number from 1"),
        ({"image": "x.png", "max_new_tokens": 0}, "max_new_tokens must be a whole number from 1"),
        ({"image": "x.png", "page": "x"}, "page must be a whole number from 0"),
        ({"image": "x.png", "page": -1}, "page must be a whole number from 0"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_words(wrong: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check(wrong)


def test_a_picture_too_long_for_the_model_is_refused_in_words(trained: Any, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (5000, 3)).save(tmp_path / "long.png")
    with pytest.raises(DataError, match=r"long\.png\): 5000 x 3 pixels, .* cannot take"):
        trained.predict({"image": str(tmp_path / "long.png")})


def test_predict_on_the_command_line_takes_a_folder_and_pages(trained: Any, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from headway.cli import build_app

    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(drawn("RED 3")))
    drawn("BLUE 1").save(folder / "b.tif", save_all=True, append_images=[drawn("PINK 2")])
    (folder / "notes.txt").write_text("no picture")
    given = ["predict", str(trained.folder), "--image", str(folder), "--max-new-tokens", "3"]
    done = CliRunner().invoke(build_app(), [*given, "--json"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(Path(x["image"]).name, x.get("page")) for x in lines] == [
        ("a.png", None), ("b.tif", 0), ("b.tif", 1),
    ]  # fmt: skip
    assert all("text" in x and "fields" in x and x["seconds"] > 0 for x in lines)


def asked_on_the_command_line(*arguments: str, longest: int = 3) -> Any:
    from typer.testing import CliRunner

    from headway.cli import build_app

    given = ["predict", *arguments, "--max-new-tokens", str(longest)]
    return CliRunner().invoke(build_app(), given)


def folder_with_damage(folder: Path) -> list[str]:
    """Pictures of which three cannot be read; the names of the others."""
    folder.mkdir()
    for name in ("a.png", "c.png", "f.png"):
        (folder / name).write_bytes(png(drawn("RED 3")))
    (folder / "b.png").write_bytes(png(drawn("RED 3"))[:60])
    (folder / "d.jpg").write_bytes(b"no picture")
    Image.new("L", (5000, 3)).save(folder / "e.png")
    return ["a.png", "c.png", "f.png"]


@pytest.mark.parametrize("json_too", [True, False])
def test_damaged_pictures_of_a_folder_are_named_and_stop_no_other(
    trained: Any, tmp_path: Path, json_too: bool
) -> None:
    good = folder_with_damage(tmp_path / "scans")
    options = ["--json"] if json_too else []
    done = asked_on_the_command_line(
        str(trained.folder), "--image", str(tmp_path / "scans"), *options
    )
    assert isinstance(done.exception, DataError) and done.exception.exit_code == 65
    assert "3 of 6 have no answer" in str(done.exception)
    for name, why in (("b.png", "damaged"), ("d.jpg", "no picture"), ("e.png", "cannot take")):
        (line,) = [line for line in done.stderr.splitlines() if name in line]
        assert line.startswith("headway: --image: ") and why in line
    if json_too:
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [Path(x["image"]).name for x in lines] == [f"{n}.{e}" for n, e in zip(
            "abcdef", ("png", "png", "png", "jpg", "png", "png"), strict=True)]  # fmt: skip
        answered = [Path(x["image"]).name for x in lines if "text" in x]
        assert answered == good
        assert all(x["error"] for x in lines if Path(x["image"]).name not in good)
    else:
        named = [line.split(" (")[0] for line in done.stderr.splitlines() if "tokens, " in line]
        assert [Path(line).name for line in named] == good


def test_where_nothing_can_be_read_the_model_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    done = asked_on_the_command_line(str(tmp_path / "no-run"), "--image", str(tmp_path / "a.png"))
    assert isinstance(done.exception, DataError) and "a.png" in str(done.exception)


def test_a_line_of_a_file_that_cannot_be_answered_is_named_and_stops_no_other(
    trained: Any, tmp_path: Path
) -> None:
    folder_with_damage(tmp_path / "scans")
    asked = [{"image": str(tmp_path / "scans" / name)} for name in ("a.png", "b.png", "c.png")]
    asked.append({"image": str(tmp_path / "none.png")})
    file = write_rows(tmp_path / "asked.jsonl", asked)
    done = asked_on_the_command_line(str(trained.folder), "--file", str(file), "--json")
    assert isinstance(done.exception, DataError) and "2 of 4" in str(done.exception)
    assert [("text" in json.loads(line)) for line in done.stdout.splitlines()] == [
        True, False, True, False,
    ]  # fmt: skip
    assert f"headway: {file}:2: picture 1" in done.stderr and f"{file}:4: picture 1" in done.stderr
    one = write_rows(tmp_path / "one.jsonl", asked[1:2])
    done = asked_on_the_command_line(str(trained.folder), "--file", str(one))
    assert isinstance(done.exception, DataError)
    assert str(done.exception).startswith(f"{one}:1: picture 1") and done.stdout == ""


def test_a_line_that_asks_nothing_of_a_run_without_an_instruction_is_named(tmp_path: Path) -> None:
    train(config_of(tmp_path, "vision-lora"))
    (tmp_path / "a.png").write_bytes(png(drawn("RED 3")))
    asked = {"image": str(tmp_path / "a.png")}
    file = write_rows(tmp_path / "asked.jsonl", [{**asked, "instruction": "Read."}, asked])
    done = asked_on_the_command_line(str(tmp_path / "runs/run"), "--file", str(file))
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception).startswith(f"{file}:2: predict: this run's rows each had")


def test_predict_says_when_an_answer_was_cut(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from headway.cli.predict import say_answer

    (tmp_path / "page.png").write_bytes(png(drawn("RED 3")))
    request = {"image": str(tmp_path / "page.png")}
    given = [str(trained.folder), "--image", request["image"]]
    for longest in (1, 30):
        whole = trained.predict({**request, "max_new_tokens": longest})
        plain = asked_on_the_command_line(*given, longest=longest)
        told = json.loads(asked_on_the_command_line(*given, "--json", longest=longest).stdout)
        assert told["finished"] == whole["finished"]
        assert (f"cut off after {longest} tokens" in plain.stderr) == (not whole["finished"])
    for finished in (True, False):  # a model this young may never end
        say_answer(request, {"text": "x", "tokens": 7, "seconds": 1, "finished": finished}, False)
        said = capsys.readouterr()
        assert said.out == "x\n"
        assert ("cut off after 7 tokens: see --max-new-tokens" in said.err) == (not finished)


# ------------------------------------------------------------------ augmentation and batches


def test_held_out_rows_are_never_augmented_and_training_rows_are(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    plain = replace(task, augmentation=None)
    assert [m.inputs["pixel_values"].sum().item() for m in task.held_out()] == [
        m.inputs["pixel_values"].sum().item() for m in plain.held_out()
    ]
    (one,), (other,) = task.batch_at(0), plain.batch_at(0)
    assert not torch.equal(one.inputs["pixel_values"], other.inputs["pixel_values"])
    assert torch.equal(one.inputs["input_ids"], other.inputs["input_ids"])


def test_a_row_is_augmented_otherwise_in_the_next_epoch(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    seen = {}
    for step in range(8):
        for position, row in enumerate(r for m in task.batch_at(step) for r in m.rows):
            pixels = task.pictures(task.train[row], step * 8 + position)[0]["pixel_values"]
            seen.setdefault(row, set()).add(pixels.tobytes())
    repeated = [looks for looks in seen.values() if len(looks) > 1]
    assert repeated, "no row came twice"


def test_rows_and_ranks_share_a_batch_as_the_order_says(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    whole = [row for m in task.batch_at(2) for row in m.rows]
    shares = []
    for rank in range(2):
        mine = replace(task, context=replace(task.context, rank=rank, ranks=2))
        shares.append([(m.rows, m.inputs["pixel_values"]) for m in mine.batch_at(2)])
    assert [r for rows, _ in shares[0] for r in rows] == whole[::2]
    assert [r for rows, _ in shares[1] for r in rows] == whole[1::2]
    both = sum(pixels.double().sum() for share in shares for _, pixels in share)
    everything = sum(m.inputs["pixel_values"].double().sum() for m in task.batch_at(2))
    assert both == pytest.approx(everything.item())


def test_planned_tokens_are_counted_with_what_pictures_cost_the_tower(tmp_path: Path) -> None:
    """The plan's rows are as full of pictures as can be, and it counts their tokens alone."""
    task = task_of(tmp_path)
    longest = replace(task, train=()).longest(3)

    def cut(tokens: int) -> list[int]:
        context = replace(task.context, microbatch_size=None, tokens_at_once=tokens)
        full = replace(task, context=context)
        made = replace(task.train[0], ids=longest.inputs["input_ids"][0, :128].numpy(),
                       features=(16,))  # fmt: skip
        lengths = [full._length(made)] * 6
        from headway.recipes.batching import groups

        return [
            len(group) for group in groups(range(6), lambda n: lengths[n], full.model, full._room())
        ]

    assert cut(longest.tokens) == [3, 3] and cut(longest.tokens - 1) == [2, 2, 2]


def test_a_picture_that_changed_its_size_since_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(drawn("RED", 40, 20)))
    rows = [{"image": "a.png", "instruction": "Read.", "answer": "RED"}]
    file = write_rows(tmp_path / "one.jsonl", rows)
    tree = tree_of("vision-lora", tmp_path / "x")
    tree["task"] |= {"data": {"train": str(file)}}
    tree["evaluate"] = None
    with opened(RunConfig(**tree)) as run:
        (tmp_path / "a.png").write_bytes(png(drawn("RED", 80, 20)))
        with pytest.raises(DataError, match="has changed since"):
            run.task.batch_at(0)


def test_text_rows_among_pictures_train_too(tmp_path: Path, family: str) -> None:
    said = {"role": "assistant", "content": "RED"}
    text = {"messages": [{"role": "user", "content": "Which colour?"}, said]}
    file = write_rows(tmp_path / "mixed.jsonl", [text, row_of(1), text, row_of(2)])
    limits = {"max_leaked": 1.0}
    task = own_task(tmp_path / "x", family, data={"train": str(file), **limits})
    rows = [0, 1, 2, 3]
    assert losses(task, rows) == pytest.approx(own_losses(task, rows), rel=1e-4)
    assert losses(task, [0, 2]) == pytest.approx(own_losses(task, [0, 2]), rel=1e-4)


def test_several_pictures_in_one_row_stand_in_their_order(tmp_path: Path) -> None:
    one, two = row_of(1)["image_base64"], row_of(2)["image_base64"]

    def both(first: str, second: str) -> dict[str, Any]:
        images = [f"data:image/png;base64,{each}" for each in (first, second)]
        return {"images": images, "instruction": "Which is older?", "answer": "RED"}

    file = write_rows(tmp_path / "two.jsonl", [both(one, two), both(two, one)])
    task = own_task(tmp_path / "x", "qwen", data={"train": str(file)})
    assert [len(row.features) for row in task.train] == [2, 2]
    assert task.train[0].features == task.train[1].features[::-1]
    assert losses(task, [0, 1]) == pytest.approx(own_losses(task, [0, 1]), rel=1e-4)


def test_the_data_report_and_a_row_as_it_is_read_are_shown(tmp_path: Path) -> None:
    from headway.config import find_recipe

    config = config_of(tmp_path)
    recipe = find_recipe("vision")
    survey = recipe.survey(config.task, 5, tmp_path / "cache")
    assert any("picture budget: min_pixels 256" in line for line in survey.lines)
    assert not survey.refusal
    row = next(iter(recipe.rows_as_read(config.task, tmp_path / "cache")))
    texts = [text for text, _, _ in row.runs]
    assert any(text.startswith("[picture ") and "tokens]" in text for text in texts)
    learned = "".join(text for text, target, _ in row.runs if target)
    assert learned.endswith("<|im_end|>") and "What is written" not in learned


def test_a_new_model_counts_its_layers_and_is_saved_as_transformers_would(tmp_path: Path) -> None:
    config = config_of(tmp_path, "vision-scratch")
    train(config)
    newest = sorted((tmp_path / "runs/run/checkpoints").glob("step-*"))[-1] / "model"
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= {
        file.name for file in newest.iterdir()
    }
    model = AutoModelForImageTextToText.from_pretrained(newest)
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    assert backbone(model).head.weight is model.get_input_embeddings().weight


def test_a_merged_export_is_one_folder_that_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer

    train(config_of(tmp_path))
    found = load_run(tmp_path / "runs/run").export(tmp_path / "merged", "merged")
    assert found["largest_logit_difference"] < 2e-3
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    assert AutoImageProcessor.from_pretrained(tmp_path / "merged").patch_size == 8
