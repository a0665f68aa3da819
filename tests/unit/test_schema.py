# SPDX-License-Identifier: Apache-2.0
"""The kinds of value in documents: what each takes and makes, and what it says otherwise."""

import contextlib
import json
import re
from collections.abc import Mapping
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmuctl.model.cpuset import CpuSet
from pmuctl.schema import (
    LIST_MAX,
    AnyValue,
    Bool,
    Constant,
    Int,
    Kind,
    List,
    Maybe,
    Nullable,
    NumberMap,
    Obj,
    SchemaError,
    Str,
    Struct,
    Tuple,
)
from pmuctl.value import field, value
from tests.fakes.strategies import JSON, QUICKLY

PAIR: Mapping[str, Kind | Maybe] = {"a": Int(), "b": Maybe(Bool())}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Int(), 0),
        (Int(), (1 << 63) - 1),
        (Int(least=2, most=3), 3),
        (AnyValue(), [None, {"a": 1.5}]),
        (Constant(2), 2),
        (Bool(), False),
        (Str(), ""),
        (Str(), "\x1b\u202e"),
        (Str(most=2), "\U0001f600" * 2),
        (Str(words=("a", "b")), "b"),
        (Str(form=re.compile("a+")), "aa"),
        (List(Int()), []),
        (List(Int()), [1] * LIST_MAX),
        (Tuple((Int(), Bool())), [1, True]),
        (Nullable(Int()), None),
        (Nullable(Int()), 1),
        (Obj(PAIR), {"a": 1}),
        (Obj(PAIR), {"b": True, "a": 1}),
        (Obj(PAIR, is_open=True), {"a": 1, "later": []}),
        (NumberMap(Bool()), {"0": True, "12": False}),
    ],
)
def test_a_kind_takes_what_it_names(kind: Kind, value: object) -> None:
    kind.check(value, "x")


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (Int(), True, "x: a whole number is expected"),
        (Int(), 1.0, "x: a whole number is expected"),
        (Int(), "1", "x: a whole number is expected"),
        (Int(), None, "x: a whole number is expected"),
        (Int(), -1, "x: must be 0-9223372036854775807"),
        (Int(most=31), 10**4000, "x: must be 0-31"),
        (Constant(2), 3, "x: must be 2-2"),
        (Constant(1), True, "x: a whole number is expected"),
        (Bool(), 0, "x: true or false is expected"),
        (Str(), 1, "x: a text is expected"),
        (Str(most=2), "abc", "x: longer than 2 characters"),
        (Str(), "a\ud800", "x: has half a surrogate pair"),
        (Str(words=("a", "b")), "A", "x: one of a, b is expected"),
        (Str(form=re.compile("a+")), "aa\n", "x: not of the form a+"),
        (List(Int()), {}, "x: a list is expected"),
        (List(Int(), least=1), [], "x: must have 1-4096 elements"),
        (List(Int()), [1] * (LIST_MAX + 1), "x: must have 0-4096 elements"),
        (List(List(Int())), [[], [1, "2"]], "x[1][1]: a whole number is expected"),
        (Tuple((Int(), Bool())), [1], "x: a list of 2 is expected"),
        (Tuple((Int(), Bool())), [1, 2], "x[1]: true or false is expected"),
        (Nullable(Int()), False, "x: a whole number is expected"),
        (Obj(PAIR), [], "x: an object is expected"),
        (Obj(PAIR), {}, "x.a: is missing"),
        (Obj(PAIR), {"a": 1, "b": None}, "x.b: true or false is expected"),
        (Obj(PAIR), {"a": 1, "c": 1}, "x.c: is not known here"),
        (Obj({}), {"c" * 99: 1}, f"x.{'c' * 64}: is not known here"),
        (Obj(PAIR, is_open=True), {"later": 1}, "x.a: is missing"),
        (NumberMap(Int()), [], "x: an object is expected"),
        (NumberMap(Int()), {"8": True}, "x.8: a whole number is expected"),
        (NumberMap(Int()), {"8x": 1}, "x: 8x is no number"),
        (NumberMap(Int()), {" 8 ": 1}, "x:  8  is no number"),
        (NumberMap(Int()), {"-1": 1}, "x: -1 is no number"),
        (NumberMap(Int()), {"1_0": 1}, "x: 1_0 is no number"),
        (NumberMap(Int()), {"\u0663": 1}, "x: \u0663 is no number"),
    ],
)
def test_a_refusal_says_where_and_what(kind: Kind, value: object, words: str) -> None:
    with pytest.raises(SchemaError) as caught:
        kind.check(value, "x")
    assert str(caught.value) == words


class Point(NamedTuple):
    """A class that is no class of values."""

    x: int
    y: int = 5


