"""Kill -9 of the uploader, and of the whole server, against a real object store.

What is listed is read by a client of its own, file by file; nothing of the code under test judges.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from headway.bucket import newest_here, restore_run
from headway.upload.ledger import read_ledger
from services.places import Place

CRASH = Path(__file__).parents[1] / "crash"
sys.path.append(str(CRASH))  # child.py, upload_child.py

from child import payload  # noqa: E402

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]

KILLS = int(os.environ.get("HEADWAY_KILLS", "5"))
"""Of each sort. Each costs some seconds, so ``make services`` is content with few; the figures in
docs/results/reliability.md are of 25."""
STEPS_EACH = 4
BEST_STEP = 1


@dataclass
class Outcome:
    """What was found over all kills."""

    kills: int = 0
    attempts: int = 0
    acknowledged: set[int] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.corrupt or self.unclean)


@pytest.fixture
def place(place_of: Callable[[str], Place]) -> Place:
    return place_of("swift")


def objects(place: Place) -> dict[str, bytes]:
    """Everything under the prefix, asked of the server itself with a plain client."""
    import botocore.session

    assert place.server
    session = botocore.session.get_session()
    client = session.create_client("s3", region_name="us-east-1", endpoint_url=place.server.url)
    bucket, _, prefix = place.url.removeprefix("s3://").partition("/")
    found: dict[str, bytes] = {}
    page: dict[str, Any] = client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/checkpoints/")
    assert not page["IsTruncated"]
    for each in page.get("Contents", ()):
        body = client.get_object(Bucket=bucket, Key=each["Key"])["Body"]
        found[each["Key"].removeprefix(f"{prefix}/")] = body.read()
    return found


def judge(place: Place, where: str, outcome: Outcome) -> None:
    """Every broken promise of what is in the bucket now."""
    there = objects(place)
    steps = set()
    for key in [key for key in there if key.endswith("/manifest.json")]:
        tree = json.loads(there[key])
        steps.add(tree["step"])
        for name, entry in tree["files"].items():
            data = there.get(key.removesuffix("manifest.json") + name)
            good = data is not None and data == payload(tree["step"])[name]
            if not good or hashlib.sha256(data or b"").hexdigest() != entry["sha256"]:
                outcome.corrupt.append(f"{where}: {key}: {name}")
    newest = max(outcome.acknowledged, default=0)
    if newest > max(steps, default=0):
        outcome.lost.append(f"{where}: {newest} was acknowledged, there are {sorted(steps)}")
    if BEST_STEP in outcome.acknowledged and BEST_STEP not in steps:
        outcome.lost.append(f"{where}: the best is gone, there are {sorted(steps)}")


def started(run: Path, url: str, last: int) -> subprocess.Popen[str]:
    path = os.pathsep.join(map(str, (CRASH.parents[1] / "src", CRASH, CRASH.parent)))
    return subprocess.Popen(
        [sys.executable, CRASH / "upload_child.py", run, url, "real", str(last)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def lines(child: subprocess.Popen[str], outcome: Outcome, said: list[str]) -> Iterator[None]:
    """Once for each request that the child announces; what it acknowledges is taken down."""
    assert child.stdout
    for line in child.stdout:
        said.append(line)
        if line.startswith("ack "):
            outcome.acknowledged.add(int(line.split()[1]))
        if line.startswith("ask "):
            yield


def ended(child: subprocess.Popen[str], where: str, outcome: Outcome, said: list[str]) -> int:
    for _ in lines(child, outcome, said):
        pass
    assert child.stdout
    child.stdout.close()
    code = child.wait()
    text = "".join(said)
    if code not in (0, -signal.SIGKILL) or "Traceback" in text:
        outcome.unclean.append(f"{where}: {code}: {text[-600:]}")
    outcome.attempts += 1
    return code


def acknowledged_on_disk(run: Path) -> set[int]:
    return {e["step"] for e in read_ledger(run / "upload.jsonl") if e["event"] == "sent"}


def restored_is_identical(place: Place, to: Path, outcome: Outcome) -> None:
    """The newest that was acknowledged comes back on an empty disk, bit by bit."""
    came = restore_run(place.remote(), to, lambda what: None)
    assert came and came.step >= max(outcome.acknowledged)
    where = newest_here(to)
    assert where and where[1] == came.step
    for name, data in payload(came.step).items():
        assert (to / "checkpoints" / came.name / name).read_bytes() == data


def told(capsys: pytest.CaptureFixture[str], what: str, outcome: Outcome) -> None:
    """A line for docs/results/reliability.md."""
    with capsys.disabled():
        cells = (outcome.attempts, outcome.kills, len(outcome.lost), len(outcome.corrupt))
        sys.stdout.write(f"\n| kill -9 | {what} | {' | '.join(map(str, cells))} | – |\n")


def test_the_uploader_killed_at_any_request_loses_nothing_that_was_acknowledged(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome, chance, run = Outcome(), random.Random(6), tmp_path / "run"
    while outcome.kills < KILLS:
        last = STEPS_EACH + max([0, *outcome.acknowledged])
        kill_at, said = chance.randint(1, 60), list[str]()
        child = started(run, place.url, last)
        for number, _ in enumerate(lines(child, outcome, said), 1):
            if number == kill_at:
                child.send_signal(signal.SIGKILL)
                break
        where = f"attempt {outcome.attempts}, request {kill_at}"
        outcome.kills += ended(child, where, outcome, said) == -signal.SIGKILL
        outcome.acknowledged |= acknowledged_on_disk(run)
        judge(place, where, outcome)
        if outcome.attempts % 3 == 2 and run.exists():
            run.rename(tmp_path / f"lost-{outcome.attempts}")
    told(capsys, "the uploader, against Swift", outcome)
    assert outcome.clean, outcome
    restored_is_identical(place, tmp_path / "another machine", outcome)


def test_the_server_killed_at_any_request_loses_nothing_that_was_acknowledged(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of Swift's processes at once, and started again, while the uploader goes on."""
    outcome, chance, run = Outcome(), random.Random(7), tmp_path / "run"
    assert place.server
    while outcome.kills < KILLS:
        last = 3 * STEPS_EACH + max([0, *outcome.acknowledged])
        kill_at, said = chance.randint(1, 30), list[str]()
        child = started(run, place.url, last)
        for number, _ in enumerate(lines(child, outcome, said), 1):
            if number == kill_at and outcome.kills < KILLS:
                place.server.kill()
                outcome.kills += 1
                place.server.start()
                kill_at = number + chance.randint(1, 40)
        where = f"attempt {outcome.attempts}"
        assert ended(child, where, outcome, said) == 0, said[-20:]
        outcome.acknowledged |= acknowledged_on_disk(run)
        judge(place, where, outcome)
    told(capsys, f"all of Swift, {len(outcome.acknowledged)} copies acknowledged", outcome)
    assert outcome.clean, outcome
    restored_is_identical(place, tmp_path / "another machine", outcome)
