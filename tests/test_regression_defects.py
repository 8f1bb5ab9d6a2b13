"""Each defect of the seed system for step confidence, and the test that would have caught it.

The seed's published result was an R² of -4.4. Most of what follows is proved in detail elsewhere
(test_regression, test_chains, test_score_metrics, test_saver …); here it is said once, of this
recipe, in the order in which the defects were found.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chain_runs import (
    FULL,
    HELD,
    LORA,
    RECORDS,
    awake,
    config_of,
    evaluation_of,
    predictions_of,
    record,
    task_of,
    write,
)
from headway.api import load_run, train
from headway.checkpoint import verify
from headway.engine.task import Microbatch
from headway.errors import CheckpointError, DataError
from headway.journal import read, read_events
from headway.recipes.score_export import load_scorer
from headway.records import StepReport
from headway.show import Quiet
from headway.viewing import open_run
from toy import Cut, CutAt, assert_same_state, final_state

pytestmark = pytest.mark.usefixtures("own_cache")


def prm(problem: str) -> dict[str, Any]:
    """A solution as PRM800K writes it: the labelling stops at the first error, choosing nothing."""
    rated = [("One and one are two.", 1), ("Then it is three.", -1), ("Then it is four.", 0)]
    steps = [
        {"completions": [completion(*rated[0])], "human_completion": None, "chosen_completion": 0},
        {
            "completions": [completion(*rated[1]), completion(*rated[2])],
            "human_completion": None,
            "chosen_completion": None,
        },
    ]
    return {
        "question": {"problem": problem, "ground_truth_answer": "4"},
        "label": {"steps": steps, "finish_reason": "found_error", "total_time": 1},
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
    }


def completion(text: str, rating: int | None) -> dict[str, Any]:
    return {"text": text, "rating": rating, "flagged": None}


# ------------------------------------------------------------------ 1: what it learned from


def test_defect_missing_negatives_the_first_error_of_a_solution_is_a_loss_unit(
    tmp_path: Path,
) -> None:
    data = {"train": write(tmp_path / "phase2_train.jsonl", [prm("1+1+1?"), prm("2+2?")])}
    task = task_of(tmp_path, data=data)
    assert task.train is not None
    targets = sorted(np.concatenate([row.targets for row in task.train.rows]).tolist())
    assert targets == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    assert task.facts()["warnings"] == []


def test_defect_missing_negatives_a_source_without_any_is_a_warning(tmp_path: Path) -> None:
    """Negative control: what the seed's loader left over of PRM800K would have been said."""
    positive = [{**r, "targets": [1.0 - t / 2 for t in r["targets"]]} for r in RECORDS]
    task = task_of(tmp_path, data={"train": write(tmp_path / "left.jsonl", positive)})
    [warning] = task.facts()["warnings"]
    assert warning.startswith("left has no negatives")
    assert any("warning: left has no negatives" in line for line in task.facts()["data"])


def test_defect_unused_weights_each_batch_is_drawn_by_them(tmp_path: Path) -> None:
    sources = [
        {"path": write(tmp_path / "big.jsonl", RECORDS), "weight": 0.5},
        {"path": write(tmp_path / "small.jsonl", HELD[:3]), "weight": 0.5},
    ]
    task = task_of(tmp_path, {"batch_size": 50}, data={"train": sources})
    rows = [row for step in range(20) for m in task.batch_at(step) for row in m.rows]
    assert np.mean([row >= 24 for row in rows]) == 0.5
    assert 3 / 27 < 0.2, "shuffled uniformly, as the seed did, the small one would have a ninth"


def test_defect_zero_vector_targets_a_step_cut_off_by_max_tokens_teaches_nothing(
    tmp_path: Path,
) -> None:
    task = awake(task_of(tmp_path, tuning=FULL, max_tokens=48))
    assert task.train is not None and task.train.lost_steps > 0
    for row in range(len(task.train)):
        microbatch = task.train.microbatch([row])
        assert microbatch.inputs["at"].min() >= 0 and microbatch.inputs["at"].max() < 48
        assert microbatch.weight == len(microbatch.inputs["targets"])
    read: list[torch.Tensor] = []
    hook = task.model.head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    for microbatch in task._cut(task.train, range(len(task.train))):
        task.loss(task.model, microbatch.inputs)
    hook.remove()
    assert sum(len(hidden) for hidden in read) == sum(len(r.targets) for r in task.train.rows)
    assert all(hidden.detach().abs().sum(1).min() > 0 for hidden in read)


