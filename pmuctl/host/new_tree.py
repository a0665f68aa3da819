# SPDX-License-Identifier: Apache-2.0
"""A new tree of files where others, too, may move and link what is above it."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Tree:
    """What is written below an open directory: through no link, and over nothing that is there.

    All paths are relative, and begin at the descriptor: what becomes of the directory's own path
    does not matter. A directory is entered only where the tree itself has made it.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._made: set[str] = set()

    def write(self, path: str, data: bytes) -> None:
        """Write a file and the directories it is in; raises OSError."""
        with self._above(path) as (folder, name):
            with open(os.open(name, _NEW_FILE, 0o666, dir_fd=folder), "wb") as out:
                out.write(data)

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link and the directories it is in; raises OSError."""
        with self._above(path) as (folder, name):
            os.symlink(target, name, dir_fd=folder)

    @contextmanager
    def _above(self, path: str) -> Iterator[tuple[int, str]]:
        """The directory that a path's last part is in, and that part."""
        *parts, name = path.split("/")
        folder = os.dup(self._root)
        try:
            for number, part in enumerate(parts, 1):
                if (its := "/".join(parts[:number])) not in self._made:
                    os.mkdir(part, dir_fd=folder)
                    self._made.add(its)
                above, folder = folder, os.open(part, _DIRECTORY, dir_fd=folder)
                os.close(above)
            yield folder, name
        finally:
            os.close(folder)


@contextmanager
def new_tree(root: Path) -> Iterator[Tree]:
    """A tree below a new or empty directory, which is then for this user alone.

    Raises OSError: ENOTEMPTY where there is something already, EPERM where it is another user's
    or others may write to it, ELOOP where it is a link.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.is_symlink():  # only for the words: no link is opened
        raise OSError(errno.ELOOP, "it is a symbolic link", str(root))
    fd = os.open(root, _DIRECTORY)
    try:
        its = os.fstat(fd)
        if its.st_uid != os.geteuid():
            raise OSError(errno.EPERM, f"it is uid {its.st_uid}'s", str(root))
        # with an ACL the bits of the group are what anybody in it may have (acl(5))
        if its.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise OSError(errno.EPERM, "others may write to it", str(root))
        if os.listdir(fd):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(root))
        os.fchmod(fd, 0o700)
        yield Tree(fd)
    finally:
        os.close(fd)
