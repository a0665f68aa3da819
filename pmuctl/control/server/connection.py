# SPDX-License-Identifier: Apache-2.0
"""One client of the control server: its requests, its unread output and its credentials."""

import os
import socket
import time

from pmuctl.control.protocol import qmp_codec
from pmuctl.control.protocol.qmp_codec import Message
from pmuctl.control.protocol.stream import read_peer_credentials

OUTPUT_MAX = qmp_codec.MESSAGE_MAX
"""Bytes that a client may leave unread before the server drops it."""


class Connection:
    """The server's end of a connection to one client; no method blocks.

    Methods raise OSError if the client has left or does not read.
    """

    def __init__(self, client_socket: socket.socket) -> None:
        client_socket.settimeout(0)
        self.socket = client_socket
        self.pid, self.uid, _ = read_peer_credentials(client_socket)
        self.may_change = self.uid in (0, os.geteuid())
        self.is_ready = False
        """Whether the client has sent qmp_capabilities."""
        self.is_leaving = False
        """Whether the connection stays open only until the client has read the last message."""
        self.may_have_more = False
        """Whether the buffer may hold another complete request."""
        self._decoder = qmp_codec.Decoder()
        self._output = bytearray()
        self._begun_since: float | None = None
        self._unread_since: float | None = None

    @property
    def has_output(self) -> bool:
        """Whether the client has not read everything yet. Until then it gets no answers."""
        return bool(self._output)

    @property
    def owes_since(self) -> float | None:
        """The time.monotonic() since when the rest of a request, or reading an answer, is due."""
        return self._unread_since if self._output else self._begun_since

    def receive(self) -> None:
        """Receive some of the available bytes; raise EOFError at the end of the stream."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        if not data:
            raise EOFError
        self._decoder.feed(data)

    def next_request(self) -> Message | None:
        """Return the next complete request, if any; raise WireError as Decoder.next() does."""
        request = self._decoder.next()
        self.may_have_more = request is not None
        if request is not None or not self._decoder.is_inside:
            self._begun_since = None
        elif self._begun_since is None:
            self._begun_since = time.monotonic()
        return request

    def send(self, message: Message) -> None:
        """Send a message after the output that is not read yet."""
        self._output += qmp_codec.encode(message)
        self.flush()
        if len(self._output) > OUTPUT_MAX:
            raise ConnectionAbortedError("it does not read")

    def flush(self) -> None:
        """Send as much output as the client takes without blocking."""
        try:
            while self._output:
                # a VMM may have restored the default action of SIGPIPE, which would end it
                sent = self.socket.send(self._output, socket.MSG_NOSIGNAL)
                del self._output[:sent]
                self._unread_since = None
        except BlockingIOError:
            if self._unread_since is None:
                self._unread_since = time.monotonic()
