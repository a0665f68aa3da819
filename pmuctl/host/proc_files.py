# SPDX-License-Identifier: Apache-2.0
"""Readers of the files of a mounted procfs, which may be the capture of another machine."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from pmuctl.host.resource_errors import raise_if_exhausted
from pmuctl.value import value

T = TypeVar("T")

READ_LIMIT = 1 << 20
"""Bytes read of one file at most; only command lines can have more."""
PAGE = 4096
"""Bytes of the smallest page that Linux has."""


class TooManyLinksError(Exception):
    """A directory has more links than are to be read."""


@value
class ProcFiles:
    """Readers of a mounted procfs. A file that has vanished, or may not be read, is None or empty.

    If descriptors or memory run out, the readers raise ResourceExhaustedError.
    """

    root: Path = Path("/proc")

    def read_text(self, path: str) -> str | None:
        """Return the whole text of a file below the root, None if it cannot be read.

        Bytes that are not UTF-8 become lone surrogates.
        """
        try:
            return self._read_file(path).decode(errors="surrogateescape")
        except OSError:
            return None

    def _read_status_number(self, tid: int, name: bytes) -> int | None:
        """Return the number in a line of /proc/TID/status, None if there is none."""
        try:
            status = self._read_file(f"{tid}/status")
        except OSError:
            return None
        # any user may choose a thread's name, but the kernel escapes the line ends in it
        digits = status.partition(b"\n" + name + b":\t")[2].partition(b"\n")[0]
        return parse_stat_number([digits], 0)

    def _read_stat(self, path: str) -> list[bytes]:
        """Return the fields of a stat file from the third on, an empty list if it is gone."""
        try:
            stat = self._read_file(path)
        except OSError:
            return []
        # the second field is the command in parentheses, which may itself hold anything
        return stat.rpartition(b")")[2].split()

    def _read_file(self, path: str) -> bytes:
        """Return the content of a file, READ_LIMIT bytes or little more; raise OSError."""
        try:
            fd = os.open(f"{self.root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return read_all(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise_if_exhausted(error)
            raise

    def _list_names(self, path: str) -> list[str]:
        """Return the names in a directory; raise OSError."""
        try:
            return os.listdir(f"{self.root}/{path}")
        except OSError as error:
            raise_if_exhausted(error)
            raise

    def _count_directories(self, path: str) -> int:
        """Return how many directories a directory has, by its link count; raise OSError."""
        return os.stat(f"{self.root}/{path}").st_nlink - 2

    def iter_links(self, path: str, *, most: int | None = None) -> Iterator[tuple[int, str]]:
        """Yield the descriptors in a directory of them, and their targets; raise OSError.

        They are read one by one, because a table can have a million. If there are more than
        `most`, raise TooManyLinksError before any is read.
        """
        try:
            files = os.scandir(f"{self.root}/{path}")
        except OSError as error:
            raise_if_exhausted(error)
            raise
        readlink = os.readlink
        with files:
            for file in files if most is None else check_count(files, most):
                try:
                    link = int(file.name), readlink(file.path)
                except (OSError, ValueError):
                    continue
                yield link

    def _read_links(self, path: str) -> dict[int, str]:
        """Return the targets of the links in a directory of descriptors; raise OSError."""
        return dict(self.iter_links(path))


def check_count(files: Iterable[T], most: int) -> list[T]:
    """Return the files of a directory; raise TooManyLinksError if there are more than `most`."""
    found = list(islice(files, most + 1))
    if len(found) > most:
        raise TooManyLinksError
    return found


def read_all(fd: int) -> bytes:
    """Return the bytes of an open file, READ_LIMIT or little more at most; raise OSError."""
    data = more = os.read(fd, 1 << 16)
    # a read shorter than a page is the last: the kernel makes /proc files whole, or page by page
    while len(more) >= PAGE and len(data) < READ_LIMIT:
        more = os.read(fd, 1 << 16)
        data += more
    return data


def parse_stat_number(fields: list[bytes], index: int) -> int | None:
    """Return the number in a field of stat; None if it is missing or has over 20 digits."""
    if len(fields) > index and len(fields[index]) <= 20 and fields[index].isdigit():
        return int(fields[index])
    return None
