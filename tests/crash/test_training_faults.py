"""A training run meets a full disk, and damaged checkpoints: it says so, and ends the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attempts import TOY, Forks, run_of, said, toy_run
from disks import tmpfs
from instants import JOURNAL, Instant, happens, kill_at, steps_on_disk
from oracle import Outcome, checkpoints, judge_end
from test_damage import flipped, zeroed

from headway.journal import read, read_events, scan

pytestmark = [pytest.mark.crash, pytest.mark.timeout(200)]

# ------------------------------------------------------------------ a full disk


def fill_after_a_save(forks: Forks, config: Path, sabotage: str | None, leave_bytes: int) -> int:
    """Train; as soon as one save is acknowledged, fill the disk; the exit code."""
    attempt, run = forks.start(config, sabotage), run_of(config)
    assert happens(lambda: bool(read_events(run / JOURNAL, {"save"})), attempt), said(config)
    with (run.parent / "ballast").open("wb") as ballast:
        while (free := shutil.disk_usage(run).free - leave_bytes) > 0:
            ballast.write(bytes(min(free, 1 << 20)))
            ballast.flush()
    return attempt.wait()


@pytest.mark.fault(10)
@pytest.mark.parametrize(
    ("size", "sabotage", "leave_bytes", "why"),
    [
        ("300m", None, 200 << 20, "reserve"),
        ("16m", "foresee_no_full_disk", 1 << 20, "ENOSPC"),
    ],
    ids=["foreseen", "met while writing"],
)
def test_on_a_full_disk_training_keeps_its_last_checkpoint_and_goes_on_when_there_is_room(
    forks: Forks,
    whole: Path,
    tmp_path: Path,
    table: Any,
    size: str,
    sabotage: str | None,
    leave_bytes: int,
    why: str,
) -> None:
    config = toy_run(tmp_path, **TOY)
    run = run_of(config)
    with tmpfs(run.parent, size):
        assert fill_after_a_save(forks, config, sabotage, leave_bytes) == 77, said(config)
        kept = checkpoints(run)
        skipped = read_events(run / JOURNAL, {"save_skipped"})
        assert kept and all(why in line["why"] for line in skipped)
        # While a half-written save fills the disk, it may be the journal that meets the end of it.
        loud = ("NOT SAVED", "cannot write the journal")
        assert any(words in said(config) for words in loud) and "Traceback" not in said(config)
        if sabotage is None:  # the journal had room, so training went on to its end
            assert skipped[-1]["step"] == 16 and len(skipped) >= 2
            assert read(run / JOURNAL)[-1]["event"] == "stop"
        assert scan(run / JOURNAL).damaged_lines == 0
        assert forks.finish(config, sabotage) == 77, "still full"
        assert [c.step for c in checkpoints(run)] == [c.step for c in kept]
        (run.parent / "ballast").unlink()
        assert forks.finish(config, sabotage) == 0, said(config)
        outcome = Outcome()
        judge_end(run, whole, outcome)
        assert outcome.clean, outcome
    where = "the free-space check" if sabotage is None else "ENOSPC while writing"
    table(("disk full (tmpfs)", f"training, {where}", 1, 1, 0, 0, 0))


# ------------------------------------------------------------------ damage

FILES = (
    "model/model.safetensors",
    "model/toy.json",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "one bit flipped": lambda data: flipped(data, seed=7),
    "truncated": lambda data: data[: len(data) // 2],
    "zeroed": zeroed,
    "missing": lambda data: None,
}


@pytest.fixture(scope="module")
def interrupted(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed in the middle, with several checkpoints."""
    config = toy_run(tmp_path_factory.mktemp("interrupted"), **TOY)
    run = run_of(config)
    assert kill_at(Instant("journal line", 16, 0), forks.start(config), run)
    assert len(checkpoints(run)) >= 2
    return run


def copied(interrupted: Path, to: Path) -> Path:
    """The config file of a copy of that run."""
    config = toy_run(to, **TOY)
    shutil.copytree(interrupted, run_of(config))
    return config


def hurt(path: Path, damage: Callable[[bytes], bytes | None]) -> None:
    """Damage one file, really."""
    before = path.read_bytes()
    after = damage(before)
    assert after != before
    path.unlink() if after is None else path.write_bytes(after)


@pytest.mark.fault(21, 22, 23, 25)
@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_to_any_file_of_the_newest_checkpoint_is_set_aside_and_the_end_is_the_same(
    forks: Forks, whole: Path, interrupted: Path, tmp_path: Path, table: Any, kind: str
) -> None:
    newest = steps_on_disk(interrupted)[-1]
    there = checkpoints(interrupted)[-1].path
    assert {*FILES} == {p.relative_to(there).as_posix() for p in there.rglob("*") if p.is_file()}
    for name in FILES:
        config = copied(interrupted, tmp_path / name.replace("/", "-"))
        run = run_of(config)
        hurt(run / "checkpoints" / there.name / name, DAMAGES[kind])
        assert forks.finish(config) == 0, said(config)
        [line] = read_events(run / JOURNAL, {"quarantine"})
        assert f"{there.name}/{name}" in line["what"] and "WARNING" in said(config)
        assert len(list((run / "quarantine").iterdir())) == 1
        assert read_events(run / JOURNAL, {"attempt"})[-1]["restored_step"] < newest
        outcome = Outcome()
        judge_end(run, whole, outcome)
        assert outcome.clean, outcome
    table(
        (kind, f"each of {len(FILES)} files of a training checkpoint", *[len(FILES)] * 2, 0, 0, 0)
    )


def nothing_was_trained(forks: Forks, config: Path, words: str) -> None:
    """The command refuses, twice, by name, and adds no step."""
    steps = len(read_events(run_of(config) / JOURNAL, {"step"}))
    for _ in range(2):
        assert forks.finish(config) == 65, said(config)
    assert words in said(config) and "Traceback" not in said(config)
    assert len(read_events(run_of(config) / JOURNAL, {"step"})) == steps


@pytest.mark.fault(26)
@pytest.mark.parametrize("name", FILES)
def test_if_all_checkpoints_are_damaged_training_does_not_start_over(
    forks: Forks, interrupted: Path, tmp_path: Path, name: str
) -> None:
    config = copied(interrupted, tmp_path)
    for checkpoint in checkpoints(run_of(config)):
        hurt(checkpoint.path / name, DAMAGES["truncated"])
    nothing_was_trained(forks, config, "Not starting over")


def test_if_the_checkpoints_are_gone_but_the_journal_knows_them_training_does_not_start_over(
    forks: Forks, interrupted: Path, tmp_path: Path
) -> None:
    config = copied(interrupted, tmp_path)
    shutil.rmtree(run_of(config) / "checkpoints")
    shutil.rmtree(run_of(config) / "quarantine", ignore_errors=True)
    nothing_was_trained(forks, config, "its journal says")
