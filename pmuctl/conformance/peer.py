# SPDX-License-Identifier: Apache-2.0
"""The server under test: connections to it, and checks of its messages.

The server is not authenticated, because nothing is done with its answers.
"""

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from pmuctl.control.protocol import qmp_codec
from pmuctl.control.protocol.messages import COMMANDS, EVENTS
from pmuctl.control.protocol.qmp_codec import Message
from pmuctl.control.protocol.stream import ByteBudget, Deadline, MessageStream
from pmuctl.errors import DeniedError, NotFoundError, UnreachableError, UsageError
from pmuctl.model.kvm_caps import DERIVED
from pmuctl.schema import Kind, Obj, SchemaError, Str

EVENTS_MAX = 100
"""Events to accept before an answer: more are a flood."""

RECEIVED_MAX = 1 << 20
"""Bytes that a server may send in one check: the answers of a VM of 1,000 vCPUs need a quarter."""

ERROR = Obj({"class": Str(), "desc": Str()}, is_open=True)


class CheckFailed(Exception):  # noqa: N818 - not an error of pmuctl but a result
    """A rule does not hold; the text says what the server did instead."""


class CheckSkipped(Exception):  # noqa: N818
    """A check cannot be run; the text says why."""


class ServerUnderTest:
    """The server at a path; each check has `deadline` seconds from begin() on."""

    def __init__(
        self, path: Path, *, deadline: float, trace: Callable[[str], None] = lambda _: None
    ) -> None:
        self.path = path
        self.deadline = deadline
        self.trace = trace
        self.commands: frozenset[str] | None = None
        """The commands that the server says it has; None before it was asked."""
        self.dry_run_args: Message = {"type": 0, "name": "none", "dry-run": True}
        """Arguments with which pmu-apply changes nothing."""
        self._clock = Deadline.after(deadline)
        self._budget = ByteBudget(RECEIVED_MAX)

    def begin(self) -> None:
        """Restart the deadline and the budget, for the next check and all connections."""
        self._clock.restart(self.deadline)
        self._budget.restart()

    def time_left(self) -> float:
        """Return the seconds until the deadline. Raise TimeoutError after it."""
        return self._clock.time_left()

    def demand(self, name: str) -> None:
        """Raise CheckSkipped if the server has said that it has no such command."""
        if self.commands is not None and name not in self.commands:
            raise CheckSkipped(f"there is no {name}")

    def dial(self, *, patient: bool = True) -> "ServerConnection":
        """Return a connection whose greeting is not read yet.

        If not `patient`, raise BlockingIOError if too many others wait to be accepted.
        """
        stream = MessageStream(self._clock, self._budget)
        try:
            stream.connect(str(self.path), patient=patient)
        except BaseException:
            stream.close()
            raise
        return ServerConnection(self, stream)

    @contextmanager
    def ready(self) -> "Iterator[ServerConnection]":
        """Yield a connection after its greeting and qmp_capabilities."""
        with self.dial() as connection:
            connection.greeting()
            connection.ask("qmp_capabilities")
            yield connection

    def check_serves(self) -> None:
        """Raise an exception unless the server serves a new client."""
        with self.ready() as connection:
            connection.ask("query-commands")

    def is_gone(self) -> bool:
        """Return whether no server listens at the path any more."""
        self.begin()
        try:
            self.dial().close()
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            pass
        return False


