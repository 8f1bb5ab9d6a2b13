"""Parts read off their faces: every family, lying any way; what is none of them is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.data.cad import FAMILIES, Graphs, find_family, one_part, parts
from headway.data.cad.equality import difference
from headway.data.cad.faces import FEATURES, HOLE
from headway.data.cad.recognise import recognised, rotated, rotations
from headway.errors import DataError

BRACKET = (100.0, 80.0, 40.0, 6.0, 4.0, 8.0, 30.0, 6.0, 20.0)
BLOCKHOLE = (90.0, 60.0, 30.0, 12.0, 10.0, -5.0)
numbers = st.integers(0, 10**6)


@given(st.integers(0, 2**32 - 1), numbers)
def test_a_part_as_it_lies_here_is_read_to_its_own_dimensions(seed: int, index: int) -> None:
    family, values = parts(seed, index)
    kind = FAMILIES[family[0]]
    mine = values[0, : len(kind.parameters)]
    found = recognised(one_part(kind, mine.tolist()))
    assert found.family == kind and not found.turned
    np.testing.assert_allclose(found.values, mine, atol=1e-6)


@given(st.integers(0, 2**32 - 1), numbers, st.integers(1, 23))
def test_a_turned_part_is_the_same_part(seed: int, index: int, way: int) -> None:
    """Its dimensions may go by other names: a block on its side has another height."""
    family, values = parts(seed, index)
    kind = FAMILIES[family[0]]
    graph = one_part(kind, values[0, : len(kind.parameters)].tolist())
    turns = list(rotations())
    lying = rotated(graph, 0, turns[way])
    found = recognised(lying)
    assert found.family == kind
    back = one_part(found.family, found.values)
    assert found.turned == (difference(back, 0, lying, 0) != "")
    assert any(difference(back, 0, rotated(lying, 0, turn), 0) == "" for turn in turns)


def moved_face(graph: Graphs) -> None:
    graph.faces[0, 1, FEATURES.index("centroid_x")] += 0.1


def slanted_hole(graph: Graphs) -> None:
    hole = int(np.flatnonzero(graph.types[0] == HOLE)[0])
    graph.faces[0, hole, 1:4] = (0.0, np.sqrt(0.5), np.sqrt(0.5))


def one_edge_longer(graph: Graphs) -> None:
    graph.edges[0, 0, 0] += 0.1


def one_hole_more(graph: Graphs) -> None:
    graph.types[0, int(np.flatnonzero(graph.types[0] < 0)[0])] = HOLE


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (moved_face, "has the faces of a blockhole, and is none"),
        (slanted_hole, "do not lie along x, y and z"),
        (one_edge_longer, "and is none: edge"),
        (one_hole_more, "no family has faces like these: 6 plane, 2 hole"),
    ],
)
def test_what_only_looks_like_a_part_is_refused(spoil: Callable[[Graphs], None], said: str) -> None:
    graph = one_part(find_family("blockhole"), BLOCKHOLE)
    recognised(graph)
    spoil(graph)
    with pytest.raises(DataError, match=said):
        recognised(graph)


def test_a_part_beyond_its_ranges_is_refused_with_what_it_may_be() -> None:
    graph = one_part(find_family("block"), (150.0, 60.0, 30.0))
    for column, share in (("area", 2), ("centroid_x", 2), ("extent_x", 2)):
        along = FEATURES.index(column)
        graph.faces[0, :, along] *= share  # every face along x, and those across it too
    with pytest.raises(DataError, match="length is 300 mm, not 20 to 150"):
        recognised(graph)


def test_there_are_24_ways_to_lie_and_the_first_is_as_it_is() -> None:
    turns = list(rotations())
    assert len({turn.tobytes() for turn in turns}) == 24
    assert (turns[0] == np.eye(3)).all()
    graph = one_part(find_family("bracket"), BRACKET)
    assert recognised(graph).values == BRACKET
