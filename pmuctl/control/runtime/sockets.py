# SPDX-License-Identifier: Apache-2.0
"""Where control sockets live: the runtime directories, the names in them, claiming one."""

import contextlib
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
"""Control sockets in another user's directory that are asked: anybody can make any number."""
NAMES_READ = 1 << 16
"""Names of a directory that are looked at."""

_UID = re.compile(r"0|[1-9][0-9]{0,9}")
_RECORD = re.compile(rb"([0-9]{1,10}) ([0-9]{1,20})\n")


@value(kw_only=True)
class ControlSocket:
    """A control socket found in a runtime directory.

    `owner` is the user whose VMs it may speak for, None where that is anybody's (root's own
    directory, or a path the admin named).
    """

    name: str | None
    path: Path
    owner: int | None = None


@value
class SocketScan:
    """Control sockets, and how many more of other users are left out: see SOCKETS_MAX."""

    entries: Sequence[ControlSocket] = ()
    left_out: int = 0


def own_dir(environ: Mapping[str, str], uid: int) -> Path:
    """Where this user's VMs put their sockets; raises UsageError where there is no such place."""
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
    """The file name of a VM's socket; raises UsageError for what may not be a VM's name."""
    if not VM_NAME.fullmatch(name):
        raise UsageError(f"{name}: not a name for a VM", why=f"it must match {VM_NAME.pattern}")
    return name + SUFFIX


def record_path(path: Path) -> Path:
    """Where the record of the VM with this socket is: NAME.sock.json beside NAME.sock.

    NAME.json could be anybody's, in a directory that is not pmuctl's own.
    """
    return path.with_name(path.name + RECORD_SUFFIX)


def runtime_dirs(
    environ: Mapping[str, str], uid: int, *, run: Path = PATH_RUN, users: Path = PATH_USERS
) -> list[tuple[Path, int | None]]:
    """The directories to look for this user's sockets in, each with the `owner` of its entries."""
    if named := environ.get("PMUCTL_RUNTIME_DIR"):
        return [(Path(named), None)]
    found: list[tuple[Path, int | None]] = [(run, None)]
    if uid == 0:
        names = filter(_UID.fullmatch, _listdir(users))
        found += [(users / name / "pmuctl", int(name)) for name in names]
    elif runtime := environ.get("XDG_RUNTIME_DIR"):
        found.append((Path(runtime) / "pmuctl", uid))
    return found


def scan_sockets(
    environ: Mapping[str, str], uid: int, *, run: Path = PATH_RUN, users: Path = PATH_USERS
) -> SocketScan:
    """The control sockets this user may ask about, by name; sockets only, and no links.

    Of another user's directory they are no more than SOCKETS_MAX.
    """
    entries: list[ControlSocket] = []
    left_out = 0
    for directory, owner in runtime_dirs(environ, uid, run=run, users=users):
        its = list(_entries(directory, owner))
        most = len(its) if owner in (None, uid) else SOCKETS_MAX
        entries += its[:most]
        left_out += len(its[most:])
    entries.sort(key=lambda entry: (entry.name or "", str(entry.path)))
    return SocketScan(entries, left_out)


def _listdir(path: Path) -> list[str]:
    try:
        with os.scandir(path) as found:
            return sorted(its.name for its in islice(found, NAMES_READ))
    except OSError as error:
        raise_if_exhausted(error)
        return []


def _entries(directory: Path, owner: int | None = None) -> Iterator[ControlSocket]:
    try:
        its = directory.lstat()
    except OSError:
        return
    # anybody else's directory could speak for VMs that are not that user's
    if owner is not None and (not stat.S_ISDIR(its.st_mode) or its.st_uid != owner):
        return
    for file in _listdir(directory):
        name = file.removesuffix(SUFFIX)
        if name == file or not VM_NAME.fullmatch(name):
            continue
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK((directory / file).lstat().st_mode):
                yield ControlSocket(name=name, path=directory / file, owner=owner)


