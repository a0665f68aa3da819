# SPDX-License-Identifier: Apache-2.0
"""The listening end of a control socket, which never takes the place of a living one."""

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from pmuctl.control.runtime.lock import LOCK_SECONDS, locked
from pmuctl.errors import DeniedError, PmuctlError, RefusedError, UsageError
from pmuctl.host.procfs import Procfs

SUN_PATH_MAX = 107
"""sockaddr_un.sun_path has 108 bytes, one of them for the terminating zero (unix(7))."""
LISTEN_BACKLOG = 16

_PROCESS = re.compile(rb"([0-9]{1,10}) ([0-9]{1,20})\n")
"""The pid of the process that listens, and its start time (clock ticks since boot)."""


@contextlib.contextmanager
def bind_control_socket(
    path: Path,
    *,
    group: str = "kvm",
    procs: Procfs | None = None,
    patience: float = LOCK_SECONDS,
) -> Iterator[socket.socket]:
    """Yield a listening socket at `path`, and remove it at the end.

    A missing directory is created (0755). The socket is 0660 root:`group` if this runs as root and
    the group exists, else 0600. A socket that a dead process left behind is replaced; one that
    accepts connections, or whose process (pid and start time in a file beside it) still lives, is
    not. `patience` is how many seconds to wait for others that bind a socket in the directory.
    Raise UsageError if the path is too long for a socket, RefusedError if the socket is taken or
    cannot be created, and DeniedError if this user may not write to the directory.
    """
    _check_length(path)
    with contextlib.ExitStack() as stack:
        try:
            _make_directory(path.parent)
            with locked(path.parent, patience):
                listener = _bind_socket(path, stack, group, procs or Procfs(), patience)
        except OSError as error:
            raise _make_bind_error(path, error) from error
        yield listener


def check_bindable(path: Path, procs: Procfs) -> None:
    """Raise what bind_control_socket() would raise now for this path, as far as that can be told.

    Nothing is made or removed.
    """
    _check_length(path)
    if path.parent.exists() and not os.access(path.parent, os.W_OK | os.X_OK):
        raise _make_bind_error(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    _check_free(path, procs)


def _check_length(path: Path) -> None:
    if len(os.fsencode(path)) > SUN_PATH_MAX:
        raise UsageError(f"{path}: too long for a socket", why=f"at most {SUN_PATH_MAX} bytes")


def _make_bind_error(path: Path, error: OSError) -> PmuctlError:
    cls = DeniedError if isinstance(error, PermissionError) else RefusedError
    return cls(
        f"{path}: a socket cannot be made there",
        why=f"{error.filename or path}: {error.strerror or error}",
        fix="set PMUCTL_RUNTIME_DIR, or name a socket elsewhere",
    )


def _make_directory(path: Path) -> None:
    """Make a directory, and those above it that are missing, which all may enter.

    Raise OSError.
    """
    for part in (*reversed(path.parents), path):
        try:
            os.mkdir(part, 0o755)
        except FileExistsError:
            continue
        except OSError:
            if part == path:
                raise
            continue  # a directory that is there may not be writable, or be a read-only mount
        # chmod is needed whatever the umask is; by descriptor: the name may be a link by now
        fd = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.chmod(f"/proc/self/fd/{fd}", 0o755)
        finally:
            os.close(fd)


def _bind_socket(
    path: Path, stack: contextlib.ExitStack, group: str, procs: Procfs, patience: float
) -> socket.socket:
    """Return the listening socket, with the lock held; `stack` takes what the end has to undo."""
    _clear_stale(path, procs)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    # bind() creates the file with this mode, so others can never open it, not even briefly
    os.fchmod(listener.fileno(), 0o600)
    listener.bind(os.fspath(path))
    status = path.lstat()
    stack.callback(_remove_socket, path, status, patience)
    _open_to_group(path, status, group)
    _write_process(path, procs)
    listener.listen(LISTEN_BACKLOG)
    return listener


def _open_to_group(path: Path, status: os.stat_result, group: str) -> None:
    """Set the group and mode of the socket, whatever the umask is."""
    # by descriptor, because in another user's directory the name may be a link by now
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not os.path.samestat(os.fstat(fd), status) or not stat.S_ISSOCK(status.st_mode):
            raise RefusedError(f"{path} was replaced while it was made")
        opened = f"/proc/self/fd/{fd}"
        gid = _find_group_id(group) if os.geteuid() == 0 else None
        if gid is not None:
            os.chown(opened, 0, gid)
        os.chmod(opened, 0o600 if gid is None else 0o660)
    finally:
        os.close(fd)


def _remove_socket(path: Path, status: os.stat_result, patience: float) -> None:
    with contextlib.suppress(OSError, RefusedError), locked(path.parent, patience):
        # no other socket can have this inode number while the listener is open
        if os.path.samestat(path.lstat(), status):
            path.unlink()
            _pid_path(path).unlink(missing_ok=True)


def _pid_path(path: Path) -> Path:
    return path.with_name(path.name + ".pid")


def _write_process(path: Path, procs: Procfs) -> None:
    pid_file = _pid_path(path)
    pid_file.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(pid_file, flags, 0o600), "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o644)  # whatever the umask is
        file.write(f"{os.getpid()} {procs.start_time(os.getpid())}\n")


def _clear_stale(path: Path, procs: Procfs) -> None:
    """Remove the socket of a dead process; raise RefusedError for anything else."""
    if _check_free(path, procs):
        path.unlink()


def _check_free(path: Path, procs: Procfs) -> bool:
    """Return whether there is the socket of a dead process; raise RefusedError for anything else.

    Return False if there is nothing.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    if not stat.S_ISSOCK(mode):
        raise RefusedError(f"{path} is in the way", why="it is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            pass
        except OSError as error:
            raise RefusedError(f"{path} is taken", why=f"{error.strerror or error}") from error
        else:
            raise RefusedError(f"{path} is taken", why="a server listens there")
    if (pid := _read_process(path, procs)) is not None:
        raise RefusedError(f"{path} is taken", why=f"its process {pid} is still there")
    return True


def _read_process(path: Path, procs: Procfs) -> int | None:
    """Return the pid of the process that bound the socket, if that still runs."""
    try:
        # another user may have put anything there: follow no link, do not wait for a FIFO
        fd = os.open(_pid_path(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            match = _PROCESS.fullmatch(file.read(64) or b"")
    except OSError:
        return None
    if match and procs.start_time(int(match[1])) == int(match[2]):
        return int(match[1])
    return None


def _find_group_id(name: str) -> int | None:
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
