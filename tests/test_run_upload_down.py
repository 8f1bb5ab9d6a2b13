"""A bucket that is down when a run begins: it goes on from its disk and joins later, or says no."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from headway.api import train
from headway.bucket import newest_here
from headway.errors import ConfigError, RemoteError
from headway.records import StopReason
from headway.show import Quiet
from headway.upload import LeaseLost, Remote, acquire, remote_checkpoints
from headway.upload.faults import Refused, Temporary
from toy import Cut, CutAt, assert_same_state, final_state, toy_config

ASKS = ("put", "head", "read", "list", "delete", "replace", "download")


class Outage:
    """While ``on``, no request is answered; ``asked`` counts those."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: RemoteError | None = None) -> None:
        self.on, self.asked = False, 0
        monkeypatch.setattr("headway.upload.probe.PAUSE_SECONDS", 0.0)
        for name in ASKS:
            monkeypatch.setattr(Remote, name, self.between(getattr(Remote, name), error))

    def between(self, real: Any, error: RemoteError | None) -> Any:
        def ask(remote: Remote, *args: Any, **more: Any) -> Any:
            if self.on:
                self.asked += 1
                raise error or Temporary("no whole answer (ConnectionRefusedError)")
            return real(remote, *args, **more)

        return ask


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(monkeypatch)


class Ends(Quiet):
    """Ends the outage after a step, and keeps what was said."""

    def __init__(self, outage: Outage, step: int = 5) -> None:
        self.outage, self.at, self.lines = outage, step, list[str]()

    def step(self, report: Any, plan: Any, cost_usd: float | None) -> None:
        if report.step == self.at:
            self.outage.on = False

    def say(self, what: str) -> None:
        self.lines.append(what)

    def of(self, words: str) -> list[str]:
        return [line for line in self.lines if words in line]


def config(root: Path, bucket: Path, steps: int = 6, **sections: Any):
    upload = {"to": str(bucket), "patience_minutes": 0.001, **sections.pop("upload", {})}
    horizon = {"train": {"horizon": {"steps": steps}, **sections.pop("train", {})}}
    return toy_config(root, upload=upload, **horizon, **sections)


def begun(root: Path, bucket: Path, steps: int = 6, **sections: Any) -> None:
    """Three steps on this disk and in the bucket, then the process is gone."""
    with pytest.raises(Cut):
        train(config(root, bucket, steps, **sections), show=CutAt(4))
    assert newest_here(root / "run") == (1, 3)


def steps_in(bucket: Path) -> list[int]:
    return [c.step for c in remote_checkpoints(Remote(str(bucket / "run"))) if c.stands]


def objects(bucket: Path) -> set[str]:
    return {str(p) for p in bucket.rglob("checkpoints/**/*") if p.is_file()}


def test_a_run_goes_on_from_its_disk_and_sends_everything_when_the_bucket_is_back(tmp_path, outage):
    train(config(tmp_path / "whole", tmp_path / "other"))
    begun(tmp_path, tmp_path / "bucket")
    outage.on, show = True, Ends(outage)
    assert train(config(tmp_path, tmp_path / "bucket"), show=show) is StopReason.FINISHED
    assert outage.asked > 0 and show.of("Training goes on from step 3 on this disk")
    assert show.of("NOTHING IS IN THE BUCKET") and show.of("answers: what is on this disk")
    assert steps_in(tmp_path / "bucket")[-1] == 6
    assert_same_state(final_state(tmp_path / "run"), final_state(tmp_path / "whole/run"))
    acquire(Remote(str(tmp_path / "bucket/run"))).release()  # it gave the lease back
    shutil.rmtree(tmp_path / "run")
    train(config(tmp_path, tmp_path / "bucket"))
    assert newest_here(tmp_path / "run") == (2, 6), "what it sent comes back as the newest"


def test_a_bucket_that_never_comes_back_costs_the_copies_and_not_the_run(tmp_path, outage):
    begun(tmp_path, tmp_path / "bucket")
    before = objects(tmp_path / "bucket")
    outage.on, show = True, Ends(outage, step=-1)
    assert train(config(tmp_path, tmp_path / "bucket"), show=show) is StopReason.FINISHED
    assert re.search(r"step [\d, ]*6 \(.*ConnectionRefused", show.of("NOT IN THE BUCKET: step")[-1])
    assert objects(tmp_path / "bucket") == before
    outage.on = False
    assert train(config(tmp_path, tmp_path / "bucket")) is StopReason.FINISHED
    assert steps_in(tmp_path / "bucket")[-1] == 6


