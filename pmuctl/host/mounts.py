# SPDX-License-Identifier: Apache-2.0
"""The table of mounts (mountinfo in proc(5)), and mounts at which a look can wait for ever.

At those a process or another machine answers for the files. The thread that waits cannot be ended,
not even by SIGKILL (request_wait_answer(), fs/fuse/dev.c), and with it no thread of its process.
So what another user may have mounted is not looked at.
"""

import os
import re
from collections.abc import Iterable, Sequence
from posixpath import dirname, join

PATH_MOUNTS = "proc/self/mountinfo"
MOUNTS_LIMIT = 64 << 20
"""Bytes: a mount namespace has up to 100,000 mounts (sysctl fs.mount-max), a line each."""
LINKS_MAX = 40
"""Links that a path leads over at most, as in the kernel (MAXSYMLINKS, include/linux/namei.h)."""

Mount = tuple[str, bool]
"""Where a mount is, and whether somebody else answers for its files."""

_ASKING = frozenset(("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "coda", "autofs"))
"""Types of file systems whose files somebody else answers for; fuse has many types."""


def find_unanswered(directories: Iterable[str], mounts: str) -> set[str]:
    """Return which of these directories a look at can wait for ever, by a text of mountinfo.

    That is so of a directory on such a mount, and if there is one below it (proc(5)).
    """
    found = set()
    table = _parse_mounts(mounts)
    for directory in directories:
        below = [asks for point, asks in table if _is_below(point, directory)]
        if any(below) or _is_asked(directory, table):
            found.add(directory)
    return found


def may_hang(path: str, root: str, mounts: str) -> bool:
    """Return whether an absolute path inside a root leads over such a mount, or too many links.

    Links are followed only as long as it does not. `mounts` is the mountinfo of a process with
    that root.
    """
    table, links = _parse_mounts(mounts), 0
    at, todo = "/", path.split("/")[::-1]
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = dirname(at)
            continue
        place = join(at, name)
        if _is_asked(place, table):
            return True
        try:
            target = os.readlink(root + place)
        except OSError:  # it is no link, or does not exist
            at = place
            continue
        links += 1
        if links > LINKS_MAX:
            return True
        at = "/" if target.startswith("/") else at
        todo += target.split("/")[::-1]
    return False


def read_mounts() -> str:
    """Return the text of this process's mountinfo, an empty string if it cannot be read."""
    try:
        with open(f"/{PATH_MOUNTS}", "rb") as file:
            return os.fsdecode(file.read(MOUNTS_LIMIT))
    except OSError:
        return ""


def _parse_mounts(mounts: str) -> list[Mount]:
    return [
        (mount[1], mount[2] in _ASKING or mount[2].startswith("fuse"))
        for line in mounts.split("\n")
        if (mount := parse_mount(line))
    ]


def _is_asked(path: str, table: Sequence[Mount]) -> bool:
    """Return whether somebody else answers for the mount that a path is on."""
    above = [mount for mount in table if _is_below(path, mount[0])]
    # of the mounts at one place, the last one is seen
    on = max(enumerate(above), key=lambda place: (len(place[1][0]), place[0]), default=None)
    return on is not None and on[1][1]


def parse_mount(line: str) -> tuple[str, str, str, Sequence[str]] | None:
    """Return the root, mount point, type and super options that a line has; None if it is none."""
    before, dash, after = line.partition(" - ")
    fields, fs_fields = before.split(" "), after.split(" ")
    if not dash or len(fields) < 6 or len(fs_fields) < 3:
        return None
    root, point = map(_unescape_path, fields[3:5])
    return root, point, fs_fields[0], fs_fields[-1].split(",")


def _unescape_path(text: str) -> str:
    """Return a path of mountinfo with the octal escapes decoded.

    The kernel escapes space, tab, newline and backslash (mangle()).
    """
    if "\\" not in text:
        return text
    # compiled here, because few paths need it
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _is_below(path: str, directory: str) -> bool:
    """Return whether a path is that directory, or below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
