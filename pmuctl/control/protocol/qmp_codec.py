# SPDX-License-Identifier: Apache-2.0
"""The codec of the control socket: a stream of QMP's JSON objects, and the classes of errors.

QEMU's docs/interop/qmp-spec defines the format. The decoder finds the end of each object by its
braces, because some clients send no newline; the encoder ends each object with a newline.
"""

import errno
import json
import math
import re

from pmuctl.errors import (
    DeniedError,
    NotFoundError,
    PinnedError,
    PmuctlError,
    RefusedError,
    SealedError,
    UnsupportedError,
    UsageError,
)

MESSAGE_MAX = 1 << 20
NESTING_MAX = 32
END = b"\r\n"
"""What the encoder puts after each object; the object has taken effect without it."""
PEER_TEXT_MAX = 1000
"""Characters of a text from a peer that are passed on."""

ERROR_CLASSES: dict[str, type[PmuctlError]] = {
    "Sealed": SealedError,
    "NotSupported": UnsupportedError,
    "NotFound": NotFoundError,
    "OutOfRange": UsageError,
    "NotPermitted": DeniedError,
    "Pinned": PinnedError,
    "Refused": RefusedError,
}
"""Error classes of the PMU commands. The docstring of the exception says what a class means."""

Message = dict[str, object]

_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_OUTSIDE_TEXT = re.compile(rb'["{}\[\]]')
_INSIDE_TEXT = re.compile(rb'"|\\.?', re.DOTALL)


class WireError(ValueError):
    """The input is not a sequence of JSON objects within the limits of the protocol."""


class Decoder:
    """A decoder that cuts a byte stream into JSON objects.

    It buffers at most MESSAGE_MAX bytes and the data of the last feed(), if after each feed() the
    caller calls next() until that returns None.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._scanned = 0
        self._depth = 0
        self._in_text = False

    @property
    def is_inside(self) -> bool:
        """Whether next() has seen the beginning of an object but not yet its end."""
        return self._depth > 0

    def feed(self, data: bytes) -> None:
        """Append received bytes to the buffer that next() decodes."""
        self._pending += data

    def next(self) -> Message | None:
        """Return the next complete object, or None if more bytes are needed.

        Raise WireError for input that is not a JSON object, is over 1 MiB or nests deeper than
        32; the stream cannot be decoded any further after that.
        """
        if self._depth == 0 and not self._skip_space():
            return None
        end = self._find_end()
        if (end or len(self._pending)) > MESSAGE_MAX:
            raise WireError(f"a message over {MESSAGE_MAX} bytes")
        if end is None:
            return None
        raw = bytes(self._pending[:end])
        del self._pending[:end]
        self._scanned = 0
        return _decode_message(raw)

    def _skip_space(self) -> bool:
        first = _NOT_SPACE.search(self._pending)
        if first is None:
            self._pending.clear()
            return False
        if first[0] != b"{":
            raise WireError("a JSON object is expected")
        del self._pending[: first.start()]
        return True

    def _find_end(self) -> int | None:
        while True:
            tokens = _INSIDE_TEXT if self._in_text else _OUTSIDE_TEXT
            found = tokens.search(self._pending, self._scanned)
            if found is None:
                self._scanned = len(self._pending)
                return None
            token = found[0]
            if token == b"\\":  # the escaped character has not arrived yet
                self._scanned = found.start()
                return None
            self._scanned = found.end()
            if token == b'"':
                self._in_text = not self._in_text
            elif token in (b"{", b"["):
                self._depth += 1
                if self._depth > NESTING_MAX:
                    raise WireError(f"nesting over {NESTING_MAX}")
            elif token in (b"}", b"]"):
                self._depth -= 1
                if self._depth == 0:
                    return self._scanned


def _decode_message(raw: bytes) -> Message:
    try:
        text = raw.decode("utf-8")
        message = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_parse_finite,
            object_pairs_hook=_refuse_duplicates,
        )
        if "\\u" in text:  # an escape can encode half a surrogate pair, which is not a character
            json.dumps(message, ensure_ascii=False).encode("utf-8")
    except ValueError as error:
        raise WireError(f"not valid JSON: {error}") from None
    assert isinstance(message, dict)  # it begins with a brace
    return message


def _refuse_constant(word: str) -> object:
    raise ValueError(f"{word} is not JSON")


def _parse_finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is out of range")
    return number


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> Message:
    message = dict(pairs)
    if len(message) != len(pairs):
        raise ValueError("a member is given twice")
    return message


def encode(message: Message) -> bytes:
    """Return the wire form of a message: ASCII JSON on one line."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii") + END


def error_message(error: PmuctlError, data: Message) -> Message:
    """Return the `error` member for an error: its class, its text, and `data` for programs."""
    name = next((n for n, cls in ERROR_CLASSES.items() if type(error) is cls), "Refused")
    data = {"why": error.why, "errno": error.errno} | data
    return {"class": name, "desc": error.message, "data": data}


def error_from(message: Message, *, subject: str) -> PmuctlError:
    """Return the exception for an `error` member of a peer; RefusedError for an unknown class.

    Members that are missing or have a wrong type are ignored, and long texts are cut.
    """
    data = message.get("data")
    data = data if isinstance(data, dict) else {}
    cls = ERROR_CLASSES.get(str(message.get("class")), RefusedError)
    number = data.get("errno")
    error = cls(
        peer_text(message.get("desc")) or "no reason was given",
        subject=subject,
        why=peer_text(data.get("why")),
        errno=str(number) if number in errno.errorcode.values() else None,
    )
    applied = data.get("applied")
    if isinstance(applied, list):
        texts = (peer_text(step.get("words")) for step in applied if isinstance(step, dict))
        error.applied = tuple(text for text in texts if text is not None)
    return error


def peer_text(value: object) -> str | None:
    """Return a text of a peer, cut to PEER_TEXT_MAX; None if it is not a string."""
    return value[:PEER_TEXT_MAX] if isinstance(value, str) else None
