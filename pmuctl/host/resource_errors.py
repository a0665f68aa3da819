# SPDX-License-Identifier: Apache-2.0
"""Resource exhaustion (EMFILE, ENFILE, ENOMEM), kept apart from "file not found"."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from pmuctl.errors import RefusedError

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
