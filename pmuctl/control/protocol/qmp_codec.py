# SPDX-License-Identifier: Apache-2.0
"""The wire of the control socket: QMP's JSON objects one after another, and errors as classes.

Source of the form: QEMU's docs/interop/qmp-spec. Input is cut at the objects' own ends, for some
clients send no newline; output ends each object with one.
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
PEER_TEXT_MAX = 1000
"""Characters of a peer's own words that are passed on."""

ERROR_CLASSES: dict[str, type[PmuctlError]] = {
    "Sealed": SealedError,
    "NotSupported": UnsupportedError,
    "NotFound": NotFoundError,
    "OutOfRange": UsageError,
    "NotPermitted": DeniedError,
    "Pinned": PinnedError,
    "Refused": RefusedError,
}
"""Error classes of the PMU commands; what a class means is the docstring of its exception."""

Message = dict[str, object]

_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_OUTSIDE_TEXT = re.compile(rb'["{}\[\]]')
_INSIDE_TEXT = re.compile(rb'"|\\.?', re.DOTALL)


class WireError(ValueError):
    """What came is not a sequence of JSON objects within the bounds of the protocol."""


class Decoder:
    """Cuts a byte stream into JSON objects.

    What it holds is bounded by MESSAGE_MAX bytes and the last feed(), if each feed() is followed
    by next() until that gives None.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._scanned = 0
        self._depth = 0
        self._in_text = False

    @property
    def is_inside(self) -> bool:
        """Whether, as far as next() has come, an object has begun and not yet ended."""
        return self._depth > 0

    def feed(self, data: bytes) -> None:
        """Take in what has come; next() looks at it."""
        self._pending += data

    def next(self) -> Message | None:
        """The next object that is whole, None until more has come.

        Raises WireError for anything that is not a JSON object, that is over 1 MiB or that nests
        deeper than 32; the stream cannot be followed after that.
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
        return _decode(raw)

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
            if token == b"\\":  # what it escapes has not come yet
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


def _decode(raw: bytes) -> Message:
    try:
        text = raw.decode("utf-8")
        message = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique
        )
        if "\\u" in text:  # an escape can name half a surrogate pair, which is no character
            json.dumps(message, ensure_ascii=False).encode("utf-8")
    except ValueError as error:
        raise WireError(f"not valid JSON: {error}") from None
    assert isinstance(message, dict)  # it begins with a brace
    return message


def _no_constant(word: str) -> object:
    raise ValueError(f"{word} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is out of range")
    return number


def _unique(pairs: list[tuple[str, object]]) -> Message:
    message = dict(pairs)
    if len(message) != len(pairs):
        raise ValueError("a member is given twice")
    return message


def encode(message: Message) -> bytes:
    """One message as it is sent: ASCII JSON on one line."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\r\n"


def error_message(error: PmuctlError, data: Message) -> Message:
    """The `error` member for a refusal: its class, its words, and what a program may want."""
    name = next((n for n, cls in ERROR_CLASSES.items() if type(error) is cls), "Refused")
    data = {"why": error.why, "errno": error.errno} | data
    return {"class": name, "desc": error.message, "data": data}


def error_from(message: Message, *, subject: str) -> PmuctlError:
    """The exception for an `error` member of a peer; an unknown class is a plain refusal.

    Members that are missing or are not what they should be are passed over, and long texts cut.
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
        words = (peer_text(step.get("words")) for step in applied if isinstance(step, dict))
        error.applied = tuple(its for its in words if its is not None)
    return error


def peer_text(value: object) -> str | None:
    """A text of a peer, cut to what is passed on of it; None for what is no text."""
    return value[:PEER_TEXT_MAX] if isinstance(value, str) else None
