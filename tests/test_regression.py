"""The recipe ``regression``: a score belongs to its step and to nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from chain_runs import (
    FULL,
    LORA,
    QLORA,
    RECORDS,
    awake,
    chain_of,
    config_of,
    evaluation_of,
    predictions_of,
    record,
    task_of,
    write,
)
from headway.api import load_run, train
from headway.data.chains import Chain
from headway.engine.precision import autocast
from headway.engine.schedule import Schedule
from headway.errors import ConfigError, DataError
from headway.journal import read, timeline
from headway.models.hub import load_causal_lm
from headway.models.score import HeadShape, score_loss
from headway.opening import opened
from headway.recipes.chain_rows import ChainRows
from headway.recipes.chain_view import scores_of
from headway.recipes.regression import RECIPE, RegressionConfig, RegressionTask
from headway.recipes.score_export import load_scorer
from headway.records import StepReport
from headway.run import train as loop
from headway.show import Quiet
from toy import Cut, CutAt, assert_same_state, context, final_state

FEW = settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
READ_AT = {
    "token": {"tuning": LORA, "read_at": "token"},
    "last": {"tuning": FULL, "read_at": "last"},
    "surprise": {"tuning": LORA, "head": {"hidden": [16], "surprise": True}},
}


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module", params=sorted(READ_AT))
def task(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> RegressionTask:
    return awake(task_of(tmp_path_factory.mktemp("task"), **READ_AT[request.param]))


@pytest.fixture(scope="module")
def alone(task: RegressionTask) -> dict[tuple[int, int], float]:
    """The scores where every row is alone in its forward pass."""
    return measured(task, [[row] for row in range(24)])


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> RegressionTask:
    return awake(task_of(tmp_path_factory.mktemp("full"), tuning=FULL))


def measured(task: RegressionTask, groups: Sequence[Sequence[int]]) -> dict[tuple[int, int], float]:
    """(row, step) -> score of the training rows, these rows going through the model together."""
    assert task.train is not None
    found = {}
    with torch.no_grad():
        for group in groups:
            _, figures = task.observe(task.model, task.train.microbatch(group).inputs)
            found |= {(int(row), int(step)): score for row, step, score, _ in figures.tolist()}
    return found


# ------------------------------------------------------------------ what a score depends on


@FEW
@given(data=st.data())
def test_a_score_does_not_depend_on_batch_size_on_order_or_on_its_company(
    task: RegressionTask, alone: dict[tuple[int, int], float], data: st.DataObject
) -> None:
    rows = data.draw(st.permutations(range(24)))
    cuts = sorted(data.draw(st.sets(st.integers(1, 23), max_size=6)))
    groups = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, 24], strict=True)]
    assert measured(task, groups) == pytest.approx(alone, abs=1e-5)
    assert np.std(list(alone.values())) > 0.05, "scores that are all alike would prove nothing"


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_score_is_that_of_a_plain_padded_forward_on_either_side(
    full: RegressionTask, side: str
) -> None:
    assert full.train is not None
    plain = AutoModelForCausalLM.from_pretrained(full.config.base_model)
    plain.resize_token_embeddings(len(full.tokenizer), mean_resizing=False)
    plain.load_state_dict(full.model.language.state_dict())
    rows = full.train.rows
    longest = max(len(row.ids) for row in rows)
    ids, mask = torch.full((2, len(rows), longest), 1)
    mask.zero_()
    starts = [longest - len(row.ids) if side == "left" else 0 for row in rows]
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[i, start : start + len(row.ids)] = torch.from_numpy(row.ids.astype("int64"))
        mask[i, start : start + len(row.ids)] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        hidden = plain.eval().model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state  # fmt: skip
        head = full.model.head.layers
        expected = {
            (i, int(step)): head(hidden[i, start + int(at)]).sigmoid().item()
            for i, (row, start) in enumerate(zip(rows, starts, strict=True))
            for at, step in zip(row.at, row.steps, strict=True)
        }
    assert measured(full, [range(24)]) == pytest.approx(expected, abs=1e-5)


@FEW
@given(st.integers(0, 3), st.text("abc xyz", min_size=1).filter(str.strip))
def test_a_step_is_not_scored_by_what_comes_after_it_but_by_what_came_before(
    task: RegressionTask, changed: int, text: str
) -> None:
    before = chain_of(record(7, length=5))
    steps = list(before.steps)
    steps[changed] = f"{steps[changed]} {text}"
    one, other = scores_of(task.model, task.text, [before, replace(before, steps=tuple(steps))])
    assert other[:changed] == pytest.approx(one[:changed], abs=1e-6)
    assert all(abs(a - b) > 1e-6 for a, b in zip(one[changed:], other[changed:], strict=True))  # type: ignore[operator]
    [asked] = scores_of(task.model, task.text, [replace(before, problem="Another?")])
    assert asked != pytest.approx(one, abs=1e-6), "the problem is read"


@contextmanager
def ids_seen(task: RegressionTask) -> Iterator[list[list[int]]]:
    """The token ids of every row that goes through the model meanwhile."""
    seen: list[list[int]] = []

    def note(module: Any, inputs: Any) -> None:
        ids, _, ends, *_ = inputs
        seen.extend(ids[0, a:b].tolist() for a, b in zip([0, *ends[:-1]], ends, strict=True))

    hook = task.model.register_forward_pre_hook(note)
    yield seen
    hook.remove()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("max_steps", [None, 2])
def test_training_evaluation_and_predict_read_the_same_tokens_and_agree(
    tmp_path: Path, precision: str, max_steps: int | None
) -> None:
    rows = [{**r, "problem": f" {r['problem']}\n", "evidence": ["It is."]} for r in RECORDS[:9]]
    same = write(tmp_path / "same.jsonl", rows)
    train_on = {"path": same, "with_evidence": True}
    data = {"train": train_on, "eval": train_on, "max_leaked": 1.0}
    config = config_of(
        tmp_path,
        {"data": data, "max_steps": max_steps},
        hardware={"precision": precision, "microbatch_size": 1},  # alone: the same roundings
    )
    train(config)
    trained = load_run(tmp_path / "runs/run", data=True)
    task: Any = awake(trained.task)  # type: ignore[arg-type]
    with ids_seen(task) as in_training, autocast(precision, torch.device("cpu")):
        for row in range(len(task.train)):
            task.loss(task.model, task.train.microbatch([row]).inputs)
    with ids_seen(task) as in_evaluation:
        found = trained.evaluate()
    with ids_seen(task) as in_predict:
        answers = [
            trained.predict({k: r[k] for k in ("problem", "steps", "evidence")}) for r in rows
        ]
    assert sorted(in_training) == sorted(in_evaluation) == sorted(in_predict)
    predicted = {(p["chain"], p["step"]): p["predicted"] for p in found.tables["predictions"]}
    asked = {(c, s): v for c, a in enumerate(answers) for s, v in enumerate(a["scores"])}
    assert asked == pytest.approx(predicted, abs=1e-6)
    assert np.std(list(asked.values())) > 0.05


def test_a_row_is_written_as_the_config_says(tmp_path: Path) -> None:
    text = task_of(tmp_path, problem_format="Q {x}: {problem}\n").text
    [row] = text.encode([chain_of(record(1))])
    assert text.tokenizer.decode(row.ids) == (
        "Q {x}: What is green 1?\ngreen blue 0<CONFIDENCE>\nblue black white 1<CONFIDENCE>\n"
    )
    assert [text.tokenizer.decode([i]) for i in row.ids[row.at]] == ["<CONFIDENCE>"] * 2
    [last] = replace(text, token=None).encode([chain_of(record(1))])
    assert [text.tokenizer.decode([i]) for i in last.ids[last.at]] == ["0", "1"]


# ------------------------------------------------------------------ long chains


def test_a_labelled_step_beyond_max_tokens_is_counted_and_is_no_loss_unit(tmp_path: Path) -> None:
    whole = task_of(tmp_path / "whole").train
    task = task_of(tmp_path / "cut", max_tokens=64)
    short = task.train
    assert whole is not None and short is not None
    fitting = [int((row.at < 64).sum()) for row in whole.rows]
    assert 0 < short.lost_steps == sum(len(row.at) for row in whole.rows) - sum(fitting)
    assert [len(row.at) for row in short.rows] == [n for n in fitting if n]
    rows = short.microbatch(range(len(short)))
    assert rows.weights == tuple(float(n) for n in fitting if n)
    assert all(row.at.max() < len(row.ids) <= 64 for row in short.rows)
    line = f"{short.lost_steps} labelled steps beyond max_tokens (64) are not trained on"
    assert any(line in shown for shown in task.facts()["data"])


TARGETS = st.lists(st.sampled_from([None, 0.0, 0.5, 1.0]), min_size=1, max_size=12)


@FEW
@given(st.lists(TARGETS, min_size=1, max_size=5), st.integers(1, 5))
def test_a_chain_that_is_split_has_each_label_as_a_loss_unit_exactly_once(
    full: RegressionTask, chains: list[list[float | None]], max_steps: int
) -> None:
    written = [
        chain_of(record(number, length=len(targets)), targets)
        for number, targets in enumerate(chains)
    ]
    rows = ChainRows(written, replace(full.text, max_steps=max_steps, max_tokens=400))
    labels = {
        (number, step): target
        for number, targets in enumerate(chains)
        for step, target in enumerate(targets)
        if target is not None
    }
    found = [
        ((rows.chain_of[row], int(step)), target)
        for row in range(len(rows))
        for (_, step), target in zip(
            *(rows.microbatch([row]).inputs[key].tolist() for key in ("units", "targets")),
            strict=True,
        )
    ]
    assert len(found) == len(labels) and dict(found) == labels
    assert rows.lost_steps == 0


def test_a_split_chain_is_measured_once_at_each_label_and_under_its_own_step(
    tmp_path: Path,
) -> None:
    long = [record(number, length=7) for number in range(40, 46)]
    data = {
        "train": write(tmp_path / "train.jsonl", RECORDS),
        "eval": write(tmp_path / "long.jsonl", long),
    }
    train(config_of(tmp_path, {"data": data, "max_steps": 3}))
    lines = predictions_of(tmp_path)
    assert evaluation_of(tmp_path)["metrics"]["n"] == len(lines) == 42
    assert {(p["chain"], p["step"]): p["target"] for p in lines} == {
        (c, s): target for c, each in enumerate(long) for s, target in enumerate(each["targets"])
    }


# ------------------------------------------------------------------ what trains


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tuning", [LORA, QLORA], ids=["lora", "qlora"])
def test_beside_the_adapters_the_tokens_row_trains_and_no_other_row_does(
    tmp_path: Path, precision: str, tuning: dict[str, Any]
) -> None:
    if tuning is QLORA:
        pytest.importorskip("bitsandbytes")
    config = config_of(tmp_path, {"tuning": tuning}, hardware={"precision": precision})
    with opened(config) as run:
        task = run.task
        table = task.model.language.get_input_embeddings()
        [token] = task.tokenizer.convert_tokens_to_ids(["<CONFIDENCE>"])
        base = table.token_adapter.base_layer.weight.clone()
        before = table(torch.arange(token + 1)).detach().clone()
        loop(run)
        after = table(torch.arange(token + 1)).detach()
    assert torch.equal(table.token_adapter.base_layer.weight, base)
    assert torch.equal(after[:token], before[:token])
    moved = (after[token] - before[token]).abs()
    assert moved.min() > 1e-3, "four steps of Adam at 0.01 move every entry"
    stored = load_run(tmp_path / "runs/run").task.model.language.get_input_embeddings()
    assert torch.equal(stored(torch.tensor([token]))[0].detach(), after[token])


def test_an_embedding_table_with_spare_rows_keeps_them_all(tmp_path: Path) -> None:
    task_of(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(448, mean_resizing=False)
    model.save_pretrained(tmp_path / "base")
    for tuning in (LORA, FULL):
        task = task_of(tmp_path, tuning=tuning)
        assert len(task.tokenizer) == 385
        assert task.model.language.get_input_embeddings().weight.shape[0] == 448


def test_where_a_number_is_read_at_the_last_token_no_row_is_added(tmp_path: Path) -> None:
    task = task_of(tmp_path, read_at="last")
    assert len(task.tokenizer) == task.model.language.get_input_embeddings().weight.shape[0] == 384


@pytest.mark.parametrize(
    ("tuning", "precision"),
    [(FULL, "fp32"), (LORA, "fp32"), (LORA, "bf16"), (QLORA, "fp32"), (QLORA, "bf16")],
    ids=str,
)
def test_every_mode_trains_resumes_bit_for_bit_and_exports(
    tmp_path: Path, tuning: dict[str, Any], precision: str
) -> None:
    if tuning is QLORA:
        pytest.importorskip("bitsandbytes")

    def of(name: str) -> Any:
        head = {"hidden": [16], "dropout": 0.1}
        changes = {"tuning": tuning, "head": head}
        return config_of(tmp_path / name, changes, hardware={"precision": precision})

    losses: list[float] = []

    class Keeps(Quiet):
        def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
            losses.append(report.loss)

    train(of("a"), show=Keeps())
    assert all(math.isfinite(loss) for loss in losses) and len(set(losses)) == 4
    with pytest.raises(Cut):
        train(of("b"), show=CutAt(3))
    train(of("b"))
    assert_same_state(final_state(tmp_path / "a/runs/run"), final_state(tmp_path / "b/runs/run"))
    trained = load_run(tmp_path / "a/runs/run")
    awake(trained.task, 1.0 if precision == "fp32" else 0.3)  # type: ignore[arg-type]
    chains = [chain_of(record(number, length=5)) for number in range(50, 56)]
    expected = np.array(trained.task.scores(chains))  # type: ignore[attr-defined]
    for format in ("full",) if tuning is FULL else ("adapter", "merged"):
        trained.export(tmp_path / format, format)
        scorer, text = load_scorer(tmp_path / format, base=base_of(trained.config.task, format))
        worst = np.abs(np.array(scores_of(scorer, text, chains)) - expected).max()
        # A merge is with the base as it was before it was stored in four bits: another model.
        # In bf16 these noisy adapters magnify its rounding; an export is computed in fp32.
        if precision == "fp32" and not (tuning is QLORA and format == "merged"):
            assert worst < 1e-4
    assert expected.std() > 0.02, "scores that are all alike would prove nothing"


def base_of(config: RegressionConfig, format: str) -> Any:
    """What an adapter is loaded over: the base model, in four bits where it was trained so."""
    if format != "adapter":
        return None
    options: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
    quantized = config.tuning.kind == "qlora"
    return load_causal_lm(config.base_model, None, Path(), quantized=quantized, **options)


def test_a_qlora_run_still_has_gradients_in_its_first_layer_after_an_evaluation(
    tmp_path: Path,
) -> None:
    pytest.importorskip("bitsandbytes")
    config = config_of(tmp_path, {"tuning": QLORA}, evaluate={"every_steps": 1, "at_start": True})
    moved: list[float] = []

    class Watches(Quiet):
        def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
            layers = run.task.model.language.base_model.model.model.layers
            weight = layers[0].self_attn.q_proj.lora_A["default"].weight
            moved.append(weight.detach().double().sum().item())

    with opened(config, show=Watches()) as run:
        loop(run)
        run.task.model.train()
        microbatch = run.task.batch_at(0)[0]
        run.task.loss(run.task.model, microbatch.inputs)["loss"].sum().backward()
        named = dict(run.task.model.named_parameters())
        first = [p for n, p in named.items() if "layers.0.self_attn.q_proj.lora" in n]
        assert first and all(p.grad is not None and p.grad.abs().max() > 0 for p in first)
    assert len(set(moved)) >= 3, "and the optimizer has moved it between the evaluations"


# ------------------------------------------------------------------ the head


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_pure"])
@pytest.mark.parametrize("loss", ["mse", "huber", "bce"])
def test_an_untrained_head_answers_the_training_mean_in_fp32(
    tmp_path: Path, precision: str, loss: str
) -> None:
    task = task_of(tmp_path, {"precision": precision}, loss=loss)
    assert task.train is not None
    assert {p.dtype for p in task.model.head.parameters()} == {torch.float32}
    labels = np.concatenate([row.targets for row in task.train.rows]).astype(np.float64)
    inputs = task.train.microbatch(range(24)).inputs
    assert inputs["targets"].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        sums, figures = task.observe(task.model, inputs)
    assert sums["loss"].dtype == torch.float32
    mean = labels.mean()
    assert figures[:, 2].tolist() == pytest.approx([mean] * len(labels), abs=1e-6)
    assert sums["loss"].sum().item() / len(labels) == pytest.approx(
        np.mean([formula(loss, mean, y) for y in labels]), abs=1e-6
    )
    assert sums["absolute_error"].sum().item() / len(labels) == pytest.approx(
        np.abs(labels - mean).mean(), abs=1e-6
    )


def test_labels_are_not_rounded_to_bf16(tmp_path: Path) -> None:
    fine = [{**r, "targets": [0.123456789] * len(r["targets"])} for r in RECORDS]
    data = {"train": write(tmp_path / "fine.jsonl", fine)}
    task = task_of(tmp_path, {"precision": "bf16_pure"}, data=data)
    assert task.train is not None
    _, figures = task.observe(task.model, task.train.microbatch(range(24)).inputs)
    assert set(figures[:, 3].tolist()) == {float(np.float32(0.123456789))}


def formula(loss: str, predicted: float, target: float, delta: float = 0.1) -> float:
    """The definitions, once more and by hand."""
    off = abs(predicted - target)
    if loss == "mse":
        return off * off
    if loss == "huber":
        return off * off / 2 if off <= delta else delta * (off - delta / 2)
    return -(target * math.log(predicted) + (1 - target) * math.log(1 - predicted))


@given(st.floats(-8, 8), st.floats(0, 1, width=32), st.floats(0.01, 0.5))
def test_each_loss_is_its_formula(logit: float, target: float, delta: float) -> None:
    logits = torch.tensor([logit], dtype=torch.float64)
    predicted = 1 / (1 + math.exp(-logit))
    for loss in ("mse", "huber", "bce"):
        found = score_loss(logits, torch.tensor([target], dtype=torch.float64), loss, delta)
        assert found.item() == pytest.approx(formula(loss, predicted, target, delta), abs=1e-9)


def test_head_shapes_that_cannot_be_are_refused() -> None:
    for wrong in ({"hidden": [0]}, {"dropout": 1.0}, {"activation": "sine"}, {"width": 3}):
        with pytest.raises(ValueError):
            HeadShape.model_validate(wrong)


STEPS = 20


@pytest.mark.parametrize(("loss", "tuning"), [("bce", LORA), ("mse", FULL)])
def test_twenty_losses_equal_a_plain_loops(
    tmp_path: Path, loss: str, tuning: dict[str, Any]
) -> None:
    config = config_of(
        tmp_path,
        {"loss": loss, "tuning": tuning},
        train={
            "horizon": {"steps": STEPS}, "learning_rate": 3e-3, "weight_decay": 0.1, "warmup": 4,
            "schedule": "cosine",
        },
        evaluate={"every_steps": 1000},
        checkpoint={"every_steps": None},
    )  # fmt: skip
    with opened(config) as run:
        scorer = run.task.model
        before = {k: v.clone() for k, v in scorer.state_dict().items()}
        batches = [
            [run.task.train.rows[row] for m in run.task.batch_at(step) for row in m.rows]
            for step in range(STEPS)
        ]
        loop(run)
    found = [line["loss"] for line in timeline(read(tmp_path / "runs/run/journal.jsonl"))]
    model, head = plain_scorer(config.task, before)
    schedule = Schedule(peak=3e-3, num_steps=STEPS, shape="cosine", warmup_steps=4)
    expected = plain_losses(model, head, batches, schedule, loss)
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[-1] != pytest.approx(found[0], abs=1e-3)  # they did learn something


def plain_scorer(config: RegressionConfig, before: dict[str, Tensor]) -> tuple[Any, Any]:
    """The same weights in a fresh model with its own attention, and PEFT's own arithmetic."""
    model = AutoModelForCausalLM.from_pretrained(config.base_model)
    model.resize_token_embeddings(385, mean_resizing=False)
    if config.tuning.kind == "lora":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear",
            trainable_token_indices=[384],
        )  # fmt: skip
        model = get_peft_model(model, lora)
    language = {k.removeprefix("language."): v for k, v in before.items() if k[:4] != "head"}
    model.load_state_dict(language)
    head = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.GELU(), torch.nn.Linear(16, 1))
    head.load_state_dict({k[12:]: v for k, v in before.items() if k[:4] == "head"})
    return model.train(), head


