"""Money is counted over all attempts and never comes back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.cost import Meter, Price, process_age_seconds, spent
from headway.errors import ConfigError

PRICE = Price(usd_per_hour=3.6, gpu="RTX 4090", source="config", date="2026-11-21")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_hour_costs_the_hourly_rate():
    clock = Clock()
    meter = Meter(PRICE, clock=clock)
    assert meter.cost_usd == 0.0
    clock.now += 3600
    assert meter.cost_usd == meter.attempt_usd == pytest.approx(3.6)
    assert meter.usd_for(10) == pytest.approx(0.01)


def test_what_earlier_attempts_and_the_imports_cost_is_counted():
    meter = Meter(PRICE, spent_usd_before=5.0, seconds_before=100, clock=Clock())
    assert meter.cost_usd == pytest.approx(5.1) and meter.attempt_usd == pytest.approx(0.1)


@given(st.lists(st.lists(st.floats(0, 1e4), max_size=5), max_size=5))
def test_over_any_restarts_the_cost_is_the_sum_of_the_time_and_never_falls(attempts):
    journal, seconds, shown = [], 0.0, 0.0
    for steps in attempts:
        clock = Clock()
        meter = Meter(PRICE, spent(journal), clock=clock)
        for took in steps:
            clock.now += took
            seconds += took
            assert meter.cost_usd >= shown
            shown = meter.cost_usd
            journal.append({"event": "step", "cost_usd": shown})
    assert spent(journal) == pytest.approx(seconds / 3600 * 3.6)


def test_a_lost_or_odd_line_never_brings_money_back():
    lines = [{"cost_usd": 2.0}, {"event": "x"}, {"cost_usd": 1.0}, {"cost_usd": "nan"}]
    assert spent(lines) == 2.0
    assert spent([*lines, {"cost_usd": math.nan}, {"cost_usd": math.inf}]) == 2.0
    assert spent([]) == 0.0


@pytest.mark.parametrize("usd", [-0.1, math.nan, math.inf])
def test_a_price_that_would_disarm_the_budget_is_refused(usd):
    with pytest.raises(ConfigError, match="usd_per_hour"):
        Price(usd_per_hour=usd, gpu="x", source="config", date="2026-11-21")


def test_this_process_is_older_than_nothing_and_younger_than_a_day():
    assert 0 <= process_age_seconds() < 86_400


def test_the_tables_price_is_of_one_gpu_and_the_configs_of_the_machine():
    from headway.config import Cost
    from headway.spending import price_now

    one, eight = (price_now(Cost(gpu="A40"), gpus) for gpus in (1, 8))
    assert eight.usd_per_hour == pytest.approx(8 * one.usd_per_hour) and eight.gpu == "8 x A40"
    assert price_now(Cost(gpu="A40", usd_per_hour=3.0), 8).usd_per_hour == 3.0
