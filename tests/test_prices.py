"""A price has a source and a date, the user's table lies over ours, and the config's rate wins."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.config import RunConfig
from headway.config.presets import find_preset, presets
from headway.cost import Rate, find_gpu, load_prices, price_of
from headway.errors import ConfigError
from toy import TREE

OURS = load_prices(environ={})
RATES = [
    (gpu.name, rate)
    for gpu in OURS.values()
    for rate in (gpu.on_demand, gpu.spot, *gpu.also)
    if rate is not None
]


def table(folder: Path, text: str) -> Path:
    (folder / "mine.toml").write_text(text)
    return folder / "mine.toml"


def test_every_figure_of_the_table_has_a_source_and_a_date_that_is_not_in_the_future():
    assert len(OURS) >= 10 and len(RATES) >= 15
    for name, said in [*RATES, *((gpu.name, gpu) for gpu in OURS.values())]:
        assert said.source.startswith(("https://", "seed ")), name
        assert date.fromisoformat(said.date) <= date(2026, 11, 21), name
    assert all(rate.kind for gpu in OURS.values() for rate in gpu.also)


def test_the_seed_documents_rates_are_among_them_and_say_what_they_are():
    said = {
        (name, rate.usd_per_hour) for name, rate in RATES if rate.source.startswith("seed document")
    }
    asked = {("RTX 3090", 0.25), ("RTX 4090", 0.40), ("A100 80GB", 1.50), ("H100", 2.50)}
    assert asked | {("A10G", 0.35), ("A100 40GB", 1.00)} <= said
    assert all("seed" in r.provider for _, r in RATES if r.source.startswith("seed document"))


def test_a_gpu_nobody_published_a_price_for_has_none():
    assert OURS["RTX 3070"].on_demand is None and OURS["L40S"].on_demand is None
    with pytest.raises(ConfigError, match="has no price in the table"):
        price_of("L40S", None)


@pytest.mark.parametrize("name", ["rtx4090", "RTX_4090", "NVIDIA GeForce RTX 4090", "4090"])
def test_a_gpu_is_found_however_its_name_is_written(name):
    found = find_gpu(OURS, name)
    assert found is not None and found.name == "RTX 4090"


def test_no_two_gpus_answer_to_one_name():
    names = [n for gpu in OURS.values() for n in (gpu.name, *gpu.aliases)]
    for name in names:
        assert sum(find_gpu({g.name: g}, name) is not None for g in OURS.values()) == 1, name


def test_the_users_file_is_laid_over_ours_key_by_key_and_may_add_a_gpu(tmp_path, monkeypatch):
    mine = table(
        tmp_path,
        '["rtx 4090"]\n'
        'on_demand = {usd_per_hour = 9.5, provider = "my own", source = "bill 7", '
        'date = "2026-11-01"}\n'
        '["My GPU"]\nmemory_mib = 1000\nsource = "its box"\ndate = "2026-01-01"\n',
    )
    merged = load_prices(mine)
    assert merged["RTX 4090"].on_demand == Rate(
        usd_per_hour=9.5, provider="my own", source="bill 7", date="2026-11-01"
    )
    assert merged["RTX 4090"].memory_mib == OURS["RTX 4090"].memory_mib
    assert merged["My GPU"].memory_bytes == 1000 * 2**20
    assert {k: v for k, v in merged.items() if k not in ("RTX 4090", "My GPU")} == {
        k: v for k, v in OURS.items() if k != "RTX 4090"
    }
    monkeypatch.setenv("HEADWAY_PRICES", str(mine))
    assert load_prices() == merged
    assert price_of("RTX 4090", None).usd_per_hour == 9.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('["RTX 4090"]\nmemory_gb = 24\n', r'\["RTX 4090"\] memory_gb'),
        ('["New"]\nmemory_mib = 5\nsource = "box"\n', r'\["New"\] date'),
        ('["New"]\nmemory_mib = 5\nsource = "box"\ndate = "May"\n', r"date: .*isoformat"),
        ('["A40"]\non_demand = {usd_per_hour = 1}\n', r"on_demand.source"),
        ('["A40"]\nmemory_mib = -1\n', r"memory_mib.*-1"),
        ("A40 = 3\n", r'\["A40"\]'),
        ("[A40\n", "is not TOML"),
    ],
)
def test_a_bad_table_is_one_error_that_says_what_is_wrong(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        load_prices(table(tmp_path, text))


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_prices(table(tmp_path, '["A40"]\nx = 1\n["L4"]\ny = 1\n'))
    assert '["A40"] x' in str(caught.value) and '["L4"] y' in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cost.prices: .*none.toml cannot be read"):
        load_prices(tmp_path / "none.toml")


@given(st.floats(0, 1e6), st.sampled_from([None, "RTX 4090", "nobody's"]))
def test_usd_per_hour_always_wins(usd, gpu):
    price = price_of(gpu, usd)
    assert price.usd_per_hour == usd and price.source == "config"


def test_without_usd_per_hour_the_tables_on_demand_price_is_taken_with_its_source():
    price = price_of("NVIDIA A40", None)
    rate = OURS["A40"].on_demand
    assert rate is not None and price.usd_per_hour == rate.usd_per_hour
    assert rate.source in price.source and price.date == rate.date and price.gpu == "A40"


def test_an_unknown_gpu_without_a_rate_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"RTX 4091 is not in .*did you mean RTX 4090"):
        price_of("RTX 4091", None)


def test_a_cost_section_needs_a_rate_or_a_gpu():
    with pytest.raises(ConfigError, match=r"cost: write usd_per_hour, gpu: .*, or provider"):
        RunConfig(**{**TREE, "cost": {"budget_usd": 3}})
    config = RunConfig(**{**TREE, "cost": {"gpu": "A40"}})
    assert config.cost is not None and config.cost.usd_per_hour is None


# ------------------------------------------------------------------ presets


def hardware(**keys):
    return RunConfig(**{**TREE, "hardware": keys}).hardware


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_preset_fills_in_what_the_config_leaves_out(name):
    made, preset = hardware(preset=name), presets()[name]
    assert (made.microbatch_size, made.activation_checkpointing, made.precision) == (
        preset.microbatch_size,
        preset.activation_checkpointing,
        preset.precision,
    )
    assert preset.source and preset.suits


def test_an_explicit_key_supersedes_the_preset():
    made = hardware(preset="RTX 4090", precision="fp32", microbatch_size="auto")
    assert made.precision == "fp32" and made.microbatch_size == "auto"
    assert made.activation_checkpointing is find_preset("rtx4090").activation_checkpointing


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"hardware.preset: .*did you mean rtx4090"):
        hardware(preset="rtx4091")


def test_a_config_with_a_preset_survives_saving_and_loading(tmp_path):
    config = RunConfig(**{**TREE, "hardware": {"preset": "a40", "precision": "fp32"}})
    config.save(tmp_path / "saved.yaml")
    assert RunConfig.load(tmp_path / "saved.yaml") == config