def plain_losses(
    model: Any, head: Any, batches: list[Any], schedule: Schedule, loss: str
) -> list[float]:
    """Rows padded on the right, through the model's own forward; mean over labelled steps."""
    trained = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    losses = []
    for step, rows in enumerate(batches):
        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.from_numpy(row.ids.astype("int64"))
            mask[i, : len(row.ids)] = 1
        out = model(
            input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True
        ).hidden_states[-1]
        terms = []
        for i, row in enumerate(rows):
            for at, target in zip(row.at, row.targets, strict=True):
                predicted = head(out[i, int(at)]).sigmoid()
                off = (predicted - float(target)).abs()
                terms.append(
                    {
                        "mse": lambda off=off: off**2,
                        "bce": lambda p=predicted, y=float(target): (
                            -y * p.log() - (1 - y) * (1 - p).log()
                        ),
                    }[loss]()
                )
        mean = torch.cat(terms).mean()
        optimizer.zero_grad()
        mean.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(step)
        optimizer.step()
        losses.append(mean.item())
    return losses


# ------------------------------------------------------------------ labels and their mixture


def test_another_target_range_is_trained_and_measured_in_the_labels_own_unit(
    tmp_path: Path,
) -> None:
    def stretched(records: list[Any]) -> list[Any]:
        return [{**r, "targets": [8 * t - 4 for t in r["targets"]]} for r in records]

    held = stretched([record(number) for number in range(100, 110)])
    data = {
        "train": write(tmp_path / "wide.jsonl", stretched(RECORDS)),
        "eval": write(tmp_path / "wide-held.jsonl", held),
    }
    train(config_of(tmp_path, {"data": data, "target_range": [-4, 4]}))
    plain = tmp_path / "plain"
    train(config_of(plain))
    wide, usual = evaluation_of(tmp_path), evaluation_of(plain)
    for name, factor in {"mae": 8, "rmse": 8, "ece": 8, "mse": 64, "r2": 1, "pearson": 1}.items():
        assert wide["metrics"][name] == pytest.approx(factor * usual["metrics"][name], rel=1e-4)
    constant = "mae/constant mean"
    assert wide["baselines"][constant] == pytest.approx(8 * usual["baselines"][constant])
    assert wide["metrics"]["loss"] == pytest.approx(usual["metrics"]["loss"], rel=1e-5)
    predicted = {p["target"] for p in predictions_of(tmp_path)}
    assert predicted == {-4.0, 0.0, 4.0}
    trained = load_run(tmp_path / "runs/run", data=True)
    worst = trained.evaluate(worst_rows=1).worst[0].shown
    assert worst["range"] == [-4.0, 4.0]
    assert "range" not in load_run(plain / "runs/run", data=True).evaluate(1).worst[0].shown
    answer = trained.predict({"prompt": "red"})
    assert -4 < answer["scores"][0] < 4
    assert answer["first_doubtful"] == (0 if answer["scores"][0] < 0 else None)


