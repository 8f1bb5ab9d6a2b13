"""The 83 faults a run must survive: which tests plant each, or why none here does.

A test names its faults with ``@pytest.mark.fault(46, 48)``. They are collected from the syntax
trees of the test files, so this runs in a blink: ``python tests/fault_matrix.py`` writes
``docs/results/fault-matrix.md``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "results" / "fault-matrix.md"

GROUPS = {
    "Saving": range(1, 21),
    "Loading": range(21, 34),
    "Processes, signals, time, identity": range(34, 48),
    "The bucket": range(48, 62),
    "Data and numbers": range(62, 69),
    "Several ranks, trackers, renting, money": range(69, 84),
}
FAULTS = {
    1: "kill -9 before a save wrote its first byte",
    2: "kill -9 within a file of a save",
    3: "kill -9 when all files are there but no manifest",
    4: "kill -9 when the manifest is there but not the final name",
    5: "kill -9 between the rename and the sync of the parent",
    6: "kill -9 after the save was acknowledged, before anything points to it",
    7: "the power fails, at any moment",
    8: "kill -9 while old checkpoints are deleted",
    9: "only the process that writes is killed",
    10: "the disk fills up within a file",
    11: "the disk is full for the manifest, the journal, a tracker's files",
    12: "the quota is used up though the disk shows room",
    13: "fsync reports an I/O error",
    14: "a rename reports failure but happened (NFS)",
    15: "the disk cannot be written, from the start or suddenly",
    16: "what is being written and its final place are on two file systems",
    17: "a save is asked for between the microbatches of a step",
    18: "the save before is not finished",
    19: "NaN or infinity in the state to save",
    20: "no memory for the snapshot or its writer",
    21: "one flipped bit, anywhere in a checkpoint",
    22: "a truncated file",
    23: "a page of zeros",
    24: "a manifest that is missing, cut, forged or from a newer version",
    25: "a file too many or too few",
    26: "every checkpoint is bad",
    27: "a pointer to the newest that is missing, empty or wrong",
    28: "a pickle that runs code when it is loaded",
    29: "a Git LFS pointer in place of a file",
    30: "a safetensors header that lies",
    31: "tensors of other names, shapes or types",
    32: "the optimizer's part is missing",
    33: "a link, or a path that leads outside",
    34: "SIGTERM at each point of a run",
    35: "SIGTERM while the process sits in one long C call",
    36: "SIGTERM, and SIGKILL before it could be answered",
    37: "Ctrl-C once, twice; the terminal hangs up",
    38: "process 1 is a shell that passes no signal on",
    39: "a second process on this machine takes the same run",
    40: "a second machine takes the same run",
    41: "the clock jumps, file times are scrambled",
    42: "another host, other paths",
    43: "another config",
    44: "another version of a library",
    45: "another number of ranks",
    46: "the same step kills every attempt",
    47: "attempts follow one another while the provider is down",
    48: "the bucket is busy, or away for minutes",
    49: "a connection breaks or stands still within a transfer",
    50: "an answer is lost though the object was stored",
    51: "other bytes are stored than were sent",
    52: "killed while uploading",
    53: "pruning meets a checkpoint that is being sent",
    54: "killed while old copies are deleted",
    55: "wrong credentials, at the start or suddenly",
    56: "a bucket that is missing, elsewhere, or allows only some verbs",
    57: "a new machine with an empty disk",
    58: "a download that is cut or altered",
    59: "the bucket is behind the disk, or ahead of it",
    60: "a store that lacks conditional writes or bulk deletes",
    61: "a bucket slower than the saves",
    62: "data that cannot be read, record by record",
    63: "the data changed since the checkpoint",
    64: "the tokenizer or its template changed",
    65: "one step's loss or gradient is not finite",
    66: "the loss jumps up",
    67: "out of GPU memory, at the first step or later",
    68: "a data worker is killed or hangs",
    69: "one rank is killed",
    70: "one rank hangs",
    71: "the trainer is stopped or holds the interpreter for ever",
    72: "ranks disagree on whether to save or stop",
    73: "one rank's part of a checkpoint fails",
    74: "the tracker is away or slow",
    75: "TensorBoard's folder is full or not writable",
    76: "the budget is used up, in a step or in a save",
    77: "the price changes, a meter is lost, two disagree",
    78: "renting times out though the machine exists",
    79: "no capacity, refused requests, answers that are no JSON",
    80: "a rented machine in every state, known or not",
    81: "arguments with quotes, newlines, dollars",
    82: "secrets in anything that is written or said",
    83: "the account is almost empty",
}

NOT_BUILT = {
    "launch": {
        47: "delays and the breaker of `--supervise` are tested (46); no provider is asked yet",
        77: "one meter, summed over attempts, is tested; a provider's own meter is not read yet",
        78: "nothing is rented yet",
        79: "nothing is rented yet",
        80: "nothing is rented yet",
        81: "nothing is rented yet",
        83: "nothing is rented yet",
    },
    "fit": {
        20: "a save that finds no memory is void and said, and the next one is tried "
        "(`test_run_faults.py`); no smaller way is",
    },
    "world": {
        70: "under torchrun only the time limit of a collective ends it; without, see 71",
    },
}
"""Room -> fault -> what there is. When the room is built, its tests name the fault instead."""

CANNOT_BE = {
    9: "a thread of the trainer writes, not a process of its own: they are killed together (1 to "
    "6). A write that fails beside training is said, and the next save begins anew "
    "(`test_saver.py`)",
    35: "by decision no thread acts on a signal (`signals.py`): Python hears it when the call "
    "ends, and a SIGKILL before that costs what was done since the last save (36)",
    68: "there are no data workers: a thread makes the next batch from its step alone, its error "
    "is the step's (`test_steps.py`), and its hang is the trainer's (71)",
    73: "ranks hold the same state and rank 0 alone writes it: no rank has a part of its own",
}
"""Faults that this design has no place for, and what stands there instead."""

REMARKS = {
    7: "a model of the disk, as harsh as POSIX allows: no disk was cut off",
    10: "training goes on without a save for as long as the disk is full; there is no limit to "
    "the number of failures, and 77 comes at the end",
    11: "256 MiB are kept free instead of a ballast file; a journal that meets the end of the "
    "disk ends the attempt with 77 and cannot note it. Tracker files: see 75",
    15: "a journal that cannot be written ends the attempt",
    18: "a second save waits for the first; the interval stays as configured",
    25: "a file too many is refused too, because a loader may pick it up",
    34: "no grace is configured: the save begins at once, and 36 is what is left without time",
    38: "a shell is warned of before training; what it swallows is then 36",
    43: "there is no override: another run, or a warm start from this one's weights",
    46: "going back a checkpoint is offered, skipping a batch is not",
    62: "a record that cannot be read is always an error; one that teaches nothing is dropped, "
    "counted and limited",
    63: "there is no flag to accept it: --fresh, or a warm start",
    66: "a roll back is made where monitor.on_spike asks for it",
    67: "injected, and by a limit of the process, for no GPU was lent; of several ranks the "
    "attempt ends with what to set",
    69: "torchrun's exit code is its own, not 70",
    76: "nothing ends a machine whose trainer is gone",
}
"""What is not as one might expect where the fault is tested."""


def unplanted() -> dict[int, str]:
    """Fault -> why no test here plants it."""
    found = {
        n: f"not built ({room}): {why}" for room, ns in NOT_BUILT.items() for n, why in ns.items()
    }
    return found | {n: f"cannot happen: {why}" for n, why in CANNOT_BE.items()}


def planted() -> dict[int, list[str]]:
    """Fault -> the tests that name it, as ``tests/test_run.py::test_x``."""
    found: dict[int, list[str]] = {}
    for file in sorted(TESTS.rglob("test_*.py")):
        for number, test in named_in(file.read_text()):
            found.setdefault(number, []).append(f"{file.relative_to(TESTS.parent)}::{test}")
    return found


def named_in(source: str) -> Iterator[tuple[int, str]]:
    """(fault, test) of every ``fault`` marker in a test file.

    Raises ValueError for a marker elsewhere than on a test, or with anything but numbers.
    """
    tree = ast.parse(source)
    seen = 0
    for test in ast.walk(tree):
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
            for decorator in test.decorator_list:
                for call in filter(is_marker, ast.walk(decorator)):
                    seen += 1
                    for number in call.args:
                        if not (isinstance(number, ast.Constant) and type(number.value) is int):
                            raise ValueError(f"{test.name}: {ast.unparse(call)} names no number")
                        yield number.value, test.name
    if seen != sum(map(is_marker, ast.walk(tree))):
        raise ValueError("a fault marker stands elsewhere than on a test")


def is_marker(node: ast.AST) -> bool:
    """Whether this is ``pytest.mark.fault(…)``."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault"


