"""A plan says what a run needs and costs before anything is rented, and says what it assumed."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cases import tree_of
from headway.building import build_context, with_room
from headway.cli import build_app
from headway.config import RunConfig, find_recipe
from headway.config.sections import Checkpoint, Hardware
from headway.cost import Gpu, Rate, load_prices
from headway.engine.fake import weightless
from headway.engine.fit import Footprint, Held
from headway.engine.world import World
from headway.planning import Assumptions, plan_run
from headway.planning.memory import Way, context_of, ladder, traced
from headway.planning.offers import Work, needed_bytes, offers, spot_money
from headway.planning.plan import limits
from headway.planning.room import tokens_that_fit
from seven import tree_1b, tree_7b, tree_vision_2b

pytestmark = pytest.mark.usefixtures("own_cache")
ASSUME = Assumptions(utilisation=0.5, context_bytes=0, fragmentation=0.0)
HELD = Held(
    parameters=10, trainable=10, weights_bytes=40, gradient_bytes=40, optimizer_bytes=80,
    update_bytes=160,
)  # fmt: skip


def rate(usd: float) -> Rate:
    return Rate(usd_per_hour=usd, provider="somebody", source="a page", date="2026-11-01")


def gpu(name: str, mib: int, tflops: float | None = 1.0, usd: float | None = 1.0) -> Gpu:
    return Gpu(
        name=name, memory_mib=mib, bf16_tflops=tflops, source="a page", date="2026-11-01",
        on_demand=None if usd is None else rate(usd),
    )  # fmt: skip


def way(recompute: bool, *mib: int, changed: bool = False, flops: float = 1e6) -> Way:
    """A way whose step at 1, 2, 4 … rows takes so many MiB."""
    steps = tuple(
        Footprint(
            rows=2**n, tokens=2**n, held=HELD, logits_bytes=0, flops=1,
            activation_bytes=size * 2**20 - HELD.bytes,
        )
        for n, size in enumerate(mib)
    )  # fmt: skip
    return Way(
        recompute=recompute, tuning="qlora" if changed else "lora", changed=changed, held=HELD,
        steps=steps, flops_per_token=flops,
    )  # fmt: skip


KEEP, AGAIN, PACKED = way(False, 40, 60, 100), way(True, 20, 25, 35, flops=1.3e6), way(True, 10, 12)
PACKED = replace(PACKED, changed=True, tuning="qlora")
WORK = Work(steps=100, tokens=1e9)


def best(mib: int, **hardware: Any) -> Any:
    ways = (KEEP, AGAIN, PACKED)
    return offers({"x": gpu("x", mib)}, ways, WORK, Hardware(**hardware), Checkpoint(), ASSUME)[0]


@pytest.mark.parametrize(
    ("mib", "rows", "recompute", "changes"),
    [
        (200, 4, False, ["hardware.activation_checkpointing=false"]),
        (61, 2, False, ["hardware.activation_checkpointing=false"]),
        (39, 4, True, []),
        (26, 2, True, []),
        (20, 1, True, []),
        (13, 2, True, ["task.tuning.kind=qlora"]),
    ],
)
def test_a_gpu_takes_the_least_arithmetic_that_fits_and_says_what_the_config_must_say(
    mib, rows, recompute, changes
):
    found = best(mib)
    assert found.fits and (found.rows, found.recompute) == (rows, recompute)
    assert list(found.changes) == changes


def test_what_the_config_asks_for_comes_before_what_would_be_faster():
    found = best(200, microbatch_size=2, activation_checkpointing=True)
    assert (found.rows, found.recompute, found.changes) == (2, True, ())
    smaller = best(22, microbatch_size=2, activation_checkpointing=True)
    assert smaller.rows == 1 and smaller.changes == ("hardware.microbatch_size=1",)


def test_a_gpu_that_is_too_small_for_everything_does_not_fit_and_says_what_it_lacks():
    found = best(9)
    assert not found.fits and found.hours is None and found.needs_bytes == 10 * 2**20


def test_time_and_money_are_the_work_over_the_rate():
    found = best(39)
    seconds = 1e9 * 1.3e6 / (1e12 * 0.5)
    assert found.hours == pytest.approx(seconds / 3600)
    assert found.on_demand.usd == pytest.approx(seconds / 3600 * 1.0)


def test_the_cheapest_and_the_fastest_are_marked_and_one_without_a_price_is_not_the_cheapest():
    table = {g.name: g for g in (gpu("slow", 99, 1, 1), gpu("fast", 99, 9, 90), gpu("free", 99, 5))}
    table["free"] = gpu("free", 99, 5, None)
    made = offers(table, (AGAIN,), WORK, Hardware(), Checkpoint(), ASSUME)
    assert {o.gpu.name: o.marks for o in made} == {
        "slow": ("cheapest",), "fast": ("fastest",), "free": ()
    }  # fmt: skip


def test_the_order_of_the_table_is_kept_and_an_unknown_speed_has_no_time():
    made = offers({"a": gpu("a", 99, None)}, (AGAIN,), WORK, Hardware(), Checkpoint(), ASSUME)
    assert made[0].fits and made[0].hours is None and made[0].on_demand is None


@given(st.floats(1, 1e6), st.floats(0.1, 60))
def test_preemptions_only_cost_and_saving_more_often_costs_less(seconds, minutes):
    often = Checkpoint(every_minutes=minutes)
    seldom = Checkpoint(every_minutes=minutes * 2)
    one, two = (spot_money(rate(1.0), seconds, WORK, c, ASSUME) for c in (often, seldom))
    assert one is not None and two is not None
    assert seconds / 3600 < one.hours <= two.hours
    calm = replace(ASSUME, preemptions_per_hour=0.0)
    safe = spot_money(rate(1.0), seconds, WORK, often, calm)
    assert safe is not None and safe.hours == pytest.approx(seconds / 3600)


def test_a_spot_gpu_that_loses_more_than_it_does_has_no_price():
    wild = replace(ASSUME, preemptions_per_hour=100.0)
    assert spot_money(rate(1.0), 1e5, WORK, Checkpoint(), wild) is None


@given(st.integers(1, 300))
def test_the_ladder_begins_at_one_ends_at_the_top_and_at_most_doubles(most):
    rungs = ladder(most)
    assert rungs[0] == 1 and rungs[-1] == most
    assert all(a < b <= 2 * a for a, b in itertools.pairwise(rungs))


# ------------------------------------------------------------------ whole plans


def tiny(folder: Path, **sections: Any) -> RunConfig:
    tree = tree_of("sft-lora", folder)
    return RunConfig(**{**tree, "hardware": {"precision": "bf16"}, **sections})


SMALL = {"big": gpu("big", 4000), "none": gpu("none", 1)}


def test_a_plan_is_the_same_every_time_and_counts_what_the_run_will_do(tmp_path):
    config = tiny(
        tmp_path, train={"horizon": {"epochs": 3}, "batch_size": 8, "learning_rate": 1e-3}
    )
    held = replace(ASSUME, context_bytes=2 << 20)  # alone more than the smaller GPU has
    one, two = (
        plan_run(config, prices=SMALL, assumptions=held, microbatches=[1, 2]) for _ in range(2)
    )
    assert replace(one, seconds=0) == replace(two, seconds=0)
    rows = one.rows.per_epoch
    assert one.rows.read and one.work.steps == -(-3 * rows // 8)
    assert [o.fits for o in one.offers] == [True, False]
    assert one.checkpoints == config.checkpoint.keep_last + config.checkpoint.keep_best + 1
    assert one.flops == pytest.approx(min(w.flops_per_token for w in one.ways) * one.work.tokens)


def test_the_size_of_a_checkpoint_is_that_of_a_real_one(tmp_path):
    from headway import train

    config = tiny(tmp_path, hardware={"device": "cpu", "precision": "bf16"}, evaluate=None)
    found = plan_run(config, prices=SMALL)
    train(config)
    newest = sorted((tmp_path / "runs/run/checkpoints").glob("step-*"))[-1]
    tensors = sum(f.stat().st_size for f in newest.rglob("*.safetensors"))
    assert found.checkpoint_bytes == pytest.approx(tensors, rel=0.15)  # safetensors' headers


def test_rows_that_are_not_on_this_disk_are_said_to_be_unknown_or_given(tmp_path):
    tree = tree_7b(tmp_path)
    tree["task"]["base_model"] = tree_of("sft-lora", tmp_path)["task"]["base_model"]
    tree["task"]["tuning"]["kind"] = "lora"
    tree["train"]["horizon"] = {"epochs": 1}
    config = RunConfig(**tree)
    blind = plan_run(config, prices=SMALL, microbatches=[1])
    assert (
        blind.work.steps is None and blind.flops is None and "not on this disk" in blind.rows.said
    )
    assert all(o.hours is None for o in blind.offers)
    told = plan_run(config, prices=SMALL, microbatches=[1], rows=160)
    assert told.work.steps == 10 and told.work.tokens == 10 * 16 * 2048
    missing = {"train": str(tmp_path / "none.jsonl")}
    gone = RunConfig(**{**tree, "task": {**tree["task"], "data": missing}})
    assert "is not there" in plan_run(gone, prices=SMALL, microbatches=[1]).rows.said


def test_the_verb_prints_a_table_and_everything_it_assumed(tmp_path):
    config = tiny(tmp_path, cost={"gpu": "A40"})
    config.save(tmp_path / "run.yaml")
    done = CliRunner().invoke(build_app(), ["plan", str(tmp_path / "run.yaml")])
    assert done.exit_code == 0, done.output
    for gpu_name in load_prices():
        assert gpu_name in done.output
    for line in Assumptions().lines():
        assert line in done.output
    for word in ("parameters", "optimizer", "checkpoint", "cheapest", "fastest", "no price"):
        assert word in done.output, word


def test_the_verb_speaks_json(tmp_path):
    tiny(tmp_path).save(tmp_path / "run.yaml")
    done = CliRunner().invoke(build_app(), ["plan", str(tmp_path / "run.yaml"), "--json"])
    found = json.loads(done.output)
    assert found["ways"] and found["offers"] and found["notes"]
    assert found["disk_bytes"] == found["checkpoint_bytes"] * found["checkpoints"]
    assert {o["gpu"] for o in found["offers"]} == set(load_prices())


def test_calibrating_times_real_steps_and_leaves_no_run_behind(tmp_path):
    from headway.planning.calibrate import calibrated

    steps = {"horizon": {"steps": 5}, "batch_size": 8, "learning_rate": 1e-3}
    config = tiny(tmp_path, train=steps, cost={"usd_per_hour": 2.0})
    found = calibrated(config)
    mine = found.offers[0]
    assert mine.gpu.name.startswith("this machine") and mine.fits and mine.hours
    assert mine.on_demand is not None
    assert mine.on_demand.usd == pytest.approx(2.0 * mine.hours)
    assert "measured on" in found.notes[0] and not (tmp_path / "runs").exists()
    assert len(found.offers) == len(load_prices()) + 1


# ------------------------------------------------------------------ the seed documents' statements


def on(name: str) -> dict[str, Gpu]:
    return {name: load_prices()[name]}


@pytest.mark.slow
def test_7b_qlora_at_2_rows_of_2048_tokens_fits_a_4090(tmp_path):
    """Seed document 001 says so; with recomputed activations it does."""
    pytest.importorskip("bitsandbytes")
    preset = {"preset": "rtx4090"}
    config = RunConfig(**tree_7b(tmp_path, hardware=preset))
    found = plan_run(config, prices=on("RTX 4090"), microbatches=[2])
    assert found.ways[0].held.parameters == pytest.approx(7.66e9, rel=0.01)
    offer = found.offers[0]
    assert offer.fits and not offer.changes and (offer.rows, offer.recompute) == (2, True)
    kept = next(w for w in found.ways if not w.recompute)
    assert needed_bytes(kept.steps[0].peak_bytes, Assumptions()) > offer.gpu.memory_bytes


@pytest.mark.slow
def test_the_1_2_b_model_does_not_train_on_8_gb_not_even_in_bf16_with_8_bit_state(tmp_path):
    """Seed document 004 asks for "8GB+ VRAM": its weights and their state alone need more."""
    plain = plan_run(RunConfig(**tree_1b(tmp_path)), prices=on("RTX 3070"), microbatches=[1])
    assert plain.ways[0].held.parameters == 1_213_022_208
    assert plain.ways[0].held.bytes > 19e9 and not plain.offers[0].fits
    tree = tree_1b(tmp_path, hardware={"precision": "bf16_pure"})
    tree["train"]["optimizer"] = "adamw_8bit"
    least = plan_run(RunConfig(**tree), prices=on("RTX 3070"), microbatches=[1])
    assert least.ways[0].held.bytes < 7.5e9 and not least.offers[0].fits
    assert plan_run(RunConfig(**tree), prices=on("RTX A4000"), microbatches=[1]).offers[0].fits, (
        "16 GB are enough in that way"
    )


@pytest.mark.slow
def test_500_steps_cost_less_than_the_seed_says_and_not_the_same_hours_on_every_gpu(tmp_path):
    """Seed document 000: $5-8 on an RTX 4090, $15-25 on an A100: 10 to 20 hours on each."""
    pytest.importorskip("bitsandbytes")
    names = ("RTX 4090", "A100 80GB", "H100")
    table = {name: load_prices()[name] for name in names}
    found = plan_run(RunConfig(**tree_7b(tmp_path)), prices=table, microbatches=[2])
    assert found.work.steps == 500
    hours = {o.gpu.name: o.hours for o in found.offers}
    assert all(hours.values()) and hours["RTX 4090"] > hours["A100 80GB"] > hours["H100"]
    spot = found.offers[0].spot
    assert spot is not None and 0.5 < spot.usd < 5


# ------------------------------------------------------------------ pictures


def test_a_plan_of_a_run_with_pictures_knows_memory_time_and_price(tmp_path):
    tree = tree_of("vision-lora", tmp_path)
    config = RunConfig(**{**tree, "hardware": {"precision": "bf16"}})
    found = plan_run(config, prices=SMALL, assumptions=ASSUME, microbatches=[1])
    assert found.rows.read and found.rows.per_epoch
    offer = found.offers[0]
    assert offer.fits and offer.hours and offer.on_demand is not None
    assert any("reads 2 rows aloud" in note for note in found.notes)
    quiet = RunConfig(**{**tree, "evaluate": None})
    assert not any("aloud" in note for note in limits(quiet))


def test_pictures_beside_a_small_file_are_not_read_where_they_are_large(tmp_path, monkeypatch):
    from headway.planning import data
    from tiny_vision import drawn, png, write_rows

    (tmp_path / "page.png").write_bytes(png(drawn("RED 1")))
    rows = [{"image": "page.png", "instruction": "Read.", "answer": "RED"}]
    file = write_rows(tmp_path / "pages.jsonl", rows)
    tree = tree_of("vision-lora", tmp_path / "x") | {"evaluate": None}
    tree["task"] |= {"data": {"train": str(file)}}
    config = RunConfig(**tree)
    size = file.stat().st_size
    assert data.why_not_counted(config) is None
    monkeypatch.setattr(data, "CHEAP_BYTES", size + 10)
    assert "would have to be read" in str(data.why_not_counted(config))
    blind = plan_run(config, prices=SMALL, microbatches=[1])
    assert not blind.rows.read and blind.rows.longest_tokens == 128


# ------------------------------------------------------------------ microbatches: auto


def test_the_tokens_at_once_are_what_this_gpu_holds_and_hardly_more(tmp_path):
    """`microbatch_size: auto` on a GPU, without one: its step is traced again with these tokens."""
    config = tiny(
        tmp_path, train={"horizon": {"steps": 2}, "batch_size": 64, "learning_rate": 1e-3}
    )
    world, assume = World(torch.device("cpu")), Assumptions()
    with weightless("cuda"):
        context = context_of(config, data=False, activation_checkpointing=False)
        way, _ = traced(config, context, [1, 8, 16, 32])
    sizes = {step.rows: needed_bytes(step.peak_bytes, assume) for step in way.steps}
    a_row = way.steps[0].tokens
    for memory in (sizes[8], (sizes[8] + sizes[16]) // 2, sizes[32]):
        tokens = tokens_that_fit(config, world, memory)
        rows = tokens // a_row
        with weightless("cuda"):
            found, more = traced(config, context, [rows, max(rows + 2, rows * 5 // 4)])[0].steps
        assert needed_bytes(found.peak_bytes, assume) <= memory * 1.01
        assert needed_bytes(more.peak_bytes, assume) > memory
    assert tokens_that_fit(config, world, assume.context_bytes) == 0
    whole = tokens_that_fit(config, world, 1 << 40)
    assert whole >= 64 * a_row  # a larger GPU takes the whole batch


def test_a_config_that_says_its_rows_or_has_no_gpu_is_not_planned(tmp_path):
    config = tiny(tmp_path)
    world = World(torch.device("cpu"))
    context = build_context(config, world)
    assert with_room(config, context, world, None) == (context, [])
    rows = replace(context, microbatch_size=2)
    assert with_room(config, rows, world, 1 << 34) == (rows, [])
    drawn = torch.get_rng_state()
    planned, said = with_room(config, context, world, 1 << 34)
    assert torch.equal(torch.get_rng_state(), drawn)  # mechanics change no initial weight
    assert planned.tokens_at_once and said[0][0] == "fit" and "16 GiB" in said[0][1]
    none, why = with_room(config, context, world, 1 << 20)
    assert none.tokens_at_once == 1 and why[0][0] == "warning" and "not even one" in why[0][1]


def test_the_recipes_cut_their_batches_at_the_planned_tokens(tmp_path):
    tree = tree_of("sft-lora", tmp_path)
    config = RunConfig(**{**tree, "hardware": {"device": "cpu", "precision": "fp32"}})
    context = build_context(config, World(torch.device("cpu")))
    task = find_recipe(config.recipe).build(config.task, replace(context, tokens_at_once=1))
    assert [len(m.rows) for m in task.batch_at(0)] == [1] * config.train.batch_size
    whole = replace(task, context=replace(context, tokens_at_once=10**9))
    assert [len(m.rows) for m in whole.batch_at(0)] == [config.train.batch_size]


@pytest.mark.slow
def test_seed_000s_own_run_fits_a_24_gb_gpu_and_costs_less_than_it_says(tmp_path):
    """500 steps of 8 pages: it says $5-8 on an RTX 4090, and the same hours on every GPU."""
    pytest.importorskip("bitsandbytes")
    table = on("RTX 4090") | on("H100")
    tuning = {"kind": "qlora", "rank": 16, "alpha": 16}
    config = RunConfig(**tree_vision_2b(tmp_path / "base", tuning))
    found = plan_run(config, prices=table, microbatches=[2])
    held = found.ways[0].held
    assert held.parameters - held.trainable == 2_127_532_032
    small, large = found.offers
    assert small.fits and small.recompute and small.needs_bytes < 10e9
    kept = next(way for way in found.ways if not way.recompute)
    assert needed_bytes(kept.steps[0].peak_bytes, Assumptions()) > small.gpu.memory_bytes
    assert small.hours > 4 * large.hours and small.usd is not None and small.usd < 2


def test_a_model_that_cannot_be_traced_trains_by_the_rule_of_thumb(tmp_path, monkeypatch):
    from headway.planning import room

    def untraceable(*_):
        raise RuntimeError("a number was asked of a tensor that has none")

    monkeypatch.setattr(room, "tokens_that_fit", untraceable)
    config, world = tiny(tmp_path), World(torch.device("cpu"))
    context = build_context(config, world)
    kept, said = with_room(config, context, world, 1 << 34)
    assert kept == context and "rule of thumb: RuntimeError" in said[0][1]
