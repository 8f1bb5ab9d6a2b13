"""What is checked of a step without a model, and how it reaches the head."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chain_runs import FULL, HELD, RECORDS, awake, chain_of, task_of, write
from headway.data.chains.checks import CHECKS, checked
from headway.data.step_labels import Options, chains_of
from headway.models import score
from headway.recipes.chain_rows import ChainRows
from headway.recipes.regression import RECIPE, RegressionTask

pytestmark = pytest.mark.usefixtures("own_cache")

HEAD = {"hidden": [16], "checks": True}
PROBLEM = "Ada has 3 boxes of 4 pens and half a dozen nails."
SUM, LOST, DOUBTFUL = (
    CHECKS.index(name)
    for name in (
        "an equation does not hold",
        "uses a number from nowhere",
        "uses a number of a doubtful step",
    )
)


def said(*steps: str, problem: str = PROBLEM) -> list[set[str]]:
    """The names of what is found of each step; of counts, that there are any."""
    return [
        {name for name, value in zip(CHECKS, row, strict=True) if value}
        for row in checked(problem, steps)
    ]


def test_there_are_as_many_as_the_head_is_told() -> None:
    assert len(CHECKS) == score.CHECKS
    assert checked("", []).shape == (0, score.CHECKS)


def test_a_sound_solution_raises_no_doubt() -> None:
    steps = ("There are 3 * 4 = 12 pens.", "With the nails 12 + 12 / 2 = 18.", "The answer is 18.")
    first, second, third = said(*steps)
    assert first == {"has an equation"}
    assert second == {
        "has an equation",
        "uses the result of an equation before",
        "results that no step has used yet, to 3",
    }
    assert "says the last result again, without an equation" in third
    assert checked(PROBLEM, steps)[:, [SUM, LOST, DOUBTFUL]].sum() == 0


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        (["There are 3 * 4 = 14 pens."], "an equation does not hold"),
        (["There are 3 * 17 = 51 pens."], "uses a number from nowhere"),
        (["It is 3*4=14.", "So 14+3=17."], "uses a number of a doubtful step"),
        (["It is 3*4=14.", "So 4+3=7."], "an equation before did not hold"),
        (["It is 3*17=51.", "So 4+3=7."], "a step before used a number from nowhere"),
        (["It is 3*17=51.", "So 51+3=54.", "54+4=58"], "uses a number of a doubtful step"),
    ],
)
def test_what_is_wrong_is_found_in_the_last_step(steps: list[str], found: str) -> None:
    assert found in said(*steps)[-1]
    doubts = {"an equation does not hold", "uses a number from nowhere"}
    assert all(not doubts & names for names in said(*steps)[1:]), "each is found where it is"


@pytest.mark.parametrize("step", ["5% of it is 0.05 * 3 = 0.15", "half of 4 is 4 / 2 = 2", "1/2"])
def test_percentages_and_words_are_no_numbers_from_nowhere(step: str) -> None:
    assert "uses a number from nowhere" not in said(step, problem="It is 3, 4 and 5.")[0]


numbers = st.integers(0, 30).map(str)
pieces = st.lists(
    st.one_of(numbers, st.sampled_from(["+", "=", " half ", "*", " so "])), max_size=8
)


@settings(max_examples=60, deadline=None)
@given(st.lists(pieces.map(" ".join), min_size=1, max_size=6), st.data())
def test_a_step_is_judged_by_what_stands_before_it(steps: list[str], data: st.DataObject) -> None:
    whole = checked("3 and 4", steps)
    end = data.draw(st.integers(1, len(steps)))
    np.testing.assert_array_equal(checked("3 and 4", steps[:end]), whole[:end])
    assert ((whole >= 0) & (whole <= 1)).all()


def story(draw: Random) -> tuple[str, str]:
    boxes, each, gone = draw.randint(3, 9), draw.randint(4, 12), draw.randint(13, 19)
    held, total = boxes * each, boxes * each + gone
    question = f"Ben has {boxes} boxes of {each} eggs and finds {gone}. How many are there?"
    steps = (
        f"The boxes hold {boxes} * {each} = <<{boxes}*{each}={held}>>{held} eggs.",
        f"There are {held} + {gone} = <<{held}+{gone}={total}>>{total}.",
        f"#### {total}",
    )
    return question, "\n".join(steps)


def test_made_errors_of_sums_are_found_and_their_authors_steps_are_not_blamed() -> None:
    draw, found = Random(3), {"right": [0, 0], "arithmetic": [0, 0]}
    for _ in range(60):
        for chain, _ in chains_of(*story(draw), Options()):
            rows = checked(chain.problem, chain.steps)
            for row, kind, target in zip(rows, chain.kinds, chain.targets, strict=True):
                name = "right" if target else kind
                if name in found:
                    found[name][0] += bool(row[SUM])
                    found[name][1] += 1
    assert found["arithmetic"][1] > 5 and found["arithmetic"][0] == found["arithmetic"][1]
    assert found["right"][1] > 100 and found["right"][0] == 0


# ------------------------------------------------------------------ on their way to the head


SUMS = [
    {
        "problem": PROBLEM,
        "steps": ["3 * 4 = 12", "12 + 9 = 22", "22 + 3 = 25"],
        "targets": [1, 0, 0],
    },
    {"problem": PROBLEM, "steps": ["3 + 4 = 7", "7 + 3 = 10", "10"], "targets": [1, 1, 1]},
]


def sums(folder: Path, **task: object) -> RegressionTask:
    data = {"train": write(folder / "sums.jsonl", SUMS), "eval": write(folder / "h.jsonl", HELD)}
    return awake(task_of(folder, tuning=FULL, data=data, **task))


def test_rows_carry_the_checks_of_their_own_steps_and_pieces_those_of_the_whole(
    tmp_path: Path,
) -> None:
    task = sums(tmp_path, head=HEAD)
    chains = [chain_of(found) for found in SUMS]
    for most in (None, 1, 2):
        rows = ChainRows(chains, type(task.text)(**{**fields_of(task), "max_steps": most}))
        inputs = rows.microbatch(range(len(rows))).inputs
        for (row, step), own in zip(inputs["units"].tolist(), inputs["checks"], strict=True):
            chain = chains[rows.chain_of[row]]
            np.testing.assert_array_equal(own, checked(chain.problem, chain.steps)[step])


def fields_of(task: RegressionTask) -> dict[str, object]:
    return {name: getattr(task.text, name) for name in type(task.text).__dataclass_fields__}


def test_a_head_that_is_given_them_answers_by_them_and_another_cannot(tmp_path: Path) -> None:
    given, plain = sums(tmp_path / "given", head=HEAD), sums(tmp_path / "plain")
    scores = []
    for task in (given, plain):
        assert task.train is not None
        inputs = dict(task.train.microbatch([0]).inputs)
        assert inputs["checks"].shape == (3, score.CHECKS if task is given else 0)
        before = task.observe(task.model, inputs)[1]
        inputs["checks"] = 1 - inputs["checks"]
        after = task.observe(task.model, inputs)[1]
        scores.append(float((before - after).abs().max()))
    assert scores[0] > 1e-3 and scores[1] == 0
    assert given.train is not None and plain.train is not None
    assert given.train.sha256 != plain.train.sha256


def test_without_numbers_nothing_is_found(tmp_path: Path) -> None:
    task = sums(tmp_path, head=HEAD)
    chain = chain_of({**RECORDS[1], "problem": "Why?", "steps": ["so", "then"], "targets": [1, 0]})
    inputs = ChainRows([chain], task.text).microbatch([0]).inputs
    assert torch.count_nonzero(inputs["checks"]) == 0


def test_what_speaks_against_a_step_is_said_beside_its_number(tmp_path: Path) -> None:
    request = {"problem": PROBLEM, "steps": ["3 * 4 = 14", "14 + 3 = 17", "17 + 29 = 46"]}
    found = RECIPE.predict(sums(tmp_path / "given", head=HEAD), request)
    doubtful = "uses a number of a doubtful step"
    assert found["against"] == [
        ["an equation does not hold"], [doubtful], ["uses a number from nowhere", doubtful]
    ]  # fmt: skip
    assert "14 + 3 = 17  (uses a number of a doubtful step)" in found["text"]
    plain = RECIPE.predict(sums(tmp_path / "plain"), request)
    assert "against" not in plain and "(" not in plain["text"]


@pytest.mark.parametrize(
    "step",
    [
        "20% of 50 = 10 leave.", "half of 12 = 6", "So 2/3 of 12 = 8", "10 times 5 = 50",
        "10 · 5 = 50", r"$10 \times 5 = 50$", r"$10 \cdot 5 = 50$", "$3^2 = 9$", "7 mod 2 = 1",
        "$x^2 = 5 - 1 = 4$", "√16 = 4", "$5 = 500 cents", "60 = 2^2 * 3 * 5", "3 - 11 = -8",
        "3 * 4 = **12**", r"3 * 4 = \boxed{12}", r"3 * 4 = \$12", "12 / 5 ≈ 2.4", "6. 3 * 4 = 12",
        "Step 5: 3 * 4 = 12", "10 * 0.8 = 8, 20% off",
    ],
)  # fmt: skip
def test_what_people_write_and_is_right_is_not_called_false(step: str) -> None:
    problem = "3, 4, 5, 7, 10, 11, 12, 16, 20%, 50 and 60; 5 cents."
    assert "an equation does not hold" not in said(step, problem=problem)[0]


@pytest.mark.parametrize("step", ["3 - 11 = -8", "3 * 4 = **12**", "12 / 5 ≈ 2.4", "6. 3 * 4 = 12"])
def test_a_result_is_no_number_from_nowhere_however_it_is_dressed(step: str) -> None:
    problem = "3, 4, 5, 11 and 12."
    assert "uses a number from nowhere" not in said(step, problem=problem)[0]


def test_a_given_number_is_not_doubtful_because_a_wrong_sum_used_it() -> None:
    first, second = said("5 * 3 = 16", "3 * 4 = 12", problem="Ada has 3 boxes of 4 and 5 bags.")
    assert "an equation does not hold" in first
    assert "uses a number of a doubtful step" not in second


@pytest.mark.parametrize(
    "step", ["It is " + "9" * 5000, "9," * 4000, "-" * 8000 + "= 4", "1 / 0 = 3", "9" * 200 + "= 9"]
)
def test_numbers_of_any_length_and_runs_of_signs_are_read(step: str) -> None:
    assert checked(step, [step, step]).shape == (2, len(CHECKS))
