# SPDX-License-Identifier: Apache-2.0
"""A peer of the control socket on trial: connections to it, and what it answers, looked at hard.

Who the peer is does not matter here, for nothing it says is acted upon.
"""

import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from pmuctl.control.protocol import qmp_codec
from pmuctl.control.protocol.messages import COMMANDS, EVENTS
from pmuctl.control.protocol.qmp_codec import Message
from pmuctl.control.protocol.schema import Kind, Obj, SchemaError, Str
from pmuctl.errors import DeniedError, NotFoundError, UnreachableError, UsageError
from pmuctl.model.kvm_caps import DERIVED

EVENTS_MAX = 100
"""Events that are kept while an answer is waited for: more are a flood."""

ERROR = Obj({"class": Str(), "desc": Str()}, is_open=True)


class CheckFailed(Exception):  # noqa: N818 - no error of pmuctl, but what it was asked to find
    """A rule does not hold; the text says what came instead."""


class CheckSkipped(Exception):  # noqa: N818
    """A check that cannot be made; the text says why."""


class ServerUnderTest:
    """The peer at a path; each check has `deadline` seconds from begin() on."""

    def __init__(
        self, path: Path, *, deadline: float, trace: Callable[[str], None] = lambda _: None
    ) -> None:
        self.path = path
        self.deadline = deadline
        self.trace = trace
        self.commands: frozenset[str] | None = None
        """What it says it has, once it was asked."""
        self.rehearsal: Message = {"type": 0, "name": "none", "dry-run": True}
        """Arguments with which pmu-apply changes nothing."""
        self.begin()

    def begin(self) -> None:
        """Start the clock of the next check."""
        self._until = time.monotonic() + self.deadline

    def left(self) -> float:
        """Seconds until the deadline; raises TimeoutError after it."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def demand(self, name: str) -> None:
        """Raise Skipped if the peer has said that it has no such command."""
        if self.commands is not None and name not in self.commands:
            raise CheckSkipped(f"there is no {name}")

    def dial(self, *, patient: bool = True) -> "TestConnection":
        """A connection whose greeting is not read yet.

        If not `patient`, raises BlockingIOError where too many others wait to be accepted.
        """
        its = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            while True:
                its.settimeout(self.left())
                try:
                    its.connect(str(self.path))
                    return TestConnection(self, its)
                except BlockingIOError:
                    if not patient:
                        raise
                    time.sleep(min(0.01, self.left()))
        except BaseException:
            its.close()
            raise

    @contextmanager
    def ready(self) -> "Iterator[TestConnection]":
        """A connection after its greeting and qmp_capabilities."""
        with self.dial() as line:
            line.greeting()
            line.ask("qmp_capabilities")
            yield line

    def check_serves(self) -> None:
        """Raise what comes of it unless a new client is served."""
        with self.ready() as line:
            line.ask("query-commands")

    def is_gone(self) -> bool:
        """Whether nobody listens there any more."""
        self.begin()
        try:
            self.dial().close()
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            pass
        return False


class TestConnection:
    """A connection to the peer, as a context.

    What is read raises EOFError at its end, TimeoutError after the deadline of the check and
    WireError where it is no message.
    """

    def __init__(self, peer: ServerUnderTest, its_socket: socket.socket) -> None:
        self._peer = peer
        self._socket = its_socket
        self._decoder = qmp_codec.Decoder()
        self._count = 0
        self.events: list[Message] = []
        self._passed = 0
        """Events that have come before an answer."""

    def __enter__(self) -> "TestConnection":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send it all."""
        self._socket.settimeout(self._peer.left())
        self._socket.sendall(data, socket.MSG_NOSIGNAL)

    def read(self) -> Message:
        """The next message."""
        while (message := self._decoder.next()) is None:
            self._socket.settimeout(self._peer.left())
            try:
                data = self._socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            self._decoder.feed(data)
        return message

    def greeting(self) -> None:
        """Read the greeting; raises Fault for any other message."""
        message = self.read()
        if "error" in message:
            raise CheckFailed(f"in place of a greeting: {words(message['error'])}")
        if not isinstance(message.get("QMP"), dict):
            raise CheckFailed("the first message is no greeting: it has no object QMP")

    def answer(self) -> Message:
        """The next message that is no event; raises Fault unless it has the form of an answer."""
        while "event" in (message := self.read()):
            if message["event"] in EVENTS:
                self.events.append(message)
            self._passed += 1
            if self._passed > EVENTS_MAX:
                raise CheckFailed("nothing but events comes")
        if ("return" in message) == ("error" in message):
            raise CheckFailed("an answer has either return or error")
        if "error" in message:
            conform(ERROR, message["error"], "error")
        return message

    def request(self, name: str, arguments: Message | None = None) -> Message:
        """One command and its answer, whatever that is; its id is not looked at."""
        self._count += 1
        message: Message = {"execute": name, "id": f"conformance-{self._count}"}
        if arguments is not None:
            message["arguments"] = arguments
        data = qmp_codec.encode(message)
        self._peer.trace(f"{self._peer.path} <- {data.decode().strip()}")
        self.send(data)
        return self.answer()

    def ask(self, name: str, arguments: Message | None = None) -> object:
        """The result of a command; raises Fault for an error."""
        answer = self.request(name, arguments)
        if "error" in answer:
            raise CheckFailed(f"{name}: {words(answer['error'])}")
        return answer["return"]

    def ask_well(self, name: str, arguments: Message | None = None) -> Message:
        """The result of a command, an object; raises Fault unless it is as the table says."""
        result = self.ask(name, arguments)
        conform(COMMANDS[name].result, result, name)
        assert isinstance(result, dict)
        return result

    def state(self) -> Message:
        """What query-pmu says, right or wrong."""
        self._peer.demand("query-pmu")
        state = self.ask("query-pmu")
        conform(Obj({}, is_open=True), state, "query-pmu")
        assert isinstance(state, dict)
        return state

    def refused(
        self, name: str, arguments: Message | None = None, *, as_class: str | None = None
    ) -> None:
        """Raise Fault unless a command is answered with an error, of that class if named."""
        error = self.request(name, arguments).get("error")
        if not isinstance(error, dict):
            raise CheckFailed(f"{name} was not refused")
        if as_class is not None and error["class"] != as_class:
            raise CheckFailed(f"{name} is not the error {as_class}, but {words(error)}")

    def ends_with(self, data: bytes) -> None:
        """Raise Fault unless this is answered with an error or the end of the connection."""
        with suppress(EOFError, BrokenPipeError, ConnectionResetError):
            self.send(data)
            if "error" not in self.answer():
                raise CheckFailed("it was taken for a request")

    def event(self, name: str) -> Message:
        """The data of the next event of this name; all other messages are passed over."""
        while True:
            message = self.events.pop(0) if self.events else self.read()
            if message.get("event") == name:
                data = message.get("data")
                return data if isinstance(data, dict) else {}


