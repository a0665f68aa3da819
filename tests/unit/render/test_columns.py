# SPDX-License-Identifier: Apache-2.0
"""Columns: which are chosen, and what a value is as text and as JSON."""

import pytest

from pmuctl.errors import UsageError
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event_filter import Action
from pmuctl.render.columns import UNKNOWN, as_object, cell, choose, plain
from tests.unit.render.things import COLUMNS, THINGS


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
        ("siez", "siez: no such column", "write SIZE"),
        ("+prats", "prats: no such column", "write PARTS"),
        ("zzz", "zzz: no such column", "choose some of these, or -O for all"),
        ("json", "json: -o takes columns", "write -J"),
        ("CSV", "CSV: -o takes columns", "write --format csv"),
        ("table", "table: -o takes columns", "write --format table"),
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