@contextlib.contextmanager
def bind_control_socket(
    path: Path,
    *,
    group: str = "kvm",
    procs: Procfs | None = None,
    patience: float = LOCK_SECONDS,
) -> Iterator[socket.socket]:
    """A listening socket at `path`, gone again at the end.

    Its directory is made on first use (0755). The socket is 0660 root:`group` where this is root
    and that group exists, else 0600. A socket that a dead process left behind is replaced; one
    that answers, or whose process (pid and start time beside it) still lives, is not. `patience`
    is how many seconds to wait for others that do the same in that directory. Raises UsageError
    for a path that cannot be a socket's, RefusedError for one that is taken or that cannot be
    made, DeniedError where the directory does not let this user write.
    """
    if len(os.fsencode(path)) > SUN_PATH_MAX:
        raise UsageError(f"{path}: too long for a socket", why=f"at most {SUN_PATH_MAX} bytes")
    with contextlib.ExitStack() as stack:
        try:
            _make_directory(path.parent)
            with locked(path.parent, patience):
                listener = _bind(path, stack, group, procs or Procfs(), patience)
        except OSError as error:
            raise _unusable(path, error) from error
        yield listener


def _unusable(path: Path, error: OSError) -> PmuctlError:
    cls = DeniedError if isinstance(error, PermissionError) else RefusedError
    return cls(
        f"{path}: a socket cannot be made there",
        why=f"{error.filename or path}: {error.strerror or error}",
        fix="set PMUCTL_RUNTIME_DIR, or name a socket elsewhere",
    )


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return
    # whatever the umask is; by descriptor, for the name may be a link by now
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.chmod(f"/proc/self/fd/{fd}", 0o755)
    finally:
        os.close(fd)


def _bind(
    path: Path, stack: contextlib.ExitStack, group: str, procs: Procfs, patience: float
) -> socket.socket:
    """With the lock held, the socket; `stack` takes what there is to undo of it."""
    _clear_stale(path, procs)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    # bind() gives the file this mode, so it is never open to others, not for a moment
    os.fchmod(listener.fileno(), 0o600)
    listener.bind(os.fspath(path))
    its = path.lstat()
    stack.callback(_remove, path, its, patience)
    _open_to_group(path, its, group)
    _write_process(path, procs)
    listener.listen(LISTEN_BACKLOG)
    return listener


def _open_to_group(path: Path, its: os.stat_result, group: str) -> None:
    """Give the socket its group and mode, whatever the umask is."""
    # by descriptor: in another user's directory the name may lead elsewhere by now
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not os.path.samestat(os.fstat(fd), its) or not stat.S_ISSOCK(its.st_mode):
            raise RefusedError(f"{path} was replaced while it was made")
        opened = f"/proc/self/fd/{fd}"
        gid = _group_id(group) if os.geteuid() == 0 else None
        if gid is not None:
            os.chown(opened, 0, gid)
        os.chmod(opened, 0o600 if gid is None else 0o660)
    finally:
        os.close(fd)


def _remove(path: Path, its: os.stat_result, patience: float) -> None:
    with contextlib.suppress(OSError, RefusedError), locked(path.parent, patience):
        # no other socket has its inode number as long as the listener is open
        if os.path.samestat(path.lstat(), its):
            path.unlink()
            _pid_file(path).unlink(missing_ok=True)


def _pid_file(path: Path) -> Path:
    return path.with_name(path.name + ".pid")


def _write_process(path: Path, procs: Procfs) -> None:
    pid_file = _pid_file(path)
    pid_file.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(pid_file, flags, 0o600), "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o644)  # whatever the umask is
        file.write(f"{os.getpid()} {procs.start_time(os.getpid())}\n")


def _clear_stale(path: Path, procs: Procfs) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
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
    if (pid := _recorded_process(path, procs)) is not None:
        raise RefusedError(f"{path} is taken", why=f"its process {pid} is still there")
    path.unlink()


def _recorded_process(path: Path, procs: Procfs) -> int | None:
    try:
        # whatever lies there: no link is followed, a fifo is not waited for
        fd = os.open(_pid_file(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            match = _RECORD.fullmatch(file.read(64) or b"")
    except OSError:
        return None
    if match and procs.start_time(int(match[1])) == int(match[2]):
        return int(match[1])
    return None


def _group_id(name: str) -> int | None:
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
