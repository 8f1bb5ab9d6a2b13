"""Two ranks see the same global batch as one, stop together, and resume into the same run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import headway
from cases import tree_of
from headway.api import train
from headway.config import RunConfig
from headway.engine.optim import decayed, make_optimizer, trainable
from headway.engine.precision import seed_step
from headway.engine.state import placed
from headway.engine.world import World, choose_device
from headway.errors import ConfigError
from headway.journal import read, timeline
from toy import TREE, final_state, toy_config

TESTS = Path(__file__).parent


def torchrun(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``headway train`` on two ranks with gloo."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{Path(headway.__file__).parents[1]}:{TESTS}:{TESTS / 'plugins'}",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "headway.cli", "train", str(config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)


def steps_of(run: Path) -> list[dict[str, Any]]:
    return list(timeline(read(run / "journal.jsonl")))


@pytest.mark.fault(45)
def test_two_ranks_train_what_one_rank_trains(tmp_path: Path) -> None:
    tree = {"task": {"dropout": 0.0}, "evaluate": {"every_steps": 3, "worst_rows": 3}}
    alone = toy_config(tmp_path / "one", **tree)
    train(alone)
    toy_config(tmp_path / "two", **tree).save(tmp_path / "two.yaml")
    done = torchrun(tmp_path / "two.yaml")
    assert done.returncode == 0, done.stderr[-2000:]
    ones, twos = steps_of(tmp_path / "one/run"), steps_of(tmp_path / "two/run")
    assert len(ones) == len(twos) == 6
    for one, two in zip(ones, twos, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        assert (two["weight"], two["rows"], two["tokens"]) == (one["weight"], 8, one["tokens"])
    expected, found = final_state(tmp_path / "one/run"), final_state(tmp_path / "two/run")
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    evaluations = [
        [e for e in read(tmp_path / which / "run/journal.jsonl") if e["event"] == "evaluation"][-1]
        for which in ("one", "two")
    ]
    assert evaluations[0]["metrics"] == pytest.approx(evaluations[1]["metrics"], rel=1e-5)
    rows = [[row["row"] for row in e["worst"]] for e in evaluations]
    assert rows[0] == rows[1] and evaluations[1]["rows"] == 6


@pytest.mark.fault(45)
def test_a_run_moves_between_one_and_two_ranks(tmp_path: Path) -> None:
    """Promise 3: on another number of ranks every step still sees the same global batch."""
    tree = {"task": {"dropout": 0.0}, "train": {"horizon": {"steps": 6}}}
    train(toy_config(tmp_path / "one", **tree))
    config = toy_config(tmp_path / "moved", **tree)
    config.save(tmp_path / "moved.yaml")
    assert (
        torchrun(tmp_path / "moved.yaml", "cost={usd_per_hour: 1, budget_usd: 1000}").returncode
        == 0
    )
    train_alone = train_from(config, 3)
    torch.testing.assert_close(
        train_alone, [s["loss"] for s in steps_of(tmp_path / "one/run")], rtol=1e-5, atol=1e-7
    )


def train_from(config: RunConfig, step: int) -> list[float]:
    """Continue on one rank from a checkpoint that two ranks made; losses of the whole timeline."""
    from headway.api import train_run

    folder, _ = train_run(config, from_step=step)
    return [line["loss"] for line in steps_of(folder)]


@pytest.mark.slow
def test_two_ranks_train_a_language_model_as_one_does(tmp_path: Path) -> None:
    tree = tree_of("sft-lora", tmp_path / "data")
    config = RunConfig(**{**tree, "run": {"name": "run", "root": tmp_path / "one", "seed": 5}})
    train(config)
    two = RunConfig(**{**tree, "run": {"name": "run", "root": tmp_path / "two", "seed": 5}})
    two.save(tmp_path / "two.yaml")
    done = torchrun(tmp_path / "two.yaml")
    assert done.returncode == 0, done.stderr[-2000:]
    ones = [s["loss"] for s in steps_of(tmp_path / "one/run")]
    twos = [s["loss"] for s in steps_of(tmp_path / "two/run")]
    assert twos == pytest.approx(ones, rel=1e-4)


@pytest.mark.fault(45)
def test_fewer_rows_than_ranks_is_refused(tmp_path: Path) -> None:
    config = toy_config(tmp_path, train={"batch_size": 1})
    config.save(tmp_path / "c.yaml")
    done = torchrun(tmp_path / "c.yaml")
    assert done.returncode != 0 and "fewer rows than ranks" in done.stderr


def test_ranks_draw_different_dropout_and_the_same_rank_the_same() -> None:
    def draw(rank: int, step: int) -> float:
        seed_step(7, step, rank)
        return float(torch.rand(()))

    draws = {(rank, step): draw(rank, step) for rank in range(3) for step in range(50)}
    assert len(set(draws.values())) == len(draws)
    assert all(draw(*key) == value for key, value in draws.items())


def test_a_missing_gpu_is_said_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"hardware\.device is cuda"):
        choose_device("cuda")


def test_one_process_is_a_world_of_one() -> None:
    world = World(torch.device("cpu"))
    assert world.leads and world.sum([1.5, 2]) == [1.5, 2] and world.agree(3, 0) == [3, 0]
    assert world.gather([(1.0, 2.0)]) == [(1.0, 2.0)]


def test_no_trainable_parameter_is_an_error() -> None:
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter of the model trains"):
        trainable(model)


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_decay_is_for_matrices_and_every_parameter_is_in_one_group(kind: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
    named = trainable(model)
    optimizer = make_optimizer(kind, named, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decay) == len(named)
    assert all((decay[id(p)] == 0.1) == decayed(n, p) == (p.ndim == 2) for n, p in named)


def test_restored_state_lies_where_the_optimizer_keeps_such_state() -> None:
    """bitsandbytes' paged optimizers give out memory of their own; on a GPU it is really theirs."""

    class Paging(torch.optim.SGD):
        is_paged = True

        def get_state_buffer(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
            self.given = torch.zeros_like(parameter, dtype=dtype)
            return self.given

    weight = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer, stored = Paging([weight], lr=0.1), torch.arange(6, dtype=torch.uint8).view(2, 3)
    kept = placed(optimizer, weight, stored)
    assert kept is optimizer.given and torch.equal(kept, stored)
    scales = torch.ones(1)
    assert placed(optimizer, weight, scales) is scales, "only what is like the weights is paged"
    assert placed(torch.optim.SGD([weight], lr=0.1), weight, stored) is stored


def test_the_tree_of_the_toy_is_what_these_tests_assume() -> None:
    assert TREE["train"]["horizon"] == {"steps": 6} and TREE["train"]["batch_size"] == 8


DISAGREE = """
import json, os, sys
from headway.engine.world import joined, leave
with joined("cpu") as world:
    # clocks that differ: one rank finds a save due, the other the end of the money
    print(json.dumps(world.agree(int(world.rank == 0), int(world.rank == 1), 0, world.rank)))
leave(0)  # without gloo, which may abort a process that is done
"""


@pytest.mark.fault(72)
def test_ranks_that_disagree_get_one_answer(tmp_path: Path) -> None:
    (tmp_path / "disagree.py").write_text(DISAGREE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, str(tmp_path / "disagree.py")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("[1, 1, 0, 1]") == 2 and done.stdout.count("[") == 2, (
        "two ranks write at once, so a line's end may be late"
    )


@pytest.mark.fault(65)
def test_two_ranks_refuse_the_same_steps_and_roll_back_together(tmp_path: Path) -> None:
    """The bad row is in one rank's share only; both must leave the step out, and both go back."""
    sections: dict[str, Any] = {
        "train": {"horizon": {"steps": 12}},
        "task": {"dropout": 0.0, "nan_at_steps": (6, 7)},
        "checkpoint": {"every_steps": 2},
        "monitor": {"non_finite": {"refuse_steps": 1}, "roll_back": {"back_steps": 2}},
    }
    train(toy_config(tmp_path / "one", **sections))
    toy_config(tmp_path / "two", **sections).save(tmp_path / "two.yaml")
    done = torchrun(tmp_path / "two.yaml")
    assert done.returncode == 0, done.stderr[-2000:]
    told = []
    for which in ("one", "two"):
        events = read(tmp_path / which / "run/journal.jsonl")
        refused = [(e["step"], e["refused"]) for e in events if e.get("refused")]
        rolled = [(e["step"], e["back_to"]) for e in events if e["event"] == "rollback"]
        told.append((refused, rolled))
    assert told[0] == told[1] and told[0][1] == [(8, 4)]
    assert all(len(why["rows"]) == 1 for _, why in told[0][0][:2])
    expected, found = final_state(tmp_path / "one/run"), final_state(tmp_path / "two/run")
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
