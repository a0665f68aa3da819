# SPDX-License-Identifier: Apache-2.0
"""Control sockets as files: the directories to look in, and opening a socket there.

A shell that completes a word waits for this, so it imports next to nothing.
"""

import errno
import os
import stat
from collections.abc import Mapping
from posixpath import dirname, join

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


def _open_path(path: str) -> int:
    """Return an O_PATH descriptor of a file; only links of root and of this user are followed.

    Raise OSError: EPERM for a link of another user.
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        place = _resolve_path(path)
        # a link that is another one by now was followed before
        found = os.stat(place, follow_symlinks=_is_magic_link(place))
        if not os.path.samestat(found, os.fstat(fd)):
            raise PermissionError(
                errno.EPERM, "it leads elsewhere from one moment to the next", path
            )
    except OSError:
        os.close(fd)
        raise
    return fd


def _resolve_path(path: str) -> str:
    """Return where a path leads, with its magic links. Raise OSError: EPERM for a foreign link."""
    at, links = "/", 0
    todo = (path if path.startswith("/") else join(os.getcwd(), path)).split("/")[::-1]
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = dirname(at)
            continue
        place = join(at, name)
        status = os.lstat(place)
        if not stat.S_ISLNK(status.st_mode) or _is_magic_link(place):
            at = place
            continue
        if status.st_uid not in (0, os.geteuid()):
            raise PermissionError(errno.EPERM, f"it is a link of uid {status.st_uid}", place)
        links += 1
        if links > LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(place)
        at = "/" if target.startswith("/") else at
        todo += target.split("/")[::-1]
    return at


def _is_magic_link(place: str) -> bool:
    """Return whether a link is the kernel's own: /proc/PID/root, cwd and fd/N (proc(5)).

    It leads to a file of the process itself, whatever its text says.
    """
    words = place.split("/")[2:] if place.startswith("/proc/") else []
    if words[1:2] == ["task"]:
        words = words[2:]
    return words[1:] in (["root"], ["cwd"]) or (len(words) == 3 and words[1] == "fd")
