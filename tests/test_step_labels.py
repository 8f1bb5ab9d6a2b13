"""Generated step labels: what is called wrong is wrong, what is called right is right, and neither
can be told from the other without reading."""

import dataclasses
import json
import re
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from headway.cli.data import app
from headway.data.formats import Record
from headway.data.step_labels import KINDS, Counts, Options, chains_of, generate
from headway.data.step_labels.arithmetic import (
    Number,
    evaluate,
    false_equation,
    holds,
    join,
    rewrite,
    split_numbers,
)
from headway.data.step_labels.near import near
from headway.data.step_labels.solutions import Refused, parse
from headway.errors import ConfigError, DataError
from worked_solutions import made, twins

PROBLEM = (
    "Ann has 48 pens. Bob has 17 more. Together they fill boxes of 5. How many are left if 4 go?"
)
ANSWER = (
    "Bob has 48 + 17 = <<48+17=65>>65 pens.\n"
    "Together they have 48 + 65 = <<48+65=113>>113 pens.\n"
    "After giving 4 away, 113 - 4 = <<113-4=109>>109 pens are left.\n"
    "#### 109"
)


def solution(note, shown=None, text=None):
    """A two-step solution whose first step has this note."""
    expression, _, result = note.partition("=")
    shown = result if shown is None else shown
    first = f"It is {text or expression} = <<{note}>>{shown}."
    return f"{first}\nThen 3 + 4 = <<3+4=7>>7.\n#### 7"


# arithmetic


@given(st.decimals(0, 10**7, places=2), st.booleans())
def test_numbers_are_found_and_text_is_put_together_again(value, commas):
    written = f"{value:,}" if commas else f"{value}"
    text = f"He paid ${written}, the 2nd time; 3x more."
    pieces, numbers = split_numbers(text)
    assert numbers[0] == Number(written, Fraction(value)) and len(numbers) == 2
    assert join(pieces, [number.raw for number in numbers]) == text


@given(st.recursive(st.integers(0, 99).map(str), lambda e: st.tuples(e, st.sampled_from("+-*"), e)))
def test_an_expression_has_the_value_it_has(tree):
    def text(node):
        return node if isinstance(node, str) else f"({text(node[0])}{node[1]}{text(node[2])})"

    def value(node):
        if isinstance(node, str):
            return int(node)
        a, b = value(node[0]), value(node[2])
        return {"+": a + b, "-": a - b, "*": a * b}[node[1]]

    if len(text(tree)) <= 300:
        assert evaluate(text(tree)) == value(tree)


@pytest.mark.parametrize(
    "hostile",
    ["__import__('os')", "9**9**9", "2(3)", "[1]", "1/0", "x", "", "1 if 1 else 2", "True"],
)
def test_only_plain_arithmetic_is_evaluated(hostile):
    with pytest.raises(ValueError):
        evaluate(hostile)


@pytest.mark.parametrize(
    ("expression", "shown", "right"),
    [
        ("10/3", "3.33", True), ("20/3", "6.66", True), ("20/3", "6.67", True), ("5/2", "3", True),
        ("10/3", "3.34", False), ("20/3", "6.65", False), ("10/3", "4", False),
        ("1.1+2.11", "3.3", False), ("1.1+2.11", "3.2", True), ("2.5/100", "0.03", True),
        ("2.5/100", "0.02", True), ("3.5/100", "0.04", True), ("3.5/100", "0.05", False),
        ("1-4/3", "0.33", False),
        ("48/2", "25", False), ("20%*50", "10", True),
        ("1,200/2", "600", True), (".5*3", "1.50", True),
    ],
)  # fmt: skip
def test_a_result_holds_to_the_precision_shown(expression, shown, right):
    assert holds(evaluate(expression), Number.read(shown)) is right


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("So 2*8 = 24 legs", True), ("So 3 x (8/16) = 1.5", False), ("$20 - $10 = $10", False),
        ("makes 53*5 = $270.00", True),
        ("5 + 6 = 11 = 12 - 1", False),
        ("5 + 6 = 11 - 3 = 8", True), ("gave 4 away, 113 - 4 = 108", True),
        ("2x - 5 = 11", False), ("25% of it, or 1/4 = 25%", False), ("no sum at all", False),
    ],
)  # fmt: skip
def test_a_written_equation_is_checked(text, wrong):
    assert (false_equation(text) is not None) is wrong


@given(st.integers(1, 10**7), st.integers(1, 10**7), st.integers(0, 2), st.booleans())
def test_a_rewritten_number_keeps_its_form(old, new, decimals, money):
    unit = Fraction(1, 10**decimals)
    raw = f"{float(old * unit):.{decimals}f}"
    number = rewrite(new * unit, Number.read(raw), money=money, commas=False)
    if number is not None:
        assert number.decimals == decimals and number.value == new * unit
        assert Number.read(number.raw).value == number.value
        padded = decimals and number.raw.endswith("0")
        assert not padded or raw.endswith("0") or (money and decimals == 2)


