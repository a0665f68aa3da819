# SPDX-License-Identifier: Apache-2.0
"""A new tree of files in a place where other users may move or link its parent directories."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Tree:
    """Files written below an open directory: through no link, and never over an existing file.

    All paths are relative to the descriptor, so it does not matter if the directory itself is
    moved. A subdirectory is entered only if the tree itself has made it.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._made: set[str] = set()

    def write(self, path: str, data: bytes) -> None:
        """Write a file and make the directories it is in; raise OSError on failure."""
        with self._open_parent(path) as (folder, name):
            with open(os.open(name, _NEW_FILE, 0o666, dir_fd=folder), "wb") as out:
                out.write(data)

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link and the directories it is in; raise OSError on failure."""
        with self._open_parent(path) as (folder, name):
            os.symlink(target, name, dir_fd=folder)

    @contextmanager
    def _open_parent(self, path: str) -> Iterator[tuple[int, str]]:
        """Open the directory of a path's last component, made if needed; give it and that name."""
        *parts, name = path.split("/")
        folder = os.dup(self._root)
        try:
            for depth, part in enumerate(parts, 1):
                if (directory := "/".join(parts[:depth])) not in self._made:
                    os.mkdir(part, dir_fd=folder)
                    self._made.add(directory)
                above, folder = folder, os.open(part, _DIRECTORY, dir_fd=folder)
                os.close(above)
            yield folder, name
        finally:
            os.close(folder)


@contextmanager
def new_tree(root: Path) -> Iterator[Tree]:
    """Open a tree below a new or empty directory, which becomes private to this user.

    Raise OSError: ENOTEMPTY if the directory is not empty, EPERM if it is another user's or
    others may write to it, ELOOP if it is a link.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.is_symlink():  # only for a clear message: O_NOFOLLOW opens no link anyway
        raise OSError(errno.ELOOP, "it is a symbolic link", str(root))
    fd = os.open(root, _DIRECTORY)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise OSError(errno.EPERM, f"it is uid {status.st_uid}'s", str(root))
        # with an ACL the group bits are the most that any entry in it may have (acl(5))
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise OSError(errno.EPERM, "others may write to it", str(root))
        if os.listdir(fd):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(root))
        os.fchmod(fd, 0o700)
        yield Tree(fd)
    finally:
        os.close(fd)
