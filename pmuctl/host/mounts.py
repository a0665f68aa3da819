# SPDX-License-Identifier: Apache-2.0
"""Mounts at which a look can wait for ever: a process or another machine answers for their files.

The thread that waits cannot be ended, not even by SIGKILL (request_wait_answer(), fs/fuse/dev.c),
and with it no thread of its process. So what another user may have mounted is not looked at.
"""

import os
import re
from collections.abc import Iterable

PATH_MOUNTS = "/proc/self/mountinfo"
MOUNTS_LIMIT = 16 << 20
"""Bytes read of the table of mounts at most: a mount has some two hundred."""

_ASKS = re.compile(r"(?:fuse.*|nfs4?|cifs|smb3|9p|ceph|afs|coda|autofs)")
"""Types of file systems whose files somebody else answers for."""
_ESCAPE = re.compile(r"\\([0-7]{3})")


def find_unanswered(directories: Iterable[str], mounts: str) -> set[str]:
    """Return which of these directories a look at can wait for ever, by a text of mountinfo.

    That is so of a directory on such a mount, and if there is one below it (proc(5)).
    """
    found = set()
    table = [mount for line in mounts.split("\n") if (mount := _parse_mount(line))]
    for directory in directories:
        above = [mount for mount in table if _is_below(directory, mount[0])]
        # of the mounts at one place, the last one is seen
        on = max(enumerate(above), key=lambda place: (len(place[1][0]), place[0]), default=None)
        below = [asks for point, asks in table if _is_below(point, directory)]
        if any(below) or (on is not None and on[1][1]):
            found.add(directory)
    return found


def read_mounts() -> str:
    """Return the text of this process's mountinfo, an empty string if it cannot be read."""
    try:
        with open(PATH_MOUNTS, "rb") as file:
            return os.fsdecode(file.read(MOUNTS_LIMIT))
    except OSError:
        return ""


def _parse_mount(line: str) -> tuple[str, bool] | None:
    """Return where a mount is, and whether somebody else answers for its files."""
    before, dash, after = line.partition(" - ")
    fields = before.split(" ")
    if not dash or len(fields) < 6:
        return None
    point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
    return point, _ASKS.fullmatch(after.partition(" ")[0]) is not None


def _is_below(path: str, directory: str) -> bool:
    """Return whether a path is that directory, or below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