@pytest.mark.parametrize("target", [1.2, -0.1])
def test_a_target_out_of_range_is_an_error_that_names_file_and_line(
    tmp_path: Path, target: float
) -> None:
    rows = [*RECORDS[:4], {**record(9, length=2), "targets": [1, target]}]
    data = {"train": write(tmp_path / "odd.jsonl", rows)}
    with pytest.raises(DataError, match=rf"odd\.jsonl:5: step 2 .*{target:g}.*target_range"):
        task_of(tmp_path, data=data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_range": [1, 1]}, {"target_range": [1, 0]}, {"target_range": [0, float("inf")]},
        {"problem_format": "no place"}, {"evidence_format": "{evidence} {evidence}"},
        {"read_at": "first"}, {"loss": "mae"}, {"max_steps": 0},
    ],
)  # fmt: skip
def test_a_section_that_cannot_be_meant_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        config_of(tmp_path, wrong)


def test_the_rows_of_the_first_batches_follow_the_weights_and_the_report_says_so(
    tmp_path: Path,
) -> None:
    few = [record(number, length=7) for number in range(60, 66)]
    sources = [
        {"path": write(tmp_path / "many.jsonl", RECORDS), "weight": 1.0},
        {"path": write(tmp_path / "few.jsonl", few), "weight": 3.0},
    ]
    task = task_of(tmp_path, {"batch_size": 10}, data={"train": sources}, max_steps=3)
    assert task.train is not None and task.train.sizes[0] + task.train.sizes[1] == len(task.train)
    rows = [row for step in range(100) for m in task.batch_at(step) for row in m.rows]
    share = np.mean([row >= task.train.sizes[0] for row in rows])
    assert share == 0.75
    assert "mixture as sampled: many 25.0 %, few 75.0 %" in task.facts()["data"]


