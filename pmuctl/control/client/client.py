# SPDX-License-Identifier: Apache-2.0
"""The client of a control socket: one connection under one deadline, and its peer."""

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from pmuctl.control.client.peer_auth import (
    AuthenticatedVmm,
    PeerCred,
    authenticate,
    not_authenticated,
)
from pmuctl.control.protocol import qmp_codec
from pmuctl.control.protocol.messages import COMMANDS
from pmuctl.control.protocol.qmp_codec import Message, WireError
from pmuctl.control.protocol.stream import (
    ByteBudget,
    Deadline,
    MessageStream,
    OverBudgetError,
)
from pmuctl.control.runtime.sockets import ControlSocket, open_socket
from pmuctl.errors import (
    NOTHING_CHANGED,
    DeniedError,
    NotFoundError,
    PmuctlError,
    RefusedError,
    UnknownOutcomeError,
    UnreachableError,
    UnsupportedError,
    UsageError,
    command,
)
from pmuctl.host.procfs import Procfs
from pmuctl.host.signals import defer_signals
from pmuctl.schema import SchemaError


class Client:
    """A connection to the control socket of one VM, as a context manager.

    Entering raises UnreachableError if no server answers, NotFoundError if there is no socket,
    UsageError if the path is not a socket, DeniedError if this user may not connect, and
    RefusedError if the peer is not authenticated.
    """

    def __init__(
        self,
        control_socket: ControlSocket,
        *,
        deadline: float,
        procs: Procfs,
        trace: Callable[[str], None] | None = None,
        budget: ByteBudget | None = None,
    ) -> None:
        """`deadline` is in seconds from now, for the whole exchange.

        `trace` gets the text of each request before it is sent. `budget` bounds what is received.
        """
        self.control_socket = control_socket
        self.subject = control_socket.name or str(control_socket.path)
        self._seconds = deadline
        self._deadline = Deadline.after(deadline)
        self._procs = procs
        self._tags = itertools.count(1)
        self._trace = trace
        self._budget = budget
        self._address: tuple[str, ...] = (self.subject,)
        self.peer: PeerCred | None = None
        """The process that listens at the socket; None before the connection."""

    def __enter__(self) -> "Client":
        self._stream = MessageStream(self._deadline, self._budget)
        try:
            self._connect_socket()
            self.peer = self._read_peer()
            self._check_peer(self.peer)
            self._read_greeting()
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.close()

    def execute(self, name: str, arguments: Message | None = None) -> object:
        """Send one command and return its result, checked against the table of messages.

        Raise the exception of the peer's error class, and UnsupportedError if the peer does not
        know the command. If a command was sent and no answer comes, or a malformed one, raise
        UnknownOutcomeError for a command that changes something, else UnreachableError or
        RefusedError. A signal that comes before the answer to a change ends the wait: Stopped
        carries the error then. One that comes with the answer is raised once that is read, so
        who must record the answer defers signals, too.
        """
        changes = COMMANDS[name].changes and not (arguments or {}).get("dry-run")
        if not changes:
            return self._exchange(name, arguments, changes=False)
        with defer_signals() as received:
            self._stream.signals = received
            try:
                return self._exchange(name, arguments, changes=True)
            finally:
                self._stream.signals = None

    def _exchange(self, name: str, arguments: Message | None, *, changes: bool) -> object:
        """Send one command and return its result; raise what `execute` does, but for Stopped."""
        request: Message = {"execute": name, "id": f"pmuctl-{os.getpid()}-{next(self._tags)}"}
        if arguments:
            request["arguments"] = arguments
        if self._trace is not None:
            self._trace(
                f"{self.subject} <- {name} {qmp_codec.encode(arguments or {}).decode().strip()}"
            )
        try:
            self._stream.send(qmp_codec.encode(request))
        except TimeoutError:
            raise self._make_unsent_error(name, f"in {self._waited} s", changes=changes) from None
        except OSError as error:
            how = f"({error.strerror or error})"
            raise self._make_unsent_error(name, how, changes=changes) from error
        try:
            reply = self._read_reply(name, request["id"])
        except TimeoutError:
            why = f"no answer in {self._waited} s"
            if self._stream.signals:
                why = "pmuctl was stopped before an answer"
            raise self._make_lost_error(name, why, changes=changes) from None
        except (OSError, EOFError) as error:
            why = "the connection was closed before an answer" + (
                f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
            )
            raise self._make_lost_error(name, why, changes=changes) from error
        except (WireError, SchemaError) as error:
            raise self._make_malformed_error(name, str(error), changes=changes) from error
        except OverBudgetError:
            if changes:
                raise self._make_outcome_error(name, "the answer was left out") from None
            raise self.make_over_budget_error() from None
        if isinstance(reply, PmuctlError):
            raise reply
        return reply

    def _connect_socket(self) -> None:
        """Connect to the socket. Raise a PmuctlError with the reason if that fails."""
        path = self.control_socket.path
        try:
            self._try_connect()
        except TimeoutError:
            raise self._make_unreachable_error(f"no connection in {self._waited} s") from None
        except FileNotFoundError:
            raise NotFoundError(f"there is no socket {path}", fix="pmuctl vm list") from None
        except PermissionError as error:
            if error.errno == errno.EPERM:
                why = f"{error.filename}: {error.strerror}"
                raise not_authenticated(self.control_socket, why) from None
            raise DeniedError(
                "this user may not connect to its control socket",
                subject=self.subject,
                why=f"{path} is for its owner, root and, where it exists, group kvm",
                fix="run pmuctl as root or as the user of the VM",
            ) from None
        except ConnectionRefusedError:
            raise UnreachableError(
                "its control socket is dead",
                subject=self.subject,
                why=f"nobody listens at {path} (ECONNREFUSED): its VMM has ended",
                fix="start the VM again: its VMM replaces a dead socket",
                errno="ECONNREFUSED",
            ) from None
        except OSError as error:
            raise UnreachableError(
                "its control socket cannot be reached",
                subject=self.subject,
                why=f"{path}: {error.strerror or error}",
                fix="check the VMM that should listen there",
            ) from None

    def _try_connect(self) -> None:
        try:
            fd = open_socket(self.control_socket)
        except OSError as error:
            if error.errno != errno.ENOTSOCK:
                raise
            raise UsageError(
                f"{self.control_socket.path}: not a socket",
                fix="--socket takes a VMM's control socket",
            ) from None
        try:
            # by descriptor: the socket that was checked is the one to connect to
            self._stream.connect(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def _read_peer(self) -> PeerCred:
        pid, uid, gid = self._stream.peer_credentials()
        return PeerCred(pid, uid, gid, self._procs.start_time(pid) if pid > 0 else None)

    def _check_peer(self, peer: PeerCred) -> None:
        owner = self.control_socket.speaks_for
        if owner is not None and peer.uid != owner:
            raise not_authenticated(
                self.control_socket, f"its peer is uid {peer.uid}, its directory is uid {owner}'s"
            )
        if peer.pid <= 0:
            raise not_authenticated(self.control_socket, "its peer is in another pid namespace")

    def authenticate(self, pid: int, *, strictly: bool) -> AuthenticatedVmm:
        """Return the VMM that the peer named as `pid` in `query-pmu`.

        Raise UnreachableError without a connection, else what peer_auth.authenticate() raises.
        """
        if self.peer is None:
            raise self._make_unreachable_error("there is no connection")
        vmm = authenticate(self.control_socket, self.peer, pid, self._procs, strictly=strictly)
        if self.control_socket.name is None:
            self._address = (f"pid/{vmm.pid}", "--socket", str(self.control_socket.path))
        elif (
            self.control_socket.speaks_for is not None
        ):  # a user can take any name in a directory of his own
            self._address = (f"pid/{vmm.pid}",)
        return vmm

    @property
    def _waited(self) -> str:
        """The deadline in seconds, for messages: it may be the rest of one that clients share."""
        return f"{round(self._seconds, 2) or self._seconds:g}"

    def _read_greeting(self) -> None:
        try:
            refusal = self._stream.next_message(_check_greeting)
        except TimeoutError:
            raise self._make_unreachable_error(f"no greeting in {self._waited} s") from None
        except (OSError, EOFError):
            why = "the connection was closed before a greeting"
            raise self._make_unreachable_error(why) from None
        except WireError as error:
            why = f"it does not speak the protocol: {error}"
            raise self._make_unreachable_error(why) from None
        except OverBudgetError:
            raise self.make_over_budget_error() from None
        if refusal is not None:
            raise self._make_unreachable_error(refusal)
        self.execute("qmp_capabilities")

    def _make_unreachable_error(self, why: str) -> UnreachableError:
        return UnreachableError(
            "its control socket does not answer",
            subject=self.subject,
            why=f"{self.control_socket.path}: {why}",
            fix="check its VMM; --deadline SEC waits longer",
        )

    def make_over_budget_error(self, what: str = "its answer") -> UnreachableError:
        """Return the error for what was not read, as its user has used up the budget."""
        limit = self._budget.limit if self._budget else 0
        whose = "the VMs" if self.control_socket.speaks_for is None else "one user's VMs"
        return UnreachableError(
            f"{what} was left out",
            subject=self.subject,
            why=f"{whose} answer with more than {limit >> 10} KiB together",
            fix=command("vm", "show", "--socket", self.control_socket.path),
        )

    def _make_unsent_error(self, name: str, how: str, *, changes: bool) -> PmuctlError:
        """Return the error for a request of which not all could be sent."""
        if changes and self._stream.unsent <= len(qmp_codec.END):  # the object is whole
            return self._make_outcome_error(name, f"it could not be sent to its end {how}")
        if self._stream.signals:
            return UnreachableError(
                f"pmuctl was stopped before {name} was sent",
                subject=self.subject,
                now=NOTHING_CHANGED,
            )
        error = self._make_unreachable_error(f"{name} could not be sent {how}")
        error.now = NOTHING_CHANGED if changes else None
        return error

    def _make_lost_error(self, name: str, why: str, *, changes: bool) -> PmuctlError:
        if changes:
            return self._make_outcome_error(name, why)
        return self._make_unreachable_error(why)

    def _make_malformed_error(self, name: str, why: str, *, changes: bool) -> PmuctlError:
        if changes:
            return self._make_outcome_error(name, f"the answer is wrong: {why}")
        return RefusedError(
            f"its answer to {name} is wrong",
            subject=self.subject,
            why=why,
            fix=f"look at what listens at {self.control_socket.path}",
        )

    def _make_outcome_error(self, name: str, why: str) -> UnknownOutcomeError:
        return UnknownOutcomeError(
            f"{name} was sent, its outcome is not known",
            subject=self.subject,
            why=why,
            fix=f"{command('vm', 'show', *self._address)} tells what holds now",
        )

    def _make_peer_error(self, name: str, peer_error: Message) -> PmuctlError:
        if peer_error.get("class") == "CommandNotFound":
            return UnsupportedError(
                f"its VMM does not know {name}",
                subject=self.subject,
                why=qmp_codec.peer_text(peer_error.get("desc")),
            )
        return qmp_codec.error_from(peer_error, subject=self.subject)

    def _read_reply(self, name: str, tag: object) -> object:
        """Return the members of the answer with this id that are known, or the peer's error.

        Events and other answers are ignored.
        """

        result = COMMANDS[name].result

        def select_reply(message: Message) -> object:
            if "event" in message:
                return None
            # a server that cannot parse a request answers with an error without an id
            if message.get("id") != tag and ("error" not in message or "id" in message):
                return None
            if isinstance(peer_error := message.get("error"), dict):
                return self._make_peer_error(name, peer_error)
            result.check(message.get("return"), "return")
            return result.select(message["return"])

        while (reply := self._stream.next_message(select_reply)) is None:
            pass
        return reply


def _check_greeting(message: Message) -> str | None:
    """Return why a message is no greeting, None if it is one."""
    if isinstance(peer_error := message.get("error"), dict):
        return f"it answers: {qmp_codec.peer_text(peer_error.get('desc'))}"
    if not isinstance(message.get("QMP"), dict):
        return "it does not speak the protocol: no QMP greeting"
    return None


def socket_at(path: Path) -> ControlSocket:
    """Return the control socket at a path that the admin named: its owner is not known."""
    return ControlSocket(name=None, path=path)
