# SPDX-License-Identifier: Apache-2.0
"""What ends the reading of a machine: it is too large, or descriptors or memory run out.

Neither is "file not found". The limits are far above any real machine: they bound a captured tree,
which is hostile input.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice

from pmuctl.errors import RefusedError

NAMES_MAX = 1 << 17
"""Names in a directory: twice as many as a machine has CPUs, at most."""

_FIXES = {
    errno.EMFILE: "allow this process more open files (ulimit -n)",
    errno.ENFILE: "close files elsewhere, or raise fs.file-max",
    errno.ENOMEM: "free some memory, and try again",
}


class ResourceExhaustedError(RefusedError):
    """A read that failed for want of descriptors or memory: the file may exist or not."""


def raise_if_exhausted(error: OSError, path: str | None = None) -> None:
    """Raise ResourceExhaustedError if `error` says nothing about the file it came up with.

    Any other error (ENOENT, EACCES, EIO …) is the result of reading the file: return.
    """
    if (shortage := find_exhaustion(error, path)) is not None:
        raise shortage from error


def find_exhaustion(error: OSError, path: str | None = None) -> ResourceExhaustedError | None:
    """Return what `raise_if_exhausted` raises; None if `error` is about the file itself."""
    if error.errno not in _FIXES:
        return None
    name = errno.errorcode[error.errno]
    return ResourceExhaustedError(
        "this machine cannot be read",
        subject=path or error.filename,
        why=f"{error.strerror} ({name})",
        fix=_FIXES[error.errno],
        errno=name,
    )


class TooLargeError(RefusedError):
    """A machine, mostly a captured tree, has more of something than is read."""

    def __init__(self, path: str, most: int, what: str) -> None:
        super().__init__(
            "this is larger than any machine",
            subject=path,
            why=f"at most {most} {what} are read",
            fix="capture the machine anew with pmuctl host snapshot",
        )


class Allowance:
    """What may still be read of one kind, over several files; `what` names it in the error."""

    def __init__(self, most: int, what: str) -> None:
        self._left = self._most = most
        self._what = what

    def take(self, count: int, path: str) -> None:
        """Use up so many for the file at `path`; raise TooLargeError if fewer are left."""
        self._left -= count
        if self._left < 0:
            raise TooLargeError(path, self._most, self._what)


def take_names(names: Iterable[str], path: str, most: int = NAMES_MAX) -> list[str]:
    """Return the names in the directory at `path`; raise TooLargeError if there are too many."""
    found = list(islice(names, most + 1))
    if len(found) > most:
        raise TooLargeError(path, most, "names of a directory")
    return found


@contextmanager
def spare_descriptor() -> Iterator[Callable[[], None]]:
    """Keep a file descriptor for what undoes the body; the context gives the call that frees it.

    After that call a file can be opened although the body has used up all descriptors of this
    process. Raise ResourceExhaustedError if there is none to keep.
    """
    with ExitStack() as stack:
        try:
            stack.callback(os.close, os.open("/", os.O_PATH | os.O_CLOEXEC))
        except OSError as error:
            raise_if_exhausted(error)
            raise
        yield stack.close
