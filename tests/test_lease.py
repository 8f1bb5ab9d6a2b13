"""The lease: one writer of a run in a bucket, and one that was replaced finds out."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_bucket import Bucket, FakeRemote, Killed, Time, listed, patient, saved
from headway.errors import RemoteError, RunLocked
from headway.upload import Uploader, standing
from headway.upload.layout import LEASE_KEY, copies
from headway.upload.lease import Holder, LeaseLost, acquire, encoded, is_free, read

WALL = 1_800_000_000.0


class Machine:
    """A client with its own clocks."""

    def __init__(self, bucket: Bucket, script=None, wall: float = WALL) -> None:
        self.remote = FakeRemote(bucket, script)
        self.time = Time()
        self.wall = wall
        self.on_wait = lambda: None

    def wait(self, seconds: float) -> None:
        self.time.now += seconds
        self.wall += seconds
        self.on_wait()

    def acquire(self, **more):
        return acquire(
            self.remote, seconds=60, line=patient(), wall=lambda: self.wall, clock=self.time,
            wait=self.wait, **more,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch):
    """Every holder seems to be on another machine, as over a bucket."""
    monkeypatch.setattr("headway.upload.lease.this_machine", lambda: "")


def test_a_second_machine_is_refused_with_who_and_when_while_the_first_renews():
    bucket = Bucket()
    one, two = Machine(bucket), Machine(bucket)
    held = one.acquire()
    two.on_wait = held.renew
    said: list[str] = []
    with pytest.raises(RunLocked, match=rf"written by process {os.getpid()} on .*since 2027-01-15"):
        two.acquire(say=said.append)
    assert "waiting to see" in said[0]
    held.check()


@pytest.mark.fault(40)
def test_a_lease_that_nobody_renews_is_taken_with_the_next_token_and_the_old_holder_finds_out():
    bucket = Bucket()
    one, two = Machine(bucket), Machine(bucket)
    held = one.acquire()
    taken = two.acquire()
    assert (held.token, taken.token) == (1, 2)
    assert 60 < two.time.now - 1000 < 75, "it was watched for as long as it lasts"
    with pytest.raises(LeaseLost, match="token 1"):
        held.check()
    one.time.now += 3600  # a paused machine wakes up
    with pytest.raises(LeaseLost):
        held.renew()
    held.release()  # gives nothing back that is not its own
    taken.check()


def test_taking_without_compare_and_swap_would_be_seen(monkeypatch):
    """Negative control: two who read the same free lease must not both get it."""
    bucket = Bucket()
    one, two = Machine(bucket), Machine(bucket)
    one.acquire().release()
    real = FakeRemote.replace
    race = {"on": True}

    def raced(self, key, source, expected):
        if self is one.remote and race.pop("on", False):
            two.acquire()
        return real(self, key, source, expected)

    monkeypatch.setattr(FakeRemote, "replace", raced)
    two.on_wait = lambda: None
    one.on_wait = lambda: None
    first = one.acquire()  # watches two's, which never renews
    assert first.token == 3, "it lost the race, watched the winner, and came after it"

    def blind(self, key, source, expected):
        self.bucket.store(key, source)
        return self.bucket.facts(key, True)

    monkeypatch.setattr(FakeRemote, "replace", blind)
    before = read(one.remote)[0].token
    racers = [Machine(bucket) for _ in range(2)]
    bodies = [encoded(dataclasses.replace(first.holder, owner=str(n))) for n in range(2)]
    for machine, body in zip(racers, bodies, strict=True):
        machine.remote.replace(LEASE_KEY, body, None)  # both succeed
    assert read(one.remote)[0].token == before


def test_a_released_lease_is_free_at_once():
    bucket = Bucket()
    one, two = Machine(bucket), Machine(bucket)
    one.acquire().release()
    assert two.acquire().token == 2 and two.time.now == 1000


def test_the_token_is_never_below_the_attempt_that_asks():
    bucket = Bucket()
    held = Machine(bucket).acquire(at_least=7)
    held.release()
    assert held.token == 7
    assert Machine(bucket).acquire(at_least=3).token == 8


@pytest.mark.fault(41)
@pytest.mark.parametrize("skew_seconds", [-3600, -90, 90, 3600, 365 * 86400])
def test_no_clock_takes_a_lease_from_a_holder_that_renews_it(skew_seconds):
    bucket = Bucket()
    one, two = Machine(bucket), Machine(bucket, wall=WALL + skew_seconds)
    held = one.acquire()
    two.on_wait = held.renew
    with pytest.raises(RunLocked):
        two.acquire()
    held.check()


def test_a_lease_that_ran_out_a_year_ago_is_watched_once_and_taken():
    bucket = Bucket()
    one, two = Machine(bucket), Machine(bucket, wall=WALL + 365 * 86400)
    one.acquire()
    assert two.acquire().token == 2
    assert two.time.now - 1000 > 60


def test_a_holder_whose_process_is_gone_from_this_machine_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("headway.upload.lease.this_machine", lambda: "boot:1")
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    holder = Holder(
        owner="x", host="h", pid=gone.pid, machine="boot:1", token=1, acquired_at="",
        expires_at=WALL + 60, seconds=60,
    )  # fmt: skip
    assert is_free(holder)
    assert not is_free(dataclasses.replace(holder, pid=os.getpid()))
    assert not is_free(dataclasses.replace(holder, machine="boot:2"))
    assert not is_free(dataclasses.replace(holder, machine=""))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_at_most_one_holder_passes_the_check_whatever_answers_are_lost(data):
    bucket = Bucket()
    faults = st.dictionaries(st.integers(0, 12), st.sampled_from(["fail", "lose"]), max_size=4)
    machines = [Machine(bucket, data.draw(faults)) for _ in range(3)]
    held = []
    for machine in data.draw(st.lists(st.sampled_from(machines), min_size=1, max_size=5)):
        held.append(machine.acquire())
        tokens = [lease.token for lease in held]
        assert tokens == sorted(set(tokens)), "a token is given once"
        passing = 0
        for lease in held:
            try:
                lease.check()
                passing += 1
            except LeaseLost:
                pass
        assert passing == 1


def test_something_else_under_the_leases_name_is_an_error_that_says_so():
    bucket = Bucket()
    bucket.store(LEASE_KEY, b"hello")
    with pytest.raises(RemoteError, match=r"no lease of this headway"):
        Machine(bucket).acquire()


@pytest.mark.fault(40)
def test_a_paused_machine_commits_nothing_and_what_it_still_writes_is_never_newest(tmp_path):
    """Split brain: the first machine is paused past its lease, in the middle of an upload."""
    bucket = Bucket()
    one, two = Machine(bucket), Machine(bucket)
    held = one.acquire()
    old = saved(tmp_path / "one", 900, attempt=held.token)
    new = saved(tmp_path / "two", 500, attempt=2)
    taken: list = []

    def pause_at_the_last_file(verb, key):
        if verb == "put" and key.endswith("state.json") and not taken:
            taken.append(two.acquire())

    one.remote.gate = pause_at_the_last_file
    with Uploader(one.remote, journal=tmp_path / "one.jsonl", attempt=1, lease=held) as first:
        first.submit(old)
        assert not first.drain(until=lambda: False, show=lambda progress: None)
        assert isinstance(first.failure(), LeaseLost)
        first.submit(old)  # not even tried again
        assert not first.drain(until=lambda: False, show=lambda progress: None)
    assert listed(bucket) == {}
    with Uploader(two.remote, journal=tmp_path / "two.jsonl", attempt=2, lease=taken[0]) as second:
        second.submit(new)
        assert second.drain(until=lambda: False, show=lambda progress: None)
    # Had the pause come between its check and its manifest, the manifest would be there:
    one.remote.gate = lambda verb, key: None
    with Uploader(one.remote, journal=tmp_path / "one.jsonl", attempt=1) as first:
        first.submit(old)
        assert first.drain(until=lambda: False, show=lambda progress: None)
    stand = standing(copies(two.remote.list()))
    assert [(c.attempt, c.step) for c in stand] == [(2, 500)]


def test_a_lease_is_renewed_beside_and_given_back_at_the_end():
    bucket = Bucket()
    machine = Machine(bucket)
    renewed = bucket.lock
    with acquire(machine.remote, seconds=0.03) as held:
        first = held.holder.expires_at
        for _ in range(1000):
            with renewed:
                now = read(FakeRemote(bucket))[0]
            if now.expires_at > first:
                break
            held._done.wait(0.01)
        assert now.expires_at > first and now.owner == held.holder.owner
    assert read(FakeRemote(bucket))[0].released


def test_a_killed_holder_leaves_a_lease_that_the_next_may_take():
    bucket = Bucket()
    one = Machine(bucket, {3: "die"})
    held = one.acquire()
    with pytest.raises(Killed):
        held.check()
    assert Machine(bucket).acquire().token == 2
