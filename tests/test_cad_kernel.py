"""Real solids: what the CAD kernel builds is what the dimensions say, to STEP and back."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cad_examples import EXAMPLES, named, needs_kernel, on_its_side, solid
from headway.cli import build_app
from headway.data.cad import (
    FAMILIES,
    find_family,
    one_part,
    parts,
    read_parts,
    rows,
    write_parts,
)
from headway.data.cad.equality import compare_with_kernel, difference, kernel_graphs
from headway.data.cad.recognise import part_of_step, recognised
from headway.errors import ConfigError, DataError

pytestmark = needs_kernel
every_family = pytest.mark.parametrize("name", list(EXAMPLES))


# ------------------------------------------------------------------ graphs


@every_family
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), index=st.integers(0, 10**6))
def test_a_solids_graph_is_the_computed_one(name: str, seed: int, index: int) -> None:
    from headway.data.cad.kernel import build, graph_of

    family = find_family(name)
    kinds, values = parts(seed, np.arange(index, index + 60))
    row = int(np.flatnonzero(kinds == FAMILIES.index(family))[0])
    dimensions = values[row, : len(family.parameters)].tolist()
    read = graph_of(build(family, dimensions))
    assert difference(one_part(family, dimensions), 0, read, 0) == ""
    assert recognised(read).values == pytest.approx(dimensions, abs=1e-5)


def test_the_comparison_of_a_folder_covers_every_family_with_and_without_a_fillet() -> None:
    assert compare_with_kernel(seed=1, count=24) == 24
    kinds, values = parts(1, np.arange(24))
    assert set(kinds) == set(range(6))
    assert {bool(r) for r in values[kinds == 0, 4] > 0} == {True, False}


def test_what_is_read_from_solids_stands_in_the_computed_order() -> None:
    family, values = parts(5, np.arange(8))
    read = kernel_graphs(5, 0, 8)
    for row in range(8):
        kind = FAMILIES[family[row]]
        one = one_part(kind, values[row, : len(kind.parameters)].tolist())
        assert (read.types[row] == one.types[0]).all() and (read.ends[row] == one.ends[0]).all()
        np.testing.assert_allclose(read.faces[row], one.faces[0], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(read.edges[row], one.edges[0], rtol=1e-5, atol=1e-4)
        assert not (read.faces[row] == one.faces[0]).all(), "the kernel's own numbers"


# ------------------------------------------------------------------ each feature


def without(name: str, **changed: float) -> Callable[[Any], Any]:
    """The maker's own solid of a family, some dimension impossible so that a feature is lost."""

    def make(cad: Any) -> Any:
        from headway.data.cad.kernel import unchecked

        return unchecked(find_family(name), list((named(name) | changed).values()))

    return make


LOST: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "bracket, hole 1 beside it": ("bracket", without("bracket", hole1_distance=-50)),
    "bracket, hole 2 beside it": ("bracket", without("bracket", hole2_distance=-50)),
    "bracket, no fillet": ("bracket", without("bracket", fillet=0)),
    "bracket, another fillet": ("bracket", without("bracket", fillet=4.1)),
    "tube, no bore": ("tube", lambda cad: cad.Cylinder(20, 90)),
    "channel, solid": ("channel", lambda cad: cad.Box(60, 120, 40)),
    "blockhole, the hole beside it": ("blockhole", without("blockhole", hole_x=500)),
    "blockhole, the hole on its rim": ("blockhole", without("blockhole", hole_x=45)),
    "blockhole, another hole": ("blockhole", without("blockhole", hole_diameter=12.1)),
}


@pytest.mark.parametrize("lost", list(LOST))
def test_a_feature_that_is_not_there_is_an_error(lost: str) -> None:
    """The kernel itself says nothing: the solid is valid and has a volume."""
    from headway.data.cad.kernel import kernel, refuse_another

    name, make = LOST[lost]
    family, spoilt = find_family(name), make(kernel())
    assert spoilt.is_valid and spoilt.volume > 0
    refuse_another(solid(name), family, EXAMPLES[name])
    with pytest.raises(DataError, match="a hole or fillet is missing, or too much"):
        refuse_another(spoilt, family, EXAMPLES[name])


