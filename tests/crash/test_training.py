"""Training killed at random instants, as real processes: it ends as if nothing had happened."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from attempts import TOY, Forks, command, config_below, run_of, said, toy_run
from instants import JOURNAL, Attempt, kill_at, random_instant, steps_on_disk, where_it_hit
from oracle import Outcome, judge_end, judge_kill, judge_resume

from cases import tree_of
from headway.checkpoint import Retention
from headway.journal import next_attempt

pytestmark = [pytest.mark.crash, pytest.mark.timeout(400)]

POLICY = Retention(keep_last=2, keep_best=1)
PLACES = ("before its first step", "in a step", "save", "in an evaluation")


def one_attempt(attempt: Attempt, config: Path, draw: random.Random, outcome: Outcome) -> bool:
    """Kill it at a random instant and judge what it left; False if it ended by itself first."""
    run = run_of(config)
    before, number = steps_on_disk(run), next_attempt(run / JOURNAL)
    instant = random_instant(draw, journal_lines=8, saves=5)
    killed = kill_at(instant, attempt, run)
    if next_attempt(run / JOURNAL) > number:
        judge_resume(run, before, outcome)
    if killed:
        outcome.kills += 1
        outcome.hits[where_it_hit(run, number)] += 1
        judge_kill(run, POLICY, outcome)
    return killed


def killed_run(
    forks: Forks, config: Path, draw: random.Random, outcome: Outcome, sabotage: str | None = None
) -> None:
    """Attempts of one run, each killed, until one gets to the end."""
    outcome.runs += 1
    for _ in range(60):
        attempt = forks.start(config, sabotage)
        if not one_attempt(attempt, config, draw, outcome):
            if attempt.wait() != 0:
                outcome.unclean.append(f"{config}: exit {attempt.wait()}: {said(config)[-300:]}")
            return
    outcome.unclean.append(f"{config}: no end after 60 kills")


def test_a_hundred_kills_at_random_instants_lose_nothing(
    forks: Forks, whole: Path, tmp_path: Path, table: Any
) -> None:
    draw, outcome = random.Random(20), Outcome()
    while outcome.kills < 100:
        config = toy_run(tmp_path / str(outcome.runs), **TOY)
        killed_run(forks, config, draw, outcome)
        judge_end(run_of(config), whole, outcome)
    table(outcome.cells("kill -9", f"training at random, {outcome.verified} checkpoints verified"))
    assert outcome.clean, outcome
    hits = [sum(n for at, n in outcome.hits.items() if place in at) for place in PLACES]
    assert min(hits) >= 5, outcome.hits


def test_the_whole_command_killed_at_random_instants_loses_nothing(
    forks: Forks, whole: Path, tmp_path: Path, table: Any
) -> None:
    draw, outcome = random.Random(21), Outcome(runs=1)
    config = toy_run(tmp_path, **TOY)
    while outcome.kills < 10:
        if not one_attempt(command(config), config, draw, outcome):
            judge_end(run_of(config), whole, outcome)
            config = toy_run(tmp_path / str(outcome.runs), **TOY)
            outcome.runs += 1
    assert command(config).wait() == 0, said(config)
    judge_end(run_of(config), whole, outcome)
    table(outcome.cells("kill -9", "the `headway train` command at random"))
    assert outcome.clean, outcome


@pytest.mark.parametrize("sabotage", ["write_in_place", "prune_the_newest", "forget_the_optimizer"])
def test_the_same_kills_catch_what_is_broken_on_purpose(
    forks: Forks, whole: Path, tmp_path: Path, table: Any, sabotage: str
) -> None:
    """Negative control: the oracle sees what a naive store or a partial resume would lose."""
    draw, outcome = random.Random(22), Outcome()
    while outcome.kills < 12:
        config = toy_run(tmp_path / str(outcome.runs), **TOY)
        killed_run(forks, config, draw, outcome, sabotage)
        if not outcome.unclean:
            judge_end(run_of(config), whole, outcome)
        outcome.unclean.clear()
    table(outcome.cells("kill -9", f"training at random, **{sabotage}**"))
    found = {
        "write_in_place": outcome.corrupt,
        "prune_the_newest": outcome.lost,
        "forget_the_optimizer": outcome.different,
    }[sabotage]
    assert len(found) >= 2, outcome


def test_a_real_language_model_killed_at_random_instants_ends_the_same(
    forks: Forks, tmp_path: Path, table: Any
) -> None:
    """LoRA on a two-layer Llama with a real tokenizer: data, packing, adapters, evaluation."""
    draw, outcome = random.Random(23), Outcome()
    tree = tree_of("sft-lora", tmp_path / "data")
    tree["train"]["horizon"] = {"steps": 16}
    tree["evaluate"]["every_steps"] = 4
    tree["checkpoint"] |= {"every_steps": 2, "keep_last": 2, "keep_best": 1}
    reference = config_below(tmp_path / "whole", tree)
    assert forks.finish(reference) == 0, said(reference)
    while outcome.kills < 15:
        config = config_below(tmp_path / str(outcome.runs), tree)
        killed_run(forks, config, draw, outcome)
        judge_end(run_of(config), run_of(reference), outcome)
    table(outcome.cells("kill -9", "LoRA on a tiny Llama at random"))
    assert outcome.clean, outcome
