# SPDX-License-Identifier: Apache-2.0
"""Control sockets as files: the directories to look in, and opening a socket there.

A shell that completes a word waits for this, so it imports next to nothing.
"""

import errno
import os
import stat
from collections.abc import Mapping

SUFFIX = ".sock"
NAMES_READ = 1 << 16
"""Names to read of a directory."""
LINKS_MAX = 40
"""Links that a path leads over at most, as in the kernel (MAXSYMLINKS, include/linux/namei.h)."""


def find_socket_dirs(
    environ: Mapping[str, str], uid: int, *, run: str, users: str
) -> tuple[list[tuple[str, int | None]], list[str]]:
    """Return the directories to search as this user, each with the user its sockets speak for.

    The user is None if that may be anyone: in root's own directory, or in one that was named. The
    directories of other users that may never answer are apart, in the second list.
    """
    if named := environ.get("PMUCTL_RUNTIME_DIR"):
        return [(named, None)], []
    found: list[tuple[str, int | None]] = [(run, None)]
    unanswered: set[str] = set()
    if uid == 0:
        # imported here, because only root looks in the directories of other users
        from pmuctl.host.mounts import find_unanswered, read_mounts

        owners = {
            f"{users}/{name}/pmuctl": int(name) for name in scan_names(users) if _is_uid(name)
        }
        unanswered = find_unanswered(owners, read_mounts()) if owners else set()
        found += [(path, owner) for path, owner in owners.items() if path not in unanswered]
    elif runtime := environ.get("XDG_RUNTIME_DIR"):
        found.append((f"{runtime}/pmuctl", uid))
    return found, sorted(unanswered)


def _is_uid(name: str) -> bool:
    is_number = name.isascii() and name.isdigit() and len(name) <= 10
    return is_number and (name == "0" or name[0] != "0")


def scan_names(path: str | os.PathLike[str] | int) -> list[str]:
    """Return at most NAMES_READ names of a directory, sorted.

    Return an empty list if it cannot be read; raise ResourceExhaustedError if this process or
    the machine lacks the resources.
    """
    names: list[str] = []
    try:
        with os.scandir(path) as files:
            for file in files:
                names.append(file.name)
                if len(names) == NAMES_READ:
                    break
    except OSError as error:
        from pmuctl.host.resource_errors import raise_if_exhausted

        raise_if_exhausted(error)
        return []
    return sorted(names)


def open_socket_file(path: str, owner: int | None) -> int:
    """Return an O_PATH descriptor of a control socket, which no link can lead elsewhere.

    In another user's directory that user may swap files at any time: the directory is opened
    first, its owner checked, then the socket in it. Without an `owner` the path is followed, but
    over links of root and this user only. Raise OSError: ENOTSOCK if it is no socket, EPERM if
    another user owns it, or a link to it.
    """
    flags = os.O_PATH | os.O_CLOEXEC
    if owner is None:
        fd = _open_path(path)
    else:
        parent, name = os.path.split(path)
        directory = os.open(parent or ".", flags | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _check_owner(directory, owner, parent)
            fd = os.open(name, flags | os.O_NOFOLLOW, dir_fd=directory)
        finally:
            os.close(directory)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK), path)
        if owner is not None:
            _check_owner(fd, owner, path)
    except OSError:
        os.close(fd)
        raise
    return fd


def _check_owner(fd: int, owner: int, path: str) -> None:
    if (uid := os.fstat(fd).st_uid) != owner:
        raise OSError(errno.EPERM, f"it is uid {uid}'s, not uid {owner}'s", path)


_PATH = os.O_PATH | os.O_CLOEXEC


def _open_path(path: str) -> int:
    """Return an O_PATH descriptor of a file; only links of root and of this user are followed.

    Raise OSError: EPERM for a link of another user.
    """
    proc, links = _find_proc(), 0
    at = os.open("/" if path.startswith("/") else ".", _PATH)
    todo = path.split("/")[::-1]
    while todo:
        before = at
        try:
            at, target = _open_component(todo.pop() or ".", before, proc)
        finally:
            os.close(before)
        if target:
            links += 1
            todo += target.split("/")[::-1]
        if links > LINKS_MAX:
            os.close(at)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return at


def _open_component(name: str, directory: int, proc: int | None) -> tuple[int, str]:
    """Return a descriptor of a file in a directory, so that nobody can swap it, and "".

    For a link return where it is to be followed from, and its target. Those of /proc, the device
    `proc`, are the kernel's own, which knows where they lead. Raise OSError as `_open_path`.
    """
    fd = os.open(name, _PATH | os.O_NOFOLLOW, dir_fd=directory)
    status = os.fstat(fd)
    if not stat.S_ISLNK(status.st_mode):
        return fd, ""
    try:
        if status.st_dev == proc:
            return os.open(name, _PATH, dir_fd=directory), ""
        if status.st_uid not in (0, os.geteuid()):
            raise PermissionError(errno.EPERM, f"it is a link of uid {status.st_uid}", name)
        target = os.readlink("", dir_fd=fd)
        return os.open("/" if target.startswith("/") else ".", _PATH, dir_fd=directory), target
    finally:
        os.close(fd)


def _find_proc() -> int | None:
    """Return the device of /proc, None if it is not mounted."""
    try:
        return os.stat("/proc/self").st_dev
    except OSError:
        return None
