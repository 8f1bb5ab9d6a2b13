"""The worst parts and edits: what is said of them, and that what is drawn is what was made."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cases import tree_of
from exact_edits import Exact, exact_rows, written
from headway.api import train
from headway.config import RunConfig
from headway.data.cad import FAMILIES, graphs_of, parts
from headway.data.cad.picture import AFTER, BEFORE, Drawn, drawn
from headway.recipes.cad_view import worst_edits, worst_parts
from headway.recipes.edit_rows import NAMES, WrittenEdits
from headway.recipes.graph_rows import GraphRows
from headway.records import Picture, RowLoss
from headway.track import Measurement
from headway.track.tables import pictures
from headway.viewing import write_report

pytestmark = pytest.mark.usefixtures("own_cache")
BLOCK, TUBE = (next(f for f in FAMILIES if f.name == name) for name in ("block", "tube"))
ROWS = tuple(RowLoss(row=row, loss=3.0 - row, weight=1.0) for row in range(3))


def marked(picture: bytes, colour: str) -> np.ndarray:
    """[height, width]: where a picture has about this colour."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    return np.abs(pixels - wanted).max(2) < 60


def extent(mask: np.ndarray) -> tuple[int, int]:
    rows, columns = np.nonzero(mask)
    return int(np.ptp(rows)), int(np.ptp(columns))


def test_parts_are_drawn_to_one_scale() -> None:
    small = np.array([50.0, 40.0, 30.0])
    picture = drawn([Drawn("a", BLOCK, small, BEFORE), Drawn("b", BLOCK, 2 * small, AFTER)])
    half = marked(picture, AFTER).shape[1] // 2
    one, other = marked(picture, BEFORE)[56:, :half], marked(picture, AFTER)[56:, half:]
    for ours, theirs in zip(extent(one), extent(other), strict=True):
        assert theirs == pytest.approx(2 * ours, rel=0.06)
    assert len(picture) < 60_000


# ------------------------------------------------------------------ parts


def said_of(held: GraphRows, family: np.ndarray, shares: np.ndarray, sure: float) -> dict[int, Any]:
    """As ``measure`` tells it of an autoencoder that reads ``Exact`` latents."""
    z = np.zeros((len(held), 15))
    z[np.arange(len(held)), family] = sure
    z[:, 6:] = shares
    return {row: {"latent": z[row], "error_mm": float(row)} for row in range(len(held))}


def test_a_part_is_shown_beside_what_its_latent_is_read_as() -> None:
    held = GraphRows.of(graphs_of(*parts(0, np.arange(3))))
    said = said_of(held, held.graphs.family, held.shares, sure=20.0)
    for row in worst_parts(Exact(), held, ROWS, said):
        family = FAMILIES[held.graphs.family[row.row]]
        shown = row.shown
        assert shown["prompt"] == family.name and shown["error"] == row.row
        assert shown["prediction"] == f"{family.name}: {shown['reference']}"
        assert shown["length"] == (held.graphs.types[row.row] >= 0).sum()
        assert isinstance(shown["parts"], Picture) and "no difference" in shown["parts"].says
        assert "suspicious" not in shown
    assert worst_parts(Exact(), held, (), said) == ()


@pytest.mark.parametrize(("sure", "doubted"), [(20.0, True), (1.0, False)])
def test_a_part_that_is_surely_read_as_another_family_is_suspicious(
    sure: float, doubted: bool
) -> None:
    held = GraphRows.of(graphs_of(*parts(0, np.arange(3))))
    other = (held.graphs.family + 1) % len(FAMILIES)
    for row in worst_parts(Exact(), held, ROWS, said_of(held, other, held.shares, sure)):
        name = FAMILIES[other[row.row]].name
        assert row.shown["prediction"].startswith(f"{name}: ")
        assert row.shown["parts"].says.endswith(f"read as a {name}")
        assert ("suspicious" in row.shown) is doubted


@pytest.mark.parametrize("share", [np.nan, np.inf, 1e6])
def test_what_is_no_part_at_all_is_said_and_not_drawn(share: float) -> None:
    held = GraphRows.of(graphs_of(*parts(0, np.arange(3))))
    said = said_of(held, held.graphs.family, held.shares * 0 + share, sure=20.0)
    for row in worst_parts(Exact(), held, ROWS, said):
        assert "parts" not in row.shown and row.shown["prediction"]


