# SPDX-License-Identifier: Apache-2.0
"""Readers of /sys and /proc below a root, which may be the capture of another machine.

A file that cannot be read is None or empty, not an exception: an attribute may be missing on this
kernel, fail with EIO, or go away with a CPU. If descriptors or memory run out, so that nobody
knows what is there, the readers raise ResourceExhaustedError. A captured tree is treated as
hostile: its links resolve inside it, and only regular files are opened.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pmuctl.host.resource_errors import NAMES_MAX, raise_if_exhausted, take_names
from pmuctl.model.cpuset import CpuSet

PATH_EVENT_SOURCE = "sys/bus/event_source/devices"
PATH_CPU = "sys/devices/system/cpu"
PATH_CPU_ONLINE = f"{PATH_CPU}/online"
PATH_CPU_MIDR = f"{PATH_CPU}/cpu{{cpu}}/regs/identification/midr_el1"

TEXT_LIMIT = 64 * 1024
"""Bytes. A sysfs attribute is at most one page, and arm64 pages are at most 64 KiB."""

LINK_LIMIT = 40
"""Links followed in one path, as in the kernel (MAXSYMLINKS, include/linux/namei.h)."""

_NUMBER = re.compile(r"0x[0-9a-fA-F]{1,16}|-?(?:0|[1-9][0-9]{0,18})")
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

StrPath = str | os.PathLike[str]


def parse_number(text: str) -> int | None:
    """Return the integer that a kernel attribute shows: decimal, or hexadecimal with 0x.

    Return None for anything else, and for a number that does not fit 64 bits. A leading zero is
    refused, as some readers take it for octal.
    """
    return int(text, 0) if _NUMBER.fullmatch(text) else None


class Sysfs:
    """One machine's /sys and /proc. Paths are relative to its root, like `PATH_EVENT_SOURCE`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = Path(os.path.realpath(root))

    @property
    def is_live(self) -> bool:
        """Whether this is the machine pmuctl runs on, not a captured tree."""
        return self.root == Path("/")

    def read_text(self, path: str, *, limit: int = TEXT_LIMIT) -> str | None:
        """Return the whole text of a regular file; bytes not UTF-8 become lone surrogates.

        Return None if there is no such file, it cannot be read, or it has more than `limit`
        bytes: the front part of a list looks like a complete, shorter list.
        """
        try:
            with self._open_path(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    return None
                with open(fd, "rb", closefd=False) as file:
                    data = file.read(limit + 1)
        except OSError as error:
            raise_if_exhausted(error, path)
            return None
        except ValueError:
            return None
        return data.decode(errors="surrogateescape") if len(data) <= limit else None

    def read_int(self, path: str) -> int | None:
        """Return the integer in a file (see `parse_number`), None if there is none."""
        text = self.read_text(path)
        return None if text is None else parse_number(text.strip(" \n"))

    def read_cpuset(self, path: str) -> CpuSet | None:
        """Return the CPUs in a cpulist file, None if it has no valid list; empty is no CPUs."""
        text = self.read_text(path)
        if text is None:
            return None
        try:
            return CpuSet.parse(text)
        except ValueError:
            return None

    def entries(self, path: str, *, most: int = NAMES_MAX) -> list[str]:
        """Return the sorted names in a directory, an empty list if it cannot be listed.

        Raise TooLargeError if it has more than `most`.
        """
        try:
            with self._open_path(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
                with os.scandir(fd) as files:
                    return sorted(take_names((file.name for file in files), path, most))
        except OSError as error:
            raise_if_exhausted(error, path)
            return []
        except ValueError:
            return []

    def resolve(self, path: str) -> str | None:
        """Return the real path of a path, as that machine would name it ("/sys/devices/…").

        Return None if it leads nowhere.
        """
        try:
            if self.is_live:
                return os.path.realpath(f"/{path}", strict=True)
            with walk_path(self.root, path) as (directory, parts, name):
                if name is not None:
                    os.stat(name, dir_fd=directory, follow_symlinks=False)
                    parts = [*parts, name]
                return "/" + "/".join(parts)
        except OSError as error:
            raise_if_exhausted(error, path)
            return None
        except ValueError:
            return None

    @contextmanager
    def _open_path(self, path: str, flags: int) -> Iterator[int]:
        if self.is_live:
            fd = os.open(f"/{path}", flags)
        else:
            with walk_path(self.root, path) as (directory, _, name):
                if name is not None:
                    mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
                    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                        # opening a device node can already do something: rewind, arm a watchdog
                        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), name)
                fd = os.open(name or ".", flags | os.O_NOFOLLOW, dir_fd=directory)
        try:
            yield fd
        finally:
            os.close(fd)


@contextmanager
def walk_path(
    root: StrPath, path: str, *, cwd: StrPath | None = None
) -> Iterator[tuple[int, list[str], str | None]]:
    """Follow a path inside a root, one component at a time.

    This does what openat2(2) does with RESOLVE_IN_ROOT, which sandboxes may refuse and Python does
    not offer. A relative path begins at `cwd`, a directory in the root, by default at the root
    itself. The context gives the directory of the last component, as an O_PATH descriptor and as
    names below where the path begins, and that component: not a link, not known to exist, or None
    for the directory itself. Raise OSError.
    """
    fds = [os.open(root, _DIRECTORY)]
    parts: list[str] = []
    todo = path.split("/")[::-1]
    links = 0
    try:
        if cwd is not None and not path.startswith("/"):
            fds.append(os.open(cwd, _DIRECTORY))
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if parts:
                    parts.pop()
                    os.close(fds.pop())
                elif not _is_same(fds[-1], fds[0]):  # what is above cwd is not known yet
                    fds.append(os.open("..", _DIRECTORY, dir_fd=fds[-1]))
                continue
            is_last = not any(todo)
            if not is_last and _enter(name, fds):
                parts.append(name)
                continue
            target = _read_link(name, fds[-1])
            if target is None and is_last:
                yield fds[-1], parts, name
                return
            if target is None:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            links += 1
            if links > LINK_LIMIT:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                parts.clear()
                while len(fds) > 1:
                    os.close(fds.pop())
            todo += target.split("/")[::-1]
        yield fds[-1], parts, None
    finally:
        for fd in fds:
            os.close(fd)


def _enter(name: str, fds: list[int]) -> bool:
    """Add the directory of that name in the last one; return False if it is none, or a link."""
    try:
        fds.append(os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fds[-1]))
    except NotADirectoryError:
        return False
    return True


def _is_same(fd: int, other: int) -> bool:
    return fd == other or os.path.samestat(os.fstat(fd), os.fstat(other))


def _read_link(name: str, directory: int) -> str | None:
    """Return the target of a link, None for a file that is no link; raise OSError if missing."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None
