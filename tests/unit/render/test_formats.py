# SPDX-License-Identifier: Apache-2.0
"""Columns, tables and errors as text and JSON, without a command around them."""

import csv
import inspect
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from pmuctl import errors
from pmuctl.errors import ExitStatus, PmuctlError, UsageError
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event_filter import Action
from pmuctl.render.columns import UNKNOWN, Column, as_object, cell, choose, plain
from pmuctl.render.error import write_problem
from pmuctl.render.formats import Format, Layout, write_document, write_one, write_rows
from pmuctl.render.table import write_record, write_table
from pmuctl.render.text import printable, to_json


@dataclass(frozen=True)
class Thing:
    name: str
    size: int | None = 7
    text: str | None = "some words"
    parts: Sequence[str] = ()


PARTS: Sequence[Column[str]] = (Column(name="PART", help="a part", value=lambda its: its),)
COLUMNS: Sequence[Column[Thing]] = (
    Column(name="NAME", help="its name", value=lambda its: its.name),
    Column(name="SIZE", help="its size", value=lambda its: its.size, is_number=True),
    Column(name="LONG-TEXT", help="its text", value=lambda its: its.text),
    Column(name="PARTS", help="its parts", value=lambda its: its.parts, shown=False, nested=PARTS),
)
THINGS = [Thing("one"), Thing("two", None, None, ("a", "b")), Thing("three", 12345, "")]


def names(asked: str | None, *, every: bool = False) -> list[str]:
    return [column.name for column in choose(COLUMNS, asked, every=every)]


def test_the_usual_columns_are_those_that_are_shown() -> None:
    assert names(None) == ["NAME", "SIZE", "LONG-TEXT"]


def test_columns_are_chosen_by_name_in_their_order() -> None:
    assert names("size,name") == ["SIZE", "NAME"]
    assert names("Long_Text, parts") == ["LONG-TEXT", "PARTS"]
    assert names("name,name") == ["NAME"]


def test_a_plus_adds_to_the_usual_ones() -> None:
    assert names("+parts") == ["NAME", "SIZE", "LONG-TEXT", "PARTS"]
    assert names("+name") == ["NAME", "SIZE", "LONG-TEXT"]


def test_every_column_can_be_asked_for() -> None:
    assert names(None, every=True) == names("name", every=True) == [its.name for its in COLUMNS]


