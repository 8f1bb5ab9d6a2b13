"""A page as text: what is written is read back, and a broken answer still says something."""

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headway.data.page_text import (
    Boxes,
    Grid,
    Lines,
    Pairs,
    Title,
    fields,
    fields_of,
    markdown,
    normalised,
)

SIGNS = string.ascii_letters + string.digits + " .,;'\"()[]/&<>@#%+-=*_|°ÅäΩ中"
WORD = st.text(SIGNS, max_size=20).map(lambda text: " ".join(text.split()))
"""What stands in a table: any sign, also those that HTML means something by."""
NAMED = WORD.filter(bool)
PLAIN = st.text(string.ascii_letters + string.digits + " .,()/&°", min_size=1, max_size=20)
LABEL = PLAIN.map(lambda text: " ".join(text.split())).filter(bool)
"""What stands before a colon or behind a box."""
LINE_VALUE = WORD.filter(lambda text: "<" not in text)
TITLE = st.just("") | NAMED

lines = st.lists(st.tuples(LABEL, LINE_VALUE), min_size=1, max_size=4).map(tuple).map(Lines)
boxes = st.builds(Boxes, LABEL, st.lists(st.tuples(LABEL, st.booleans()), min_size=1).map(tuple))
heading = st.text(string.ascii_letters + " ", min_size=1).map(lambda t: " ".join(t.split()))


@st.composite
def pairs(draw):
    label = NAMED.filter(lambda text: not text.endswith(":"))
    row = st.lists(st.tuples(label, WORD), min_size=1, max_size=3).map(tuple)
    return Pairs(tuple(draw(st.lists(row, min_size=1, max_size=4))), draw(TITLE))


@st.composite
def grids(draw):
    width = draw(st.integers(1, 3))
    columns = draw(st.lists(NAMED, min_size=width, max_size=width))
    row = st.tuples(NAMED, *[WORD] * width)
    rows = draw(st.lists(row, min_size=1, max_size=4))
    return Grid(draw(NAMED), tuple(columns), tuple(rows), draw(TITLE))


part = heading.filter(bool).map(Title) | lines | boxes | pairs() | grids()


@given(st.lists(part, max_size=5))
def test_what_is_written_is_read_back(parts):
    assert fields_of(markdown(parts)) == fields(parts)


def test_a_cell_that_is_not_escaped_would_be_seen(monkeypatch):
    """Negative control."""
    import headway.data.page_text as page_text

    monkeypatch.setattr(page_text, "_escaped", lambda text: text)
    parts = [Pairs(((("RM", "<td>2"),),))]
    assert fields_of(markdown(parts)) != fields(parts)


TAGGED = st.lists(
    st.sampled_from(
        [
            "<table>",
            "</table>",
            "<tr>",
            "<td",
            "<th>",
            "</td>",
            ">",
            "<",
            "&amp;",
            "&lt;",
            "td",
            "&",
            "lt;",
            " ",
            "\n",
            "x",
            "7",
            "☑",
            ":",
            "# ",
            "<td colspan=2>",
            "&amp;lt;",
            "| ",
        ]
    )
).map("".join)


@given(st.text() | TAGGED)
@example("<td<td>>")
@example("&amp;lt;td&amp;gt;")
def test_normalising_twice_is_normalising_once(text):
    assert normalised(normalised(text)) == normalised(text)


@given(st.text() | TAGGED)
def test_reading_fields_never_fails(text):
    assert all(isinstance(n, str) and isinstance(v, str) for n, v in fields_of(text))


@given(st.lists(part, min_size=1, max_size=4), st.integers(0, 400))
def test_a_page_cut_anywhere_keeps_the_fields_that_were_whole(parts, cut):
    """All but those at the cut: a row's or a line's."""
    whole = markdown(parts)
    text = whole[:cut]
    read, true = fields_of(text), fields_of(whole)
    most = 1 + max(len(p.columns) if isinstance(p, Grid) else len(getattr(p, "rows", [[0]])[0])
                   if isinstance(p, Pairs) else len(p.boxes) if isinstance(p, Boxes) else 1
                   for p in parts)  # fmt: skip
    kept = max(0, len(read) - most)
    assert read[:kept] == true[:kept]


@given(st.lists(part, min_size=1, max_size=4), st.sampled_from(["\n", "  ", "\t\n "]))
def test_white_space_between_cells_and_rows_costs_nothing(parts, space):
    text = markdown(parts)
    spread = re.sub(r"(</t[rdh]>|<tr>)", rf"\1{space}", text)
    assert normalised(spread) == normalised(text)
    assert fields_of(spread) == fields_of(text)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("", []),
        ("TIME: 21:30", [("TIME", "21:30")]),
        ("**Well:** A 1", [("Well", "A 1")]),
        ("- **Well**: A 1", [("Well", "A 1")]),
        ("only words", []),
        ("☑ GR ☐ SP", [("GR", "☑"), ("SP", "☐")]),
        ("<table><tr><td>Well:</td><td>A&amp;B", [("Well", "A&B")]),
        (
            "<table><thead><tr><th>Run<th>1<th>2</thead><tr><td>BS<td>7<td>8</table>",
            [("BS / 1", "7"), ("BS / 2", "8")],
        ),
        ("<TABLE><TR><TH>Logs</TH><TD>☑ GR<br>☐ SP</TD></TR></TABLE>",
         [("Logs / GR", "☑"), ("Logs / SP", "☐")]),
    ],
)  # fmt: skip
def test_other_ways_to_write_it_are_read_too(answer, found):
    assert fields_of(answer) == found
