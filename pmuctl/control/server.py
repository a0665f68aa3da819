# SPDX-License-Identifier: Apache-2.0
"""The control socket's server, for VMMs to embed: a thread that serves one VM's settings.

    with Server(door) as server:
        server.wait_for_release()      # pmu-apply is served meanwhile
        ...                            # from here on the VMM initialises its PMU and runs

Nothing a client sends ends the VM or stops other clients: input, output, clients and time are
bounded (see control-protocol in the manual pages for what each bound is).
"""

import contextlib
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from pmuctl import __version__
from pmuctl.control import registry, wire
from pmuctl.control.door import ApplyError, Door, Settings, VcpuStatus, filter_from
from pmuctl.control.messages import COMMANDS
from pmuctl.control.schema import SchemaError
from pmuctl.control.wire import Message, WireError
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.sysfs import Sysfs
from pmuctl.host.threads import Threads
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.plan import SetAttr, Step, Wanted

__all__ = ["Door", "Server", "VcpuStatus"]

CLIENTS_MAX = 16
READERS_MAX = 8
"""Clients that may only read: fewer, so that they cannot keep out who may change things."""
STALL_SECONDS = 5.0
STEPS_TOLD = 1000
BACKLOG_MAX = wire.MESSAGE_MAX


class Client:
    """One connection, and what is known of it."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        self.connection = connection
        credentials = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
        )
        self.pid, self.uid, self.gid = struct.unpack("3i", credentials)
        self.may_change = self.uid in (0, os.geteuid())
        self.decoder = wire.Decoder()
        self.backlog = bytearray()
        self.is_ready = False
        self.is_leaving = False
        self.stalled_since: float | None = None


class Server:
    """Serves one VM's control socket from its own thread, while its context lasts."""

    def __init__(
        self,
        door: Door,
        path: Path | None = None,
        *,
        sysfs: Sysfs | None = None,
        threads: Threads | None = None,
    ) -> None:
        """`path` is the socket's; by default NAME.sock in this user's runtime directory.

        Entering the context raises what registry.claim() and registry.own_dir() raise.
        """
        self._path = path or (
            registry.own_dir(os.environ, os.geteuid()) / (door.name + registry.SUFFIX)
        )
        its_sysfs = sysfs or Sysfs()
        self.settings = Settings(
            door,
            lambda: {p.type: p.name for p in scan_pmus(its_sysfs) if p.type is not None},
            threads or Threads(),
        )
        self._clients: list[Client] = []
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="pmuctl-control", daemon=True)
        self._stack = contextlib.ExitStack()
        self._ending = False
        self._commands: dict[str, Callable[[Message], object]] = {
            "query-commands": lambda _: [{"name": name} for name in COMMANDS],
            "query-pmu": lambda _: self.settings.query(),
            "pmu-apply": self._apply,
            "pmu-release": self._release,
        }

    def __enter__(self) -> "Server":
        self._listener = self._stack.enter_context(registry.claim(self._path))
        self._listener.settimeout(0)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending = True
        self._wake_write.send(b"\0")
        self._thread.join()
        self._stack.close()
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def seal(self, by: str) -> None:
        """The VMM goes on without waiting; `by` says why, as in "sealed: it did not wait"."""
        self.settings.seal(by)

    def wait_for_release(self, timeout: float | None = None) -> bool:
        """Keep the window open until a client releases the VM; False after `timeout` seconds.

        Either way the window is closed when this returns.
        """
        released = self.settings.released.wait(timeout)
        self.settings.seal("it was not released in time")
        return released

    def _serve(self) -> None:
        while not self._ending:
            for key, events in self._selector.select(self._next_timeout()):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.data, Client) and key.data in self._clients:
                    if events & selectors.EVENT_WRITE:
                        self._flush(key.data)
                    if events & selectors.EVENT_READ:
                        self._receive(key.data)
            self._drop_stalled()
        self._broadcast("VM_EXITED", {})
        for client in list(self._clients):
            self._drop(client)

    def _next_timeout(self) -> float | None:
        waits = [c.stalled_since for c in self._clients if c.stalled_since is not None]
        return max(0.0, min(waits) + STALL_SECONDS - time.monotonic()) if waits else None

    def _drop_stalled(self) -> None:
        for client in list(self._clients):
            since = client.stalled_since
            if since is None or time.monotonic() - since < STALL_SECONDS:
                continue
            if client.is_leaving:
                self._drop(client)
            else:
                self._fail(client, "a request was begun and not ended in time")

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        client = Client(connection)
        readers = sum(not its.may_change for its in self._clients)
        if len(self._clients) >= CLIENTS_MAX or (not client.may_change and readers >= READERS_MAX):
            connection.close()
            return
        self._clients.append(client)
        self._selector.register(connection, selectors.EVENT_READ, client)
        self._send(client, {"QMP": {"version": {"pmuctl": __version__}, "capabilities": []}})

    def _receive(self, client: Client) -> None:
        if client.is_leaving:
            self._drop(client)
            return
        try:
            data = client.connection.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        try:
            for request in client.decoder.feed(data):
                self._send(client, self._answer(client, request))
                if client not in self._clients:
                    return
        except WireError as error:
            self._fail(client, str(error))
            return
        if not client.decoder.is_inside:
            client.stalled_since = None
        elif client.stalled_since is None:
            client.stalled_since = time.monotonic()

    def _answer(self, client: Client, request: Message) -> Message:
        tag = {"id": request["id"]} if "id" in request else {}
        name, arguments = request.get("execute"), request.get("arguments", {})
        unknown = sorted(set(request) - {"execute", "arguments", "id"})
        if not isinstance(name, str) or unknown:
            return tag | _error("GenericError", "a request has execute, arguments and id only")
        if not client.is_ready and name != "qmp_capabilities":
            return tag | _error("CommandNotFound", "qmp_capabilities is expected first")
        if name == "qmp_capabilities" and client.is_ready:
            return tag | _error("CommandNotFound", "qmp_capabilities was given already")
        command = COMMANDS.get(name)
        if command is None:
            return tag | _error("CommandNotFound", f"there is no command {name!a:.80}")
        try:
            command.arguments.check(arguments, "arguments")
        except SchemaError as error:
            return tag | _error("GenericError", str(error))
        if command.changes and not client.may_change:
            why = f"uid {client.uid} is neither root nor the user of this VM's process"
            return tag | _error("NotPermitted", f"{name} is not permitted", why=why)
        if name == "qmp_capabilities":
            client.is_ready = True
            return tag | {"return": {}}
        assert isinstance(arguments, dict)
        try:
            return tag | {"return": self._commands[name](arguments)}
        except ApplyError as refused:
            return tag | {"error": self._refused(refused)}
        except Exception as bug:  # the VM must outlive a fault of ours, and the admin hear of it
            return tag | _error("GenericError", f"a bug in the server: {bug!r}")

    def _apply(self, arguments: Message) -> Message:
        cpus, wanted_filter = arguments.get("cpus"), arguments.get("filter")
        counters = arguments.get("counters")
        wanted = Wanted(
            type=int(str(arguments["type"])),
            name=str(arguments["name"]),
            counters=counters if isinstance(counters, int) else None,
            filter=filter_from(wanted_filter) if isinstance(wanted_filter, dict) else None,
            cpus=CpuSet.of(cpus) if isinstance(cpus, list) else None,
        )
        dry_run = bool(arguments.get("dry-run"))
        done = self.settings.apply(wanted, dry_run=dry_run)
        steps = _step_messages(done, "planned" if dry_run else "done")
        if steps and not dry_run:
            self._broadcast("PMU_APPLIED", {"steps": steps})
        outcome = "unchanged" if not steps else "planned" if dry_run else "set"
        return {"outcome": outcome, "steps": steps}

    def _refused(self, refused: ApplyError) -> Message:
        applied = _step_messages(refused.applied, "done")
        step = refused.step.words() if refused.step else None
        message = wire.error_message(refused.cause, {"step": step, "applied": applied})
        self._broadcast("PMU_REFUSED", {"class": message["class"], "desc": message["desc"]})
        return message

    def _release(self, _: Message) -> Message:
        if not self.settings.release():
            return {"outcome": "unchanged"}
        self._broadcast("PMU_WINDOW", {"window": "sealed", "by": "it was released"})
        return {"outcome": "released"}

    def _broadcast(self, event: str, data: Message) -> None:
        now = time.time()
        stamp = {"seconds": int(now), "microseconds": int(now % 1 * 1e6)}
        for client in list(self._clients):
            if client.is_ready:
                self._send(client, {"event": event, "data": data, "timestamp": stamp})

    def _fail(self, client: Client, why: str) -> None:
        """Say what is wrong and close the connection: the stream cannot be followed any more."""
        client.is_leaving = True
        client.stalled_since = time.monotonic()
        self._send(client, _error("GenericError", why))

    def _send(self, client: Client, message: Message) -> None:
        client.backlog += wire.encode(message)
        if len(client.backlog) > BACKLOG_MAX:
            self._drop(client)
        else:
            self._flush(client)

    def _flush(self, client: Client) -> None:
        if client not in self._clients:
            return
        try:
            while client.backlog:
                del client.backlog[: client.connection.send(client.backlog)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        if client.is_leaving:
            self._drop(client)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.backlog else 0)
        self._selector.modify(client.connection, events, client)

    def _drop(self, client: Client) -> None:
        if client in self._clients:
            self._clients.remove(client)
            self._selector.unregister(client.connection)
            client.connection.close()


def _error(name: str, desc: str, *, why: str | None = None) -> Message:
    return {"error": {"class": name, "desc": desc, "data": {"why": why, "errno": None}}}


def _step_messages(steps: Sequence[Step], outcome: str) -> list[Message]:
    """Steps as they are told; of very many (all of them filter ranges) the first ones only."""
    told: list[Message] = [
        {
            "attribute": step.attribute if isinstance(step, SetAttr) else "affinity",
            "words": step.words(),
            "outcome": outcome,
        }
        for step in steps[:STEPS_TOLD]
    ]
    if more := len(steps) - len(told):
        words = f"… and {more} more FILTER ranges"
        told.append({"attribute": "FILTER", "words": words, "outcome": outcome})
    return told
