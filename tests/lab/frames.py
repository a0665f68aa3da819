# SPDX-License-Identifier: Apache-2.0
"""Messages over a serial console: one JSON object a line, marked and checksummed.

Both ends use it. Whatever the kernel prints between two frames stays console text; a frame with
something else inside it is told from a good one by its checksum.
"""

import base64
import json
import zlib
from collections.abc import Iterator
from typing import Any

MARK = b"\x1elab "
# More than this at once may overrun the tty's input buffer, which has no flow control.
LONGEST = 32768
# So much data at a time leaves others a turn.
CHUNK = 8192

Message = dict[str, Any]


class GarbledError(Exception):
    """A frame came damaged."""


def encode(message: Message) -> bytes:
    """One message as the line that carries it."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return MARK + b"%08x " % zlib.crc32(body) + body + b"\n"


def decode(line: bytes) -> tuple[bytes, Message | None]:
    """A line without its end → (the console text in it, the message it carries)."""
    text, mark, frame = line.partition(MARK)
    if not mark:
        return line, None
    checksum, _, body = frame.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        raise GarbledError(line.decode(errors="replace"))
    message: Message = json.loads(body)
    return text, message


def pack(data: bytes) -> str:
    """Bytes as a value JSON can hold."""
    return base64.b64encode(data).decode()


def unpack(text: str) -> bytes:
    """The bytes `pack` was given."""
    return base64.b64decode(text)


def chunks(data: bytes) -> Iterator[bytes]:
    """The data in pieces that fit a frame; nothing for no data."""
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]


class Splitter:
    """Cuts a stream into lines, however it arrives."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that this piece completes, without their ends."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [line.rstrip(b"\r") for line in lines]
