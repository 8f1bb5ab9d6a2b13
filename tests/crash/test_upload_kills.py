"""Kill -9 of a process that restores, saves and uploads, at every request and between them.

A kill follows the announcement of a request by as long as the signal takes: before it, within it or
after it. Every third time the machine is lost too: the next attempt finds an empty disk.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from attempts import ENVIRONMENT, HERE
from child import payload
from upload_child import BEST_STEP

from headway.bucket import newest_here, restore_run
from headway.journal import scan
from headway.upload import Remote
from headway.upload.ledger import read_ledger

pytestmark = [pytest.mark.crash, pytest.mark.timeout(600)]

KILLS = 80
STEPS_EACH = 4
"""How many steps further each attempt would go."""


@dataclass
class Outcome:
    """What was found over all kills."""

    kills: int = 0
    acknowledged: set[int] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)


def attempt(run: Path, bucket: Path, kind: str, last: int, kill_at: int | None) -> tuple[int, str]:
    """(how it ended, what it said): killed as soon as it announced so many requests."""
    command = [sys.executable, HERE / "upload_child.py", run, bucket, kind, str(last)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True
    )
    assert child.stdout and child.stderr
    said, requests = [], 0
    for line in child.stdout:
        said.append(line)
        requests += line.startswith("ask ")
        if requests == kill_at:
            child.send_signal(signal.SIGKILL)
            break
    said += child.stdout.readlines()
    errors = child.stderr.read()
    child.stdout.close()
    child.stderr.close()
    return child.wait(), "".join(said) + errors


def listed(bucket: Path) -> dict[int, list[str]]:
    """Step -> what is wrong with its copy; by hand, independent of the code under test."""
    found: dict[int, list[str]] = {}
    for manifest in bucket.rglob("manifest.json"):
        tree = json.loads(manifest.read_bytes())
        wrong = []
        for name, entry in tree["files"].items():
            file = manifest.parent / name
            data = file.read_bytes() if file.is_file() else b""
            if hashlib.sha256(data).hexdigest() != entry["sha256"] or data != payload(
                tree["step"]
            ).get(name):
                wrong.append(f"{manifest.parent}/{name}")
        found.setdefault(tree["step"], []).extend(wrong)
    return found


def judge(bucket: Path, where: str, outcome: Outcome) -> None:
    """Every broken promise of what is in the bucket now."""
    there = listed(bucket)
    outcome.corrupt += [f"{where}: {file}" for wrong in there.values() for file in wrong]
    newest = max(outcome.acknowledged, default=0)
    if newest > max(there, default=0):
        outcome.lost.append(f"{where}: {newest} was acknowledged, there are {sorted(there)}")
    if BEST_STEP in outcome.acknowledged and BEST_STEP not in there:
        outcome.lost.append(f"{where}: the best is gone, there are {sorted(there)}")


def kill_often(base: Path, kills: int) -> Outcome:
    """One run, killed over and over; the seed makes a failure repeatable, up to timing."""
    run, bucket = base / "run", base / "bucket"
    outcome, chance = Outcome(), random.Random(6)
    for number in range(kills):
        last = STEPS_EACH + max([0, *outcome.acknowledged, *listed(bucket)])
        kill_at = chance.randint(1, 60)
        ended, said = attempt(run, bucket, "real", last, kill_at)
        outcome.kills += ended == -signal.SIGKILL
        where = f"kill {number} at request {kill_at}"
        outcome.acknowledged |= {int(a.split()[1]) for a in said.splitlines() if a[:4] == "ack "}
        entries = read_ledger(run / "upload.jsonl")
        outcome.acknowledged |= {entry["step"] for entry in entries if entry["event"] == "sent"}
        if ended not in (0, -signal.SIGKILL) or "Traceback" in said:
            outcome.unclean.append(f"{where}: {said[-500:]}")
        judge(bucket, where, outcome)
        if number % 3 == 2:
            shutil.rmtree(run, ignore_errors=True)
    return outcome


@pytest.mark.fault(52, 57)
def test_killed_anywhere_nothing_unverified_is_listed_and_nothing_acknowledged_is_lost(
    tmp_path, table
):
    found = kill_often(tmp_path, KILLS)
    lost, corrupt = len(found.lost), len(found.corrupt)
    table(("kill -9", "upload and restore, every request", KILLS, found.kills, lost, corrupt))
    assert found.lost == found.corrupt == found.unclean == []
    assert found.kills >= 50 and len(found.acknowledged) > 20
    last = 3 + max(found.acknowledged)
    ended, said = attempt(tmp_path / "run", tmp_path / "bucket", "real", last, None)
    assert ended == 0, said
    empty = tmp_path / "another machine"
    came = restore_run(Remote(str(tmp_path / "bucket")), empty, lambda what: None)
    assert came and came.step == last
    place = newest_here(empty)
    assert place and place[1] == last
    journal = scan(empty / "journal.jsonl")
    assert journal.damaged_lines == journal.torn_bytes == 0
    assert journal.events[-1]["step"] == last


@pytest.mark.parametrize(("kind", "whole"), [("real-dies", True), ("naive-dies", False)])
def test_the_oracle_catches_an_uploader_that_sends_the_manifest_first(tmp_path, table, kind, whole):
    """Negative control: both die as soon as a manifest is there."""
    ended, _ = attempt(tmp_path / "run", tmp_path / "bucket", kind, 3, None)
    assert ended == -signal.SIGKILL
    wrong = [file for files in listed(tmp_path / "bucket").values() for file in files]
    what = "manifest last" if whole else "**manifest first**"
    table(("kill -9", f"upload, {what}, when it is there", 1, 1, 0, len(wrong)))
    assert listed(tmp_path / "bucket") and bool(wrong) is not whole
