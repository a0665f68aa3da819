# SPDX-License-Identifier: Apache-2.0
"""One client of the control server: what came from it, what it is yet to read, who it is."""

import os
import socket
import struct
import time

from pmuctl.control.protocol import qmp_codec
from pmuctl.control.protocol.qmp_codec import Message

OUTPUT_MAX = qmp_codec.MESSAGE_MAX
"""Bytes a client may leave unread before it gets no more."""


class Connection:
    """A client's end of the server, never waiting for it.

    Whatever fails because the client is gone, or does not read, is an OSError.
    """

    def __init__(self, its_socket: socket.socket) -> None:
        its_socket.settimeout(0)
        self.socket = its_socket
        # ucred is pid, uid, gid, as they were at connect(2) (unix(7), SO_PEERCRED)
        size = struct.calcsize("3i")
        ucred = its_socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        self.pid, self.uid, _ = struct.unpack("iII", ucred)
        self.may_change = self.uid in (0, os.geteuid())
        self.is_ready = False
        """Whether it has sent qmp_capabilities."""
        self.is_leaving = False
        """Whether it is only kept to read the last word."""
        self.may_have_more = False
        """Whether another whole request may have come with the last one."""
        self._decoder = qmp_codec.Decoder()
        self._output = bytearray()
        self._begun_since: float | None = None
        self._unread_since: float | None = None

    @property
    def has_output(self) -> bool:
        """Whether it has not read everything yet. Until then it gets no answers."""
        return bool(self._output)

    @property
    def owes_since(self) -> float | None:
        """Since when (time.monotonic()) the rest of a request is due, or its reading."""
        return self._unread_since if self._output else self._begun_since

    def receive(self) -> None:
        """Take in some of what has come; raises EOFError at the end."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        if not data:
            raise EOFError
        self._decoder.feed(data)

    def next_request(self) -> Message | None:
        """The next request that is whole; raises WireError as Decoder.next() does."""
        request = self._decoder.next()
        self.may_have_more = request is not None
        if request is not None or not self._decoder.is_inside:
            self._begun_since = None
        elif self._begun_since is None:
            self._begun_since = time.monotonic()
        return request

    def send(self, message: Message) -> None:
        """Send a message after what is not read yet."""
        self._output += qmp_codec.encode(message)
        self.flush()
        if len(self._output) > OUTPUT_MAX:
            raise ConnectionAbortedError("it does not read")

    def flush(self) -> None:
        """Send what the client takes just now."""
        try:
            while self._output:
                # a VMM may have given SIGPIPE its default action back, which is to end it
                sent = self.socket.send(self._output, socket.MSG_NOSIGNAL)
                del self._output[:sent]
                self._unread_since = None
        except BlockingIOError:
            if self._unread_since is None:
                self._unread_since = time.monotonic()