@pytest.mark.parametrize(
    ("asked", "message", "fix"),
    [
        ("siez", "siez: no such column", "did you mean SIZE?"),
        ("+prats", "prats: no such column", "did you mean PARTS?"),
        ("zzz", "zzz: no such column", None),
        ("json", "json: -o takes columns", "did you mean -J?"),
        ("CSV", "CSV: -o takes columns", "did you mean --format csv?"),
        ("table", "table: -o takes columns", "did you mean --format table?"),
        ("", "the name of a column is missing", None),
        ("+", "the name of a column is missing", None),
        ("name,,size", "the name of a column is missing", None),
    ],
)
def test_what_is_no_column_is_named(asked: str, message: str, fix: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        choose(COLUMNS, asked, every=False)
    assert (caught.value.message, caught.value.fix) == (message, fix)
    assert "-o takes" in message or "NAME, SIZE" in str(caught.value.why)


@pytest.mark.parametrize(
    ("value", "text", "as_json"),
    [
        (None, "-", None),
        (UNKNOWN, "?", None),
        (True, "yes", True),
        (False, "no", False),
        (0, "0", 0),
        ("", "-", ""),
        ("a b", "a b", "a b"),
        ("a\x1b[2J\n", "a\\x1b[2J\\n", "a\x1b[2J\n"),
        (CpuSet.parse("0-2,5"), "0-2,5", [0, 1, 2, 5]),
        (CpuSet(), "-", []),
        ([], "-", []),
        ((1, None), "1,-", [1, None]),
        ({}, "-", {}),
        ({"a": 1, "b": None}, "a=1,b=-", {"a": 1, "b": None}),
        (Action.DENY, "deny", "deny"),
    ],
)
def test_a_value_as_text_and_as_json(value: object, text: str, as_json: object) -> None:
    assert cell(value) == text
    assert plain(value) == as_json
    assert type(plain(value)) is type(as_json)


def test_a_key_is_the_heading_in_lower_case() -> None:
    assert as_object(COLUMNS, THINGS[1]) == {
        "name": "two",
        "size": None,
        "long_text": None,
        "parts": [{"part": "a"}, {"part": "b"}],
    }


def written(format: Format, things: Sequence[Thing] = THINGS, **layout: int | None) -> str:
    out = io.StringIO()
    write_rows(COLUMNS, things, out, format=format, layout=Layout(**layout))  # type: ignore[arg-type]
    return out.getvalue()


ROWS = [
    ["NAME", "SIZE", "LONG-TEXT", "PARTS"],
    ["one", "7", "some words", "-"],
    ["two", "-", "-", "a,b"],
    ["three", "12345", "-", "-"],
]


def test_a_table_is_aligned_and_has_no_space_at_the_end() -> None:
    assert written(Format.TABLE).splitlines() == [
        "NAME    SIZE  LONG-TEXT   PARTS",
        "one        7  some words  -",
        "two        -  -           a,b",
        "three  12345  -           -",
    ]
    assert written(Format.TABLE, headings=False).splitlines()[0].startswith("one")


def test_csv_is_read_back_by_csv() -> None:
    assert list(csv.reader(io.StringIO(written(Format.CSV)))) == ROWS
    assert list(csv.reader(io.StringIO(written(Format.CSV, headings=False)))) == ROWS[1:]


def test_tsv_is_read_back_at_its_tabs() -> None:
    assert [line.split("\t") for line in written(Format.TSV).splitlines()] == ROWS


def from_raw(line: str) -> list[str]:
    return [
        re.sub(r"\\x([0-9a-f]{2})", lambda its: chr(int(its[1], 16)), word)
        for word in line.split(" ")
    ]


def test_raw_is_read_back_by_its_escapes() -> None:
    assert [from_raw(line) for line in written(Format.RAW).splitlines()] == ROWS


def test_jsonl_is_an_object_a_line() -> None:
    lines = written(Format.JSONL).splitlines()
    assert [json.loads(line) for line in lines] == [as_object(COLUMNS, its) for its in THINGS]


def test_names_are_a_line_each() -> None:
    assert written(Format.NAME).splitlines() == ["one", "two", "three"]


def test_a_document_is_one_line_that_names_its_command() -> None:
    out = io.StringIO()
    write_document("pmu list", {"pmus": []}, out)
    assert out.getvalue().count("\n") == 1
    assert json.loads(out.getvalue()) == {
        "pmuctl": {"schema": 1, "command": "pmu list"},
        "pmus": [],
    }


@given(st.text(), st.text(), st.lists(st.text(), max_size=3))
def test_any_text_parses_back_from_every_format(name: str, text: str, parts: list[str]) -> None:
    thing = Thing(name, 1, text, parts)
    texts = [column.text(thing) for column in COLUMNS]
    assert all(its.isprintable() and its for its in texts)
    (row,) = csv.reader(io.StringIO(written(Format.CSV, [thing], headings=False)))
    assert row == texts
    assert written(Format.TSV, [thing], headings=False).removesuffix("\n").split("\t") == texts
    assert from_raw(written(Format.RAW, [thing], headings=False).removesuffix("\n")) == texts
    assert json.loads(written(Format.JSONL, [thing])) == as_object(COLUMNS, thing)
    for format in Format:
        if format is not Format.JSON:
            its = written(format, [thing], headings=False)
            assert its.count("\n") == 1
            assert all(char.isprintable() for char in its if char not in "\n\t")


def test_a_record_is_a_line_a_column_and_lists_are_tables_below() -> None:
    out = io.StringIO()
    write_one(COLUMNS, THINGS[1], out, format=Format.TABLE, layout=Layout())
    assert out.getvalue().splitlines() == [
        "NAME       two",
        "SIZE       -",
        "LONG-TEXT  -",
        "PARTS",
        "  PART",
        "  a",
        "  b",
    ]
    out = io.StringIO()
    write_record(COLUMNS, THINGS[0], out)
    assert "PARTS" not in out.getvalue()
    out = io.StringIO()
    write_one(COLUMNS, THINGS[0], out, format=Format.NAME, layout=Layout())
    assert out.getvalue() == "one\n"


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


@pytest.mark.parametrize("width", [1, 10, 30, 36])
def test_where_it_cannot_fit_nothing_is_cut_off(width: int) -> None:
    assert fitted(width) == written(Format.TABLE, WORDY).splitlines()


def test_characters_two_columns_wide_are_counted_so() -> None:
    thing = Thing("漢字" * 4, 1, "🦀" * 30)
    lines = fitted(50, [thing])
    assert max(map(cell_len, lines)) <= 50
    assert "漢字" * 4 in lines[1]
    whole = fitted(100, [thing])
    assert "🦀" * 30 in whole[1]


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 漢 🦀", "plain ü 漢 🦀"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("a\r\nb\tc\0", "a\\r\\nb\\tc\\x00"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("a\udcff\udc80", "a\\xff\\x80"),
        ("\ud800\udc00\udfff", "\\ud800\\udc00\\udfff"),
        ("web\u3164\u2800\ufe0f", "web\\u3164\\u2800\\ufe0f"),
        ("\u200b\ufeff", "\\u200b\\ufeff"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_not_printable_is_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_json_has_no_half_of_a_surrogate_pair() -> None:
    """Strict parsers refuse a document that has one anywhere."""
    value = {"a\udcff": ["\udc80", ("\ud800", {"b": "\udfff"})], "n": [1, None, True, "ü🦀"]}
    found = json.loads(to_json(value))
    json.dumps(found, ensure_ascii=False).encode()
    assert found == {
        "a\\xff": ["\\x80", ["\\ud800", {"b": "\\udfff"}]],
        "n": [1, None, True, "ü🦀"],
    }


CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, PmuctlError) and cls is not PmuctlError
]
STATUS = {
    "UsageError": 2,
    "UnreachableError": 3,
    "NotFoundError": 4,
    "SealedError": 5,
    "DeniedError": 6,
    "UnsupportedError": 7,
    "RefusedError": 9,
    "PinnedError": 9,
    "UnknownOutcomeError": 10,
    "OutputError": 74,
}


