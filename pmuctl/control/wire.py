# SPDX-License-Identifier: Apache-2.0
"""The wire of the control socket: QMP's JSON objects one after another, and errors as classes.

Source of the form: QEMU's docs/interop/qmp-spec. Input is cut at the objects' own ends, for some
clients send no newline; output ends each object with one.
"""

import json
from collections.abc import Iterator

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


class WireError(ValueError):
    """What came is not a sequence of JSON objects within the bounds of the protocol."""


class Decoder:
    """Cuts a byte stream into JSON objects; what it holds is bounded by MESSAGE_MAX bytes."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._scanned = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def is_inside(self) -> bool:
        """Whether an object has begun and not yet ended."""
        return self._depth > 0

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the objects that are whole now.

        Raises WireError for anything that is not a JSON object, that is over 1 MiB or that nests
        deeper than 32; the stream cannot be trusted after that.
        """
        self._pending += data
        while (end := self._find_end()) is not None:
            if end > MESSAGE_MAX:
                raise WireError(f"a message over {MESSAGE_MAX} bytes")
            raw = bytes(self._pending[:end])
            del self._pending[:end]
            self._scanned = 0
            yield _decode(raw)

    def _find_end(self) -> int | None:
        for index in range(self._scanned, len(self._pending)):
            byte = self._pending[index]
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif byte == ord("\\"):
                    self._escaped = True
                elif byte == ord('"'):
                    self._in_string = False
            elif byte in b"{[":
                self._depth += 1
                if self._depth > NESTING_MAX:
                    raise WireError(f"nesting over {NESTING_MAX}")
            elif byte in b"}]":
                self._depth -= 1
                if self._depth == 0:
                    return index + 1
                if self._depth < 0:
                    raise WireError("a bracket closes what was never opened")
            elif self._depth == 0 and byte not in b" \t\r\n":
                raise WireError("a JSON object is expected")
            elif byte == ord('"'):
                self._in_string = True
        self._scanned = len(self._pending)
        if self._depth == 0:
            self._pending.clear()
            self._scanned = 0
        if len(self._pending) > MESSAGE_MAX:
            raise WireError(f"a message over {MESSAGE_MAX} bytes")
        return None


def _decode(raw: bytes) -> Message:
    try:
        message = json.loads(
            raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as error:
        raise WireError(f"not valid JSON: {error}") from None
    if not isinstance(message, dict):
        raise WireError("a JSON object is expected")
    return message


def _no_constant(word: str) -> object:
    raise ValueError(f"{word} is not JSON")


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
    """The exception for an `error` member of a peer; an unknown class is a plain refusal."""
    data = message.get("data")
    data = data if isinstance(data, dict) else {}
    cls = ERROR_CLASSES.get(str(message.get("class")), RefusedError)
    why, errno = data.get("why"), data.get("errno")
    error = cls(
        str(message.get("desc", "no reason was given")),
        subject=subject,
        why=why if isinstance(why, str) else None,
        errno=errno if isinstance(errno, str) else None,
    )
    applied = data.get("applied")
    if isinstance(applied, list):
        error.applied = tuple(str(step["words"]) for step in applied if _has_words(step))
    return error


def _has_words(step: object) -> bool:
    return isinstance(step, dict) and isinstance(step.get("words"), str)