def page() -> str:
    """The table for people."""
    tests, reasons = planted(), unplanted()
    missing = sum(map(len, NOT_BUILT.values()))
    lines = [
        "# The fault matrix",
        "",
        "<!-- written by tests/fault_matrix.py: `make docs` -->",
        "",
        "What can happen to a run, by number, and the tests that make it happen. A test counts if",
        "it plants the fault, or its exact equal, and asks for the outcome; it names the number by",
        "`@pytest.mark.fault`. `tests/test_fault_matrix.py` keeps this page and the markers",
        "together. What was measured under these faults is in [reliability.md](reliability.md).",
        "",
        f"**{len(tests)} of {len(FAULTS)} are planted, {missing} belong to parts that are not",
        f"built, {len(CANNOT_BE)} cannot happen here.** Tests in `crash` and `services` run with",
        "`make crash` and `make services`, the others with `make test`.",
    ]
    for title, numbers in GROUPS.items():
        lines += ["", f"## {title}", "", "| | fault | tests |", "|---|---|---|"]
        for number in numbers:
            told = by_file(tests[number]) if number in tests else reasons[number]
            remark = f". *But: {REMARKS[number]}*" if number in REMARKS else ""
            lines.append(f"| {number} | {FAULTS[number]} | {told}{remark} |")
    return "\n".join(lines) + "\n"


def by_file(tests: list[str]) -> str:
    """The tests of one fault, those of a file together."""
    found: dict[str, list[str]] = {}
    for test in tests:
        file, _, name = test.partition("::")
        found.setdefault(file.removeprefix("tests/"), []).append(name)
    return "; ".join(f"`{file}`: {', '.join(names)}" for file, names in found.items())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