@given(st.integers(1, 10**6), st.integers(0, 2**32))
def test_a_near_number_is_near_and_never_the_true_one(value, seed):
    found = list(near(Number.read(str(value)), (Fraction(3),), Random(seed)))
    assert found and value not in found and len(set(found)) == len(found)
    assert all(0 < wrong <= 10 * value + 3 for wrong in found)


# solutions


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (solution("5+6=12"), "does not hold"),
        (solution("5+6=11", shown="12"), "not hold|not what the text says"),
        (solution("5+6=11", text="5 + 8"), "written equation"),
        (solution("5*77=385"), "neither given nor derived"),
        (solution("5//6=1"), "no equation"),
        (solution("5+6=11").replace("Then", "Let x = 3. Then"), "algebra"),
        (solution("5+6=11").replace("#### 7", "#### 9"), "no step's result"),
        ("5 + 6 = 11", "no steps with a final"),
    ],
)
def test_what_cannot_be_vouched_for_is_refused(answer, reason):
    with pytest.raises(Refused, match=reason):
        parse("There are 5, 6, 3 and 4 of them.", answer)


def test_what_holds_is_parsed_and_its_notes_are_gone():
    steps = parse(PROBLEM, ANSWER).steps
    assert [step.text for step in steps] == [
        "Bob has 48 + 17 = 65 pens.",
        "Together they have 48 + 65 = 113 pens.",
        "After giving 4 away, 113 - 4 = 109 pens are left.",
        "The answer is 109.",
    ]
    assert len(parse(PROBLEM, ANSWER, final_step=False).steps) == 3


# labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_each_kind_is_what_its_name_says(kind, seed):
    pair = chains_of(PROBLEM, ANSWER, Options(kinds=(kind,), seed=seed))
    (right, none), (wrong, example) = pair
    assert none is None and set(right.targets) == {1.0} and example["kind"] == kind
    at = wrong.kinds.index(kind)
    assert wrong.targets.index(0.0) == at
    sums_wrong = [false_equation(step) is not None for step in wrong.steps]
    assert sums_wrong == [kind == "arithmetic" and i == at for i in range(len(sums_wrong))]
    if kind == "dropped":
        assert set(wrong.steps) < set(right.steps) and len(wrong.steps) == 3
    elif kind == "swapped":
        assert sorted(wrong.steps) == sorted(right.steps) and wrong.steps != right.steps
        assert wrong.targets.count(0.0) == 1
    else:
        same = [a == b for a, b in zip(wrong.steps, right.steps, strict=True)]
        assert same == [target == 1.0 for target in wrong.targets]


def test_a_step_that_does_not_use_the_wrong_value_stays_right():
    answer = (
        "Ann has 48 + 17 = <<48+17=65>>65 pens.\nBob has 17 * 4 = <<17*4=68>>68 pens.\n"
        "In all 65 + 68 = <<65+68=133>>133 pens.\n#### 133"
    )
    found = set()
    for seed in range(20):
        _, (wrong, _) = chains_of(PROBLEM, answer, Options(kinds=("arithmetic",), seed=seed))
        found.add(wrong.kinds)
    assert ("arithmetic", None, "follows", "follows") in found
    assert (None, "arithmetic", "follows", "follows") in found


def test_on_real_solutions_right_steps_are_the_authors_and_wrong_ones_are_not():
    chains, counts = made(600)
    assert counts.used > 450 and counts.chains == 2 * counts.used
    seen = []
    for right, wrong in twins(chains):
        assert set(right.targets) == {1.0}
        assert all(false_equation(step) is None for step in right.steps)
        first = next(kind for kind in wrong.kinds if kind)
        for at, (step, target) in enumerate(zip(wrong.steps, wrong.targets, strict=True)):
            if target == 1.0:
                assert step in right.steps
            elif first in ("dropped", "swapped"):
                assert step in right.steps
                assert set(numbers_in(step)) - stated(wrong.problem, wrong.steps[:at])
            else:
                assert step != right.steps[at]
            if wrong.kinds[at] != "arithmetic":
                assert false_equation(step) is None
            else:
                without_units = re.sub(r"[A-Za-z']+(/[a-z]+)?|/[a-z]+", "", step)
                seen.append(false_equation(step) or false_equation(without_units))
    assert len(seen) > 50 and sum(found is not None for found in seen) > 0.9 * len(seen)


def numbers_in(text):
    return {number.value for number in split_numbers(text)[1]}


