# SPDX-License-Identifier: Apache-2.0
"""Small JSON files that one user writes and others read, trusted only as far as their owner."""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from pmuctl.host.resource_errors import raise_if_exhausted
from pmuctl.schema import Kind

VALUES_MAX = 1 << 18
"""Values in a document: an answer has up to 120,000, and so has a record. Each takes 200 bytes."""


def load(
    directory: Path,
    name: str,
    form: Kind,
    *,
    owners: Collection[int],
    limit: int,
    spend: Callable[[int], None] | None = None,
) -> Any:
    """Return what `form` reads in the file `name` of the directory.

    Return None if the file has another form, or cannot be trusted. It is trusted if the directory
    and the file belong to one of `owners`, nobody else may write to them, neither is a link, and
    the file is a regular one of at most `limit` bytes of JSON, and VALUES_MAX values. `spend` is
    called with the bytes that will be read of it, and may refuse that with an exception of its
    own. Raise ResourceExhaustedError if descriptors or memory run out.
    """
    try:
        with _open_fd(directory, os.O_PATH | os.O_DIRECTORY) as folder:
            if not _is_safe(folder, owners):
                return None
            # without O_NONBLOCK, opening a FIFO would block
            with _open_fd(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=folder) as fd:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or not _is_safe(fd, owners):
                    return None
                if status.st_size > limit:
                    return None
                if spend is not None:
                    spend(status.st_size)
                with open(fd, "rb", closefd=False) as file:
                    data = file.read(status.st_size)
        if has_too_many_values(data.decode()):
            return None
        return form.read(json.loads(data), name)
    except OSError as error:
        raise_if_exhausted(error)
        return None
    except (ValueError, RecursionError):
        return None


def save(
    directory: Path, name: str, document: object, *, owners: Collection[int], limit: int
) -> None:
    """Write the file atomically, readable by all; make the directory if it is missing.

    Raise OSError on failure: EPERM for a directory that `load` would not trust, EFBIG for a
    document over `limit` bytes.
    """
    data = (json.dumps(document, indent=1) + "\n").encode()
    if len(data) > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)
    # the module secrets would bring hashlib and random into processes that must stay small
    beside = f".{name}.{os.urandom(8).hex()}"
    with contextlib.suppress(FileExistsError):
        directory.mkdir(0o755)
        directory.chmod(0o755)  # the umask may have taken bits away
    with _open_fd(directory, os.O_RDONLY | os.O_DIRECTORY) as folder:
        if not _is_safe(folder, owners):
            raise OSError(errno.EPERM, "others may write to it", os.fspath(directory))
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with _open_fd(beside, flags, mode=0o600, dir_fd=folder) as fd:
                with open(fd, "wb", closefd=False) as file:
                    file.write(data)
                os.fchmod(fd, 0o644)
            os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=folder)
            raise


def remove(directory: Path, name: str) -> None:
    """Remove the file if it exists; raise OSError if that is not permitted."""
    with contextlib.suppress(FileNotFoundError):
        with _open_fd(directory, os.O_PATH | os.O_DIRECTORY) as folder:
            os.unlink(name, dir_fd=folder)


def has_too_many_values(text: str) -> bool:
    """Return whether a JSON text has more than VALUES_MAX values."""
    return sum(map(text.count, "{[,")) > VALUES_MAX


@contextlib.contextmanager
def _open_fd(path: str | Path, flags: int, **options: Any) -> Iterator[int]:
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, **options)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_safe(fd: int, owners: Collection[int]) -> bool:
    """Return whether only these users can have written to an open file or directory."""
    status = os.fstat(fd)
    return status.st_uid in owners and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
