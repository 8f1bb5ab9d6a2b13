"""Parts of six families: drawn by number, valid, and exact as face graphs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from headway.cli import build_app
from headway.data.cad import FAMILIES, find_family, nearest_valid, one_part, parts, read_parts
from headway.data.cad import write_parts as write
from headway.data.cad.checks import enclosed_volume, refuse_inconsistent, stated_volume
from headway.data.cad.equality import difference, edges_of, shuffled
from headway.data.cad.faces import FACE_TYPES, FEATURES, FILLET, HOLE, drill, graphs_of, prism
from headway.data.cad.families import are_valid, in_mm, normalised, refuse_invalid
from headway.errors import DataError

BRACKET = (100.0, 80.0, 40.0, 6.0, 4.0, 8.0, 30.0, 6.0, 20.0)
seeds = st.integers(0, 2**32 - 1)


# ------------------------------------------------------------------ drawing


@given(seeds, st.integers(0, 10**6))
def test_every_part_is_valid_and_in_its_ranges(seed: int, first: int) -> None:
    family, values = parts(seed, np.arange(first, first + 50))
    for row, index in enumerate(family):
        kind = FAMILIES[index]
        here = values[row : row + 1, : len(kind.parameters)]
        assert are_valid(kind, here)[0]
        for value, parameter in zip(here[0], kind.parameters, strict=True):
            absent = parameter.optional and value == 0
            assert absent or parameter.low <= value <= parameter.high


def test_a_part_is_a_function_of_seed_and_number_alone() -> None:
    family, values = parts(5, np.arange(200))
    for index in (0, 77, 199):
        alone = parts(5, index)
        assert alone[0][0] == family[index] and (alone[1][0] == values[index]).all()
    again = parts(5, np.arange(199, -1, -1))
    assert (again[1][::-1] == values).all()
    assert not (parts(6, np.arange(200))[1] == values).all()


def test_families_and_fillets_come_as_often_as_they_should() -> None:
    family, values = parts(1, np.arange(30_000))
    assert np.abs(np.bincount(family) / 30_000 - 1 / 6).max() < 0.01
    fillets = values[family == 0, 4]
    assert abs((fillets == 0).mean() - 0.25) < 0.03 and fillets[fillets > 0].min() >= 1


@given(st.sampled_from(FAMILIES), st.lists(st.floats(-300, 300), min_size=9, max_size=9))
def test_the_nearest_valid_part_is_valid_and_a_valid_one_is_its_own_nearest(family, raw) -> None:
    found = nearest_valid(family, [raw[: len(family.parameters)]])
    assert are_valid(family, found)[0]
    assert np.abs(nearest_valid(family, found) - found).max() <= 1e-9
    refuse_invalid(family, found[0].tolist())
    shares = normalised(family, found)
    np.testing.assert_allclose(in_mm(family, shares), found, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "values", "said"),
    [
        ("blockhole", (60, 60, 20, 10, 40, 0), "hole_x is 40 mm, not -23 to 23"),
        ("tube", (50, 40, 39), "inner_diameter is 39 mm, not 6 to 36"),
        ("bracket", (*BRACKET[:6], 90, *BRACKET[7:]), "hole1_distance is 90 mm"),
        ("bracket", (*BRACKET[:4], 0.4, *BRACKET[5:]), "fillet is 0.4 mm, not 1 to 8"),
    ],
)
def test_a_hole_that_cuts_nothing_and_other_impossible_parts_are_refused(
    family: str, values: tuple[float, ...], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        one_part(find_family(family), values)


# ------------------------------------------------------------------ graphs


@given(seeds)
def test_the_faces_enclose_the_volume_that_the_dimensions_say(seed: int) -> None:
    graphs = graphs_of(*parts(seed, np.arange(100)))
    refuse_inconsistent(graphs)
    stated = stated_volume(graphs.family, graphs.values)
    np.testing.assert_allclose(enclosed_volume(graphs), stated, rtol=1e-12)


def test_a_forgotten_face_and_a_moved_one_are_seen() -> None:
    """Negative control of the check by volume and count."""
    for spoil in ("missing", "moved", "larger"):
        graphs = one_part(FAMILIES[0], BRACKET)
        if spoil == "missing":
            graphs.types[0, 10] = -1
        elif spoil == "moved":
            graphs.faces[0, 1, FEATURES.index("centroid_x")] += 0.1
        else:
            graphs.faces[0, 8, FEATURES.index("area")] *= 1.01
        with pytest.raises(DataError, match="encloses"):
            refuse_inconsistent(graphs)


def test_a_bracket_is_computed_as_by_hand() -> None:
    graphs = one_part(FAMILIES[0], BRACKET)
    types = [FACE_TYPES[k] for k in graphs.types[0]]
    assert types == ["plane"] * 8 + ["hole", "hole", "fillet"]
    bottom, side, hole, fillet = (graphs.faces[0, k] for k in (0, 6, 8, 10))
    assert bottom[0] == pytest.approx(100 * 40 - math.pi * 16)
    assert side[0] == pytest.approx(100 * 6 + 74 * 6 + (1 - math.pi / 4) * 16)
    assert hole[0] == pytest.approx(math.pi * 8 * 6) and hole[7] == pytest.approx(-1 / 4)
    assert hole[4:7].tolist() == pytest.approx([70 - 50, 0, 3 - 40])
    assert fillet[0] == pytest.approx(math.pi / 2 * 4 * 40) and fillet[7] == pytest.approx(-1 / 4)
    assert (graphs.types[0] == HOLE).sum() == 2 and (graphs.types[0] == FILLET).sum() == 1
    edges = edges_of(graphs, 0)
    assert len(edges) == 50
    assert edges[2, 10].tolist() == pytest.approx([40, math.pi])  # tangent
    assert edges[0, 8].tolist() == pytest.approx([math.pi * 8, math.pi / 2])
    sharp = one_part(FAMILIES[0], (*BRACKET[:4], 0.0, *BRACKET[5:]))
    assert edges_of(sharp, 0)[2, 3].tolist() == pytest.approx([40, 3 * math.pi / 2])


@given(seeds)
def test_every_edge_stands_in_both_directions_and_no_padding_is_an_edge(seed: int) -> None:
    """Seed defects 4(g) 6 and 7: edges one way only, and padded edges as loops on face 0."""
    graphs = graphs_of(*parts(seed, np.arange(30)))
    for row in range(30):
        edges = edges_of(graphs, row)
        faces = int((graphs.types[row] >= 0).sum())
        assert all(0 <= a < faces and 0 <= b < faces and a != b for a, b in edges)
        for (a, b), numbers in edges.items():
            assert (edges[b, a] == numbers).all() and numbers[0] > 0
        padded = graphs.ends[row, len(edges) :]
        assert (padded == -1).all()


def test_a_hole_drilled_by_hand_changes_both_faces_it_goes_through() -> None:
    solid = prism([(0.0, 0.0), (30.0, 0.0), (30.0, 10.0), (0.0, 10.0)], 20.0)
    drill(solid, 0, 2, 2, [10.0, 0.0, 0.0], 4.0)
    assert solid.area[0] == solid.area[2] == pytest.approx(600 - 4 * math.pi)
    assert solid.centroid[0][0] == pytest.approx(
        (15 * 600 - 10 * 4 * math.pi) / (600 - 4 * math.pi)
    )
    assert {(0, 6), (2, 6)} <= set(solid.edges)


# ------------------------------------------------------------------ the folder


def test_any_number_of_workers_and_any_kill_write_the_same_folder(tmp_path: Path) -> None:
    whole, _ = write(tmp_path / "a", count=250, seed=3, shard_rows=100)
    write(tmp_path / "b", count=250, seed=3, shard_rows=100, workers=2)
    write(tmp_path / "c", count=250, seed=3, shard_rows=100)
    # As after a kill: no manifest, one file of three committed, another half written.
    folder = tmp_path / "c"
    manifest = json.loads((folder / "manifest.json").read_text())
    plan = {"kind": "parts", "made_of": manifest["made_of"], "shard_rows": 100, "count": 250}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "rows-00001.json").write_text(json.dumps(manifest["shards"][1]))
    (folder / "manifest.json").unlink()
    (folder / "rows-00000.npz").unlink()
    (folder / ".partial-rows-00002.npz").write_bytes(b"half")
    kept = (folder / "rows-00001.npz").stat().st_mtime_ns
    again, new = write(tmp_path / "c", count=250, seed=3, shard_rows=100)
    assert new and again == whole
    assert (folder / "rows-00001.npz").stat().st_mtime_ns == kept, "what was there is kept"
    files = [
        {f.name: f.read_bytes() for f in sorted((tmp_path / name).iterdir())} for name in "abc"
    ]
    assert files[0] == files[1] == files[2]
    assert write(tmp_path / "a", count=250, seed=3, shard_rows=100) == (whole, False)


def test_another_seed_a_strange_folder_and_a_changed_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", count=50, seed=3)
    with pytest.raises(DataError, match="another kind, seed or count"):
        write(tmp_path / "a", count=50, seed=4)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        write(tmp_path / "b", count=50, seed=3)
    with pytest.raises(DataError, match=r"no manifest\.json"):
        read_parts(tmp_path / "b")
    data = bytearray((tmp_path / "a" / "rows-00000.npz").read_bytes())
    data[-100] ^= 1
    (tmp_path / "a" / "rows-00000.npz").write_bytes(data)
    with pytest.raises(DataError, match="not what was written"):
        read_parts(tmp_path / "a")


def test_the_command_writes_what_it_says(tmp_path: Path) -> None:
    words = ["data", "cad-parts", "--to", str(tmp_path / "p"), "--count", "60", "--seed", "2"]
    done = CliRunner().invoke(build_app(), [*words, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    graphs, sha256 = read_parts(tmp_path / "p")
    assert told["sha256"] == sha256 and len(graphs) == told["parts"] == 60
    computed = graphs_of(*parts(2, np.arange(60)))
    np.testing.assert_allclose(graphs.faces, computed.faces, rtol=1e-6)
    assert "already there" in CliRunner().invoke(build_app(), words).output


# ------------------------------------------------------------------ what is compared with a kernel


def test_graphs_in_another_order_are_the_same_and_other_graphs_are_not() -> None:
    """The comparison itself, which is what the test against the kernel rests on."""
    one = one_part(FAMILIES[0], BRACKET)
    order = np.random.default_rng(0).permutation(11)
    assert difference(one, 0, shuffled(one, order), 0) == ""
    other = one_part(FAMILIES[0], (*BRACKET[:3], 6.01, *BRACKET[4:]))
    assert "no equal" in difference(one, 0, shuffled(other, order), 0)
    spoilt = shuffled(one, order)
    spoilt.edges[0, 7, 1] += 0.1
    assert "edge" in difference(one, 0, spoilt, 0)
