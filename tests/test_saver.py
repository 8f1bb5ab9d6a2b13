"""Saves beside training: one at a time, failures seen once, nothing lost."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from headway.checkpoint import CheckpointStore, Saver, verify
from headway.errors import CheckpointError, StorageFull
from headway.system import NICE


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path, attempt="1", reserve_bytes=0)


def gated(gate: threading.Event):
    """A file whose writing waits for ``gate``."""

    def chunks():
        yield b"first"
        assert gate.wait(30)
        yield b"second"

    return chunks


def test_a_save_runs_beside_and_is_collected_once(store):
    gate = threading.Event()
    with Saver(store) as saver:
        saver.submit(1, {"a": gated(gate), "b": b"bytes"}, {"loss": 2.0}, 100)
        assert saver.collect() == [] and saver.seconds is None
        gate.set()
        [checkpoint] = saver.collect(wait=True)
        assert saver.collect(wait=True) == []
    assert (checkpoint.path / "a").read_bytes() == b"firstsecond"
    assert verify(checkpoint) == [] and saver.seconds > 0


@pytest.mark.fault(18)
def test_a_second_save_waits_for_the_first(store):
    gate, order = threading.Event(), []
    with Saver(store) as saver:
        saver.submit(1, {"a": gated(gate)}, {}, 1, on_done=lambda c: order.append(c.step))
        second = threading.Thread(
            target=saver.submit, args=(2, {"a": b""}, {}, 1, lambda c: order.append(c.step))
        )
        second.start()
        assert [p.name[:22] for p in store.directory.iterdir()] == [".partial-step-00000001"]
        gate.set()
        second.join()
        assert [c.step for c in saver.collect(wait=True)] == [1, 2] == order


def test_a_failure_in_the_background_is_raised_in_the_foreground_once(store):
    def broken():
        yield b"half"
        raise MemoryError("no room for the snapshot")

    done = []
    saver = Saver(store)
    saver.submit(1, {"a": broken}, {}, 1, done.append)
    saver.submit(2, {"a": b"x"}, {}, 1, done.append)  # goes on: the next save may well work
    with pytest.raises(CheckpointError, match="step 1 failed: MemoryError") as raised:
        saver.collect(wait=True)
    assert isinstance(raised.value.__cause__, MemoryError)
    assert [c.step for c in saver.collect()] == [2]
    assert done[0] is None and done[1].step == 2
    assert [p.name for p in store.directory.iterdir()] == ["step-00000002"]
    saver.close()


def test_a_failure_nobody_collected_is_raised_at_the_end(store):
    with pytest.raises(CheckpointError, match="step 1 failed"):
        with Saver(store) as saver:
            saver.submit(1, {"a": lambda: iter([None])}, {}, 1)


def test_an_error_inside_the_block_is_not_hidden_by_a_failed_save(store):
    with pytest.raises(KeyError, match="training"):
        with Saver(store) as saver:
            saver.submit(1, {"a": lambda: iter([None])}, {}, 1)
            raise KeyError("training")


def test_what_cannot_work_is_refused_before_the_thread_starts(store):
    saver = Saver(store)
    with pytest.raises(CheckpointError, match="cannot be the name"):
        saver.submit(1, {"../a": b""}, {}, 1)
    with pytest.raises(CheckpointError, match="fact 'x'"):
        saver.submit(1, {"a": b""}, {"x": object()}, 1)
    with pytest.raises(StorageFull, match="free"):
        saver.submit(1, {"a": b""}, {}, 1 << 60)
    assert not list(store.directory.iterdir())
    saver.close()


def test_facts_are_those_of_the_moment_of_submit(store):
    gate, facts = threading.Event(), {"nested": {"step": 1}}
    with Saver(store) as saver:
        saver.submit(1, {"a": gated(gate)}, facts, 1)
        facts["nested"]["step"] = 99
        gate.set()
        assert saver.collect(wait=True)[0].manifest.facts == {"nested": {"step": 1}}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a thread its own priority")
def test_only_the_writing_thread_is_niced(store):
    seen = []

    def chunks():
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        yield b"x"

    before = os.getpriority(os.PRIO_PROCESS, 0)
    with Saver(store) as saver:
        saver.submit(1, {"a": chunks}, {}, 1)
        saver.collect(wait=True)
    assert seen == [max(before, NICE)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_leaving_waits_for_the_save_in_flight(store):
    gate = threading.Event()
    with Saver(store) as saver:
        saver.submit(1, {"a": gated(gate)}, {}, 1)
        threading.Thread(target=gate.set).start()
    assert [c.step for c in store.checkpoints()] == [1]
