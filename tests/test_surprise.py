"""The surprise that a score head may be given: what it is, whose it is, and what it teaches."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from chain_runs import (
    FULL,
    LORA,
    QLORA,
    awake,
    chain_of,
    config_of,
    evaluation_of,
    record,
    task_of,
)
from headway.api import load_run, train
from headway.data.chains import Chain
from headway.errors import CheckpointError, ConfigError
from headway.models.attention import hidden_states
from headway.models.backbone import Backbone, backbone
from headway.models.lm_loss import lm_row_sums
from headway.models.score import HeadShape, read_of
from headway.models.surprise import EVIDENCE, StepTokens, evidence, surprise
from headway.recipes.chain_rows import ChainRows
from headway.recipes.chain_view import scores_of
from headway.recipes.regression import RECIPE, RegressionTask
from headway.recipes.score_export import load_scorer
from toy import Cut, CutAt, assert_same_state, final_state

pytestmark = pytest.mark.usefixtures("own_cache")

HEAD = {"hidden": [16], "surprise": True}


@pytest.fixture(scope="module", params=["token", "last"])
def task(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> RegressionTask:
    folder = tmp_path_factory.mktemp("task")
    return awake(task_of(folder, tuning=FULL, head=HEAD, read_at=request.param, max_steps=3))


def seen_by_head(task: RegressionTask, rows: Sequence[int]) -> dict[tuple[int, int], list[float]]:
    """(row, step) -> the evidence that the head got, these rows going through together."""
    got: list[Tensor] = []
    hook = task.model.head.register_forward_pre_hook(lambda _, inputs: got.append(inputs[1]))
    assert task.train is not None
    with torch.no_grad():
        _, figures = task.observe(task.model, task.train.microbatch(rows).inputs)
    hook.remove()
    units = [(int(row), int(step)) for row, step, *_ in figures.tolist()]
    return dict(zip(units, got[0].tolist(), strict=True))


def pooled_by_hand(tokens: Sequence[tuple[float, bool]]) -> list[float]:
    """Mean and highest over all (nats, has a digit), over digits, over the last run of digits."""
    runs = [list(run) for has, run in groupby(tokens, key=lambda token: token[1]) if has]
    last = runs[-1] if runs else []
    found = []
    for chosen in (tokens, [token for token in tokens if token[1]], last):
        nats = [n for n, _ in chosen] or [0.0]
        found += [np.mean(nats), max(nats)]
    return [16 * (math.log1p(value) - 1) for value in found]


def by_hand(task: RegressionTask, row: int) -> dict[tuple[int, int], list[float]]:
    """The same from the plain model's own logits, in plain Python, a step at a time."""
    assert task.train is not None
    plain = AutoModelForCausalLM.from_pretrained(task.config.base_model)
    plain.resize_token_embeddings(len(task.tokenizer), mean_resizing=False)
    plain.load_state_dict(task.model.language.state_dict())
    chain = task.train.chains[task.train.chain_of[row]]
    number = task.train.first_step[row]
    found, most = {}, [-16.0] * 6
    ids = task.train.rows[row].ids.astype("int64")
    with torch.no_grad():
        logits = plain.eval()(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0]
    if task.text.token:
        logits[:, task.tokenizer.convert_tokens_to_ids(task.text.token)] = -math.inf
    losses = -logits.log_softmax(-1)
    at = len(task.tokenizer(task.text.prompt(chain), add_special_tokens=False)["input_ids"])
    scored = set(task.train.rows[row].steps.tolist())
    for place, text in enumerate(chain.steps[number:][: task.train.rows[row].steps.max() + 1]):
        own = task.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids[at : at + len(own)].tolist() == own
        each = [losses[at + k - 1, token].item() for k, token in enumerate(own)]
        holds = [any(c.isdigit() for c in task.tokenizer.decode([token])) for token in own]
        values = pooled_by_hand(list(zip(each, holds, strict=True)))
        most = [max(a, b) for a, b in zip(most, values, strict=True)]
        if place in scored:
            found[row, number + place] = values + most
        at += len(own) + (1 if task.text.token else 0) + 1
    return found


# ------------------------------------------------------------------ what it is


def test_the_head_gets_what_a_direct_log_softmax_gives(task: RegressionTask) -> None:
    assert task.train is not None
    together = seen_by_head(task, range(len(task.train)))
    expected: dict[tuple[int, int], list[float]] = {}
    for row in range(len(task.train)):
        expected |= by_hand(task, row)
    assert together.keys() == expected.keys()
    for unit, values in expected.items():
        assert together[unit] == pytest.approx(values, abs=2e-3), unit
    table = np.array(list(together.values()))
    assert table.std(0).min() > 0.1, "features that are all alike would prove nothing"


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_it_does_not_depend_on_batch_size_on_order_or_on_its_company(
    task: RegressionTask, data: st.DataObject
) -> None:
    assert task.train is not None
    rows = data.draw(st.permutations(range(len(task.train))))[:12]
    whole = seen_by_head(task, rows)
    cut = data.draw(st.integers(1, 11))
    parts = seen_by_head(task, rows[:cut]) | seen_by_head(task, rows[cut:])
    assert parts.keys() == whole.keys()
    for unit, values in whole.items():
        assert parts[unit] == pytest.approx(values, abs=2e-3)