@value(kw_only=True)
class Thing:
    """A field of each kind."""

    name: str
    is_good: bool
    cpus: CpuSet | None
    numbers: frozenset[int] = frozenset()
    points: tuple[Point, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    later_one: int = 7


POINT = Struct({"x": Int(), "y": Maybe(Int())}, cls=Point)
THING = Struct(
    {
        "format": Constant(3),
        "name": Str(most=9),
        "good": Bool(),
        "cpus": Nullable(Str(make=CpuSet.parse, unmake=str)),
        "numbers": List(Int(), make=frozenset, unmake=sorted),
        "points": List(POINT, make=tuple),
        "sizes": List(Tuple((Str(), Int())), make=dict, unmake=dict.items),
        "later-one": Maybe(Int()),
    },
    is_open=True,
    cls=Thing,
    fields={"good": "is_good"},
)
THINGS = st.builds(
    Thing,
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    is_good=st.booleans(),
    cpus=st.none() | st.frozensets(st.integers(0, 99), max_size=4).map(CpuSet.of),
    numbers=st.frozensets(st.integers(0, 99), max_size=4),
    points=st.lists(st.builds(Point, st.integers(0, 9), st.integers(0, 9)), max_size=3).map(tuple),
    sizes=st.dictionaries(st.text("ab", max_size=3), st.integers(0, 9), max_size=3),
    later_one=st.integers(0, 9),
)


@QUICKLY
@given(THINGS)
def test_parse_and_format_are_inverse(thing: Thing) -> None:
    text = json.dumps(THING.format(thing))
    again = THING.read(json.loads(text), "x")
    assert again == thing
    assert json.dumps(THING.format(again)) == text


def test_members_are_written_in_the_order_of_the_table() -> None:
    thing = Thing(
        name="a", is_good=True, cpus=None, numbers=frozenset({9, 1}), points=(Point(1, 2),)
    )
    assert json.dumps(THING.format(thing)) == (
        '{"format": 3, "name": "a", "good": true, "cpus": null, "numbers": [1, 9], '
        '"points": [{"x": 1, "y": 2}], "sizes": [], "later-one": 7}'
    )


def test_a_member_that_may_be_missing_has_its_default_and_one_of_later_is_let_through() -> None:
    document = THING.format(Thing(name="a", is_good=True, cpus=CpuSet(), later_one=1))
    del document["later-one"]
    document["points"] = [{"x": 1}]
    thing = THING.read(document | {"of a later version": 1}, "x")
    assert (thing.later_one, thing.points, thing.cpus) == (7, (Point(1, 5),), CpuSet())


def test_what_a_kind_cannot_make_is_refused() -> None:
    document = THING.format(Thing(name="a", is_good=True, cpus=None)) | {"cpus": "9-1"}
    THING.check(document, "x")
    with pytest.raises(ValueError, match="not a range of CPUs: '9-1'"):
        THING.read(document, "x")


@QUICKLY
@given(JSON)
def test_any_document_is_read_or_refused(document: object) -> None:
    good = THING.format(Thing(name="a", is_good=True, cpus=None))
    for bent in (document, *(good | {name: document} for name in good)):
        with contextlib.suppress(ValueError):
            assert isinstance(THING.read(bent, "x"), Thing)


CPUS = Str(make=CpuSet.parse, unmake=str)


@pytest.mark.parametrize(
    ("kind", "document", "parsed"),
    [
        (Tuple((Int(), CPUS)), [1, "2-3"], [1, CpuSet.parse("2-3")]),
        (Tuple((Int(), CPUS), make=tuple), [1, "2-3"], (1, CpuSet.parse("2-3"))),
        (Obj({"c": CPUS, "d": Maybe(CPUS)}), {"c": "2-3"}, {"c": CpuSet.parse("2-3")}),
        (Nullable(List(CPUS, make=tuple)), ["0"], (CpuSet.parse("0"),)),
        (NumberMap(CPUS), {"8": "0-1"}, {8: CpuSet.parse("0-1")}),
    ],
)
def test_what_is_inside_is_converted_too(kind: Kind, document: object, parsed: object) -> None:
    assert kind.read(document, "x") == parsed
    assert kind.format(parsed) == document


def test_a_member_that_is_no_field_is_a_fault_of_the_table() -> None:
    misspelt = Struct({"x": Int(), "z": Maybe(Int())}, cls=Point)
    with pytest.raises(AttributeError, match="z"):
        misspelt.format(Point(1, 2))


def test_members_that_are_not_known_are_dropped_at_every_depth() -> None:
    inner = Obj({"a": Maybe(Int())}, is_open=True)
    kind = Obj(
        {
            "list": List(inner),
            "pair": Tuple((inner, Int())),
            "none": Nullable(inner),
            "map": NumberMap(inner),
        }
    )
    document = {
        "list": [{"a": 1, "b": 2}, {}],
        "pair": [{"c": [3]}, 4],
        "none": {"d": 5},
        "map": {"6": {"e": 7}},
    }
    selected = {"list": [{"a": 1}, {}], "pair": [{}, 4], "none": {}, "map": {"6": {}}}
    assert kind.select(document) == selected
    assert kind.select(selected | {"none": None}) == selected | {"none": None}
