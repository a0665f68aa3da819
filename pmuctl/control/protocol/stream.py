# SPDX-License-Identifier: Apache-2.0
"""A client's connection to a QMP socket, its deadline, and the credentials of its peer."""

import socket
import struct
import time

from pmuctl.control.protocol.qmp_codec import Decoder, Message

RETRY_SECONDS = 0.01
"""Seconds between two attempts to connect to a socket whose queue is full."""


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

    def time_left(self) -> float:
        """Return the seconds that are left. Raise TimeoutError if there are none."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class MessageStream:
    """A connection to a unix socket that speaks QMP.

    Its methods raise TimeoutError after the deadline, and OSError if the connection fails.
    """

    def __init__(self, deadline: Deadline) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._deadline = deadline
        self._decoder = Decoder()

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
        self._socket.settimeout(self._deadline.time_left())
        self._socket.sendall(data, socket.MSG_NOSIGNAL)

    def next_message(self) -> Message:
        """Return the next message.

        Raise EOFError at the end of the stream, and WireError for input that is not a message.
        """
        while (message := self._decoder.next()) is None:
            self._socket.settimeout(self._deadline.time_left())
            data = self._socket.recv(1 << 16)
            if not data:
                raise EOFError
            self._decoder.feed(data)
        return message


def read_peer_credentials(connection: socket.socket) -> tuple[int, int, int]:
    """Return the pid, uid and gid of a unix socket's peer (struct ucred, SO_PEERCRED in unix(7)).

    They are those at listen(2) for a peer that accepted, at connect(2) for one that connected. The
    pid is 0 if the peer is in another pid namespace.
    """
    ucred = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    pid, uid, gid = struct.unpack("iII", ucred)
    return pid, uid, gid