def test_without_weights_the_report_counts_rows_and_not_chains(tmp_path: Path) -> None:
    few = [record(number, length=7) for number in range(60, 66)]
    data = {
        "train": [
            write(tmp_path / "many.jsonl", RECORDS[:4]),
            write(tmp_path / "few.jsonl", few),
        ]
    }
    task = task_of(tmp_path, {"batch_size": 1}, data=data, max_steps=3)
    assert task.train is not None
    rows = [
        row for step in range(task.rows_per_epoch) for m in task.batch_at(step) for row in m.rows
    ]
    first = np.mean([row < task.train.sizes[0] for row in rows])
    line = f"mixture as sampled: many {100 * first:.1f} %, few {100 - 100 * first:.1f} %"
    assert task.train.split_chains > 0 and line in task.facts()["data"]


def test_a_source_without_a_row_that_fits_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl.*max_tokens \(8\)"):
        task_of(tmp_path, max_tokens=8)


def test_held_out_rows_that_all_lost_their_labels_are_said_so(tmp_path: Path) -> None:
    long = [{**record(1, length=1), "problem": "blue " * 60, "targets": [0.5]}]
    data = {
        "train": write(tmp_path / "train.jsonl", RECORDS),
        "eval": write(tmp_path / "long.jsonl", long),
    }
    with pytest.raises(ConfigError, match="no held-out rows"):
        train(config_of(tmp_path, {"data": data, "max_tokens": 100}))


def test_a_chain_without_any_problem_is_read_too(tmp_path: Path) -> None:
    task = awake(task_of(tmp_path))
    chain = Chain(problem="", steps=("red",), targets=(1.0,), source="s", where="w", group="g")
    [row] = task.text.encode([chain])
    assert task.tokenizer.decode(row.ids) == "red<CONFIDENCE>\n"
    assert len(task.scores([chain])[0]) == 1


def test_the_recipe_is_built_without_data_for_use_alone(tmp_path: Path) -> None:
    config = task_of(tmp_path).config
    (tmp_path / "train.jsonl").unlink()
    task = RECIPE.build(config, context(cache=tmp_path / "cache", data=False))
    assert task.train is None and list(task.held_out()) == []
