# SPDX-License-Identifier: Apache-2.0
"""Tables and records: they fit a terminal, and no text of a value is markup."""

import io
import re
from collections.abc import Sequence

import pytest
from rich.cells import cell_len

from pmuctl.render.columns import NO_IS_BAD, Column
from pmuctl.render.formats import Format
from pmuctl.render.table import wrap, write_table
from tests.unit.render.things import COLUMNS, THINGS, Thing, written

WORDY = [Thing("a" * 12, 123456, "x" * 60, ("y" * 40,)), Thing("b", 1, "short")]


def fitted(width: int, things: Sequence[Thing] = WORDY) -> list[str]:
    lines = written(Format.TABLE, things, width=width).splitlines()
    assert len(lines) == len(things) + 1
    return lines


@pytest.mark.parametrize("width", [40, 45, 60, 79, 80, 100, 120])
def test_a_table_fits_a_terminal(width: int) -> None:
    lines = fitted(width)
    assert max(map(len, lines)) <= width
    assert ("a" * 12) in lines[1]
    assert "123456" in lines[1]
    assert "…" in lines[1]


def test_the_widest_text_is_shortened_first() -> None:
    line = fitted(108)[1]
    assert "y" * 40 in line
    assert 40 < line.count("x") < 60


def test_a_shortened_word_keeps_its_end_and_a_shortened_sentence_its_beginning() -> None:
    """The end tells armv8_cortex_a53 from armv8_cortex_a72, and one file from another."""
    line = fitted(60, [Thing("a", 1, "armv8_cortex_" * 9 + "a72"), Thing("b", 1, "so " * 60)])
    assert re.search(r"armv8_cortex_.*….*_a72", line[1])
    assert re.search(r"so so.*…", line[2])


@pytest.mark.parametrize("width", [80, 132])
def test_a_long_name_takes_its_own_line_before_it_cuts_others(width: int) -> None:
    things = [Thing("web1", 1, "x" * 30), Thing("n" * (width - 20), 123456, "y" * 30)]
    lines = written(Format.TABLE, things, width=width).splitlines()
    assert lines[2] == "n" * (width - 20)
    assert "y" * 30 in lines[3]
    assert "x" * 30 in lines[1]


def test_prose_in_the_last_column_is_wrapped_below_itself() -> None:
    columns: list[Column[str]] = [
        Column(name="VM", help="x", value=lambda text: "web1"),
        Column(name="MEANS", help="x", value=str, is_prose=True),
    ]
    prose = " ".join(["evidence"] * 20)
    out = io.StringIO()
    write_table(columns, [prose, "short"], out, width=60)
    head, first, *more, short = out.getvalue().splitlines()
    at = head.index("MEANS")
    assert all(len(line) <= 60 and line[:at].strip() == "" for line in more)
    assert " ".join(line[at:] for line in (first, *more)) == prose
    assert short == "web1  short"


def test_where_there_is_room_nothing_is_shortened() -> None:
    assert [its.rstrip() for its in fitted(126)] == written(Format.TABLE, WORDY).splitlines()


@pytest.mark.parametrize("width", [1, 10, 20])
def test_where_it_cannot_fit_nothing_is_cut_off(width: int) -> None:
    assert fitted(width) == written(Format.TABLE, WORDY).splitlines()


def test_characters_two_columns_wide_are_counted_so() -> None:
    thing = Thing("漢字" * 4, 1, "🦀" * 30)
    lines = fitted(50, [thing])
    assert max(map(cell_len, lines)) <= 50
    assert "漢字" * 4 in lines[1]
    whole = fitted(100, [thing])
    assert "🦀" * 30 in whole[1]


@pytest.mark.parametrize("width", [None, 20])
def test_columns_are_aligned_where_nothing_is_shortened(width: int | None) -> None:
    lines = written(Format.TABLE, [Thing("漢字", 1), Thing("plain", 1)], width=width).splitlines()
    assert len({cell_len(line[: line.index("1") + 1]) for line in lines[1:]}) == 1


@pytest.mark.parametrize("width", [36, 40, 60, 80])
def test_a_name_that_leaves_no_room_has_a_line_of_its_own(width: int) -> None:
    """As in df(1): the rest stands below its headings, and no line is wider than the terminal."""
    things = [Thing("web1", 1, "short"), Thing("n" * (width - 4), 123456, "x" * 60)]
    head, short, name, rest = written(Format.TABLE, things, width=width).splitlines()
    assert name == "n" * (width - 4)
    assert max(map(cell_len, (head, short, rest))) <= width
    assert rest.index("123456") + 6 == head.index("SIZE") + 4
    assert rest.split()[1].startswith("x")
    assert short.split()[:2] == ["web1", "1"]


def test_prose_is_wrapped_between_words_and_a_command_is_left_whole() -> None:
    prose = " ".join(["evidence"] * 20)
    lines = wrap(prose, "  why: ", 40).splitlines()
    assert max(map(len, lines)) <= 40
    assert all(line[:7] in ("  why: ", " " * 7) for line in lines)
    assert " ".join(line[7:] for line in lines) == prose
    command = f"pmuctl affinity set {'x' * 80} 2-3"
    assert wrap(command, "  fix: ", 40) == f"  fix: {command}"
    assert wrap(prose, "  why: ", None) == f"  why: {prose}"
    # a word is never broken, but for a list after a comma
    assert wrap(f"a {'w' * 50} b", "", 40).splitlines() == ["a", "w" * 50, "b"]
    items = ",".join(["evidence=1"] * 9)
    lines = wrap(items, "CAPS  ", 40).splitlines()
    assert "".join(line[6:] for line in lines) == items
    assert all(len(line) <= 40 for line in lines)
    # with little room beside a heading, it stands below
    head, *lines = wrap(prose, f"{'h' * 30}  ", 40).splitlines()
    assert (head, " ".join(line[4:] for line in lines)) == ("h" * 30, prose)


def test_words_that_deserve_a_look_have_a_colour_and_are_the_same_words_without() -> None:
    column: Column[str] = Column(name="ALIGNED", help="x", value=str, marks=NO_IS_BAD)
    for width in (None, 60):
        plain, coloured = io.StringIO(), io.StringIO()
        rows = ["yes", "no", "?"]
        write_table([column], rows, plain, width=width)
        write_table([column], rows, coloured, width=width, colour=True)
        assert "\x1b" not in plain.getvalue()
        assert "\x1b[31mno\x1b[0m" in coloured.getvalue()
        assert re.sub(r"\x1b\[[0-9]*m", "", coloured.getvalue()) == plain.getvalue()


def test_only_headings_are_bold() -> None:
    for width in (None, 60):
        out = io.StringIO()
        write_table(COLUMNS, THINGS, out, colour=True, width=width)
        head, *rows = out.getvalue().splitlines()
        assert "\x1b[1m" in head
        assert head.endswith("\x1b[0m")
        assert "\x1b" not in "".join(rows)


def test_markup_and_emoji_names_are_only_text() -> None:
    thing = Thing("[red]x[/red]", 1, ":smile: [link=http://x]y[/link] http://z 123")
    assert "[red]x[/red]" in fitted(90, [thing])[1]
    assert ":smile: [link=http://x]y[/link] http://z 123" in fitted(90, [thing])[1]
