# SPDX-License-Identifier: Apache-2.0
"""Control sockets: the runtime directories, the names in them, and opening a socket there."""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from pmuctl.control.protocol.messages import VM_NAME
from pmuctl.control.runtime.socket_files import (
    SUFFIX,
    find_socket_dirs,
    open_socket_file,
    scan_names,
)
from pmuctl.errors import UsageError
from pmuctl.host.resource_errors import raise_if_exhausted
from pmuctl.host.runtime_dirs import PATH_RUN, PATH_USERS
from pmuctl.value import value

RECORD_SUFFIX = ".json"
SOCKETS_MAX = 256
"""Control sockets to query in another user's directory: a user can create any number of them."""
RECORDS_READ = 256
"""Start records of a directory to read: a user can have any number of failed starts."""


@value(kw_only=True)
class ControlSocket:
    """A control socket found in a runtime directory.

    It `speaks_for` the VMs of this user only; None if those may be any user's (root's own
    directory, or a path that the admin named).
    """

    name: str | None
    path: Path
    speaks_for: int | None = None


@value
class SocketScan:
    """Control sockets, and the number of those of other users left out: see SOCKETS_MAX.

    `unsearched` are directories of other users that a search could wait for, for ever.
    """

    sockets: Sequence[ControlSocket] = ()
    left_out: int = 0
    unsearched: Sequence[Path] = ()


def own_dir(environ: Mapping[str, str], uid: int) -> Path:
    """Return the directory for sockets of this user's VMs; raise UsageError if there is none."""
    if named := environ.get("PMUCTL_RUNTIME_DIR"):
        return Path(named)
    if uid == 0:
        return PATH_RUN
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "pmuctl"
    raise UsageError(
        "there is no runtime directory for control sockets",
        why="neither PMUCTL_RUNTIME_DIR nor XDG_RUNTIME_DIR is set",
        fix="set PMUCTL_RUNTIME_DIR, or name a socket by its path",
    )


def file_name(name: str) -> str:
    """Return the file name of a VM's socket; raise UsageError for an invalid VM name."""
    if not VM_NAME.fullmatch(name):
        raise UsageError(f"{name}: not a name for a VM", why=f"it must match {VM_NAME.pattern}")
    return name + SUFFIX


def record_path(path: Path) -> Path:
    """Return the path of the start record of the VM with this socket.

    It is NAME.sock.json beside NAME.sock: in a directory that is not pmuctl's own, NAME.json could
    be a file of something else.
    """
    return path.with_name(path.name + RECORD_SUFFIX)


def runtime_dirs(
    environ: Mapping[str, str], uid: int, *, run: Path = PATH_RUN, users: Path = PATH_USERS
) -> list[tuple[Path, int | None]]:
    """Return the directories to search as this user, each with the user its sockets speak for.

    Those of other users that may never answer are not among them.
    """
    directories, _ = find_socket_dirs(environ, uid, run=str(run), users=str(users))
    return [(Path(path), owner) for path, owner in directories]


def scan_sockets(
    environ: Mapping[str, str], uid: int, *, run: Path = PATH_RUN, users: Path = PATH_USERS
) -> SocketScan:
    """Return the control sockets that this user may query, sorted by name; links are ignored.

    Of another user's directory there are at most SOCKETS_MAX.
    """
    found: list[ControlSocket] = []
    left_out = 0
    directories, unanswered = find_socket_dirs(environ, uid, run=str(run), users=str(users))
    for directory, owner in directories:
        there = list(_iter_sockets(Path(directory), owner))
        most = len(there) if owner in (None, uid) else SOCKETS_MAX
        found += there[:most]
        left_out += len(there[most:])
    found.sort(key=lambda control_socket: (control_socket.name or "", str(control_socket.path)))
    return SocketScan(found, left_out, [Path(path) for path in unanswered])


def scan_records(directory: Path) -> list[Path]:
    """Return the paths of the first RECORDS_READ start records in a directory, sorted."""
    names = (name for name in scan_names(directory) if name.endswith(SUFFIX + RECORD_SUFFIX))
    return [directory / name for name in islice(names, RECORDS_READ)]


def open_socket(control_socket: ControlSocket) -> int:
    """Return an O_PATH descriptor of a control socket, as `open_socket_file` does."""
    return open_socket_file(str(control_socket.path), control_socket.speaks_for)


def _iter_sockets(directory: Path, owner: int | None = None) -> Iterator[ControlSocket]:
    """Yield the sockets in a directory, which in another user's place must be that user's."""
    flags = os.O_DIRECTORY | os.O_CLOEXEC | (0 if owner is None else os.O_NOFOLLOW)
    try:
        fd = os.open(directory, flags)
    except OSError as error:
        raise_if_exhausted(error)
        return
    try:
        # sockets in another user's directory could claim to control the VMs of `owner`
        if owner is not None and os.fstat(fd).st_uid != owner:
            return
        for file in scan_names(fd):
            name = file.removesuffix(SUFFIX)
            if name == file or not VM_NAME.fullmatch(name):
                continue
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.stat(file, dir_fd=fd, follow_symlinks=False).st_mode):
                    yield ControlSocket(name=name, path=directory / file, speaks_for=owner)
    finally:
        os.close(fd)