def test_defect_no_accumulation_a_step_is_the_whole_batch_however_it_is_split(
    tmp_path: Path,
) -> None:
    found = {}
    for size in (8, 1):
        losses: list[tuple[float, float, int]] = []

        class Keeps(Quiet):
            def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
                losses.append((report.loss, report.weight, report.rows))  # noqa: B023

        train(config_of(tmp_path / str(size), hardware={"microbatch_size": size}), show=Keeps())
        found[size] = losses
    assert [each[1:] for each in found[8]] == [each[1:] for each in found[1]]
    assert all(rows == 8 for *_, rows in found[1])
    assert [a for a, *_ in found[1]] == pytest.approx([a for a, *_ in found[8]], abs=1e-4)


def test_defect_shrunk_embedding_the_table_keeps_every_row_it_had(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    task_of(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(512, mean_resizing=False)  # padded, as the seed's model is
    model.save_pretrained(tmp_path / "base")
    before = model.get_input_embeddings().weight
    task = task_of(tmp_path, tuning=FULL)
    after = task.model.language.get_input_embeddings().weight
    assert after.shape == before.shape and len(task.tokenizer) == 385 < 512
    assert torch.equal(after[:384], before[:384]) and torch.equal(after[385:], before[385:])
    assert after[384].norm() < 2 * before[:384].norm(dim=1).mean(), "nor is the new row random"


def test_defect_untrained_token_row_it_moves_in_lora_mode(tmp_path: Path) -> None:
    task = awake(task_of(tmp_path))
    names = [n for n, p in task.model.named_parameters() if p.requires_grad and "token" in n]
    assert len(names) == 1
    task.model.train()
    task.loss(task.model, task.batch_at(0)[0].inputs)["loss"].sum().backward()
    gradient = dict(task.model.named_parameters())[names[0]].grad
    assert gradient is not None and gradient.shape == (1, 64) and gradient.abs().min() > 0


# ------------------------------------------------------------------ 2: what it evaluated


def test_defect_ten_batches_every_held_out_row_is_measured(tmp_path: Path) -> None:
    many = [record(number) for number in range(200, 270)]
    data = {"train": write(tmp_path / "t.jsonl", RECORDS), "eval": write(tmp_path / "e", many)}
    data["eval"] = write(tmp_path / "e.jsonl", many)
    train(config_of(tmp_path, {"data": data}, hardware={"microbatch_size": 4}))
    labels = sum(len(each["targets"]) for each in many)
    assert labels > 163, "more than the seed's published result was made of"
    assert evaluation_of(tmp_path)["metrics"]["n"] == labels == len(predictions_of(tmp_path))


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_defect_adapter_never_loaded_what_is_evaluated_later_is_what_was_trained(
    tmp_path: Path, tuning: dict[str, Any]
) -> None:
    train(config_of(tmp_path, {"tuning": tuning}, evaluate={"at_start": True}))
    journal = read_events(tmp_path / "runs/run/journal.jsonl", {"evaluation"})
    then = {event["step"]: event["metrics"] for event in journal}
    now = load_run(tmp_path / "runs/run", data=True).evaluate().metrics
    assert now == pytest.approx(then[4], abs=1e-6)
    assert now["loss"] != pytest.approx(then[0]["loss"], abs=1e-4), "nor is it the untrained model"


def test_defect_random_head_a_missing_head_is_an_error(tmp_path: Path) -> None:
    train(config_of(tmp_path, {"tuning": FULL}))
    run = tmp_path / "runs/run"
    load_run(run).export(tmp_path / "export", "full")
    (tmp_path / "export/head.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"head\.safetensors"):
        load_scorer(tmp_path / "export")
    (run / "checkpoints/step-00000004/model/head.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"head\.safetensors"):
        load_run(run)


def test_defect_keys_loaded_non_strictly_a_renamed_tensor_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from headway.engine.state import load_model

    train(config_of(tmp_path))
    trained = load_run(tmp_path / "runs/run")
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in (trained.checkpoint.path / "model").glob("*.safetensors"):
        tensors = {
            name.replace("q_proj", "backbone.q_proj"): t for name, t in load_file(file).items()
        }
        save_file(tensors, folder / file.name)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        load_model(trained.task, folder)


# ------------------------------------------------------------------ 3 and 4: what it kept


def test_defect_best_deleted_it_outlives_any_number_of_saves(tmp_path: Path) -> None:
    rising = {"horizon": {"steps": 10}, "learning_rate": 0.1, "schedule": "constant"}
    train(
        config_of(
            tmp_path,
            train=rising,
            evaluate={"every_steps": 1},
            checkpoint={"keep_last": 1, "keep_best": 1},
        )
    )
    events = read_events(tmp_path / "runs/run/journal.jsonl", {"evaluation"})
    losses = {e["step"]: e["metrics"]["loss"] for e in events if e["step"] > 0}
    best = min(losses, key=lambda step: losses[step])
    view = open_run(tmp_path / "runs/run")
    kept = {int(p.name[5:]) for p in (view.path / "checkpoints").glob("step-*")}
    assert kept == {best, 10} and view.checkpoint("best").step == best
    assert verify(view.checkpoint("best")) == []


def test_defect_no_resume_the_same_command_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    train(config_of(tmp_path / "a"))
    with pytest.raises(Cut):
        train(config_of(tmp_path / "b"), show=CutAt(2))
    train(config_of(tmp_path / "b"))
    assert_same_state(final_state(tmp_path / "a/runs/run"), final_state(tmp_path / "b/runs/run"))
    opened = [e for e in read(tmp_path / "b/runs/run/journal.jsonl") if e["event"] == "attempt"]
    assert [e["restored_step"] for e in opened] == [0, 1]


def test_defect_no_command_for_phase_two_a_run_begins_with_the_weights_of_another(
    tmp_path: Path,
) -> None:
    train(config_of(tmp_path))
    source = tmp_path / "runs/run"
    second = config_of(
        tmp_path,
        run={"name": "phase2", "warm_start": f"{source}@newest"},
        evaluate={"at_start": True},
    )
    train(second)
    events = read_events(tmp_path / "runs/phase2/journal.jsonl", {"evaluation"})
    first = read_events(source / "journal.jsonl", {"evaluation"})[-1]
    start = next(e for e in events if e["step"] == 0)
    assert start["metrics"]["loss"] == pytest.approx(first["metrics"]["loss"], abs=1e-6)


def test_defect_eight_gigabytes_at_every_new_best_a_lora_checkpoint_holds_what_trains(
    tmp_path: Path,
) -> None:
    train(config_of(tmp_path, evaluate={"every_steps": 1}))
    trained = load_run(tmp_path / "runs/run")
    size = sum(f.stat().st_size for f in (trained.checkpoint.path / "model").glob("*.safetensors"))
    parameters = [p for p in trained.task.model.parameters() if p.requires_grad]
    assert size < 4 * sum(p.numel() for p in parameters) + 20_000  # and the files' headers
    saves = read_events(tmp_path / "runs/run/journal.jsonl", {"save"})
    assert len(saves) == len({e["step"] for e in saves}) == 4, "a new best is no second save"


# ------------------------------------------------------------------ 5 and 6: how it computed


def test_defect_padding_to_2048_no_token_goes_through_the_model_that_is_not_data(
    tmp_path: Path,
) -> None:
    task = task_of(tmp_path, max_tokens=512)
    assert task.train is not None
    microbatch: Microbatch = task.train.microbatch(range(24))
    tokens = sum(len(row.ids) for row in task.train.rows)
    assert microbatch.inputs["input_ids"].shape == (1, tokens) and microbatch.tokens == tokens
    calls: list[int] = []
    hook = task.model.head.register_forward_hook(lambda _, __, out: calls.append(len(out)))
    task.loss(task.model, microbatch.inputs)
    hook.remove()
    assert calls == [sum(len(row.at) for row in task.train.rows)], "one gather, one head call"


def test_defect_labels_cast_to_bf16_they_reach_the_loss_in_fp32(tmp_path: Path) -> None:
    fine = [{**r, "targets": [0.3001] * len(r["targets"])} for r in RECORDS]
    data = {"train": write(tmp_path / "fine.jsonl", fine)}
    task = task_of(tmp_path, {"precision": "bf16_pure"}, data=data, loss="mse")
    assert task.train is not None
    inputs = task.train.microbatch([0]).inputs
    loss = task.loss(task.model, inputs)["loss"]
    assert loss.dtype == torch.float32
    assert loss.item() < 1e-9, "the head starts at the mean label, so it is exactly right"
    rounded = inputs["targets"].bfloat16().float()
    assert F.mse_loss(inputs["targets"], rounded).item() > 1e-7, "rounded, it would not be"


# ------------------------------------------------------------------ 7 and 8: what it measured on


def test_defect_validation_is_a_prefix_a_capped_one_is_drawn_from_all_sources(
    tmp_path: Path,
) -> None:
    first = write(tmp_path / "first.jsonl", [record(n) for n in range(300, 340)])
    second = write(tmp_path / "second.jsonl", [record(n) for n in range(400, 440)])
    data = {"train": write(tmp_path / "t.jsonl", RECORDS), "eval": [first, second]}
    train(config_of(tmp_path, {"data": data}, evaluate={"max_rows": 20}))
    sources = [p["source"] for p in predictions_of(tmp_path)]
    chains = {p["chain"] for p in predictions_of(tmp_path)}
    assert len(chains) == 20 and chains != set(range(20))
    assert min(sources.count("first"), sources.count("second")) > 5
    found = evaluation_of(tmp_path)
    assert found["rows"] == 20, "and the number is said with the result"
    assert {"first/r2", "second/r2", "first/n", "second/n"} <= set(found["metrics"])


TEST = [record(number) for number in range(500, 510)]


def split_data(folder: Path, **changes: list[dict[str, Any]]) -> dict[str, str]:
    rows = {"train": RECORDS, "eval": HELD, "test": TEST, **changes}
    return {split: write(folder / f"{split}.jsonl", chains) for split, chains in rows.items()}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"eval": [*HELD, RECORDS[3]]}, "1 of 11 held-out chains .* also among the training"),
        ({"test": [*TEST, RECORDS[3]]}, "1 of 11 test chains .* also among the training"),
        ({"test": [*TEST, *HELD[:2]]}, "2 of 12 test chains .* also among the held-out chains"),
        ({"test": HELD}, "10 of 10 test chains .* also among the held-out chains"),
    ],
    ids=["eval in train", "test in train", "test in eval", "test is eval"],
)
def test_defect_validation_is_test_no_chain_is_in_two_splits(
    tmp_path: Path, changes: dict[str, list[dict[str, Any]]], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        task_of(tmp_path / "bad", data=split_data(tmp_path / "bad", **changes))
    allowed = {**split_data(tmp_path / "said", **changes), "max_leaked": 1.0}
    said = task_of(tmp_path / "said", data=allowed).facts()["data"]
    assert any(says.rpartition(".* ")[2] in line for line in said), "allowed, it is counted"
    fine = task_of(tmp_path / "fine", data=split_data(tmp_path / "fine")).facts()["data"]
    assert not any("also among" in line for line in fine)


def test_defect_validation_is_test_the_result_is_of_rows_that_chose_nothing(
    tmp_path: Path,
) -> None:
    """Training is the same whatever the test rows are, and their figures are their own."""
    runs = {}
    for name, changes in (("one", {}), ("other", {"test": [record(n) for n in range(600, 620)]})):
        data = split_data(tmp_path / name, **changes)  # type: ignore[arg-type]
        train(config_of(tmp_path / name, {"data": data}, evaluate={"max_rows": 5}))
        runs[name] = tmp_path / name / "runs/run"
    assert_same_state(*(final_state(run) for run in runs.values()))
    evaluations = [
        {e["step"]: e["metrics"] for e in read_events(run / "journal.jsonl", {"evaluation"})}
        for run in runs.values()
    ]
    assert evaluations[0] == evaluations[1]
    found = {}
    for name, run in runs.items():
        trained = load_run(run, "best", data=True)
        found[name] = trained.evaluate(split="test")
        assert trained.evaluate().rows == 5, "the cap is of what is measured while training"
    assert [(f.split, f.rows, f.of_rows) for f in found.values()] == [
        ("test", 10, None), ("test", 20, None)
    ]  # fmt: skip
    assert found["one"].metrics["loss"] != found["other"].metrics["loss"]
    sources = {line["where"].rpartition("/")[2][:5] for line in found["one"].tables["predictions"]}
    assert sources == {"test."}


def test_defect_nan_and_infinity_what_is_not_defined_is_absent_and_the_rest_is_a_number(
    tmp_path: Path,
) -> None:
    same = [{**r, "targets": [1.0] * len(r["targets"])} for r in HELD]
    data = {
        "train": write(tmp_path / "t.jsonl", RECORDS),
        "eval": write(tmp_path / "e.jsonl", same),
    }
    train(config_of(tmp_path, {"data": data}))
    metrics = evaluation_of(tmp_path)["metrics"]
    assert {"mae", "mse", "rmse", "ece", "mae_high", "n"} <= set(metrics)
    assert not {"r2", "pearson", "error_auc", "mae_low"} & set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_every_figure_stands_beside_a_constants_and_its_n(tmp_path: Path) -> None:
    """So that an R² of -4.4 would have been read as what it is: worse than a constant."""
    train(config_of(tmp_path))
    found = evaluation_of(tmp_path)
    for name in ("r2", "mae", "mse", "rmse", "ece", "error_auc"):
        assert f"{name}/constant mean" in found["baselines"]
    assert found["metrics"]["n"] == sum(len(each["targets"]) for each in HELD)
