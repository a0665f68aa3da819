# SPDX-License-Identifier: Apache-2.0
"""The lock of a runtime directory, held while a socket is created or removed there."""

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from pmuctl.errors import RefusedError

LOCK_SECONDS = 5.0
"""Seconds to wait for other processes that create or remove a socket in the same directory."""


@contextlib.contextmanager
def locked(directory: Path, patience: float) -> Iterator[None]:
    """Hold the lock of a directory, without which no process creates or removes sockets there.

    Raise RefusedError if others hold it for more than `patience` seconds, or if the lock file is
    not a regular file, and OSError if it cannot be opened or created.
    """
    fd = _open_lock(directory / ".lock")
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise RefusedError(
                f"{directory / '.lock'} is in the way", why="it is no file", fix="remove it"
            )
        # the wait is bounded because whoever may write to the directory can hold the lock for ever
        until = time.monotonic() + patience
        while not _try_lock(fd):
            if time.monotonic() >= until:
                raise RefusedError(f"{directory} is locked", why=f"for {patience:g} s and more")
            time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def _open_lock(path: Path) -> int:
    """Open the lock file, created on first use; raise OSError, also for a symbolic link."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        # with O_CREAT the kernel refuses another user's file in a sticky directory, even to root
        # (fs.protected_regular)
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        with contextlib.suppress(FileExistsError):
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            # only those who may write to the directory may lock it, whatever the umask is
            folder = path.parent.stat()
            is_same_group = os.fstat(fd).st_gid == folder.st_gid
            writers = folder.st_mode & (0o222 if is_same_group else 0o202)
            os.fchmod(fd, 0o600 | writers | writers << 1)
            return fd


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
