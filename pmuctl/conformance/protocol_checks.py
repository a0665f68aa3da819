# SPDX-License-Identifier: Apache-2.0
"""The checks of the control socket that need no PMU: its messages and its limits."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from pmuctl.conformance.peer import (
    CheckFailed,
    CheckSkipped,
    ServerConnection,
    ServerUnderTest,
    conform,
    describe_error,
)
from pmuctl.conformance.runner import ConformanceCheck
from pmuctl.control.protocol import qmp_codec
from pmuctl.control.protocol.messages import COMMANDS
from pmuctl.control.protocol.qmp_codec import Message

OPTIONAL = {"query-schema"}
"""Commands that a server may lack."""

NO_COMMAND, NOT_FOUND = "no-such-command", "CommandNotFound"
MANY = 40
"""Connections at the same time: more than a server is expected to serve."""

PAUSE = 0.05
"""Seconds between the pieces of a request."""

LIST, REFUSED = b'{"execute":"query-commands"}', b'{"execute":"%s"}' % NO_COMMAND.encode()


def _check_alive(connection: ServerConnection) -> None:
    """Raise an exception unless the connection still works."""
    connection.ask("query-commands")


def _check_greeting(server: ServerUnderTest) -> None:
    with server.dial() as connection:
        connection.greeting()


def _check_capabilities(server: ServerUnderTest) -> None:
    with server.ready() as connection:
        _check_alive(connection)


def _check_capabilities_first(server: ServerUnderTest) -> None:
    with server.dial() as connection:
        connection.greeting()
        connection.refused("query-commands", as_class=NOT_FOUND)
        connection.ask("qmp_capabilities")


def _check_capabilities_once(server: ServerUnderTest) -> None:
    with server.ready() as connection:
        connection.refused("qmp_capabilities", as_class=NOT_FOUND)
        _check_alive(connection)


def _check_query_commands(server: ServerUnderTest) -> None:
    with server.ready() as connection:
        result = connection.ask("query-commands")
    conform(COMMANDS["query-commands"].result, result, "query-commands")
    assert isinstance(result, list)
    server.commands = frozenset(command["name"] for command in result)
    if missing := [name for name in COMMANDS if name not in server.commands | OPTIONAL]:
        raise CheckFailed(f"there is no {', '.join(missing)}")


def _check_query_schema(server: ServerUnderTest) -> None:
    if server.commands is None:
        raise CheckSkipped("query-commands does not tell whether there is one")
    if "query-schema" not in server.commands:
        raise CheckSkipped("there is no query-schema, which a server may do without")
    with server.ready() as connection:
        result = connection.ask_well("query-schema")
    described = {
        command["name"]: _collect_types(command["arguments"])
        for command in _as_list(result["commands"])
    }
    for name, command in COMMANDS.items():
        arguments = _collect_types(list(command.arguments.describe("")))
        if name in described and arguments - described[name]:
            raise CheckFailed(f"{name} has other arguments than the protocol")
    for name in COMMANDS:
        if name in server.commands and name not in described:
            raise CheckFailed(f"it does not describe {name}")


def _as_list(value: object) -> list[Message]:
    assert isinstance(value, list)
    return value


def _collect_types(fields: object) -> set[tuple[object, object]]:
    return {(field["path"], field["type"]) for field in _as_list(fields)}


def _check_query_pmu(server: ServerUnderTest) -> None:
    server.demand("query-pmu")
    with server.ready() as connection:
        connection.ask_well("query-pmu")


def _check_unknown_command(server: ServerUnderTest) -> None:
    with server.ready() as connection:
        connection.refused(NO_COMMAND, as_class=NOT_FOUND)
        _check_alive(connection)


def _check_unknown_argument(server: ServerUnderTest) -> None:
    with server.ready() as connection:
        connection.refused("query-commands", {"no-such-argument": True})
        if server.commands is not None and "pmu-apply" in server.commands:
            connection.refused("pmu-apply", server.dry_run_args | {"no-such-argument": True})
        _check_alive(connection)


def _check_missing_argument(server: ServerUnderTest) -> None:
    server.demand("pmu-apply")
    with server.ready() as connection:
        incomplete = {key: arg for key, arg in server.dry_run_args.items() if key != "type"}
        connection.refused("pmu-apply", incomplete)
        _check_alive(connection)


def _check_wrong_argument(server: ServerUnderTest) -> None:
    server.demand("pmu-apply")
    with server.ready() as connection:
        text = str(server.dry_run_args["type"])
        connection.refused("pmu-apply", server.dry_run_args | {"type": text})
        connection.refused("pmu-apply", server.dry_run_args | {"type": -1})
        _check_alive(connection)


def _check_ids(server: ServerUnderTest) -> None:
    with server.ready() as connection:
        for tag in ("a", 7, {"a": [1, None]}):
            for name in ("query-commands", NO_COMMAND):
                connection.send(qmp_codec.encode({"execute": name, "id": tag}))
                answer = connection.answer()
                if "id" not in answer or answer["id"] != tag:
                    kind = _describe_answer(answer)
                    raise CheckFailed(f"the id {json.dumps(tag)} was not repeated with {kind}")
        connection.send(LIST + b"\n")
        if "id" in connection.answer():
            raise CheckFailed("an answer has an id, its request had none")


def _describe_answer(answer: Message) -> str:
    return "an error" if "error" in answer else "a result"


def _check_order(server: ServerUnderTest) -> None:
    pattern = (LIST, REFUSED, REFUSED, LIST, REFUSED, LIST, LIST, LIST, REFUSED)
    with server.ready() as connection:
        for data in pattern:
            connection.send(data + b"\n")
        for number, data in enumerate(pattern, 1):
            if ("error" in connection.answer()) != (data == REFUSED):
                raise CheckFailed(f"answer {number} of {len(pattern)} is that of another request")


def _make_pieces_check(*pieces: bytes, answers: int = 1) -> Callable[[ServerUnderTest], None]:
    def run_check(server: ServerUnderTest) -> None:
        with server.ready() as connection:
            for number, piece in enumerate(pieces):
                time.sleep(PAUSE if number else 0)
                connection.send(piece)
            for _ in range(answers):
                if "error" in (answer := connection.answer()):
                    raise CheckFailed(describe_error(answer["error"]))

    return run_check


def _make_refusal_check(*bad: bytes) -> Callable[[ServerUnderTest], None]:
    def run_check(server: ServerUnderTest) -> None:
        for data in bad:
            with server.ready() as connection:
                connection.ends_with(data)
            server.check_serves()

    return run_check


def _check_half_request(server: ServerUnderTest) -> None:
    with server.ready() as connection:
        connection.send(LIST[:10])
        server.check_serves()


def _check_many_clients(server: ServerUnderTest) -> None:
    with server.ready() as first:
        with ExitStack() as stack:
            for _ in range(MANY):
                try:
                    stack.enter_context(server.dial(patient=False))
                except BlockingIOError:
                    break  # the others wait to be accepted
            _check_alive(first)
        _check_alive(first)
    while True:
        try:
            return server.check_serves()
        except (CheckFailed, EOFError, ConnectionResetError, BrokenPipeError):
            # the server has not noticed yet that the others have left
            time.sleep(min(PAUSE, server.time_left()))


def _nest_request(depth: int) -> bytes:
    inner = depth - 1
    return b'{"execute":"query-commands","id":' + b"[" * inner + b"]" * inner + b"}"


NORMAL_USE_CHECKS: Sequence[ConformanceCheck] = (
    ConformanceCheck(
        "greeting", "A client is greeted with an object QMP.", _check_greeting, needed=True
    ),
    ConformanceCheck(
        "capabilities",
        "After qmp_capabilities commands are taken.",
        _check_capabilities,
        needed=True,
    ),
    ConformanceCheck(
        "capabilities-first",
        "A command before qmp_capabilities is the error CommandNotFound.",
        _check_capabilities_first,
    ),
    ConformanceCheck(
        "capabilities-once",
        "A second qmp_capabilities is the error CommandNotFound.",
        _check_capabilities_once,
    ),
    ConformanceCheck(
        "query-commands",
        "query-commands names every command of the protocol.",
        _check_query_commands,
    ),
    ConformanceCheck(
        "query-schema",
        "query-schema, where there is one, describes the commands of the protocol.",
        _check_query_schema,
    ),
    ConformanceCheck(
        "query-pmu", "query-pmu answers with what the protocol says.", _check_query_pmu
    ),
    ConformanceCheck(
        "unknown-command",
        "A command that does not exist is the error CommandNotFound.",
        _check_unknown_command,
    ),
    ConformanceCheck(
        "unknown-argument",
        "An argument that does not exist is an error, and the connection goes on.",
        _check_unknown_argument,
    ),
    ConformanceCheck(
        "missing-argument",
        "An argument that is missing is an error, and the connection goes on.",
        _check_missing_argument,
    ),
    ConformanceCheck(
        "wrong-argument",
        "An argument of a wrong type or range is an error, and the connection goes on.",
        _check_wrong_argument,
    ),
    ConformanceCheck("ids", "An answer has the id of its request, whatever that is.", _check_ids),
    ConformanceCheck(
        "order",
        "Requests that do not wait for each other's answers are answered in order.",
        _check_order,
    ),
    ConformanceCheck("no-newline", "A request needs no line end.", _make_pieces_check(LIST)),
    ConformanceCheck(
        "two-pieces",
        "A request may come in two pieces.",
        _make_pieces_check(LIST[:17], LIST[17:] + b"\n"),
    ),
    ConformanceCheck(
        "two-at-once",
        "Two requests may come at once.",
        _make_pieces_check((LIST + b"\n") * 2, answers=2),
    ),
)
"""The checks of normal use by a client."""

BAD_INPUT_CHECKS: Sequence[ConformanceCheck] = (
    ConformanceCheck(
        "bad-json",
        "What is no JSON ends in an error or a closed connection, for that client only.",
        _make_refusal_check(b'{"execute":query-commands}\n'),
    ),
    ConformanceCheck(
        "bad-utf-8",
        "What is no UTF-8 ends in an error or a closed connection, for that client only.",
        _make_refusal_check(b'{"execute":"query-commands","id":"\xff"}\n'),
    ),
    ConformanceCheck(
        "nan",
        "NaN, which is no JSON, ends in an error or a closed connection.",
        _make_refusal_check(b'{"execute":"query-commands","id":NaN}\n'),
    ),
    ConformanceCheck(
        "nesting",
        f"Nesting over {qmp_codec.NESTING_MAX} ends in an error or a closed connection.",
        _make_refusal_check(_nest_request(qmp_codec.NESTING_MAX + 1), _nest_request(100_000)),
    ),
    ConformanceCheck(
        "size",
        "A request over 1 MiB ends in an error or a closed connection.",
        _make_refusal_check(
            b'{"execute":"query-commands","id":"%s"}' % (b"x" * qmp_codec.MESSAGE_MAX)
        ),
    ),
    ConformanceCheck(
        "half-request",
        "While one client has sent half a request others are served.",
        _check_half_request,
    ),
    ConformanceCheck(
        "many-clients",
        "Too many clients disturb none that is connected, and leave no trace.",
        _check_many_clients,
    ),
)
"""The checks of invalid input and of too many clients."""
