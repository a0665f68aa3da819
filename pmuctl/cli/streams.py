# SPDX-License-Identifier: Apache-2.0
"""Standard output as commands see it: failures to write are told apart from all other errors."""

import io
import os
import sys
from typing import TextIO, cast

from pmuctl.errors import OutputError


class PipeClosed(Exception):  # noqa: N818 - nothing went wrong: the reader has seen enough
    """Whoever reads the output has closed it."""


def standard_streams() -> tuple[TextIO, TextIO]:
    """stdout and stderr; a byte that cannot be encoded is shown, never a reason to fail.

    One that was closed from outside fails at every write ("Bad file descriptor"), which is told
    of stdout; what stderr would have said is lost.
    """
    streams = []
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            unwritable = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            stream = open(unwritable, "w", encoding="utf-8")
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")
        streams.append(stream)
    return streams[0], streams[1]


def guarded(stream: TextIO) -> TextIO:
    """A text stream that raises PipeClosed and OutputError, never OSError."""
    return cast(TextIO, _Guarded(stream))


class _Guarded(io.TextIOBase):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text; raises PipeClosed where nobody reads, OutputError where it does not fit."""
        try:
            return self._stream.write(text)
        except OSError as error:
            raise _failed(error) from error

    def flush(self) -> None:
        """Write what is buffered; raises what `write` raises."""
        try:
            self._stream.flush()
        except OSError as error:
            raise _failed(error) from error

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Its file descriptor."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """How text becomes bytes; rich asks."""
        return self._stream.encoding


def _failed(error: OSError) -> Exception:
    if isinstance(error, BrokenPipeError):
        return PipeClosed()
    why = error.strerror or str(error)
    return OutputError("the result could not be written", why=why)
