# SPDX-License-Identifier: Apache-2.0
"""Small JSON files of one user for others to read, believed no further than their owner."""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pmuctl.host.resource_errors import raise_if_exhausted


def load(directory: Path, name: str, *, owners: Collection[int], limit: int) -> object:
    """What the file `name` of that directory says; None where it is not to be believed.

    That is unless directory and file are of one of these users and nobody else may write to
    them, no link is in their place, and it is a regular file of at most `limit` bytes of JSON.
    Raises ResourceExhaustedError where this process or the machine runs short.
    """
    try:
        with _opened(directory, os.O_PATH | os.O_DIRECTORY) as folder:
            if not _is_safe(folder, owners):
                return None
            # a FIFO must not hold us up
            with _opened(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=folder) as fd:
                if not stat.S_ISREG(os.fstat(fd).st_mode) or not _is_safe(fd, owners):
                    return None
                with open(fd, "rb", closefd=False) as file:
                    data = file.read(limit + 1)
        return json.loads(data) if len(data) <= limit else None
    except OSError as error:
        raise_if_exhausted(error)
        return None
    except (ValueError, RecursionError):
        return None


def save(
    directory: Path, name: str, document: object, *, owners: Collection[int], limit: int
) -> None:
    """Write the file whole or not at all, for all to read; the directory is made if need be.

    Raises OSError where that cannot be: EPERM in a directory that `load` would not believe, EFBIG
    for what is over `limit` bytes.
    """
    data = (json.dumps(document, indent=1) + "\n").encode()
    if len(data) > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)
    # not the module secrets: it brings hashlib and random into processes that want to be small
    beside = f".{name}.{os.urandom(8).hex()}"
    with contextlib.suppress(FileExistsError):
        directory.mkdir()
        directory.chmod(0o755)  # whatever the umask is
    with _opened(directory, os.O_RDONLY | os.O_DIRECTORY) as folder:
        if not _is_safe(folder, owners):
            raise OSError(errno.EPERM, "others may write to it", os.fspath(directory))
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with _opened(beside, flags, mode=0o600, dir_fd=folder) as fd:
                with open(fd, "wb", closefd=False) as file:
                    file.write(data)
                os.fchmod(fd, 0o644)
            os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=folder)
            raise


def remove(directory: Path, name: str) -> None:
    """Remove the file, if it is there; raises OSError where that is not permitted."""
    with contextlib.suppress(FileNotFoundError):
        with _opened(directory, os.O_PATH | os.O_DIRECTORY) as folder:
            os.unlink(name, dir_fd=folder)


@contextlib.contextmanager
def _opened(path: str | Path, flags: int, **options: Any) -> Iterator[int]:
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, **options)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_safe(fd: int, owners: Collection[int]) -> bool:
    """Whether nobody but these can have written here."""
    its = os.fstat(fd)
    return its.st_uid in owners and not its.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
