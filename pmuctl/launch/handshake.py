# SPDX-License-Identifier: Apache-2.0
"""What launcher and supervisor hand each other: texts of any length, and descriptors."""

import json
import socket
import struct

from pmuctl.errors import PmuctlError, class_of

LENGTH = struct.Struct("<I")


def send_message(sock: socket.socket, text: bytes, fd: int | None = None) -> None:
    """Send a text, with a descriptor if there is one; raises OSError."""
    socket.send_fds(sock, [LENGTH.pack(len(text))], [] if fd is None else [fd])
    if text:  # an empty one has been taken by now, and its receiver may be gone
        sock.sendall(text)


def recv_message(sock: socket.socket) -> tuple[bytes, int | None]:
    """The next text and its descriptor; raises EOFError where the other end is gone."""
    head, fds, _, _ = socket.recv_fds(sock, LENGTH.size, 1, socket.MSG_CMSG_CLOEXEC)
    if len(head) < LENGTH.size:
        raise EOFError
    left = LENGTH.unpack(head)[0]
    parts = []
    while left:
        part = sock.recv(left)
        if not part:
            raise EOFError
        parts.append(part)
        left -= len(part)
    return b"".join(parts), fds[0] if fds else None


def encode_error(error: PmuctlError) -> bytes:
    """An error as a text, which `error_of` reads."""
    members = (int(error.status), error.message, error.why, error.fix, error.errno)
    return json.dumps(members).encode()


def decode_error(text: bytes) -> PmuctlError:
    """The inverse of `error_text`."""
    status, message, why, fix, errno = json.loads(text)
    cls = class_of(status) or PmuctlError
    return cls(message, why=why, fix=fix, errno=errno)