def words(error: object) -> str:
    """An error member of the peer in its own words."""
    its = error if isinstance(error, dict) else {}
    return f"{qmp_codec.peer_text(its.get('class'))}: {qmp_codec.peer_text(its.get('desc'))}"


def conform(kind: Kind, value: object, where: str) -> None:
    """Raise Fault unless the value is of this kind."""
    try:
        kind.check(value, where)
    except SchemaError as error:
        raise CheckFailed(str(error)) from None


def open_peer(peer: ServerUnderTest) -> None:
    """See that somebody listens; raises what tells the user why nobody can be tested there."""
    path = peer.path
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise UsageError(f"{path}: not a socket", fix="name a VMM's control socket")
        peer.begin()
        peer.dial().close()
    except FileNotFoundError:
        raise NotFoundError(f"there is no socket {path}", fix="pmuctl vm list") from None
    except PermissionError:
        raise DeniedError(
            f"{path}: this user may not connect", fix="run pmuctl as root or as the user of the VM"
        ) from None
    except OSError as error:
        raise UnreachableError(
            f"{path}: nobody answers there",
            why=f"no connection in {peer.deadline:g} s"
            if isinstance(error, TimeoutError)
            else error.strerror or str(error),
            fix="start the VMM that should listen there",
        ) from None


def is_set(state: Message, key: str) -> bool:
    """Whether the VM was given a PMU or a filter; what KVM chose by itself is no such thing."""
    its = state.get(key)
    return isinstance(its, dict) and its.get("origin") != DERIVED
