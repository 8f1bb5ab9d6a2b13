"""Training with a bucket: what is lost with the machine comes back, and the bits are the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from headway.api import train, train_run
from headway.bucket import leased, newest_here, problems_in
from headway.errors import CheckpointError, ConfigError, RunLocked
from headway.opening import opened
from headway.records import StopReason
from headway.show import Quiet
from headway.upload import Remote, acquire, remote_checkpoints
from headway.upload.faults import Refused, Temporary
from headway.upload.layout import Segment
from headway.upload.lease import LeaseLost
from headway.upload.run_files import short
from toy import Cut, CutAt, assert_same_state, final_state, toy_config


def with_bucket(root: Path, bucket: Path, **sections: Any):
    upload = {"to": str(bucket), **sections.pop("upload", {})}
    return toy_config(root, upload=upload, evaluate={"every_steps": 2}, **sections)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Any]:
    """The final state of a run that nothing interrupted and nobody uploaded."""
    root = tmp_path_factory.mktemp("whole")
    train(toy_config(root, evaluate={"every_steps": 2}))
    return final_state(root / "run")


class Said(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, what: str) -> None:
        self.lines.append(what)


@pytest.mark.fault(42, 57)
@pytest.mark.parametrize("step", range(1, 7))
def test_killed_and_the_machine_lost_another_one_ends_with_the_same_bits(tmp_path, whole, step):
    bucket = tmp_path / "bucket"
    with pytest.raises(Cut):
        train(with_bucket(tmp_path / "one", bucket), show=CutAt(step))
    shutil.rmtree(tmp_path / "one")
    said = Said()
    assert train(with_bucket(tmp_path / "two", bucket), show=said) is StopReason.FINISHED
    assert_same_state(final_state(tmp_path / "two" / "run"), whole)
    events = [json.loads(x) for x in (tmp_path / "two/run/journal.jsonl").read_text().splitlines()]
    attempts = [event["attempt"] for event in events]
    assert attempts == sorted(attempts)
    if any("restored" in line for line in said.lines):
        assert len({*attempts}) == 2, "the journal came back too"


def test_the_bucket_has_everything_at_the_end_and_only_what_it_keeps(tmp_path):
    config = with_bucket(tmp_path, tmp_path / "bucket", upload={"keep_last": 2})
    said = Said()
    assert train(config, show=said) is StopReason.FINISHED
    copies = remote_checkpoints(Remote(str(tmp_path / "bucket/run")))
    assert all(not copy.problems for copy in copies)
    assert 6 in [copy.step for copy in copies] and len(copies) <= 3
    for line in ("step 6 is in the bucket",):
        assert any(line in each for each in said.lines)
    journal = (tmp_path / "run/journal.jsonl").read_bytes()
    pieces = sorted((tmp_path / "bucket/run/run/journal.jsonl").iterdir())
    assert b"".join(piece.read_bytes() for piece in pieces) == journal, "the stop line too"


def test_all_that_lies_in_the_bucket_is_listed_once_when_a_run_is_opened(tmp_path, monkeypatch):
    """Under the lease, so that what was seen stays true; a run of days has thousands of objects."""
    bucket, listed = tmp_path / "bucket", []
    train(with_bucket(tmp_path, bucket))
    real = Remote.list

    def counted(self, prefix=""):
        listed.append(prefix)
        return real(self, prefix)

    monkeypatch.setattr(Remote, "list", counted)
    shutil.rmtree(tmp_path / "run")
    with opened(with_bucket(tmp_path, bucket)) as run:
        assert run.state.step == 6
        assert listed.count("") == 1


@pytest.mark.fault(40)
def test_a_second_machine_is_refused_while_the_first_trains(tmp_path):
    bucket = tmp_path / "bucket"
    with acquire(Remote(str(bucket / "run")), seconds=0.5):
        with pytest.raises(RunLocked, match="is being written by"):
            train(with_bucket(tmp_path / "two", bucket, upload={"lease_seconds": 5}))


def test_another_config_under_the_same_name_is_refused_with_the_difference(tmp_path):
    bucket = tmp_path / "bucket"
    train(with_bucket(tmp_path / "one", bucket))
    with pytest.raises(ConfigError, match="learning_rate"):
        train(with_bucket(tmp_path / "two", bucket, train={"learning_rate": 0.5}))


def test_a_fresh_run_is_what_comes_back_afterwards(tmp_path):
    bucket = tmp_path / "bucket"
    train(with_bucket(tmp_path / "one", bucket))
    changed = {"learning_rate": 0.01}
    train(with_bucket(tmp_path / "one", bucket, train=changed), fresh=True)
    shutil.rmtree(tmp_path / "one")
    said = Said()
    train(with_bucket(tmp_path / "two", bucket, train=changed), show=said)
    assert any("restored step-00000006" in line for line in said.lines)
    place = newest_here(tmp_path / "two/run")
    assert place == (2, 6)


@pytest.mark.fault(55)
@pytest.mark.parametrize("required", [False, True])
def test_a_bucket_that_refuses_stops_the_run_only_when_it_is_required(
    tmp_path, monkeypatch, required, whole
):
    real = Remote.put

    def refuse(self, key, *args, **more):
        if key.startswith("checkpoints/"):
            raise Refused("writing: the store said 403", "Renew the credentials")
        return real(self, key, *args, **more)

    monkeypatch.setattr(Remote, "put", refuse)
    said = Said()
    config = with_bucket(tmp_path, tmp_path / "bucket", upload={"required": required})
    if required:
        with pytest.raises(Refused, match="403"):
            train(config, show=said)
        place = newest_here(tmp_path / "run")
        assert place, "it stopped after a save"
    else:
        assert train(config, show=said) is StopReason.FINISHED
        assert_same_state(final_state(tmp_path / "run"), whole)
        assert any("NOT IN THE BUCKET" in line for line in said.lines)
    assert any("403" in line for line in said.lines)
    monkeypatch.setattr(Remote, "put", real)
    assert train(config) is StopReason.FINISHED
    copies = remote_checkpoints(Remote(str(tmp_path / "bucket/run")))
    assert copies[-1].step == 6


def kept_here(root: Path, monkeypatch, pinned: bool) -> list[bool]:
    """Train with keep_last 1 and a bucket that takes nothing before the end of training.

    Whether the first save, whose copy is under way, still is here at each step.
    """
    real, closed, found = Remote.put, {"now": True}, []

    def hang(self, key, *args, **more):
        if key.startswith("checkpoints/") and closed["now"]:
            raise Temporary("503")
        return real(self, key, *args, **more)

    class Looks(Quiet):
        def step(self, report, plan, cost_usd) -> None:
            found.append((root / "run/checkpoints/step-00000001/manifest.json").exists())
            closed["now"] = report.step < plan.num_steps

    monkeypatch.setattr(Remote, "put", hang)
    if not pinned:
        monkeypatch.setattr("headway.uploading.Uploading.pending", lambda self: frozenset())
    config = with_bucket(root, root / "bucket", checkpoint={"keep_last": 1, "keep_best": 1})
    assert train(config, show=Looks()) is StopReason.FINISHED
    return found


@pytest.mark.fault(48, 53)
def test_what_waits_for_the_bucket_is_not_pruned_here(tmp_path, monkeypatch):
    found = kept_here(tmp_path, monkeypatch, pinned=True)
    assert all(found[3:]) and len(found) == 6
    assert 6 in [c.step for c in remote_checkpoints(Remote(str(tmp_path / "bucket/run")))]


@pytest.mark.fault(53)
def test_without_the_pin_it_would_be_pruned_while_it_is_sent(tmp_path, monkeypatch):
    """Negative control."""
    assert not all(kept_here(tmp_path, monkeypatch, pinned=False)[3:])


@pytest.mark.fault(40)
def test_a_machine_that_lost_its_lease_stops_after_a_save(tmp_path):
    """Another took over while this one was paused."""
    bucket = tmp_path / "bucket"

    class Pause(Quiet):
        taken: Any = None

        def step(self, report, plan, cost_usd) -> None:
            if report.step == 2:
                remote = Remote(str(bucket / "run"))
                key = remote.url + "/lease.json"
                holder = json.loads(Path(key).read_text())
                Path(key).write_text(json.dumps({**holder, "released": True}))
                self.taken = acquire(remote, seconds=60)

    show = Pause()
    with pytest.raises(LeaseLost, match="is written by"):
        train(with_bucket(tmp_path, bucket, train={"horizon": {"steps": 200}}), show=show)
    place = newest_here(tmp_path / "run")
    assert place and not problems_in(tmp_path / f"run/checkpoints/step-{place[1]:08d}")


# ------------------------------------------------------------------ what must not be mixed


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("known_by", ["config", "manifest"])
def test_another_run_in_the_bucket_is_refused_before_anything_here_is_touched(tmp_path, known_by):
    bucket = tmp_path / "bucket"
    train(with_bucket(tmp_path / "one", bucket))
    if known_by == "manifest":
        shutil.rmtree(bucket / "run/run/config.yaml")
    other = {"learning_rate": 0.5, "horizon": {"steps": 2}}
    train(toy_config(tmp_path / "two", train=other, evaluate={"every_steps": 2}))
    before = snapshot(tmp_path / "two")
    said = "learning_rate" if known_by == "config" else "fingerprint"
    with pytest.raises(ConfigError, match=rf"{said}[\s\S]*upload\.to"):
        train(with_bucket(tmp_path / "two", bucket, train=other))
    assert snapshot(tmp_path / "two") == before
    with pytest.raises(ConfigError, match="another config"):
        train(with_bucket(tmp_path / "three", bucket, train=other))
    assert not (tmp_path / "three").exists()


def test_a_checkpoint_that_another_config_made_is_refused_wherever_it_came_from(tmp_path):
    train(toy_config(tmp_path / "one", train={"learning_rate": 0.5}))
    train(toy_config(tmp_path / "two", train={"horizon": {"steps": 2}}))
    shutil.rmtree(tmp_path / "two/run/checkpoints")
    shutil.copytree(tmp_path / "one/run/checkpoints", tmp_path / "two/run/checkpoints")
    with pytest.raises(CheckpointError, match="another config"):
        train(toy_config(tmp_path / "two", train={"horizon": {"steps": 2}}))


def test_a_bucket_whose_copies_are_gone_does_not_start_over_by_itself(tmp_path):
    bucket = tmp_path / "bucket"
    said = Said()
    train(with_bucket(tmp_path / "one", bucket), show=said)
    assert any("bucket/run holds no checkpoint: the run starts at 0" in line for line in said.lines)
    for manifest in bucket.rglob("manifest.json"):
        manifest.unlink()
    with pytest.raises(CheckpointError, match=r"bucket/run holds no checkpoint.*step 6.*--fresh"):
        train(with_bucket(tmp_path / "two", bucket))
    assert train(with_bucket(tmp_path / "two", bucket), fresh=True) is StopReason.FINISHED


def test_a_machine_lost_before_its_first_copy_arrived_starts_over_and_says_so(tmp_path):
    """The newest save overtakes the others: the journal has saves of which none arrived."""
    bucket = tmp_path / "bucket"
    train(with_bucket(tmp_path / "one", bucket, upload={"keep_last": 9}))
    journal = (tmp_path / "one/run/journal.jsonl").read_bytes().splitlines(keepends=True)
    nothing_sent = [line for line in journal if json.loads(line)["event"] != "upload"]
    assert sum(json.loads(line)["event"] == "save" for line in nothing_sent) >= 2
    shutil.rmtree(bucket)
    data = b"".join(nothing_sent)
    piece = Segment(file="journal.jsonl", attempt=1, start=0, end=len(data), digest=short(data))
    Remote(str(bucket / "run")).put(piece.key, data)
    said = Said()
    train(with_bucket(tmp_path / "two", bucket), show=said)
    assert any("holds no checkpoint: the run starts at 0" in line for line in said.lines)


def test_a_fresh_run_killed_at_its_first_line_does_not_bring_the_old_one_back(
    tmp_path, monkeypatch
):
    bucket = tmp_path / "bucket"
    train(with_bucket(tmp_path, bucket))
    real, answers = Remote.put, iter(["503"])

    def busy_once(self, key, *args, **more):
        if key.startswith("fresh/") and next(answers, None):
            raise Temporary("503")
        return real(self, key, *args, **more)

    def dead(*args, **more):
        raise Cut

    monkeypatch.setattr(Remote, "put", busy_once)
    with monkeypatch.context() as killed:
        killed.setattr("headway.opening.summary", dead)  # the journal has its plan, no more
        with pytest.raises(Cut):
            train(with_bucket(tmp_path, bucket), fresh=True)
    said = Said()
    train(with_bucket(tmp_path, bucket), show=said)
    assert not any("restored" in line for line in said.lines)
    first = json.loads((tmp_path / "run/journal.jsonl").read_text().splitlines()[0])
    assert first["attempt"] > 1


def test_a_run_that_went_back_and_was_killed_stays_back(tmp_path):
    bucket = tmp_path / "bucket"
    train(with_bucket(tmp_path, bucket, upload={"keep_last": 9}))
    with pytest.raises(Cut):
        train_run(with_bucket(tmp_path, bucket), from_step=2, show=CutAt(3))
    stand = [c.step for c in remote_checkpoints(Remote(str(bucket / "run"))) if c.stands]
    assert max(stand) == 2
    said = Said()
    assert train(with_bucket(tmp_path, bucket), show=said) is StopReason.FINISHED
    assert not any("restored step-00000006" in line for line in said.lines)


@pytest.mark.parametrize("to", ["runs", "runs/run", "runs/run/copies", "file://runs"])
def test_a_bucket_in_the_run_itself_is_refused_with_both_places(tmp_path, monkeypatch, to):
    monkeypatch.chdir(tmp_path)
    to = to.replace("file://", f"file://{tmp_path}/")
    with pytest.raises(ConfigError, match=r"upload\.to: .*runs/run.* and the run itself in .*run"):
        train(toy_config(Path("runs"), upload={"to": to}))
    assert not list(tmp_path.iterdir())


def test_the_attempt_is_above_every_one_in_the_bucket_even_when_the_lease_is_gone(tmp_path):
    bucket = tmp_path / "bucket"
    for _ in range(2):
        train(with_bucket(tmp_path / "one", bucket))
    (bucket / "run/lease.json").unlink()
    section = with_bucket(tmp_path, bucket).upload
    with leased(Remote(str(bucket / "run")), section, 1, lambda line: None) as lease:
        assert lease.token == 3
