# SPDX-License-Identifier: Apache-2.0
"""Where this process or the machine runs short: that is not to look like what is not there."""

import errno

from pmuctl.errors import RefusedError

_MENDED = {
    errno.EMFILE: "allow this process more open files (ulimit -n)",
    errno.ENFILE: "close files elsewhere, or raise fs.file-max",
    errno.ENOMEM: "free some memory, and try again",
}


class ResourceExhaustedError(RefusedError):
    """What was to be read is there or not: nobody knows, for want of descriptors or memory."""


def raise_if_exhausted(error: OSError, path: str | None = None) -> None:
    """Raise ResourceExhaustedError for an error that tells nothing of the file it came up with.

    Anything else (ENOENT, EACCES, EIO …) is what reading the file comes to, and passes.
    """
    if (shortage := shortage_of(error, path)) is not None:
        raise shortage from error


def shortage_of(error: OSError, path: str | None = None) -> ResourceExhaustedError | None:
    """The same as a value; None for what tells something of the file."""
    if error.errno not in _MENDED:
        return None
    name = errno.errorcode[error.errno]
    return ResourceExhaustedError(
        "this machine cannot be read",
        subject=path or error.filename,
        why=f"{error.strerror} ({name})",
        fix=_MENDED[error.errno],
        errno=name,
    )