@pytest.mark.parametrize(
    ("begin", "more", "words"),
    [
        (True, {"upload": {"required": True}}, "upload.required"),
        (False, {}, "has no checkpoint and the bucket may have one"),
    ],
)
def test_without_its_bucket_a_run_does_not_begin_where_that_is_not_safe(
    tmp_path, outage, begin, more, words
):
    if begin:
        begun(tmp_path, tmp_path / "bucket")
    outage.on = True
    with pytest.raises(RemoteError, match=words) as caught:
        train(config(tmp_path, tmp_path / "bucket", **more))
    assert "ConnectionRefused" in str(caught.value) and caught.value.exit_code == 69


def test_starting_over_or_going_back_waits_for_the_bucket(tmp_path, outage):
    begun(tmp_path, tmp_path / "bucket")
    outage.on = True
    with pytest.raises(RemoteError, match="--fresh and --from"):
        train(config(tmp_path, tmp_path / "bucket"), fresh=True)
    assert newest_here(tmp_path / "run") == (1, 3)


def test_a_bucket_that_answers_and_refuses_is_an_error_before_step_1(tmp_path, monkeypatch):
    outage = Outage(monkeypatch, Refused("listing: the store said 403", "Renew them", "403"))
    begun(tmp_path, tmp_path / "bucket")
    outage.on = True
    with pytest.raises(RemoteError, match="403"):
        train(config(tmp_path, tmp_path / "bucket"))


def test_another_machine_went_further_meanwhile_nothing_is_sent_and_the_run_stops(tmp_path, outage):
    bucket = tmp_path / "bucket"
    begun(tmp_path / "one", bucket, steps=40)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    train(config(tmp_path / "one", bucket, steps=40))
    before = objects(bucket)
    outage.on, show = True, Ends(outage)
    with pytest.raises(LeaseLost, match=r"step-00000040 of attempt 2 that this disk did not know"):
        train(config(tmp_path / "two", bucket, steps=40, upload={"lease_seconds": 5}), show=show)
    assert objects(bucket) == before
    place = newest_here(tmp_path / "two/run")
    assert place and place[1] >= 5, "what it did is on its disk"
    assert train(config(tmp_path / "two", bucket, steps=40)) is StopReason.FINISHED
    assert steps_in(bucket)[-1] == 40


def test_another_machine_writes_the_run_now_nothing_is_sent_and_the_run_stops(tmp_path, outage):
    bucket, slow = tmp_path / "bucket", {"task": {"step_seconds": 0.02}}
    begun(tmp_path, bucket, steps=400, **slow)
    with acquire(Remote(str(bucket / "run")), seconds=1) as other:
        before = objects(bucket)
        outage.on = True
        with pytest.raises(LeaseLost, match="is being written by"):
            train(config(tmp_path, bucket, steps=400, **slow), show=Ends(outage))
        other.check()
        assert objects(bucket) == before


def test_a_lease_that_somebody_held_and_gave_back_is_not_joined_below_its_number(tmp_path, outage):
    """A paused machine with that number could still write, and would be newest."""
    bucket = tmp_path / "bucket"
    begun(tmp_path, bucket, steps=60)
    acquire(Remote(str(bucket / "run")), at_least=2).release()
    outage.on = True
    with pytest.raises(LeaseLost, match="had a writer"):
        train(config(tmp_path, bucket, steps=60), show=Ends(outage))
    assert train(config(tmp_path, bucket, steps=60)) is StopReason.FINISHED


def test_another_run_in_the_bucket_is_seen_when_it_answers(tmp_path, outage):
    bucket = tmp_path / "bucket"
    begun(tmp_path / "one", bucket, steps=60)
    train(config(tmp_path / "two", tmp_path / "elsewhere", 60, train={"learning_rate": 0.5}))
    shutil.rmtree(tmp_path / "two/run/checkpoints/step-00000060")
    outage.on = True
    with pytest.raises((LeaseLost, ConfigError), match="learning_rate"):
        train(
            config(tmp_path / "two", bucket, 60, train={"learning_rate": 0.5}),
            show=Ends(outage, step=60),
        )


def test_an_attempt_without_its_bucket_is_numbered_above_every_lease_known_here(tmp_path, outage):
    bucket = tmp_path / "bucket"
    begun(tmp_path, bucket)
    entries = [json.loads(x) for x in (tmp_path / "run/upload.jsonl").read_text().splitlines()]
    assert [e["token"] for e in entries if e["event"] == "leased"] == [1]
    with (tmp_path / "run/upload.jsonl").open("a") as ledger:  # as a push by hand writes it
        line = {"event": "leased", "token": 7, "url": str(bucket / "run")}
        ledger.write(json.dumps(line) + "\n")
    outage.on = True
    train(config(tmp_path, bucket), show=Ends(outage))
    assert newest_here(tmp_path / "run") == (8, 6)
