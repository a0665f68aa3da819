# SPDX-License-Identifier: Apache-2.0
"""The rules of the control socket that any peer can be held against: its form and its patience."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from pmuctl.conformance.peer import (
    CheckFailed,
    CheckSkipped,
    ServerUnderTest,
    TestConnection,
    conform,
    words,
)
from pmuctl.conformance.runner import ConformanceCheck
from pmuctl.control.protocol import qmp_codec
from pmuctl.control.protocol.messages import COMMANDS
from pmuctl.control.protocol.qmp_codec import Message

OPTIONAL = {"query-schema"}
"""Commands that a server may do without."""

NO_COMMAND, NOT_FOUND = "no-such-command", "CommandNotFound"
MANY = 40
"""Connections at once: more than any server is expected to serve."""

PAUSE = 0.05
"""Seconds between the pieces of a request."""

LIST, REFUSED = b'{"execute":"query-commands"}', b'{"execute":"%s"}' % NO_COMMAND.encode()


def _is_alive(line: TestConnection) -> None:
    """Raise unless the connection goes on."""
    line.ask("query-commands")


def _greeting(peer: ServerUnderTest) -> None:
    with peer.dial() as line:
        line.greeting()


def _capabilities(peer: ServerUnderTest) -> None:
    with peer.ready() as line:
        _is_alive(line)


def _capabilities_first(peer: ServerUnderTest) -> None:
    with peer.dial() as line:
        line.greeting()
        line.refused("query-commands", as_class=NOT_FOUND)
        line.ask("qmp_capabilities")


def _capabilities_once(peer: ServerUnderTest) -> None:
    with peer.ready() as line:
        line.refused("qmp_capabilities", as_class=NOT_FOUND)
        _is_alive(line)


def _query_commands(peer: ServerUnderTest) -> None:
    with peer.ready() as line:
        result = line.ask("query-commands")
    conform(COMMANDS["query-commands"].result, result, "query-commands")
    assert isinstance(result, list)
    peer.commands = frozenset(its["name"] for its in result)
    if missing := [name for name in COMMANDS if name not in peer.commands | OPTIONAL]:
        raise CheckFailed(f"there is no {', '.join(missing)}")


def _query_schema(peer: ServerUnderTest) -> None:
    if peer.commands is None:
        raise CheckSkipped("query-commands does not tell whether there is one")
    if "query-schema" not in peer.commands:
        raise CheckSkipped("there is no query-schema, which a server may do without")
    with peer.ready() as line:
        result = line.ask_well("query-schema")
    told = {its["name"]: _types(its["arguments"]) for its in _list(result["commands"])}
    for name, command in COMMANDS.items():
        if name in told and _types(list(command.arguments.describe(""))) - told[name]:
            raise CheckFailed(f"{name} has other arguments than the protocol")
    for name in COMMANDS:
        if name in peer.commands and name not in told:
            raise CheckFailed(f"it does not describe {name}")


def _list(value: object) -> list[Message]:
    assert isinstance(value, list)
    return value


def _types(fields: object) -> set[tuple[object, object]]:
    return {(its["path"], its["type"]) for its in _list(fields)}


def _query_pmu(peer: ServerUnderTest) -> None:
    peer.demand("query-pmu")
    with peer.ready() as line:
        line.ask_well("query-pmu")


def _unknown_command(peer: ServerUnderTest) -> None:
    with peer.ready() as line:
        line.refused(NO_COMMAND, as_class=NOT_FOUND)
        _is_alive(line)


def _unknown_argument(peer: ServerUnderTest) -> None:
    with peer.ready() as line:
        line.refused("query-commands", {"no-such-argument": True})
        if peer.commands is not None and "pmu-apply" in peer.commands:
            line.refused("pmu-apply", peer.rehearsal | {"no-such-argument": True})
        _is_alive(line)


def _missing_argument(peer: ServerUnderTest) -> None:
    peer.demand("pmu-apply")
    with peer.ready() as line:
        line.refused("pmu-apply", {k: v for k, v in peer.rehearsal.items() if k != "type"})
        _is_alive(line)


def _wrong_argument(peer: ServerUnderTest) -> None:
    peer.demand("pmu-apply")
    with peer.ready() as line:
        line.refused("pmu-apply", peer.rehearsal | {"type": str(peer.rehearsal["type"])})
        line.refused("pmu-apply", peer.rehearsal | {"type": -1})
        _is_alive(line)


def _ids(peer: ServerUnderTest) -> None:
    with peer.ready() as line:
        for tag in ("a", 7, {"a": [1, None]}):
            for name in ("query-commands", NO_COMMAND):
                line.send(qmp_codec.encode({"execute": name, "id": tag}))
                answer = line.answer()
                if "id" not in answer or answer["id"] != tag:
                    raise CheckFailed(
                        f"the id {json.dumps(tag)} was not repeated with {_kind(answer)}"
                    )
        line.send(LIST + b"\n")
        if "id" in line.answer():
            raise CheckFailed("an answer has an id, its request had none")


def _kind(answer: Message) -> str:
    return "an error" if "error" in answer else "a result"


def _order(peer: ServerUnderTest) -> None:
    pattern = (LIST, REFUSED, REFUSED, LIST, REFUSED, LIST, LIST, LIST, REFUSED)
    with peer.ready() as line:
        for data in pattern:
            line.send(data + b"\n")
        for number, data in enumerate(pattern, 1):
            if ("error" in line.answer()) != (data == REFUSED):
                raise CheckFailed(f"answer {number} of {len(pattern)} is that of another request")


def _pieces(*pieces: bytes, answers: int = 1) -> Callable[[ServerUnderTest], None]:
    def run(peer: ServerUnderTest) -> None:
        with peer.ready() as line:
            for number, piece in enumerate(pieces):
                time.sleep(PAUSE if number else 0)
                line.send(piece)
            for _ in range(answers):
                if "error" in (answer := line.answer()):
                    raise CheckFailed(words(answer["error"]))

    return run


def _is_refused(*bad: bytes) -> Callable[[ServerUnderTest], None]:
    def run(peer: ServerUnderTest) -> None:
        for data in bad:
            with peer.ready() as line:
                line.ends_with(data)
            peer.check_serves()

    return run


def _half_request(peer: ServerUnderTest) -> None:
    with peer.ready() as line:
        line.send(LIST[:10])
        peer.check_serves()


def _many_clients(peer: ServerUnderTest) -> None:
    with peer.ready() as first:
        with ExitStack() as stack:
            for _ in range(MANY):
                try:
                    stack.enter_context(peer.dial(patient=False))
                except BlockingIOError:
                    break  # the others wait to be accepted
            _is_alive(first)
        _is_alive(first)
    while True:
        try:
            return peer.check_serves()
        except (CheckFailed, EOFError, ConnectionResetError, BrokenPipeError):
            time.sleep(min(PAUSE, peer.left()))  # it has still to see that they have left


def _nested(depth: int) -> bytes:
    inner = depth - 1
    return b'{"execute":"query-commands","id":' + b"[" * inner + b"]" * inner + b"}"


FORM_CHECKS: Sequence[ConformanceCheck] = (
    ConformanceCheck(
        "greeting", "A client is greeted with an object QMP.", _greeting, needed=True
    ),
    ConformanceCheck(
        "capabilities", "After qmp_capabilities commands are taken.", _capabilities, needed=True
    ),
    ConformanceCheck(
        "capabilities-first",
        "A command before qmp_capabilities is the error CommandNotFound.",
        _capabilities_first,
    ),
    ConformanceCheck(
        "capabilities-once",
        "A second qmp_capabilities is the error CommandNotFound.",
        _capabilities_once,
    ),
    ConformanceCheck(
        "query-commands", "query-commands names every command of the protocol.", _query_commands
    ),
    ConformanceCheck(
        "query-schema",
        "query-schema, where there is one, describes the commands of the protocol.",
        _query_schema,
    ),
    ConformanceCheck("query-pmu", "query-pmu answers with what the protocol says.", _query_pmu),
    ConformanceCheck(
        "unknown-command",
        "A command that does not exist is the error CommandNotFound.",
        _unknown_command,
    ),
    ConformanceCheck(
        "unknown-argument",
        "An argument that does not exist is an error, and the connection goes on.",
        _unknown_argument,
    ),
    ConformanceCheck(
        "missing-argument",
        "An argument that is missing is an error, and the connection goes on.",
        _missing_argument,
    ),
    ConformanceCheck(
        "wrong-argument",
        "An argument of a wrong type or range is an error, and the connection goes on.",
        _wrong_argument,
    ),
    ConformanceCheck("ids", "An answer has the id of its request, whatever that is.", _ids),
    ConformanceCheck(
        "order",
        "Requests that do not wait for each other's answers are answered in order.",
        _order,
    ),
    ConformanceCheck("no-newline", "A request needs no line end.", _pieces(LIST)),
    ConformanceCheck(
        "two-pieces", "A request may come in two pieces.", _pieces(LIST[:17], LIST[17:] + b"\n")
    ),
    ConformanceCheck(
        "two-at-once", "Two requests may come at once.", _pieces((LIST + b"\n") * 2, answers=2)
    ),
)
"""What a client does every day."""

STREAM_CHECKS: Sequence[ConformanceCheck] = (
    ConformanceCheck(
        "bad-json",
        "What is no JSON ends in an error or a closed connection, for that client only.",
        _is_refused(b'{"execute":query-commands}\n'),
    ),
    ConformanceCheck(
        "bad-utf-8",
        "What is no UTF-8 ends in an error or a closed connection, for that client only.",
        _is_refused(b'{"execute":"query-commands","id":"\xff"}\n'),
    ),
    ConformanceCheck(
        "nan",
        "NaN, which is no JSON, ends in an error or a closed connection.",
        _is_refused(b'{"execute":"query-commands","id":NaN}\n'),
    ),
    ConformanceCheck(
        "nesting",
        f"Nesting over {qmp_codec.NESTING_MAX} ends in an error or a closed connection.",
        _is_refused(_nested(qmp_codec.NESTING_MAX + 1), _nested(100_000)),
    ),
    ConformanceCheck(
        "size",
        "A request over 1 MiB ends in an error or a closed connection.",
        _is_refused(b'{"execute":"query-commands","id":"%s"}' % (b"x" * qmp_codec.MESSAGE_MAX)),
    ),
    ConformanceCheck(
        "half-request",
        "While one client has sent half a request others are served.",
        _half_request,
    ),
    ConformanceCheck(
        "many-clients",
        "Too many clients disturb none that is connected, and leave no trace.",
        _many_clients,
    ),
)
"""What a client must not do, and what may not come of it."""