def test_every_solid_that_is_built_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from headway.data.cad import kernel

    monkeypatch.setattr(kernel, "_blockhole", lambda cad, v: kernel._block(cad, v))
    with pytest.raises(DataError, match=r"a blockhole of .* came out with 162000 mm³ and 6 faces"):
        solid("blockhole")


def test_a_hole_that_would_cut_nothing_is_refused_before_the_kernel_is_asked() -> None:
    from headway.data.cad.kernel import build

    with pytest.raises(DataError, match="hole_x is 60 mm, not -37 to 37"):
        build(find_family("blockhole"), (*EXAMPLES["blockhole"][:4], 60.0, 0.0))


# ------------------------------------------------------------------ STEP


@every_family
def test_a_part_comes_back_from_step_with_its_dimensions(name: str, tmp_path: Path) -> None:
    from headway.data.cad.kernel import graph_of_step, write_step

    family, file = find_family(name), tmp_path / "part.step"
    write_step(file, family, EXAMPLES[name])
    assert difference(one_part(family, EXAMPLES[name]), 0, graph_of_step(file), 0) == ""
    found = part_of_step(file)
    assert found.family == family and found.values == pytest.approx(EXAMPLES[name], abs=1e-5)
    assert not found.turned and [f.name for f in tmp_path.iterdir()] == ["part.step"]


def in_inches(cad: Any, part: Any, file: Path) -> None:
    cad.export_step(part.scale(1 / 25.4), file)
    mm = "( LENGTH_UNIT() NAMED_UNIT(*) SI_UNIT(.MILLI.,.METRE.) );"
    text = file.read_text()
    assert mm in text
    inch = (
        "( CONVERSION_BASED_UNIT('INCH',#9001) LENGTH_UNIT() NAMED_UNIT(#9003) );\n"
        "#9001 = LENGTH_MEASURE_WITH_UNIT(LENGTH_MEASURE(25.4),#9002);\n"
        f"#9002 = {mm}\n"
        "#9003 = DIMENSIONAL_EXPONENTS(1.,0.,0.,0.,0.,0.,0.);"
    )
    file.write_text(text.replace(mm, inch))


def elsewhere(cad: Any, part: Any, file: Path) -> None:
    cad.export_step(cad.Pos(1000, -500, 70) * part, file)


def in_halves(cad: Any, part: Any, file: Path) -> None:
    """As many programs write it: what is round in two halves."""
    halves = part.split(cad.Plane.XZ, keep=cad.Keep.ALL).solids()
    with cad.SkipClean():
        both = halves[0].fuse(*halves[1:])
    assert len(both.solids()) == 1 and len(both.faces()) > len(part.faces())
    cad.export_step(both, file)


@pytest.mark.parametrize("written", [in_inches, elsewhere, on_its_side, in_halves])
@pytest.mark.parametrize("name", ["bracket", "tube"])
def test_a_part_that_another_program_wrote_is_the_same_part(
    name: str, written: Callable[..., None], tmp_path: Path
) -> None:
    from headway.data.cad.kernel import kernel

    written(kernel(), solid(name), tmp_path / "theirs.step")
    found = part_of_step(tmp_path / "theirs.step")
    assert found.family.name == name and found.turned == (written is on_its_side)
    assert sorted(found.values) == pytest.approx(sorted(EXAMPLES[name]), abs=1e-4)


