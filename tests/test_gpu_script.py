"""``benchmarks/gpu.py`` on the CPU with tiny shapes: the same code, every row of its table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark_scripts import script

ROOT = Path(__file__).parent.parent


plan = script("gpu_plan")
gpu = script("gpu")


def ran(out: Path, *more: str) -> str:
    environment = {**os.environ, "PYTHONPATH": "src:.", "OUT": str(out), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "--device", "cpu", *more]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (out / "gpu.md").read_text()
    assert text in done.stdout
    return text


def rows(text: str) -> dict[str, str]:
    """What a row is of -> the rest of it."""
    found = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.strip("|").split(" | ")]
        if parts[0] in ("headway", "trl"):
            found[" | ".join(parts[:4])] = " | ".join(parts[4:])
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_planned_cell_has_a_row_measured_or_with_its_reason(tmp_path: Path) -> None:
    found = rows(ran(tmp_path))
    for cell in plan.planned(plan.TINY):
        row = found.pop(cell.name)
        if plan.absent(cell):
            assert "skipped: not installed here" in row
        elif cell.resume:
            assert "bit-equal" in row
        else:
            assert "–" not in row and "FAILED" not in row, f"{cell.name}: {row}"
    assert not found, "a row that was never planned"


def test_without_time_every_cell_is_dropped_aloud(tmp_path: Path) -> None:
    found = rows(ran(tmp_path, "--minutes", "0"))
    assert list(found) == [cell.name for cell in plan.planned(plan.TINY)]
    assert all("DROPPED" in row or "skipped" in row for row in found.values())


def test_a_missing_package_is_named_in_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "importable", lambda name: name not in ("pydantic", "bitsandbytes"))
    cells = plan.planned(plan.REAL)
    text = gpu.table(cells, {}, {}, plan.REAL)
    assert len(rows(text)) == len(cells) == len({cell.name for cell in cells})
    plain = next(c for c in cells if c.side == "headway" and c.tuning == "lora")
    assert plan.absent(plain) == ["pydantic"]
    assert "not installed here: pydantic" in rows(text)[plain.name]


def test_the_share_of_the_matrix_rate_is_model_flops_over_it() -> None:
    result: dict[str, Any] = {"tokens": 100, "seconds": 2.0, "flops": 4e12, "peak_bytes": 5e9}
    assert gpu.figures(result, 8e12) == "50 | 2 | 25.0 % | 5.00"


def test_frozen_weights_cost_two_thirds_of_trained_ones() -> None:
    rows_of_one = [[list(range(64))]]
    full, lora = (
        script("gpu_cells").flops_a_token(
            plan.Cell("headway", "1.2B", tuning, 1), rows_of_one, tiny=True
        )
        for tuning in ("full", "lora")
    )
    hidden, ffn, vocabulary, layers = 32, 64, 96, 2
    layer = 4 * hidden**2 + 2 * hidden * ffn
    attention = 12 * layers * hidden * 65 / 2
    assert full == 6 * (layers * layer + vocabulary * hidden) + attention
    adapters = layers * 16 * ((4 * hidden) + (2 * hidden) + 2 * (hidden + ffn))
    assert lora == 4 * (layers * layer + vocabulary * hidden) + 6 * adapters + attention
