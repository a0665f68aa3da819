# SPDX-License-Identifier: Apache-2.0
"""The standard streams of commands: write errors are kept apart from all other errors."""

import io
import os
import sys
from typing import TextIO, cast

from pmuctl.errors import OutputError


class PipeClosed(Exception):  # noqa: N818 - this is no error: the reader has seen enough
    """The reader of the output has closed it."""


def standard_streams() -> tuple[TextIO, TextIO]:
    """Return stdout and stderr; characters that cannot be encoded are written as escapes.

    A stream that was closed before pmuctl started fails at every write (EBADF). That is reported
    for stdout; what is written to such a stderr is lost.
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
    """Return a text stream that raises PipeClosed and OutputError, never OSError."""
    return cast(TextIO, _Guarded(stream))


class _Guarded(io.TextIOBase):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text; raise PipeClosed if the reader has closed it, else OutputError."""
        try:
            return self._stream.write(text)
        except OSError as error:
            raise _make_output_error(error) from error

    def flush(self) -> None:
        """Write what is buffered; raise what `write` raises."""
        try:
            self._stream.flush()
        except OSError as error:
            raise _make_output_error(error) from error

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream, which rich reads."""
        return self._stream.encoding


def _make_output_error(error: OSError) -> Exception:
    if isinstance(error, BrokenPipeError):
        return PipeClosed()
    why = error.strerror or str(error)
    return OutputError("the result could not be written", why=why)
