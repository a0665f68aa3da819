# SPDX-License-Identifier: Apache-2.0
"""The kinds of value on the control socket: what each takes, and what it says otherwise."""

import contextlib
import re
from collections.abc import Mapping

import pytest
from hypothesis import given

from pmuctl.control.protocol.messages import COMMANDS, EVENTS, VM_NAME
from pmuctl.control.protocol.schema import (
    LIST_MAX,
    Bool,
    Int,
    Kind,
    List,
    Maybe,
    Nullable,
    Obj,
    SchemaError,
    Str,
    Tuple,
)
from tests.fakes.strategies import JSON, QUICKLY

PAIR: Mapping[str, Kind | Maybe] = {"a": Int(), "b": Maybe(Bool())}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Int(), 0),
        (Int(), (1 << 63) - 1),
        (Int(least=2, most=3), 3),
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
    ],
)
def test_a_refusal_says_where_and_what(kind: Kind, value: object, words: str) -> None:
    with pytest.raises(SchemaError) as caught:
        kind.check(value, "x")
    assert str(caught.value) == words


@QUICKLY
@given(JSON)
def test_any_value_is_taken_or_refused_by_every_message(value: object) -> None:
    kinds = [kind for its in COMMANDS.values() for kind in (its.arguments, its.result)]
    for kind in (*kinds, *EVENTS.values()):
        with contextlib.suppress(SchemaError):
            kind.check(value, "x")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-a", "_a", "a/b", "a b", "a\n", "a\0", "é", "٣", "a" * 65, "\x1b[2J"]
)
def test_a_vm_name_is_never_a_path_an_option_or_terminal_control(name: str) -> None:
    assert not VM_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["a", "9", "web1", "Web_1.sock-2", "a" * 64])
def test_plain_names_are_vm_names(name: str) -> None:
    assert VM_NAME.fullmatch(name)
