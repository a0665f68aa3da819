# SPDX-License-Identifier: Apache-2.0
"""Control sockets: the runtime directories, the names in them, and binding a socket."""

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from pmuctl.control.protocol.messages import VM_NAME
from pmuctl.control.runtime.lock import LOCK_SECONDS, locked
from pmuctl.errors import DeniedError, PmuctlError, RefusedError, UsageError
from pmuctl.host.mounts import find_unanswered, read_mounts
from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import raise_if_exhausted
from pmuctl.host.runtime_dirs import PATH_RUN, PATH_USERS
from pmuctl.value import value

SUFFIX = ".sock"
RECORD_SUFFIX = ".json"
SUN_PATH_MAX = 107
"""sockaddr_un.sun_path has 108 bytes, one of them for the terminating zero (unix(7))."""
LISTEN_BACKLOG = 16
SOCKETS_MAX = 256
"""Control sockets to query in another user's directory: a user can create any number of them."""
RECORDS_READ = 256
"""Start records of a directory to read: a user can have any number of failed starts."""
NAMES_READ = 1 << 16
"""Names to read of a directory."""

_UID = re.compile(r"0|[1-9][0-9]{0,9}")
_RECORD = re.compile(rb"([0-9]{1,10}) ([0-9]{1,20})\n")


@value(kw_only=True)
class ControlSocket:
    """A control socket found in a runtime directory.

    `owner` is the user whose VMs it may control; None if that may be any user's (root's own
    directory, or a path that the admin named).
    """

    name: str | None
    path: Path
    owner: int | None = None


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
    """Return the directories to search as this user, each with the `owner` of its sockets.

    Those of other users that may never answer are not among them.
    """
    if named := environ.get("PMUCTL_RUNTIME_DIR"):
        return [(Path(named), None)]
    found: list[tuple[Path, int | None]] = [(run, None)]
    if uid == 0:
        found += _split_dirs(users)[0]
    elif runtime := environ.get("XDG_RUNTIME_DIR"):
        found.append((Path(runtime) / "pmuctl", uid))
    return found


def _split_dirs(users: Path) -> tuple[list[tuple[Path, int]], list[Path]]:
    """Return the directories of all users with their owners, and those that may never answer."""
    paths = {
        str(users / name / "pmuctl"): int(name)
        for name in _scan_names(users)
        if _UID.fullmatch(name)
    }
    unanswered = find_unanswered(paths, read_mounts()) if paths else set()
    answered = [(Path(path), owner) for path, owner in paths.items() if path not in unanswered]
    return answered, [Path(path) for path in sorted(unanswered)]


def scan_sockets(
    environ: Mapping[str, str], uid: int, *, run: Path = PATH_RUN, users: Path = PATH_USERS
) -> SocketScan:
    """Return the control sockets that this user may query, sorted by name; links are ignored.

    Of another user's directory there are at most SOCKETS_MAX.
    """
    found: list[ControlSocket] = []
    left_out = 0
    for directory, owner in runtime_dirs(environ, uid, run=run, users=users):
        there = list(_iter_sockets(directory, owner))
        most = len(there) if owner in (None, uid) else SOCKETS_MAX
        found += there[:most]
        left_out += len(there[most:])
    found.sort(key=lambda control_socket: (control_socket.name or "", str(control_socket.path)))
    is_root = uid == 0 and not environ.get("PMUCTL_RUNTIME_DIR")
    return SocketScan(found, left_out, _split_dirs(users)[1] if is_root else ())


def scan_records(directory: Path) -> list[Path]:
    """Return the paths of the first RECORDS_READ start records in a directory, sorted."""
    names = (name for name in _scan_names(directory) if name.endswith(SUFFIX + RECORD_SUFFIX))
    return [directory / name for name in islice(names, RECORDS_READ)]


def open_socket(control_socket: ControlSocket) -> int:
    """Return an O_PATH descriptor of a control socket, which no link can lead elsewhere.

    In another user's directory that user may swap files at any time: the directory is opened
    first, its owner checked, then the socket in it. The path that an admin named is followed.
    Raise OSError: ENOTSOCK if it is no socket, EPERM if another user owns it.
    """
    path, owner, flags = control_socket.path, control_socket.owner, os.O_PATH | os.O_CLOEXEC
    if owner is None:
        fd = os.open(path, flags)
    else:
        directory = os.open(path.parent, flags | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _check_owner(directory, owner, path.parent)
            fd = os.open(path.name, flags | os.O_NOFOLLOW, dir_fd=directory)
        finally:
            os.close(directory)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK), str(path))
        if owner is not None:
            _check_owner(fd, owner, path)
    except OSError:
        os.close(fd)
        raise
    return fd


def _check_owner(fd: int, owner: int, path: Path) -> None:
    if (uid := os.fstat(fd).st_uid) != owner:
        raise OSError(errno.EPERM, f"it is uid {uid}'s, not uid {owner}'s", str(path))


def _scan_names(path: Path | int) -> list[str]:
    """Return at most NAMES_READ names of a directory, sorted.

    Return an empty list if it cannot be read; raise ResourceExhaustedError if this process or
    the machine lacks the resources.
    """
    try:
        with os.scandir(path) as files:
            return sorted(file.name for file in islice(files, NAMES_READ))
    except OSError as error:
        raise_if_exhausted(error)
        return []


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
        for file in _scan_names(fd):
            name = file.removesuffix(SUFFIX)
            if name == file or not VM_NAME.fullmatch(name):
                continue
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.stat(file, dir_fd=fd, follow_symlinks=False).st_mode):
                    yield ControlSocket(name=name, path=directory / file, owner=owner)
    finally:
        os.close(fd)


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
            match = _RECORD.fullmatch(file.read(64) or b"")
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
