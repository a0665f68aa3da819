# SPDX-License-Identifier: Apache-2.0
"""The control socket's server, for a VMM to embed or for its supervisor: a thread of its own.

    with Server(door) as server:
        server.wait_for_release()      # pmu-apply is served meanwhile
        ...                            # from here on the VMM initialises its PMU and runs

Nothing a client sends ends the VM or stops other clients: input, output, clients and time are
bounded (pmuctl-protocol(7) has the numbers).
"""

import contextlib
import os
import selectors
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

from pmuctl import __version__
from pmuctl.control.protocol.qmp_codec import Message, WireError
from pmuctl.control.runtime import sockets
from pmuctl.control.server.backend import VcpuStatus, VmmBackend
from pmuctl.control.server.commands import CommandHandler, OnChange
from pmuctl.control.server.connection import Connection
from pmuctl.control.server.pmu_state import PmuState
from pmuctl.host.pmus import scan_pmu_types
from pmuctl.host.sysfs import Sysfs
from pmuctl.host.thread_affinity import ThreadAffinity

__all__ = ["Server", "VcpuStatus", "VmmBackend"]

CLIENTS_MAX = 16
READERS_MAX = 8
"""Clients that may only read: fewer, so that they cannot keep out who may change things."""
STALL_SECONDS = 5.0
"""How long a client may leave a request half sent, or an answer unread."""