STEPS = st.lists(st.lists(st.tuples(st.floats(0, 12), st.booleans()), max_size=5), min_size=1)


@given(st.lists(STEPS, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_evidence_is_its_definition_and_never_crosses_rows(
    rows: list[list[list[tuple[float, bool]]]], random: Any
) -> None:
    flat = [(n, k, step) for n, row in enumerate(rows) for k, step in enumerate(row)]
    tokens = [(at, nats, digit) for at, (*_, step) in enumerate(flat) for nats, digit in step]
    scored = [at for at in range(len(flat)) if random.random() < 0.7] or [0]
    firsts = [next(a for a, (n, *_) in enumerate(flat) if n == flat[at][0]) for at in scored]
    steps = StepTokens(
        at=torch.zeros(len(tokens), dtype=torch.long),
        step=torch.tensor([at for at, *_ in tokens], dtype=torch.long),
        of_score=torch.tensor(scored),
        first=torch.tensor(firsts),
        count=len(flat),
    )
    nats = torch.tensor([n for _, n, _ in tokens])
    found = evidence(nats, torch.tensor([d for *_, d in tokens], dtype=torch.bool), steps)
    assert found.shape == (len(scored), EVIDENCE)

    for values, at, first in zip(found.tolist(), scored, firsts, strict=True):
        each = [pooled_by_hand(flat[k][2]) for k in range(first, at + 1)]
        assert values == pytest.approx([*each[-1], *np.max(each, axis=0)], abs=1e-4)


def test_the_special_tokens_own_row_has_no_part_in_the_softmax(tmp_path: Path) -> None:
    task = awake(task_of(tmp_path, tuning=FULL, head=HEAD))
    assert task.train is not None
    mark = task.tokenizer.convert_tokens_to_ids("<CONFIDENCE>")
    inputs = task.train.microbatch([3]).inputs
    steps, parts = StepTokens.of(inputs), backbone(task.model.language)
    hidden = torch.randn(inputs["input_ids"].shape[1], 64)
    ours = surprise(hidden, parts, inputs["input_ids"], steps, mark)
    plain = surprise(hidden, parts, inputs["input_ids"], steps, None)
    with torch.no_grad():
        parts.head.weight[mark] *= 50
    torch.testing.assert_close(
        surprise(hidden, parts, inputs["input_ids"], steps, mark), ours, rtol=0, atol=0
    )
    changed = surprise(hidden, parts, inputs["input_ids"], steps, None)
    assert (changed - plain).abs().max() > 1, "with it in the softmax all would move"


@pytest.mark.parametrize("twist", [(1.0, None), (0.5, None), (1.0, 3.0)])
def test_a_token_that_is_left_out_is_as_if_the_vocabulary_had_no_such_token(
    twist: tuple[float, float | None],
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(9, 6, generator=generator)
    hidden = torch.randn(7, 6, generator=generator, requires_grad=True)
    head, short = torch.nn.Linear(6, 9, bias=False), torch.nn.Linear(6, 8, bias=False)
    kept = [n for n in range(9) if n != 4]
    with torch.no_grad():
        head.weight.copy_(weight)
        short.weight.copy_(weight[kept])
    places, rows = torch.arange(7), torch.zeros(7, dtype=torch.long)
    targets = torch.tensor([0, 1, 2, 3, 5, 6, 8])
    fewer = torch.tensor([kept.index(t) for t in targets.tolist()])
    grads, sums = [], []
    for linear, wanted, out in ((head, targets, 4), (short, fewer, None)):
        parts = Backbone(torch.nn.Identity(), linear, *twist)
        [total] = lm_row_sums(hidden, parts, places, wanted, rows, 1, without=out)["loss"]
        grads.append(torch.autograd.grad(total, [hidden, linear.weight]))
        sums.append(total.detach())
    torch.testing.assert_close(sums[0], sums[1])
    torch.testing.assert_close(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1][kept], grads[1][1])
    assert grads[0][1][4].abs().max() == 0


# ------------------------------------------------------------------ which tokens


def test_every_step_up_to_the_last_that_is_read_has_its_own_tokens(tmp_path: Path) -> None:
    task = task_of(tmp_path, head=HEAD)
    chain = chain_of(record(7, length=5), [None, 1.0, None, 0.0, None])
    [row] = task.text.encode([chain])
    texts = [task.tokenizer.decode(row.ids[a:b]) for a, b in row.spans]
    assert texts == list(chain.steps[:4])
    inputs = ChainRows([chain, chain], task.text).microbatch([0, 1]).inputs
    steps = StepTokens.of(inputs)
    assert steps.count == 8
    assert steps.of_score.tolist() == [1, 3, 5, 7] and steps.first.tolist() == [0, 0, 4, 4]
    ids = inputs["input_ids"][0]
    for number in range(8):
        assert task.tokenizer.decode(ids[steps.at[steps.step == number]]) == chain.steps[number % 4]


def test_a_first_token_that_nothing_stands_before_is_not_counted(tmp_path: Path) -> None:
    task = awake(task_of(tmp_path, head=HEAD))
    chain = Chain(
        problem="", steps=("red blue 7", "7"), targets=(1.0, 0.0), source="", where="", group=""
    )
    [row] = task.text.encode([chain])
    assert row.spans[0].tolist() == [1, row.at[0]]
    first, second = scores_of(task.model, task.text, [chain])[0]
    assert first is not None and second is not None
    one = replace(chain, steps=("7",), targets=(1.0,))
    [alone] = task.text.encode([one])
    assert len(task.tokenizer("7")["input_ids"]) == 1 and alone.spans.tolist() == [[1, 1]]
    assert scores_of(task.model, task.text, [one])[0][0] is not None, "no token at all is no error"


def test_tokens_beyond_max_tokens_are_in_no_step(tmp_path: Path) -> None:
    task = task_of(tmp_path, head=HEAD, max_tokens=48)
    assert task.train is not None and task.train.lost_steps > 0
    for number, row in enumerate(task.train.rows):
        assert row.spans.max() <= len(row.ids) <= 48
        inputs = task.train.microbatch([number]).inputs
        assert inputs["step_tokens"].max() < len(row.ids)


# ------------------------------------------------------------------ who uses it


def test_without_it_nothing_is_read_with_the_output_head_and_the_scores_are_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = awake(task_of(tmp_path))
    given = awake(task_of(tmp_path, head=HEAD))
    asked: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        asked.append(1)
        return lm_row_sums(*args, **options)

    monkeypatch.setattr("headway.models.surprise.lm_row_sums", counted)
    assert task.train is not None
    inputs = task.train.microbatch([0, 1]).inputs
    task.loss(task.model, inputs)
    assert not asked and "vocabulary" not in task.facts()
    assert task.model.head.layers[0].in_features == 64
    given.loss(given.model, inputs)
    assert asked and given.facts()["vocabulary"] == 385
    assert given.model.head.layers[0].in_features == 64 + EVIDENCE
    with pytest.raises(ValueError, match="needs to know"):
        given.model(*read_of(inputs))


def test_the_head_learns_from_its_value_only_and_lm_weight_teaches_the_model(
    tmp_path: Path,
) -> None:
    task = awake(task_of(tmp_path / "value", head=HEAD))
    with torch.no_grad():  # a head that looks at nothing but the surprise
        task.model.head.layers[0].weight[:, :64] = 0.0
    assert task.train is not None
    inputs = task.train.microbatch(range(8)).inputs
    task.loss(task.model, inputs)["loss"].sum().backward()
    inside = [p.grad for n, p in task.model.named_parameters() if "lora" in n]
    assert inside and all(g is None or g.abs().max() == 0 for g in inside)
    taught = awake(task_of(tmp_path / "taught", head=HEAD, lm_weight=0.2))
    with torch.no_grad():
        taught.model.head.layers[0].weight[:, :64] = 0.0
    taught.loss(taught.model, inputs)["loss"].sum().backward()
    lora = [
        p.grad for n, p in taught.model.named_parameters() if "lora" in n and p.grad is not None
    ]
    assert lora and max(g.abs().max() for g in lora) > 1e-4


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("given", [True, False], ids=["given", "not given"])
def test_the_loss_adds_the_labels_share_of_each_steps_mean_surprise(
    tmp_path: Path, tuning: dict[str, Any], given: bool
) -> None:
    head = {**HEAD, "surprise": given}
    task = awake(task_of(tmp_path, tuning=tuning, head=head, lm_weight=0.3))
    assert task.train is not None
    inputs = task.train.microbatch(range(6)).inputs
    steps, parts = StepTokens.of(inputs), backbone(task.model.language)
    found: list[tuple[Tensor, Tensor]] = []
    for plain in (False, True):
        task.model.zero_grad()
        if plain:
            alone, _ = task.observe(task.model, inputs)
            hidden = hidden_states(task.model.language, *read_of(inputs)[:3])
            table = F.linear(hidden[steps.at - 1], parts.head.weight.detach())
            table[:, 384] = -math.inf
            nats = F.cross_entropy(table, inputs["input_ids"][0, steps.at], reduction="none")
            terms = [nats[steps.step == step].mean() for step in steps.of_score]
            rows = alone["loss"] + 0.3 * torch.zeros(6).index_add(
                0, inputs["row_of_target"], torch.stack(terms) * inputs["targets"]
            )
        else:
            rows = task.loss(task.model, inputs)["loss"]
        (rows.sum() / 7).backward()
        grads = [p.grad.flatten() for p in task.model.parameters() if p.grad is not None]
        found.append((rows.detach(), torch.cat(grads)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
    assert (found[0][0] - task.observe(task.model, inputs)[0]["loss"]).max() > 0.01


def test_a_held_out_loss_is_of_the_scores_alone(tmp_path: Path) -> None:
    train(config_of(tmp_path, {"head": HEAD, "lm_weight": 5.0, "loss": "mse"}))
    found = evaluation_of(tmp_path)["metrics"]
    assert found["loss"] == pytest.approx(found["mse"], rel=1e-4)


# ------------------------------------------------------------------ where it travels


@pytest.mark.parametrize(
    ("tuning", "precision"),
    [(FULL, "fp32"), (LORA, "bf16"), (QLORA, "fp32"), (QLORA, "bf16")],
    ids=str,
)
def test_every_mode_trains_with_it_resumes_bit_for_bit_and_exports(
    tmp_path: Path, tuning: dict[str, Any], precision: str
) -> None:
    if tuning is QLORA:
        pytest.importorskip("bitsandbytes")

    def of(name: str) -> Any:
        changes = {"tuning": tuning, "head": HEAD, "lm_weight": 0.1}
        return config_of(tmp_path / name, changes, hardware={"precision": precision})

    train(of("a"))
    with pytest.raises(Cut):
        train(of("b"), show=CutAt(3))
    train(of("b"))
    assert_same_state(final_state(tmp_path / "a/runs/run"), final_state(tmp_path / "b/runs/run"))
    trained = load_run(tmp_path / "a/runs/run")
    awake(trained.task, 1.0 if precision == "fp32" else 0.3)  # type: ignore[arg-type]
    for format in ["full"] if tuning is FULL else ["adapter", "merged"]:
        found = trained.export(tmp_path / format, format)
        if tuning is not QLORA:
            assert found["largest_score_difference"] < (1e-4 if precision == "fp32" else 2e-2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[RegressionTask, Path]:
    folder = tmp_path_factory.mktemp("exported")
    task = awake(task_of(folder, head=HEAD))
    (folder / "out").mkdir()
    RECIPE.export(task, task.config, folder / "out", "merged")
    return task, folder / "out"


def test_an_export_scores_chains_as_the_run_does(exported: tuple[RegressionTask, Path]) -> None:
    task, folder = exported
    scorer, text = load_scorer(folder)
    chains = [chain_of(record(number, length=5)) for number in range(50, 56)]
    found, expected = (
        np.array(scores_of(s, text, chains)) for s in (scorer, task.model)
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert expected.std() > 0.02


@pytest.mark.parametrize("value", [False, None])
def test_a_head_without_its_surprise_does_not_load(
    exported: tuple[RegressionTask, Path], tmp_path: Path, value: bool | None
) -> None:
    _, folder = exported
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    means = json.loads((tmp_path / "head.json").read_text())
    if value is None:  # as an export was written before there was such a thing
        del means["head"]["surprise"]
    else:
        means["head"]["surprise"] = value
    (tmp_path / "head.json").write_text(json.dumps(means))
    with pytest.raises(CheckpointError, match=r"head\.safetensors.*does not fit"):
        load_scorer(tmp_path)


def test_an_older_export_that_says_nothing_of_it_loads(tmp_path: Path) -> None:
    task = awake(task_of(tmp_path))
    assert HeadShape().surprise is False and task.model.surprise is False
    (tmp_path / "out").mkdir()
    RECIPE.export(task, task.config, tmp_path / "out", "merged")
    means = json.loads((tmp_path / "out/head.json").read_text())
    del means["head"]["surprise"]
    (tmp_path / "out/head.json").write_text(json.dumps(means))
    assert load_scorer(tmp_path / "out")[0].surprise is False


def test_a_run_goes_on_only_with_the_same_head_and_weight(tmp_path: Path) -> None:
    train(config_of(tmp_path, {"head": HEAD, "lm_weight": 0.1}))
    for changes, key in (
        ({"head": {"hidden": [16]}, "lm_weight": 0.1}, "task.head.surprise"),
        ({"head": HEAD}, "task.lm_weight"),
    ):
        with pytest.raises(ConfigError, match=key):
            train(config_of(tmp_path, changes))
