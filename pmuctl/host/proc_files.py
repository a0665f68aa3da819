# SPDX-License-Identifier: Apache-2.0
"""The files of a /proc: read through a root, with what has vanished told apart from a shortage."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pmuctl.host.resource_errors import raise_if_exhausted
from pmuctl.value import value

READ_LIMIT = 1 << 20
"""Bytes of one file that are read: only command lines can have more."""
PAGE = 4096
"""Bytes: the smallest pages there are."""


@value
class ProcFiles:
    """Readers of a mounted procfs. What has vanished, or may not be read, is none or empty.

    Where this process or the machine runs short, they raise ResourceExhaustedError.
    """

    root: Path = Path("/proc")

    def read_text(self, path: str) -> str | None:
        """All of a file below the root; None where that cannot be read.

        Bytes that are not UTF-8 come as lone surrogates.
        """
        try:
            return self._read(path).decode(errors="surrogateescape")
        except OSError:
            return None

    def _status_number(self, tid: int, name: bytes) -> int | None:
        try:
            status = self._read(f"{tid}/status")
        except OSError:
            return None
        # a thread's name, the one line that anybody may write, has its line ends escaped
        value = status.partition(b"\n" + name + b":\t")[2].partition(b"\n")[0]
        return int(value) if value.isdigit() else None

    def _stat(self, path: str) -> list[bytes]:
        """The fields from the third on; none where there is no such process."""
        try:
            stat = self._read(path)
        except OSError:
            return []
        # the second field is the command in parentheses, which may itself hold anything
        return stat.rpartition(b")")[2].split()

    def _read(self, path: str) -> bytes:
        """What a file has, as far as READ_LIMIT; raises OSError."""
        with _telling_shortage():
            fd = os.open(f"{self.root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return read_all(fd)
            finally:
                os.close(fd)

    def _names(self, path: str) -> list[str]:
        """The names in a directory; raises OSError."""
        with _telling_shortage():
            return os.listdir(f"{self.root}/{path}")

    def _links(self, path: str) -> dict[int, str]:
        """Where the links in a directory of descriptors point to; raises OSError."""
        folder = f"{self.root}/{path}"
        found = {}
        for name in self._names(path):
            try:
                found[int(name)] = os.readlink(f"{folder}/{name}")
            except (OSError, ValueError):
                continue
        return found


@contextmanager
def _telling_shortage() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise_if_exhausted(error)
        raise


def read_all(fd: int) -> bytes:
    """The bytes of an open file, as far as READ_LIMIT; raises OSError."""
    data = more = os.read(fd, 1 << 16)
    # less than a page is all: a file of /proc is made whole, or page by page
    while len(more) >= PAGE and len(data) < READ_LIMIT:
        more = os.read(fd, 1 << 16)
        data += more
    return data


def number(fields: list[bytes], at: int) -> int | None:
    """The number in a field of stat, None for what is none of 64 bits."""
    if len(fields) > at and len(fields[at]) <= 20 and fields[at].isdigit():
        return int(fields[at])
    return None
