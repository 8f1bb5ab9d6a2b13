"""A fault at every system call of a save: kill -9, or an error of the disk, by strace's injection.

The oracle is the same for every store: what is loaded afterwards is exactly what was saved at its
step, it is not older than the newest that was acknowledged, and the best is still there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from child import BEST_STEP, payload

from headway.checkpoint import Checkpoint, CheckpointStore, verify
from headway.errors import HeadwayError
from headway.journal import scan

HERE = Path(__file__).parent
CALLS = (
    "write pwrite64 ftruncate fsync rename renameat renameat2 mkdir mkdirat unlink unlinkat rmdir"
)
COMMITTED = (1, 2, 3)
DAMAGED = 4
LAST = 6


@dataclass
class Outcome:
    """What a sweep found."""

    runs: int = 0
    fired: int = 0
    """Runs in which the fault really happened."""
    acknowledged: int = 0
    """Saves acknowledged before the fault, over all runs."""
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)
    """Tracebacks, unreadable journals, a next attempt that could not finish."""
    by_call: Counter[str] = field(default_factory=Counter)


def prepare(run: Path, kind: str) -> Path:
    """A run as a killed attempt left it: three good checkpoints, a bad one, a partial, trash."""
    store = CheckpointStore(run, attempt="1", reserve_bytes=0)
    for step in (*COMMITTED, DAMAGED) if kind == "real" else COMMITTED:
        save(store, step)
    if kind == "real":
        flipped = run / "checkpoints" / f"step-{DAMAGED:08d}" / "state.json"
        flipped.write_bytes(b"\x00" + flipped.read_bytes()[1:])
        store.open(DAMAGED, 0).write("state.json", [b"half"])
        shutil.copytree(run / "checkpoints" / "step-00000001", run / "checkpoints" / ".trash-x")
        (run / "journal.jsonl").write_text('{"event":"attempt","at":"2026","attempt":1}\n{"ev')
    return run


def save(store: CheckpointStore, step: int) -> Checkpoint:
    """A good checkpoint with the payload of its step."""
    partial = store.open(step, 0)
    for name, data in payload(step).items():
        partial.write(name, [data])
    return partial.commit({"loss": float(step)})


def sweep(base: Path, kind: str, fault: str, calls: str = CALLS) -> Outcome:
    """One run of the child for every call of every kind in ``calls``, the fault at that call."""
    template, outcome = prepare(base / "template", kind), Outcome()
    _, log = strace(template, base / "count", kind, None)
    counts = Counter(re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE))
    for call in calls.split():
        for number in range(1, counts[call] + 1):
            where = f"{fault} at {call} {number}"
            run = base / f"{call}-{number}"
            done, log = strace(template, run, kind, f"{call}:{fault}:when={number}")
            outcome.runs += 1
            outcome.by_call[call] += 1
            outcome.fired += "INJECTED" in log.read_text() or done.returncode < 0
            judge(run, kind, done, where, outcome)
            shutil.rmtree(run)
    return outcome


def strace(
    template: Path, run: Path, kind: str, inject: str | None
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Copy the run and let a child continue it, with or without a fault."""
    shutil.copytree(template, run)
    log = run / "strace.log"
    calls = ",".join(f"?{call}" for call in CALLS.split())
    command = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={calls}", "-e", "signal=none"]
    if inject:
        command += ["-e", f"inject={inject}"]
    command += [sys.executable, "-S", str(HERE / "child.py"), str(run), kind, str(LAST)]
    environment = {
        "PYTHONPATH": str(HERE.parents[1] / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done, log


def judge(
    run: Path, kind: str, done: subprocess.CompletedProcess[str], where: str, outcome: Outcome
) -> None:
    """Compare what is loaded now with what was acknowledged; note every broken promise."""
    acknowledged = [int(step) for step in re.findall(r"^ack (\d+)$", done.stdout, re.MULTILINE)]
    outcome.acknowledged += len(acknowledged)
    if done.stderr.strip():
        outcome.unclean.append(f"{where}: {done.stderr.strip().splitlines()[-1]}")
    said = re.search(rf"^(ack|stopped|failed) ({LAST}|\w+Error|\w+Full)", done.stdout, re.MULTILINE)
    if done.returncode >= 0 and not said:
        outcome.unclean.append(f"{where}: ended without a word about step {LAST}")
    load = load_real if kind == "real" else load_naive
    try:
        step, content = load(run, where, outcome)
    except (HeadwayError, OSError) as error:
        outcome.lost.append(f"{where}: {error}")
        return
    if step < max([*COMMITTED, *acknowledged]):
        outcome.lost.append(f"{where}: {max(acknowledged)} was acknowledged, {step} is the newest")
    if content != payload(step):
        outcome.corrupt.append(f"{where}: step {step} loads, but not as it was saved")


def load_real(run: Path, where: str, outcome: Outcome) -> tuple[int, dict[str, bytes]]:
    """The newest good checkpoint, as the next attempt finds it; that attempt saves one more."""
    store = CheckpointStore(run, attempt="3", reserve_bytes=0)
    for checkpoint in store.checkpoints():
        if checkpoint.step != DAMAGED and verify(checkpoint):
            outcome.corrupt.append(f"{where}: step {checkpoint.step} is listed but damaged")
    store.sweep()
    found, _ = store.newest_good()
    assert found is not None
    if BEST_STEP not in [checkpoint.step for checkpoint in store.checkpoints()]:
        outcome.lost.append(f"{where}: the best is gone")
    if scan(run / "journal.jsonl").damaged_lines:
        outcome.unclean.append(f"{where}: the journal has a damaged line")
    content = read_all(found.path)
    if save(store, found.step + 1).step != found.step + 1:
        outcome.unclean.append(f"{where}: the next save does not work")
    if any(path.name.startswith(".") for path in store.directory.iterdir()):
        outcome.unclean.append(f"{where}: something is left behind")
    return found.step, content


def load_naive(run: Path, where: str, outcome: Outcome) -> tuple[int, dict[str, bytes]]:
    """The newest name wins, its content is trusted."""
    names = sorted(run.glob("checkpoints/step-*"))
    if not names:
        raise HeadwayError("nothing is left")
    return int(names[-1].name[5:]), read_all(names[-1])


def read_all(directory: Path) -> dict[str, bytes]:
    """The files of a checkpoint that its payload names."""
    return {
        name: (directory / name).read_bytes() if (directory / name).exists() else b""
        for name in payload(0)
    }
