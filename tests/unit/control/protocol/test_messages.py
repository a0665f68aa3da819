# SPDX-License-Identifier: Apache-2.0
"""The table of messages as `query-schema` tells it: plain data, and all there is to know."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given

from pmuctl.control.protocol.messages import COMMANDS, EVENTS, VM_NAME, describe_messages
from pmuctl.control.protocol.qmp_codec import ERROR_CLASSES, NESTING_MAX, Decoder, encode
from pmuctl.control.server.commands import ERRORS
from pmuctl.control.server.connection import OUTPUT_MAX
from pmuctl.schema import Bool, Int, Kind, List, Maybe, Nullable, Obj, SchemaError, Str, Tuple
from tests.cli.conftest import Machine, machine  # noqa: F401 - a fixture
from tests.fakes.peers import RawClient
from tests.fakes.strategies import JSON, QUICKLY
from tests.fakes.vmm import FakeVm

Row = Mapping[str, Any]


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        (Int(), [{"type": "integer", "least": 0, "most": (1 << 63) - 1}]),
        (Int(least=1, most=2), [{"type": "integer", "least": 1, "most": 2}]),
        (Bool(), [{"type": "boolean"}]),
        (Str(), [{"type": "string", "most": 4096}]),
        (Str(words=("a", "b")), [{"type": "string", "most": 4096, "words": ["a", "b"]}]),
        (Str(most=3, form=re.compile("a+")), [{"type": "string", "most": 3, "form": "a+"}]),
        (Nullable(Bool()), [{"type": "boolean", "null": True}]),
        (
            List(Bool(), least=1, most=9),
            [{"type": "list", "least": 1, "most": 9}, {"path": "x[]", "type": "boolean"}],
        ),
        (
            Tuple((Bool(), Str(most=1))),
            [
                {"type": "list", "least": 2, "most": 2},
                {"path": "x[0]", "type": "boolean"},
                {"path": "x[1]", "type": "string", "most": 1},
            ],
        ),
        (
            Obj({"a": Bool(), "b": Maybe(Nullable(Obj({}, is_open=True)))}),
            [
                {"type": "object", "open": False},
                {"path": "x.a", "type": "boolean"},
                {"path": "x.b", "type": "object", "open": True, "required": False, "null": True},
            ],
        ),
    ],
)
def test_a_kind_describes_itself(kind: Kind, rows: list[Row]) -> None:
    usual = {"path": "x", "required": True, "null": False}
    assert list(kind.describe("x")) == [usual | dict(row) for row in rows]


def rebuilt(rows: list[Row], path: str = "") -> Kind | Maybe:
    """The kind that the rows describe; the converse of describe()."""
    row = next(its for its in rows if its["path"] == path)
    below = [its["path"] for its in rows if _parent(its["path"]) == path and its["path"] != path]
    kind: Kind
    match row["type"]:
        case "integer":
            kind = Int(row["least"], row["most"])
        case "boolean":
            kind = Bool()
        case "string":
            form = re.compile(row["form"]) if "form" in row else None
            kind = Str(row["most"], tuple(row.get("words", ())), form)
        case "list" if below == [f"{path}[]"]:
            kind = List(_kind(rows, below[0]), row["least"], row["most"])
        case "list":
            kind = Tuple(tuple(_kind(rows, its) for its in below))
        case _:
            members = {its.rpartition(".")[2]: rebuilt(rows, its) for its in below}
            kind = Obj(members, row["open"])
    kind = Nullable(kind) if row["null"] else kind
    return kind if row["required"] else Maybe(kind)


def _parent(path: str) -> str:
    return re.sub(r"(^|\.)[^.\[]+$|\[\d*\]$", "", path)


def _kind(rows: list[Row], path: str) -> Kind:
    kind = rebuilt(rows, path)
    assert not isinstance(kind, Maybe)
    return kind


def kinds() -> Iterator[tuple[str, Kind]]:
    for name, command in COMMANDS.items():
        yield f"{name} arguments", command.arguments
        yield f"{name} result", command.result
    yield from EVENTS.items()


@pytest.mark.parametrize("kind", [kind for _, kind in kinds()], ids=[name for name, _ in kinds()])
def test_the_description_of_a_message_says_all_of_it(kind: Kind) -> None:
    rows: list[Row] = json.loads(json.dumps(list(kind.describe(""))))
    assert len({row["path"] for row in rows}) == len(rows)
    assert rebuilt(rows) == kind


def test_the_answer_has_every_command_event_and_error_and_is_small(
    machine: Machine,  # noqa: F811
) -> None:
    machine.start(FakeVm())
    with RawClient.ready(machine.runtime / "web1.sock") as client:
        answer = client.ask("query-schema")["return"]
    assert answer == describe_messages(ERRORS)
    assert [its["name"] for its in answer["commands"]] == list(COMMANDS)
    assert {its["name"] for its in answer["commands"] if its["changes"]} == {
        "pmu-apply",
        "pmu-release",
    }
    assert [its["name"] for its in answer["events"]] == list(EVENTS)
    errors = [its["class"] for its in answer["errors"]]
    assert errors == [*ERROR_CLASSES, "CommandNotFound", "GenericError"]
    COMMANDS["query-schema"].result.check(answer, "return")
    assert len(encode({"return": answer})) < OUTPUT_MAX / 16
    decoder = Decoder()
    decoder.feed(encode({"return": answer}))
    assert decoder.next() == {"return": answer}
    assert _depth(answer) < NESTING_MAX / 2


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def test_a_peer_need_not_tell_what_the_protocol_does_not_ask() -> None:
    result = COMMANDS["query-pmu"].result
    rows = {str(row["path"]): row for row in result.describe("")}
    optional = {path for path, row in rows.items() if not row["required"]}
    assert optional == {"waiting", "event-bits"}


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
