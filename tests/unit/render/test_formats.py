# SPDX-License-Identifier: Apache-2.0
"""Every format that rows are written in can be read back."""

import csv
import io
import json
import re

from hypothesis import given
from hypothesis import strategies as st

from pmuctl.render.columns import as_object
from pmuctl.render.formats import Format, Layout, write_document, write_one
from pmuctl.render.table import write_record
from tests.unit.render.things import COLUMNS, THINGS, Thing, written

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
