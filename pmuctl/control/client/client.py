# SPDX-License-Identifier: Apache-2.0
"""The control socket's client: one connection, one deadline, and whom it speaks with."""

import itertools
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from pmuctl.control.client.peer_auth import PeerCred, ProcessFacts, authenticate, not_authenticated
from pmuctl.control.protocol import qmp_codec
from pmuctl.control.protocol.messages import COMMANDS
from pmuctl.control.protocol.qmp_codec import Message, WireError
from pmuctl.control.protocol.schema import SchemaError
from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.errors import (
    DeniedError,
    NotFoundError,
    PmuctlError,
    RefusedError,
    Stopped,
    UnknownOutcomeError,
    UnreachableError,
    UnsupportedError,
    UsageError,
    command,
)
from pmuctl.host.procfs import Procfs


class Client:
    """A connection to one VM's control socket, as a context.

    Raises UnreachableError where nobody answers before anything was asked of it, DeniedError
    where this user may not connect, RefusedError where the peer is not what it should be.
    """

    def __init__(
        self,
        entry: ControlSocket,
        *,
        deadline: float,
        procs: Procfs,
        trace: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`deadline` is in seconds, for the whole exchange from here on.

        `trace` is told every request as it is sent.
        """
        self.entry = entry
        self.subject = entry.name or str(entry.path)
        self._seconds = deadline
        self._until = time.monotonic() + deadline
        self._procs = procs
        self._decoder = qmp_codec.Decoder()
        self._tags = itertools.count(1)
        self._trace = trace
        self._address: tuple[str, ...] = (self.subject,)
        self.peer: PeerCred | None = None
        """Who listens at the other end; None where there is no connection."""

    def __enter__(self) -> "Client":
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect()
            self.peer = self._read_peer()
            self._check_peer(self.peer)
            self._greet()
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def execute(self, name: str, arguments: Message | None = None) -> object:
        """One command and its answer, checked against the table of messages.

        Raises what the peer's error class stands for and UnsupportedError where it does not know
        the command. Where it was sent and no answer comes, or one that has not the form it
        should, raises UnknownOutcomeError for a command that changes something, else
        UnreachableError or RefusedError. A signal meanwhile (Stopped) carries the former.
        """
        command = COMMANDS[name]
        changes = command.changes and not (arguments or {}).get("dry-run")
        request: Message = {"execute": name, "id": f"pmuctl-{os.getpid()}-{next(self._tags)}"}
        if arguments:
            request["arguments"] = arguments
        self._trace(
            f"{self.subject} <- {name} {qmp_codec.encode(arguments or {}).decode().strip()}"
        )
        try:
            self._send(qmp_codec.encode(request))
        except TimeoutError:  # half a request does nothing
            raise self._unreachable(f"{name} could not be sent in {self._waited} s") from None
        except OSError as error:
            why = f"{name} could not be sent ({error.strerror or error})"
            raise self._unreachable(why) from error
        try:
            reply = self._reply(request["id"])
        except Stopped as stop:
            if changes:
                stop.lost = self._unknown(name, "pmuctl was stopped before an answer")
            raise
        except TimeoutError:
            why = f"no answer in {self._waited} s"
            raise self._lost(name, why, changes=changes) from None
        except (OSError, EOFError) as error:
            why = "the connection was closed before an answer" + (
                f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
            )
            raise self._lost(name, why, changes=changes) from error
        except WireError as error:
            raise self._malformed(name, str(error), changes=changes) from error
        if isinstance(problem := reply.get("error"), dict):
            raise self._problem(name, problem)
        try:
            command.result.check(reply.get("return"), "return")
        except SchemaError as error:
            raise self._malformed(name, str(error), changes=changes) from error
        return reply["return"]

    def _connect(self) -> None:
        try:
            self._try_connect()
        except TimeoutError:
            raise self._unreachable(f"no connection in {self._waited} s") from None
        except FileNotFoundError:
            raise NotFoundError(
                f"there is no socket {self.entry.path}", fix="pmuctl vm list"
            ) from None
        except PermissionError:
            raise DeniedError(
                "this user may not connect to its control socket",
                subject=self.subject,
                why=f"{self.entry.path} is for its owner, root and, where it exists, group kvm",
                fix="run pmuctl as root or as the user of the VM",
            ) from None
        except ConnectionRefusedError:
            raise UnreachableError(
                "its control socket is dead",
                subject=self.subject,
                why=f"nobody listens at {self.entry.path} (ECONNREFUSED): its VMM has ended",
                fix="start the VM again: its VMM replaces a dead socket",
                errno="ECONNREFUSED",
            ) from None
        except OSError as error:
            raise UnreachableError(
                "its control socket cannot be reached",
                subject=self.subject,
                why=f"{self.entry.path}: {error.strerror or error}",
                fix="check the VMM that should listen there",
            ) from None

    def _try_connect(self) -> None:
        if not stat.S_ISSOCK(os.stat(self.entry.path).st_mode):
            raise UsageError(
                f"{self.entry.path}: not a socket", fix="--socket takes a VMM's control socket"
            )
        while True:
            self._socket.settimeout(self._left())
            try:
                self._socket.connect(os.fspath(self.entry.path))
                return
            except BlockingIOError:
                # others wait to be accepted; for unix sockets a timeout does not cover this
                time.sleep(min(0.01, self._left()))

    def _read_peer(self) -> PeerCred:
        size = struct.calcsize("3i")
        raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid, uid, gid = struct.unpack("iII", raw)
        return PeerCred(pid, uid, gid, self._procs.start_time(pid) if pid > 0 else None)

    def _check_peer(self, peer: PeerCred) -> None:
        owner = self.entry.owner
        if owner is not None and peer.uid != owner:
            raise not_authenticated(
                self.entry, f"its peer is uid {peer.uid}, its directory is uid {owner}'s"
            )
        if peer.pid <= 0:
            raise not_authenticated(self.entry, "its peer is in another pid namespace")

    def authenticate(self, pid: int, *, strictly: bool) -> ProcessFacts:
        """The VMM, where the peer named `pid` as that in `query-pmu`; raises as trust.believe."""
        if self.peer is None:
            raise self._unreachable("there is no connection")
        vmm = authenticate(self.entry, self.peer, pid, self._procs, strictly=strictly)
        if self.entry.name is None:
            self._address = (f"pid/{vmm.pid}", "--socket", str(self.entry.path))
        elif self.entry.owner is not None:  # anybody can take a name in a directory of his own
            self._address = (f"pid/{vmm.pid}",)
        return vmm

    @property
    def _waited(self) -> str:
        """The deadline as it is told: it can be what others have left of one for all."""
        return f"{round(self._seconds, 2) or self._seconds:g}"

    def _greet(self) -> None:
        try:
            greeting = self._next()
        except TimeoutError:
            raise self._unreachable(f"no greeting in {self._waited} s") from None
        except (OSError, EOFError):
            raise self._unreachable("the connection was closed before a greeting") from None
        except WireError as error:
            raise self._unreachable(f"it does not speak the protocol: {error}") from None
        if isinstance(problem := greeting.get("error"), dict):
            raise self._unreachable(f"it answers: {qmp_codec.peer_text(problem.get('desc'))}")
        if not isinstance(greeting.get("QMP"), dict):
            raise self._unreachable("it does not speak the protocol: no QMP greeting")
        self.execute("qmp_capabilities")

    def _unreachable(self, why: str) -> UnreachableError:
        return UnreachableError(
            "its control socket does not answer",
            subject=self.subject,
            why=f"{self.entry.path}: {why}",
            fix="check its VMM; --deadline SEC waits longer",
        )

    def _lost(self, name: str, why: str, *, changes: bool) -> PmuctlError:
        return self._unknown(name, why) if changes else self._unreachable(why)

    def _malformed(self, name: str, why: str, *, changes: bool) -> PmuctlError:
        if changes:
            return self._unknown(name, f"the answer is wrong: {why}")
        return RefusedError(
            f"its answer to {name} is wrong",
            subject=self.subject,
            why=why,
            fix=f"look at what listens at {self.entry.path}",
        )

    def _unknown(self, name: str, why: str) -> UnknownOutcomeError:
        return UnknownOutcomeError(
            f"{name} was sent, its outcome is not known",
            subject=self.subject,
            why=why,
            fix=f"{command('vm', 'show', *self._address)} tells what holds now",
        )

    def _problem(self, name: str, problem: Message) -> Exception:
        if problem.get("class") == "CommandNotFound":
            return UnsupportedError(
                f"its VMM does not know {name}",
                subject=self.subject,
                why=qmp_codec.peer_text(problem.get("desc")),
            )
        return qmp_codec.error_from(problem, subject=self.subject)

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(self._left())
        self._socket.sendall(data, socket.MSG_NOSIGNAL)

    def _reply(self, tag: object) -> Message:
        while True:
            message = self._next()
            if "event" in message:
                continue
            # an error without an id is the answer to what could not be read
            if message.get("id") == tag or ("error" in message and "id" not in message):
                return message

    def _next(self) -> Message:
        while (message := self._decoder.next()) is None:
            self._socket.settimeout(self._left())
            data = self._socket.recv(1 << 16)
            if not data:
                raise EOFError
            self._decoder.feed(data)
        return message

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def socket_at(path: Path) -> ControlSocket:
    """The entry for a socket that the admin names by its path: its owner is not known."""
    return ControlSocket(name=None, path=path)