def stated(problem, steps):
    return numbers_in(" ; ".join([problem, *steps]))


# determinism


def test_a_chain_depends_on_seed_and_content_alone():
    records = [
        Record({"question": PROBLEM.replace("Ann", name), "answer": ANSWER}, name)
        for name in ("Ann", "Eve", "Mia", "Zoe")
    ]
    there = [c.line() for c in generate(records, Options(), Counts())]
    back = [c.line() for c in generate(records[::-1], Options(), Counts())]
    pooled = [c.line() for c in generate(records, Options(), Counts(), workers=2)]
    assert sorted(there) == sorted(back) and there == pooled
    assert there != [c.line() for c in generate(records, Options(seed=1), Counts())]


def test_one_chain_per_solution_is_wrong_as_often_as_asked():
    chains, counts = made(400, per_solution=1, wrong_share=0.3)
    assert counts.chains == counts.used
    assert 0.2 < 1 - counts.untouched / len(chains) < 0.4


def test_stopping_at_the_error_gives_right_chains_of_the_same_lengths():
    chains, _ = made(600, after_error="stop")
    pairs = twins(chains)
    assert all(wrong.targets[-1] == 0.0 and 0.0 not in wrong.targets[:-1] for _, wrong in pairs)
    lengths = np.array([[len(right.steps), len(wrong.steps)] for right, wrong in pairs])
    assert abs(lengths[:, 0].mean() - lengths[:, 1].mean()) < 0.2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kinds": ("typo",)}, "no such kind"),
        ({"per_solution": 4}, "same untouched chain"),
        ({"wrong_share": 1.5}, "between 0 and 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Options(**options).checked()


@pytest.mark.parametrize("per_solution", [*range(3, 40), 101, 1000])
def test_the_wrong_share_that_is_advised_is_accepted(per_solution):
    with pytest.raises(ConfigError) as error:
        Options(per_solution=per_solution, wrong_share=0.5).checked()
    advised = float(re.search(r"raise the wrong share to ([\d.]+) or more", str(error.value))[1])
    Options(per_solution=per_solution, wrong_share=advised).checked()
    assert advised - (1 - 1 / per_solution) < 0.01 + 1e-9


# the verb


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "solutions.jsonl"
    rows = [(PROBLEM, ANSWER), (PROBLEM, ANSWER), (PROBLEM, ANSWER.replace("=65>>65", "=66>>66"))]
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    return path


def run(*arguments):
    done = CliRunner().invoke(app, ["step-labels", *map(str, arguments)], catch_exceptions=False)
    return done.output


def test_the_verb_writes_chains_and_says_what_it_refused(file, tmp_path):
    to = tmp_path / "out" / "labels.jsonl"
    said = run("--from", file, "--to", to)
    assert "3 read, 1 used, 2 refused" in said and "does not hold" in said and f"{file}:3" in said
    rows = [json.loads(line) for line in to.read_text().splitlines()]
    assert len(rows) == 2 and rows[0]["group"] == rows[1]["group"]
    assert set(rows[0]) == {"problem", "steps", "targets", "kinds", "group", "source"}
    assert "<<" not in to.read_text() and "####" not in to.read_text()
    tree = json.loads(run("--from", file, "--to", to, "--json"))
    assert tree["new"] is False and tree["wrong_share"] == 0.5


def test_when_every_solution_is_refused_the_reasons_are_an_error_and_nothing_is_written(tmp_path):
    file, to = tmp_path / "solutions.jsonl", tmp_path / "labels.jsonl"
    bad = [ANSWER.replace("=65>>65", "=66>>66"), "no step", ANSWER.replace("=65>>65", "=67>>67")]
    rows = [{"question": PROBLEM, "answer": answer} for answer in bad]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as error:
        run("--from", file, "--to", to)
    said = str(error.value)
    assert "none of the 3 solutions" in said and "2 × a written equation" in said
    assert f"{file}:1: 48 + 17 = 66" in said and error.value.exit_code == 65
    assert list(tmp_path.iterdir()) == [file]


def test_another_file_is_not_overwritten_unless_asked(file, tmp_path):
    to = tmp_path / "labels.jsonl"
    to.write_text("mine\n")
    with pytest.raises(DataError, match="--force"):
        run("--from", file, "--to", to)
    assert to.read_text() == "mine\n" and not list(tmp_path.glob(".partial-*"))
    run("--from", file, "--to", to, "--force")
    assert to.read_text() != "mine\n"


def test_a_record_without_an_answer_is_an_error_that_names_the_place():
    with pytest.raises(DataError, match=r"x\.jsonl:3: no field 'answer'"):
        list(generate([Record({"question": "?"}, "x.jsonl:3")], Options(), Counts()))


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().seed = 1
