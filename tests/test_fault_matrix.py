"""Every fault of the matrix is planted by a test that names it, or said why not; never both."""

from __future__ import annotations

import ast

import pytest

from fault_matrix import (
    CANNOT_BE,
    FAULTS,
    GROUPS,
    NOT_BUILT,
    PAGE,
    REMARKS,
    TESTS,
    named_in,
    page,
    planted,
    unplanted,
)

NUMBERS = set(range(1, 84))


def test_every_fault_is_planted_or_explained_and_never_both() -> None:
    tests, reasons = planted(), unplanted()
    assert set(tests) | set(reasons) == NUMBERS
    assert not set(tests) & set(reasons), "planted now: take it out of tests/fault_matrix.py"
    explained = [number for room in (*NOT_BUILT.values(), CANNOT_BE) for number in room]
    assert len(explained) == len(reasons), "explained twice"
    assert all(reasons.values())


def test_every_number_has_one_name_one_group_and_remarks_only_where_there_is_a_test() -> None:
    assert set(FAULTS) == NUMBERS
    assert sorted(number for numbers in GROUPS.values() for number in numbers) == sorted(NUMBERS)
    assert len(set(FAULTS.values())) == len(NUMBERS)
    assert set(REMARKS) <= set(planted())


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/fault_matrix.py"


def test_a_test_file_that_is_named_in_a_reason_exists() -> None:
    for reason in unplanted().values():
        for word in reason.split("`")[1::2]:
            if word.startswith("test_"):
                assert (TESTS / word).is_file(), word


def test_no_marker_hides_from_the_collector() -> None:
    """Every marker is written as ``pytest.mark.fault(…)`` and found in a file that is searched."""
    for file in TESTS.rglob("*.py"):
        tree = ast.parse(file.read_text())
        used = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "fault"]
        marks = [n for n in used if ast.unparse(n).endswith("mark.fault")]
        if marks and file.name.startswith("test_"):
            assert all(ast.unparse(mark) == "pytest.mark.fault" for mark in marks), file
        else:
            assert not marks, file


@pytest.mark.parametrize(
    "source",
    [
        "@pytest.mark.fault('7')\ndef test_x(): ...",
        "@pytest.mark.fault(*ALL)\ndef test_x(): ...",
        "@pytest.mark.fault(7)\ndef helps(): ...",
        "pytestmark = pytest.mark.fault(7)",
        "CASES = [pytest.param(1, marks=pytest.mark.fault(7))]",
    ],
)
def test_a_marker_that_could_not_be_collected_is_refused(source: str) -> None:
    """Negative control."""
    with pytest.raises(ValueError, match=r"names no number|elsewhere"):
        list(named_in(source))


def test_a_marker_among_other_decorators_and_in_a_class_is_found() -> None:
    source = (
        "@pytest.mark.parametrize('a', [pytest.param(1, marks=pytest.mark.fault(8))])\n"
        "@pytest.mark.fault(1, 2)\ndef test_x(a): ...\n"
        "class Some:\n    @pytest.mark.fault(3)\n    def test_y(self): ...\n"
    )
    assert set(named_in(source)) == {(8, "test_x"), (1, "test_x"), (2, "test_x"), (3, "test_y")}
