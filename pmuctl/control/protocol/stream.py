# SPDX-License-Identifier: Apache-2.0
"""A client's connection to a QMP socket, its deadline, and the credentials of its peer."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from pmuctl.control.protocol.qmp_codec import Decoder, Message
from pmuctl.errors import forget_frames

RETRY_SECONDS = 0.01
"""Seconds between two attempts to connect to a socket whose queue is full."""

DECODING = threading.Lock()
"""Held while what another user wrote is decoded and reduced: it becomes up to 30 times as much."""

T = TypeVar("T")


class OverBudgetError(Exception):
    """More was received than the connections that share a budget may receive together."""


class ByteBudget:
    """The bytes that connections, of any threads, may receive together.

    What is spent of a part of another budget, its `whole`, is spent of that, too.
    """

    def __init__(self, limit: int, whole: "ByteBudget | None" = None) -> None:
        self.limit = limit
        self._whole = whole
        self._spent = 0
        self._lock = threading.Lock()

    def restart(self) -> int:
        """Make all of it available again; return how much had been spent."""
        with self._lock:
            spent, self._spent = self._spent, 0
        if self._whole is not None:
            self._whole._add(-spent)
        return spent

    def spend(self, count: int) -> None:
        """Take that many bytes. Raise OverBudgetError if there are not so many left."""
        is_over = self._add(count) > self.limit
        if self._whole is not None:
            self._whole.spend(count)
        if is_over:
            raise OverBudgetError

    def _add(self, count: int) -> int:
        with self._lock:
            self._spent += count
            return self._spent


SIGNAL_SECONDS = 0.05
"""Seconds that a deferred signal waits at most for an answer that may be there already."""


class Deadline:
    """A time of the monotonic clock, in seconds, until which its users wait."""

    def __init__(self, until: float) -> None:
        self._until = until

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """Return the deadline that many seconds from now."""
        return cls(time.monotonic() + seconds)

    def restart(self, seconds: float) -> None:
        """Set the deadline to that many seconds from now."""
        self._until = time.monotonic() + seconds

    def shorten(self, seconds: float) -> None:
        """Set the deadline to that many seconds from now, unless it is earlier."""
        self._until = min(self._until, time.monotonic() + seconds)

    def time_left(self) -> float:
        """Return the seconds that are left. Raise TimeoutError if there are none."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class MessageStream:
    """A connection to a unix socket that speaks QMP.

    Its methods raise TimeoutError after the deadline, and OSError if the connection fails. What is
    received is spent of the `budget`.
    """

    def __init__(self, deadline: Deadline, budget: ByteBudget | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._deadline = deadline
        self._budget = budget
        self._decoder = Decoder()
        self.signals: Sequence[int] | None = None
        """The signals received so far while they are deferred: the first ends all sending and
        waiting, with a TimeoutError."""
        self.unsent = 0
        """The bytes of the last message that were not sent."""

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def connect(self, path: str, *, patient: bool = True) -> None:
        """Connect to the socket at `path`; if `patient`, retry while its queue is full.

        Raise BlockingIOError for a full queue if not `patient`.
        """
        while True:
            self._socket.settimeout(self._deadline.time_left())
            try:
                return self._socket.connect(path)
            except BlockingIOError:
                if not patient:
                    raise
                # the timeout of a unix socket does not cover a full queue (EAGAIN, unix(7))
                time.sleep(min(RETRY_SECONDS, self._deadline.time_left()))

    def peer_credentials(self) -> tuple[int, int, int]:
        """Return the pid, uid and gid of the peer as they were at its listen(2)."""
        return read_peer_credentials(self._socket)

    def send(self, data: bytes) -> None:
        """Send all of the data; a closed connection raises no SIGPIPE."""
        self.unsent = len(data)
        while self.unsent:
            if self.signals:
                raise TimeoutError
            self._set_timeout()
            with suppress(TimeoutError):
                self.unsent -= self._socket.send(data[-self.unsent :], socket.MSG_NOSIGNAL)

    def next_message(self, reduce: Callable[[Message], T]) -> T:
        """Return what `reduce` makes of the next message: all that is kept of it.

        No two messages of a process are decoded and reduced at the same time. Raise EOFError at
        the end of the stream, WireError for input that is not a message, OverBudgetError, and
        ValueError if `reduce` does.
        """
        while True:
            with self._decoding():
                try:
                    if (message := self._decoder.next()) is not None:
                        return reduce(message)
                except ValueError as error:
                    forget_frames(error)
                    raise
                finally:
                    message = None
            self._receive()

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        if not DECODING.acquire(timeout=self._deadline.time_left()):
            raise TimeoutError
        try:
            yield
        finally:
            DECODING.release()

    def _receive(self) -> None:
        """Feed the decoder with what comes next; raise TimeoutError after the deadline."""
        data = None
        while data is None:
            self._set_timeout()
            with suppress(TimeoutError):
                data = self._socket.recv(1 << 16)
        if not data:
            raise EOFError
        if self._budget is not None:
            self._budget.spend(len(data))
        self._decoder.feed(data)

    def _set_timeout(self) -> None:
        """Set how long the next call may wait. Raise TimeoutError after the deadline."""
        if self.signals:
            self._deadline.shorten(SIGNAL_SECONDS)
        left = self._deadline.time_left()
        self._socket.settimeout(left if self.signals is None else min(left, SIGNAL_SECONDS))


def read_peer_credentials(connection: socket.socket) -> tuple[int, int, int]:
    """Return the pid, uid and gid of a unix socket's peer (struct ucred, SO_PEERCRED in unix(7)).

    They are those at listen(2) for a peer that accepted, at connect(2) for one that connected. The
    pid is 0 if the peer is in another pid namespace.
    """
    ucred = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    pid, uid, gid = struct.unpack("iII", ucred)
    return pid, uid, gid