def two_parts(cad: Any) -> Any:
    return cad.Compound(children=[cad.Box(30, 30, 30), cad.Pos(100, 0, 0) * cad.Box(30, 30, 30)])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda cad: cad.Sphere(10), "a face of kind SPHERE is on none of the parts"),
        (lambda cad: cad.Cone(10, 5, 20), "a face of kind CONE is on none of the parts"),
        (lambda cad: cad.Rot(0, 0, 30) * cad.Box(60, 50, 40), "do not lie along x, y and z"),
        (lambda cad: cad.Box(600, 50, 40), "length is 600 mm, not 20 to 150"),
        (lambda cad: cad.Box(60, 50, 40) - cad.Pos(30, 25, 0) * cad.Box(20, 10, 50),
         "no family has faces like these: 8 plane"),
        (two_parts, "holds 2 solids; one part was expected"),
    ],
)  # fmt: skip
def test_a_solid_that_is_no_part_is_refused_in_words(
    make: Callable[[Any], Any], said: str, tmp_path: Path
) -> None:
    from headway.data.cad.kernel import kernel

    kernel().export_step(make(kernel()), tmp_path / "x.step")
    with pytest.raises(DataError, match=said):
        part_of_step(tmp_path / "x.step")


def test_a_file_that_is_no_step_or_only_half_of_one_is_refused(tmp_path: Path) -> None:
    from headway.data.cad.kernel import write_step

    whole = tmp_path / "whole.step"
    write_step(whole, find_family("block"), EXAMPLES["block"])
    text = whole.read_text()
    for name, content in (("half", text[: len(text) // 2]), ("none", "a thesis"), ("empty", "")):
        file = tmp_path / f"{name}.step"
        file.write_text(content)
        with pytest.raises(DataError, match=f"{name}.step"):
            part_of_step(file)
    with pytest.raises(DataError, match="there is no such file"):
        part_of_step(tmp_path / "nowhere.step")


# ------------------------------------------------------------------ many parts


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_solids_are_the_same_by_any_number_of_processes_and_continue_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    made = rows.kernel_part_arrays

    def killed_at_the_third_file(seed: int, first: int, count: int) -> Any:
        seen.append(first)
        if first == 6:
            raise KeyboardInterrupt
        return made(seed, first, count)

    given: Any = {"count": 18, "seed": 3, "shard_rows": 3, "kernel": True}
    with monkeypatch.context() as patched:
        patched.setattr(rows, "kernel_part_arrays", killed_at_the_third_file)
        with pytest.raises(KeyboardInterrupt):
            write_parts(tmp_path / "b", **given)
    assert seen == [0, 3, 6] and not (tmp_path / "b" / "manifest.json").exists()
    kept = [(tmp_path / "b" / f"rows-0000{n}.npz").stat().st_mtime_ns for n in (0, 1)]
    _, new = write_parts(tmp_path / "b", **given)
    again = [(tmp_path / "b" / f"rows-0000{n}.npz").stat().st_mtime_ns for n in (0, 1)]
    assert new and again == kept, "what was there is kept"
    words = ["data", "cad-parts", "--count", "18", "--seed", "3", "--rows-per-file", "3"]
    said = CliRunner().invoke(
        build_app(), [*words, "--kernel", "--workers", "2", "--to", str(tmp_path / "a"), "--json"]
    )
    assert said.exit_code == 0, (said.output, said.exception)
    assert json.loads(said.output)["made_with"].startswith("build123d ")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_solids_and_computed_parts_are_the_same_rows_of_another_make(tmp_path: Path) -> None:
    write_parts(tmp_path / "solid", count=8, seed=3, kernel=True)
    write_parts(tmp_path / "computed", count=8, seed=3)
    solids, computed = read_parts(tmp_path / "solid")[0], read_parts(tmp_path / "computed")[0]
    assert (solids.values == computed.values).all() and (solids.ends == computed.ends).all()
    np.testing.assert_allclose(solids.faces, computed.faces, rtol=1e-5, atol=1e-4)
    with pytest.raises(DataError, match="another kind, seed or count"):
        write_parts(tmp_path / "solid", count=8, seed=3)


def test_without_a_kernel_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "build123d", None)
    with pytest.raises(ConfigError, match=r"pip install 'headway\[cad\]'"):
        solid("block")