class Server:
    """Serves one VM's control socket from its own thread, while its context lasts."""

    def __init__(
        self,
        door: VmmBackend,
        path: Path | None = None,
        *,
        sysfs: Sysfs | None = None,
        threads: ThreadAffinity | None = None,
        stall: float = STALL_SECONDS,
        on_change: OnChange | None = None,
    ) -> None:
        """`path` is the socket's; by default NAME.sock in this user's runtime directory.

        `stall` is how many seconds a client may leave a request half sent, or an answer unread.
        `on_change` is called in the server's thread after each change that a client has made,
        also if only a part of it was done; what it raises is passed over. Entering the context
        raises what sockets.claim() and sockets.own_dir() raise, and UsageError for a VM whose
        name is none.
        """
        self._door = door
        self._path = path
        self._stall = stall
        its_sysfs = sysfs or Sysfs()
        self.settings = PmuState(
            door,
            lambda: scan_pmu_types(its_sysfs),
            threads or ThreadAffinity(),
        )
        self._dispatcher = CommandHandler(self.settings, self._broadcast, on_change)
        self._connections: list[Connection] = []
        self._wake_write: socket.socket | None = None
        self._ending = False
        self._has_told_sealed = False

    def __enter__(self) -> "Server":
        with contextlib.ExitStack() as stack:
            file = sockets.file_name(self._door.name)
            path = self._path or sockets.own_dir(os.environ, os.geteuid()) / file
            self._listener = stack.enter_context(sockets.bind_control_socket(path))
            self._listener.settimeout(0)
            self._selector = stack.enter_context(selectors.DefaultSelector())
            wake_read, self._wake_write = socket.socketpair()
            for end in (wake_read, self._wake_write):
                stack.enter_context(end).settimeout(0)
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
            self._selector.register(wake_read, selectors.EVENT_READ, lambda: wake_read.recv(4096))
            thread = threading.Thread(target=self._serve, name="pmuctl-control", daemon=True)
            thread.start()
            stack.callback(self._end, thread)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def seal(self, by: str) -> None:
        """The VMM goes on without waiting; `by` says why, as in "sealed: it did not wait"."""
        self.settings.seal(by)
        self._wake()

    def wait_for_release(self, timeout: float | None = None) -> bool:
        """Keep the window open until a client releases the VM; False after `timeout` seconds.

        False, too, where the VMM has sealed it. Either way it is closed when this returns.
        """
        self.settings.closed.wait(timeout)
        self.seal("it was not released in time")
        return self.settings.released.is_set()

    def _end(self, thread: threading.Thread) -> None:
        self._ending = True
        self._wake()
        thread.join()

    def _wake(self) -> None:
        if self._wake_write is not None:
            # a full pipe wakes as well, and after the context there is nobody to wake
            with contextlib.suppress(OSError):
                self._wake_write.send(b"\0")

    def _serve(self) -> None:
        while not self._ending:
            queued = [c for c in self._connections if c.may_have_more and not c.has_output]
            ready = self._selector.select(0 if queued else self._time_left())
            now = time.monotonic()
            turns = dict.fromkeys(queued, False)
            for key, events in ready:
                if isinstance(key.data, Connection):
                    turns[key.data] = bool(events & selectors.EVENT_READ)
            for connection, is_readable in turns.items():
                self._take_turn(connection, is_readable=is_readable)
            # only now, for those who have left make room
            for key, _ in ready:
                if not isinstance(key.data, Connection):
                    key.data()
            self._tell_sealed()
            # by the time before the turns: what came during a long one was not yet looked at
            self._drop_stalled(now)
        self._tell_sealed()
        self._broadcast("VM_EXITED", {})
        for connection in list(self._connections):
            self._drop(connection)

    def _time_left(self) -> float | None:
        since = [c.owes_since for c in self._connections if c.owes_since is not None]
        return max(0.0, min(since) + self._stall - time.monotonic()) if since else None

    def _drop_stalled(self, now: float) -> None:
        for connection in list(self._connections):
            since = connection.owes_since
            if since is None or now - since < self._stall:
                continue
            if connection.has_output:
                self._drop(connection)
            else:
                self._dismiss(connection, "a request was begun and not ended in time")

    def _accept(self) -> None:
        try:
            connection = Connection(self._listener.accept()[0])
        except BlockingIOError:
            return
        except OSError:
            # the process is out of descriptors: the client goes on waiting, this must not spin
            time.sleep(0.05)
            return
        readers = sum(not its.may_change for its in self._connections)
        is_full = len(self._connections) >= CLIENTS_MAX
        self._connections.append(connection)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        if is_full or (not connection.may_change and readers >= READERS_MAX):
            self._dismiss(connection, "too many clients")
        else:
            greeting = {"version": {"pmuctl": __version__}, "capabilities": []}
            self._send(connection, {"QMP": greeting})

    def _take_turn(self, connection: Connection, *, is_readable: bool) -> None:
        """Serve one request at most: many at once from one client must not hold up the others."""
        if connection not in self._connections:
            return
        try:
            connection.flush()
            if not connection.has_output and not connection.is_leaving:
                request = connection.next_request()
                if request is None and is_readable:
                    connection.receive()
                    request = connection.next_request()
                if request is not None:
                    self._send(connection, self._dispatcher.answer(request, connection))
        except WireError as error:
            self._dismiss(connection, str(error))
        except (OSError, EOFError):
            self._drop(connection)
        else:
            self._watch(connection)

    def _tell_sealed(self) -> None:
        if self.settings.closed.is_set() and not self._has_told_sealed:
            self._has_told_sealed = True
            data: Message = {"window": "sealed", "by": self.settings.closed_by}
            self._broadcast("PMU_WINDOW", data)

    def _broadcast(self, event: str, data: Message) -> None:
        now = time.time()
        stamp = {"seconds": int(now), "microseconds": int(now % 1 * 1e6)}
        for connection in list(self._connections):
            if connection.is_ready and not connection.is_leaving:
                self._send(connection, {"event": event, "data": data, "timestamp": stamp})

    def _dismiss(self, connection: Connection, why: str) -> None:
        """Say what is wrong and close the connection: the stream cannot be followed any more."""
        connection.is_leaving = True
        self._send(connection, {"error": {"class": "GenericError", "desc": why}})

    def _send(self, connection: Connection, message: Message) -> None:
        try:
            connection.send(message)
        except OSError:
            self._drop(connection)
        else:
            self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        """Wait for what can come next of this client, which may be nothing."""
        if connection.is_leaving and not connection.has_output:
            self._drop(connection)
        elif connection in self._connections:
            events = selectors.EVENT_WRITE if connection.has_output else selectors.EVENT_READ
            self._selector.modify(connection.socket, events, connection)

    def _drop(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._selector.unregister(connection.socket)
            connection.socket.close()
