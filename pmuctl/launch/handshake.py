# SPDX-License-Identifier: Apache-2.0
"""Messages between launcher and supervisor: texts of any length, and descriptors."""

import errno
import json
import os
import socket
import struct

from pmuctl.errors import PmuctlError, class_of

LENGTH = struct.Struct("<I")


def send_message(sock: socket.socket, text: bytes, fd: int | None = None) -> None:
    """Send a text, and a descriptor if there is one; raise OSError."""
    socket.send_fds(sock, [LENGTH.pack(len(text))], [] if fd is None else [fd])
    if text:  # the receiver of an empty text has all of it, and may be gone
        sock.sendall(text)


def recv_message(sock: socket.socket) -> tuple[bytes, int | None]:
    """Return the next text and its descriptor.

    Raise EOFError if the other end is gone, OSError (EMFILE) if a descriptor was lost on the way.
    """
    head, fds, flags, _ = socket.recv_fds(sock, LENGTH.size, 1, socket.MSG_CMSG_CLOEXEC)
    if len(head) < LENGTH.size:
        raise EOFError
    if flags & socket.MSG_CTRUNC:  # recvmsg(2) itself does not fail
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
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
    """Return an error as a text, which `decode_error` reads."""
    members = (int(error.status), error.message, error.why, error.fix, error.errno)
    return json.dumps(members).encode()


def decode_error(text: bytes) -> PmuctlError:
    """Return the error that `encode_error` made a text of."""
    status, message, why, fix, errno = json.loads(text)
    cls = class_of(status) or PmuctlError
    return cls(message, why=why, fix=fix, errno=errno)
