# SPDX-License-Identifier: Apache-2.0
"""The server of a control socket, part of a VMM or of its supervisor, with its own thread.

    with Server(backend) as server:
        server.wait_for_release()      # the server accepts pmu-apply meanwhile
        ...                            # now the VMM initialises its PMU and runs

No client can end the VM or block other clients: input, output, clients and time are limited
(pmuctl-protocol(7) has the numbers).
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
from pmuctl.control.runtime.listener import bind_control_socket
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
"""Clients that may only query: fewer, so that they cannot keep out those that may change a VM."""
STALL_SECONDS = 5.0
"""Seconds that a client may leave a request half sent, or an answer unread."""


class Server:
    """The server of one VM's control socket, as a context manager; it runs in its own thread."""

    def __init__(
        self,
        backend: VmmBackend,
        path: Path | None = None,
        *,
        sysfs: Sysfs | None = None,
        threads: ThreadAffinity | None = None,
        stall: float = STALL_SECONDS,
        on_change: OnChange | None = None,
    ) -> None:
        """`path` is the path of the socket; the default is NAME.sock in the runtime directory.

        `stall` is how many seconds a client may leave a request half sent, or an answer unread.
        The server's thread calls `on_change` after each change by a client, also if only a part of
        it was done, and ignores its exceptions. Entering the context raises what
        bind_control_socket() and sockets.own_dir() raise, and UsageError for an invalid VM
        name.
        """
        self._backend = backend
        self._path = path
        self._stall = stall
        host_sysfs = sysfs or Sysfs()
        self.settings = PmuState(
            backend,
            lambda: scan_pmu_types(host_sysfs),
            threads or ThreadAffinity(),
        )
        self._handler = CommandHandler(self.settings, self._broadcast_event, on_change)
        self._connections: list[Connection] = []
        self._wake_write: socket.socket | None = None
        self._ending = False
        self._has_sent_sealed = False

    def __enter__(self) -> "Server":
        with contextlib.ExitStack() as stack:
            file = sockets.file_name(self._backend.name)
            path = self._path or sockets.own_dir(os.environ, os.geteuid()) / file
            self._listener = stack.enter_context(bind_control_socket(path))
            self._listener.settimeout(0)
            self._selector = stack.enter_context(selectors.DefaultSelector())
            wake_read, self._wake_write = socket.socketpair()
            for end in (wake_read, self._wake_write):
                stack.enter_context(end).settimeout(0)
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept_client)
            self._selector.register(wake_read, selectors.EVENT_READ, lambda: wake_read.recv(4096))
            thread = threading.Thread(
                target=self._serve_clients, name="pmuctl-control", daemon=True
            )
            thread.start()
            stack.callback(self._end_thread, thread)
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
        """Close the window: the VMM does not wait any more. `by` completes "sealed: …"."""
        self.settings.seal(by)
        self._wake_thread()

    def wait_for_release(self, timeout: float | None = None) -> bool:
        """Keep the window open until a client releases the VM, and close it.

        Return False after `timeout` seconds, or if the VMM has closed the window meanwhile.
        """
        self.settings.closed.wait(timeout)
        self.seal("it was not released in time")
        return self.settings.released.is_set()

    def _end_thread(self, thread: threading.Thread) -> None:
        self._ending = True
        self._wake_thread()
        thread.join()

    def _wake_thread(self) -> None:
        if self._wake_write is not None:
            # a full socket wakes the thread as well, and after the context there is no thread
            with contextlib.suppress(OSError):
                self._wake_write.send(b"\0")

    def _serve_clients(self) -> None:
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
            # accept only now, because clients that have left make room for new ones
            for key, _ in ready:
                if not isinstance(key.data, Connection):
                    key.data()
            self._send_sealed()
            # by the time before the turns: input that came during a long one is not read yet
            self._drop_stalled(now)
        self._send_sealed()
        self._broadcast_event("VM_EXITED", {})
        for connection in list(self._connections):
            self._drop_client(connection)

    def _time_left(self) -> float | None:
        since = [c.owes_since for c in self._connections if c.owes_since is not None]
        return max(0.0, min(since) + self._stall - time.monotonic()) if since else None

    def _drop_stalled(self, now: float) -> None:
        for connection in list(self._connections):
            since = connection.owes_since
            if since is None or now - since < self._stall:
                continue
            if connection.has_output:
                self._drop_client(connection)
            else:
                self._dismiss_client(connection, "a request was begun and not ended in time")

    def _accept_client(self) -> None:
        try:
            connection = Connection(self._listener.accept()[0])
        except BlockingIOError:
            return
        except OSError:
            # the process has no free descriptor: the client keeps waiting, and this must not spin
            time.sleep(0.05)
            return
        readers = sum(not client.may_change for client in self._connections)
        is_full = len(self._connections) >= CLIENTS_MAX
        self._connections.append(connection)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        if is_full or (not connection.may_change and readers >= READERS_MAX):
            self._dismiss_client(connection, "too many clients")
        else:
            greeting = {"version": {"pmuctl": __version__}, "capabilities": []}
            self._send_message(connection, {"QMP": greeting})

    def _take_turn(self, connection: Connection, *, is_readable: bool) -> None:
        """Serve at most one request, so that a client with many does not delay the others."""
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
                    self._send_message(connection, self._handler.answer(request, connection))
        except WireError as error:
            self._dismiss_client(connection, str(error))
        except (OSError, EOFError):
            self._drop_client(connection)
        else:
            self._watch_client(connection)

    def _send_sealed(self) -> None:
        if self.settings.closed.is_set() and not self._has_sent_sealed:
            self._has_sent_sealed = True
            data: Message = {"window": "sealed", "by": self.settings.closed_by}
            self._broadcast_event("PMU_WINDOW", data)

    def _broadcast_event(self, event: str, data: Message) -> None:
        now = time.time()
        stamp = {"seconds": int(now), "microseconds": int(now % 1 * 1e6)}
        for connection in list(self._connections):
            if connection.is_ready and not connection.is_leaving:
                self._send_message(connection, {"event": event, "data": data, "timestamp": stamp})

    def _dismiss_client(self, connection: Connection, why: str) -> None:
        """Send an error and close the connection: its stream cannot be decoded any further."""
        connection.is_leaving = True
        self._send_message(connection, {"error": {"class": "GenericError", "desc": why}})

    def _send_message(self, connection: Connection, message: Message) -> None:
        try:
            connection.send(message)
        except OSError:
            self._drop_client(connection)
        else:
            self._watch_client(connection)

    def _watch_client(self, connection: Connection) -> None:
        """Select the events to wait for; drop a leaving client that has read everything."""
        if connection.is_leaving and not connection.has_output:
            self._drop_client(connection)
        elif connection in self._connections:
            events = selectors.EVENT_WRITE if connection.has_output else selectors.EVENT_READ
            self._selector.modify(connection.socket, events, connection)

    def _drop_client(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._selector.unregister(connection.socket)
            connection.socket.close()
