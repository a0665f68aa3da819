# SPDX-License-Identifier: Apache-2.0
"""The control socket's client: one connection, one deadline, and a check of who answers."""

import os
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pmuctl.control import wire
from pmuctl.control.messages import COMMANDS
from pmuctl.control.registry import Entry
from pmuctl.control.schema import SchemaError
from pmuctl.control.wire import Message, WireError
from pmuctl.errors import (
    DeniedError,
    NotFoundError,
    RefusedError,
    UnknownOutcomeError,
    UnreachableError,
    UnsupportedError,
)
from pmuctl.host.procs import Procfs


@dataclass(frozen=True, slots=True)
class Peer:
    """Who listens at the other end, by SO_PEERCRED (unix(7)): as it was when it began to."""

    pid: int
    uid: int
    gid: int


class Client:
    """A connection to one VM's control socket, as a context.

    Raises UnreachableError where nobody answers before anything was asked of it, DeniedError
    where this user may not connect, RefusedError where the peer is not what it should be.
    """

    def __init__(self, entry: Entry, *, deadline: float, procs: Procfs) -> None:
        """`deadline` is in seconds, for the whole exchange from here on."""
        self.entry = entry
        self.subject = entry.name or str(entry.path)
        self._seconds = deadline
        self._until = time.monotonic() + deadline
        self._procs = procs
        self._decoder = wire.Decoder()
        self._inbox: deque[Message] = deque()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.trace: list[str] = []

    def __enter__(self) -> "Client":
        try:
            self._connect()
            self.peer = self._check_peer()
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

        Raises what the peer's error class stands for, UnsupportedError where it does not know
        the command, RefusedError for an answer that has not the form it should, and where no
        answer comes UnknownOutcomeError for a command that changes something, else
        UnreachableError.
        """
        command = COMMANDS[name]
        request: Message = {"execute": name, "id": f"pmuctl-{os.getpid()}"}
        if arguments:
            request["arguments"] = arguments
        self.trace.append(f"{name} {wire.encode(arguments or {}).decode().strip()}")
        try:
            self._send(wire.encode(request))
            reply = self._reply(request["id"])
        except TimeoutError:
            why = f"no answer in {self._seconds:g} s"
            raise self._lost(name, why, changes=command.changes) from None
        except (OSError, EOFError) as error:
            why = "the connection was closed before an answer" + (
                f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
            )
            raise self._lost(name, why, changes=command.changes) from error
        except WireError as error:
            raise self._lost(name, f"the answer is {error}", changes=command.changes) from error
        if isinstance(problem := reply.get("error"), dict):
            raise self._problem(name, problem)
        try:
            command.result.check(reply.get("return"), "return")
        except SchemaError as error:
            why = f"the answer is wrong: {error}"
            raise self._lost(name, why, changes=command.changes) from error
        return reply["return"]

    def _connect(self) -> None:
        self._socket.settimeout(self._left())
        try:
            self._socket.connect(os.fspath(self.entry.path))
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
                fix=f"start the VM again, or remove {self.entry.path}",
                errno="ECONNREFUSED",
            ) from None
        except OSError as error:
            raise UnreachableError(
                "its control socket cannot be reached",
                subject=self.subject,
                why=f"{self.entry.path}: {error.strerror or error}",
                fix="check the VMM that should listen there",
            ) from None

    def _check_peer(self) -> Peer:
        size = struct.calcsize("3i")
        raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        peer = Peer(*struct.unpack("3i", raw))
        owner = self.entry.owner
        if owner is not None and peer.uid != owner:
            raise self._untrusted(f"its peer is uid {peer.uid}, its directory is uid {owner}'s")
        if peer.pid <= 0:
            raise self._untrusted("its peer is in another pid namespace")
        return peer

    def check_holds_kvm(self, *, strictly: bool) -> None:
        """Believe the peer only if its process has a KVM VM open.

        Where this user may not look, a question may still be asked, a change (`strictly`) not.
        """
        held = self._procs.holds_kvm(self.peer.pid)
        if held is False:
            raise self._untrusted(f"process {self.peer.pid} that listens there has no VM open")
        if held is None and strictly:
            raise DeniedError(
                "it cannot be checked that a VMM listens at its control socket",
                subject=self.subject,
                why=f"/proc/{self.peer.pid}/fd may not be read by this user",
                fix="run pmuctl as root or as the user of the VM",
            )

    def threads(self) -> frozenset[int]:
        """The thread ids of the peer: only these are believed to be its vCPUs' threads."""
        return self._procs.threads(self.peer.pid)

    def _untrusted(self, why: str) -> RefusedError:
        return RefusedError(
            "its control socket is not believed",
            subject=self.subject,
            why=why,
            fix=f"look at who made {self.entry.path}",
        )

    def _greet(self) -> None:
        try:
            greeting = self._next()
        except TimeoutError:
            raise self._unreachable(f"no greeting in {self._seconds:g} s") from None
        except (OSError, EOFError):
            raise self._unreachable("the connection was closed before a greeting") from None
        except WireError as error:
            raise self._unreachable(f"it does not speak the protocol: {error}") from None
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

    def _lost(self, name: str, why: str, *, changes: bool) -> Exception:
        if not changes:
            return self._unreachable(why)
        return UnknownOutcomeError(
            f"{name} was sent, its outcome is not known",
            subject=self.subject,
            why=why,
            fix=f"pmuctl vm show {self.subject} tells what holds now",
        )

    def _problem(self, name: str, problem: Message) -> Exception:
        if problem.get("class") == "CommandNotFound":
            return UnsupportedError(
                f"its VMM does not know {name}",
                subject=self.subject,
                why=str(problem.get("desc")),
            )
        return wire.error_from(problem, subject=self.subject)

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(self._left())
        self._socket.sendall(data)

    def _reply(self, tag: object) -> Message:
        while True:
            message = self._next()
            if "event" in message:
                continue
            # an error without an id is the answer to what could not be read
            if message.get("id") == tag or ("error" in message and "id" not in message):
                return message

    def _next(self) -> Message:
        while not self._inbox:
            self._socket.settimeout(self._left())
            data = self._socket.recv(1 << 16)
            if not data:
                raise EOFError
            self._inbox.extend(self._decoder.feed(data))
        return self._inbox.popleft()

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def socket_at(path: Path) -> Entry:
    """The entry for a socket that the admin names by its path: its owner is not known."""
    return Entry(name=None, path=path)
