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
    assert "x" * 30 in line
    assert "x" * 60 not in line


def test_where_there_is_room_nothing_is_shortened() -> None:
    assert [its.rstrip() for its in fitted(126)] == written(Format.TABLE, WORDY).splitlines()


@pytest.mark.parametrize("width", [1, 10, 25])
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
    # a word is never broken, and 20 characters of room are needed
    assert wrap(f"a {'w' * 50} b", "", 40).splitlines() == ["a", "w" * 50, "b"]
    assert wrap(prose, " " * 30, 40) == " " * 30 + prose


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