# ------------------------------------------------------------------ edits


def answers(rows: WrittenEdits, delta: np.ndarray, way: float = 1.0) -> dict[int, Any]:
    """As ``measure`` tells it of an editor that understands everything, and makes ``delta``."""
    return {
        row: {
            "amounts": dict(zip(NAMES, rows.amounts[row].tolist(), strict=True)),
            "direction": way * 9.0 * float(np.sign(rows.amounts[row].sum())),
            "delta": delta[row],
        }
        for row in range(len(rows))
    }


def changing(rows: WrittenEdits) -> tuple[RowLoss, ...]:
    """Rows that change one dimension."""
    found = [row for row in range(len(rows)) if np.count_nonzero(rows.amounts[row]) == 1]
    return tuple(RowLoss(row=row, loss=1.0, weight=1.0) for row in found[:3])


def test_an_edit_is_drawn_before_as_wanted_and_as_it_was_made(tmp_path: Path) -> None:
    rows = written(exact_rows(40), tmp_path)
    truth = rows.edits.z_tgt - rows.edits.z_src
    worst = changing(rows)
    right = worst_edits(rows, worst, answers(rows, truth), Exact())
    wrong = worst_edits(rows, worst, answers(rows, truth * 0), Exact())
    for good, bad in zip(right, wrong, strict=True):
        shown = good.shown
        assert shown["prompt"] == rows.edits.instructions[good.row]
        assert shown["reference"][:-6] == shown["prediction"][:-6] != "no change"
        assert shown["error"] == pytest.approx(0, abs=1e-3) and "suspicious" not in shown
        assert shown["parts"].says.endswith("no difference")
        (name,) = rows.edits.changes[good.row]
        assert f"{name} " in bad.shown["parts"].says and " in place of " in bad.shown["parts"].says
        assert bad.shown["error"] > 0.1 and bad.shown["parts"].data != shown["parts"].data


def test_an_edit_whose_label_says_the_other_way_is_suspicious(tmp_path: Path) -> None:
    rows = written(exact_rows(40), tmp_path)
    worst, delta = changing(rows), rows.edits.z_tgt - rows.edits.z_src
    for row in worst_edits(rows, worst, answers(rows, delta, way=-1.0), Exact()):
        assert "and the model is sure of" in row.shown["suspicious"]
    for row in worst_edits(rows, worst, answers(rows, delta, way=-0.1), Exact()):
        assert "suspicious" not in row.shown


def test_an_edit_is_told_in_words_where_no_part_is_known_or_none_can_be_read(
    tmp_path: Path,
) -> None:
    rows = written(exact_rows(40), tmp_path)
    worst = changing(rows)
    said = answers(rows, rows.edits.z_tgt - rows.edits.z_src)
    name = next(iter(rows.edits.changes[worst[0].row]))
    said[worst[0].row]["amounts"][name] += 7.0
    unsaid = replace(
        rows.edits, family=np.full(40, -1), values=np.full_like(rows.edits.values, np.nan)
    )
    for held, vae in ((rows, None), (WrittenEdits(unsaid, rows.text), Exact())):
        found = worst_edits(held, worst, said, vae)
        assert all("parts" not in row.shown for row in found)
        assert [round(row.shown["error"], 3) for row in found] == [7.0, 0.0, 0.0]


def test_parts_of_a_run_are_in_its_report_and_with_its_trackers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    train(RunConfig(**tree_of("latent_editor-full", tmp_path)))
    run = tmp_path / "runs/run"
    lines = (run / "evals/step-00000004/worst.jsonl").read_text().splitlines()
    named = [json.loads(line)["shown"].get("parts") for line in lines]
    assert len(named) == 2 and any(named)
    page = write_report(run).read_text()
    assert page.count('<img src="data:image/png') == sum(map(bool, named))
    orders = [f'value="{order}"' in page for order in ("loss", "error", "length")]
    assert orders[:2] == [True, True]
    drawn_there = list(pictures(run, Measurement(4, 0.0, {}, [{"row": 1}])))
    assert len(drawn_there) == sum(map(bool, named))