class ServerConnection:
    """A connection to the server, as a context manager.

    Methods that read raise EOFError at the end of the stream, TimeoutError after the deadline of
    the check, and WireError for input that is not a message.
    """

    def __init__(self, server: ServerUnderTest, stream: MessageStream) -> None:
        self._server = server
        self._stream = stream
        self._count = 0
        self.events: list[Message] = []
        """Events that came before answers."""
        self._events_seen = 0

    def __enter__(self) -> "ServerConnection":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def send(self, data: bytes) -> None:
        """Send all of the data."""
        self._stream.send(data)

    def read(self) -> Message:
        """Return the next message; a reset connection is the end of the stream."""
        try:
            return self._stream.next_message(_keep_message)
        except ConnectionResetError:
            raise EOFError from None

    def greeting(self) -> None:
        """Read the greeting; raise CheckFailed for any other message."""
        message = self.read()
        if "error" in message:
            raise CheckFailed(f"in place of a greeting: {describe_error(message['error'])}")
        if not isinstance(message.get("QMP"), dict):
            raise CheckFailed("the first message is no greeting: it has no object QMP")

    def answer(self) -> Message:
        """Return the next message but events; raise CheckFailed if it is not an answer."""
        while "event" in (message := self.read()):
            if message["event"] in EVENTS:
                self.events.append(message)
            self._events_seen += 1
            if self._events_seen > EVENTS_MAX:
                raise CheckFailed("nothing but events comes")
        if ("return" in message) == ("error" in message):
            raise CheckFailed("an answer has either return or error")
        if "error" in message:
            conform(ERROR, message["error"], "error")
        return message

    def request(self, name: str, arguments: Message | None = None) -> Message:
        """Send one command and return its answer, also an error; the id is not checked."""
        self._count += 1
        message: Message = {"execute": name, "id": f"conformance-{self._count}"}
        if arguments is not None:
            message["arguments"] = arguments
        data = qmp_codec.encode(message)
        self._server.trace(f"{self._server.path} <- {data.decode().strip()}")
        self.send(data)
        return self.answer()

    def ask(self, name: str, arguments: Message | None = None) -> object:
        """Return the result of a command; raise CheckFailed for an error."""
        answer = self.request(name, arguments)
        if "error" in answer:
            raise CheckFailed(f"{name}: {describe_error(answer['error'])}")
        return answer["return"]

    def ask_well(self, name: str, arguments: Message | None = None) -> Message:
        """Return the result of a command, an object; raise CheckFailed if it has a wrong form."""
        result = self.ask(name, arguments)
        conform(COMMANDS[name].result, result, name)
        assert isinstance(result, dict)
        return result

    def state(self) -> Message:
        """Return the result of query-pmu, checked only to be an object."""
        self._server.demand("query-pmu")
        state = self.ask("query-pmu")
        conform(Obj({}, is_open=True), state, "query-pmu")
        assert isinstance(state, dict)
        return state

    def refused(
        self, name: str, arguments: Message | None = None, *, as_class: str | None = None
    ) -> None:
        """Raise CheckFailed unless the answer to a command is an error, of that class if given."""
        error = self.request(name, arguments).get("error")
        if not isinstance(error, dict):
            raise CheckFailed(f"{name} was not refused")
        if as_class is not None and error["class"] != as_class:
            raise CheckFailed(f"{name} is not the error {as_class}, but {describe_error(error)}")

    def ends_with(self, data: bytes) -> None:
        """Raise CheckFailed unless the answer is an error, or the server closes the connection."""
        with suppress(EOFError, BrokenPipeError, ConnectionResetError):
            self.send(data)
            if "error" not in self.answer():
                raise CheckFailed("it was taken for a request")

    def event(self, name: str) -> Message:
        """Return the data of the next event of this name; all other messages are ignored."""
        while True:
            message = self.events.pop(0) if self.events else self.read()
            if message.get("event") == name:
                data = message.get("data")
                return data if isinstance(data, dict) else {}


def _keep_message(message: Message) -> Message:
    return message


def describe_error(error: object) -> str:
    """Return the class and the text of an `error` member."""
    members = error if isinstance(error, dict) else {}
    name, desc = (qmp_codec.peer_text(members.get(key)) for key in ("class", "desc"))
    return f"{name}: {desc}"


def conform(kind: Kind, value: object, where: str) -> None:
    """Raise CheckFailed unless the value is of this kind."""
    try:
        kind.check(value, where)
    except SchemaError as error:
        raise CheckFailed(str(error)) from None


def check_listens(server: ServerUnderTest) -> None:
    """Raise NotFoundError, UsageError, DeniedError or UnreachableError if no server listens."""
    path = server.path
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise UsageError(f"{path}: not a socket", fix="name a VMM's control socket")
        server.begin()
        server.dial().close()
    except FileNotFoundError:
        raise NotFoundError(f"there is no socket {path}", fix="pmuctl vm list") from None
    except PermissionError:
        raise DeniedError(
            f"{path}: this user may not connect", fix="run pmuctl as root or as the user of the VM"
        ) from None
    except OSError as error:
        raise UnreachableError(
            f"{path}: nobody answers there",
            why=f"no connection in {server.deadline:g} s"
            if isinstance(error, TimeoutError)
            else error.strerror or str(error),
            fix="start the VMM that should listen there",
        ) from None


def is_set(state: Message, key: str) -> bool:
    """Return whether a PMU or filter (`key`) was set; a PMU that KVM chose by itself was not."""
    setting = state.get(key)
    return isinstance(setting, dict) and setting.get("origin") != DERIVED