def test_each_error_has_the_status_that_is_documented() -> None:
    known = {cls.__name__: int(cls.status) for cls in CLASSES if cls.__name__ in STATUS}
    assert known == STATUS
    assert {int(its) for its in ExitStatus} >= {0, 1, 70, 130, 141, 143}
    assert len({its.value for its in ExitStatus}) == len(ExitStatus.__members__)


@pytest.mark.parametrize("cls", CLASSES)
def test_each_error_as_json_is_one_object_with_every_key(cls: type[PmuctlError]) -> None:
    error = cls("it\x1b failed", subject="web1", why="be\ncause", fix="do", errno="EBUSY")
    error.now = "so"
    out = io.StringIO()
    write_problem(error, out, as_json=True)
    assert out.getvalue().count("\n") == 1
    assert "\x1b" not in out.getvalue()
    assert json.loads(out.getvalue()) == {
        "error": {
            "code": cls.status.name.lower(),
            "exit": int(cls.status),
            "object": "web1",
            "errno": "EBUSY",
            "message": "it\x1b failed",
            "why": "be\ncause",
            "now": "so",
            "fix": "do",
        }
    }


def test_an_error_as_text_is_a_line_for_each_thing_it_says() -> None:
    out = io.StringIO()
    error = PmuctlError("it\x1b failed", subject="we\nb", why="be\ncause", now="so", fix="do")
    write_problem(error, out)
    write_problem(PmuctlError("alone"), out, word="warning")
    assert out.getvalue().splitlines() == [
        "error: we\\nb: it\\x1b failed",
        "  why: be\\ncause",
        "  now: so",
        "  fix: do",
        "warning: alone",
    ]
