# SPDX-License-Identifier: Apache-2.0
"""Reading of /sys and /proc through a root that can be swapped for another machine's capture.

What cannot be read is None or empty, no exception: an attribute may be missing on this kernel,
answer EIO, or go away with a CPU. Where this process or the machine runs short, so that nobody
knows what is there, ResourceExhaustedError is raised. A captured tree is read as hostile: its
links resolve inside it, and only regular files are opened.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pmuctl.host.resource_errors import raise_if_exhausted
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


def parse_number(text: str) -> int | None:
    """The integer that a kernel attribute shows: decimal, or hexadecimal with 0x.

    None for anything else, and for what does not fit 64 bits. A leading zero is refused: some
    readers take it for octal.
    """
    return int(text, 0) if _NUMBER.fullmatch(text) else None


class Sysfs:
    """One machine's /sys and /proc. Paths are relative to its root: `PATH_EVENT_SOURCE`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = Path(os.path.realpath(root))

    @property
    def is_live(self) -> bool:
        """Whether this is the machine pmuctl runs on, not a captured tree."""
        return self.root == Path("/")

    def read_text(self, path: str, *, limit: int = TEXT_LIMIT) -> str | None:
        """All text of a regular file; bytes that are not UTF-8 come as lone surrogates.

        None where there is no such file, it cannot be read, or it has more than `limit` bytes:
        the front part of a list looks like a complete, shorter list.
        """
        try:
            with self._open(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
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
        """The integer a file holds (see `parse_number`), None where there is none."""
        text = self.read_text(path)
        return None if text is None else parse_number(text.strip(" \n"))

    def read_cpuset(self, path: str) -> CpuSet | None:
        """The CPUs a cpulist file holds; an empty file is the empty set."""
        text = self.read_text(path)
        if text is None:
            return None
        try:
            return CpuSet.parse(text)
        except ValueError:
            return None

    def entries(self, path: str) -> list[str]:
        """The sorted names in a directory, empty where it cannot be listed."""
        try:
            with self._open(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
                return sorted(os.listdir(fd))
        except OSError as error:
            raise_if_exhausted(error, path)
            return []
        except ValueError:
            return []

    def resolve(self, path: str) -> str | None:
        """Where a path leads, as that machine would name it ("/sys/devices/…").

        None where it leads nowhere.
        """
        try:
            if self.is_live:
                return os.path.realpath(f"/{path}", strict=True)
            with self._walk(path) as (directory, parts, name):
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
    def _open(self, path: str, flags: int) -> Iterator[int]:
        if self.is_live:
            fd = os.open(f"/{path}", flags)
        else:
            with self._walk(path) as (directory, _, name):
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
    def _walk(self, path: str) -> Iterator[tuple[int, list[str], str | None]]:
        """Follow a path inside the root, one component at a time, as openat2(2) would with
        RESOLVE_IN_ROOT, which sandboxes may refuse and Python does not offer.

        Gives the directory that holds the last component, as an O_PATH descriptor and as names
        below the root, and that component: not a link, not known to exist, or None for the
        directory itself.
        """
        directory = os.O_PATH | os.O_DIRECTORY
        fds = [os.open(self.root, directory)]
        parts: list[str] = []
        todo = path.split("/")[::-1]
        links = 0
        try:
            while todo:
                name = todo.pop()
                if name in ("", "."):
                    continue
                if name == "..":
                    if parts:
                        parts.pop()
                        os.close(fds.pop())
                    continue
                target = _read_link(name, fds[-1])
                if target is None and not any(todo):
                    yield fds[-1], parts, name
                    return
                if target is None:
                    fds.append(os.open(name, directory | os.O_NOFOLLOW, dir_fd=fds[-1]))
                    parts.append(name)
                    continue
                links += 1
                if links > LINK_LIMIT:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if target.startswith("/"):
                    while parts:
                        parts.pop()
                        os.close(fds.pop())
                todo += target.split("/")[::-1]
            yield fds[-1], parts, None
        finally:
            for fd in fds:
                os.close(fd)


def _read_link(name: str, directory: int) -> str | None:
    """The target of a link, None for what is no link. Raises OSError where nothing is."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None
