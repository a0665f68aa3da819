# SPDX-License-Identifier: Apache-2.0
"""Where control sockets live: the runtime directories, the names in them, claiming one."""

import contextlib
import fcntl
import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pmuctl.control.messages import VM_NAME
from pmuctl.errors import DeniedError, RefusedError, UsageError
from pmuctl.host.procs import Procfs

PATH_RUN = Path("/run/pmuctl")
PATH_USERS = Path("/run/user")
SUFFIX = ".sock"
SUN_PATH_MAX = 107
"""sockaddr_un.sun_path has 108 bytes, one of them for the terminating zero (unix(7))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A control socket found in a runtime directory.

    `owner` is the user whose VMs it may speak for, None where that is anybody's (root's own
    directory, or a path the admin named).
    """

    name: str | None
    path: Path
    owner: int | None = None


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


def scan_sockets(
    environ: Mapping[str, str], uid: int, *, run: Path = PATH_RUN, users: Path = PATH_USERS
) -> list[Entry]:
    """Every control socket this user may ask about, by name; sockets only, and no links."""
    if named := environ.get("PMUCTL_RUNTIME_DIR"):
        return list(_entries(Path(named)))
    found = list(_entries(run))
    if uid == 0:
        for directory in _listdir(users):
            if directory.isdigit():
                found += _entries(users / directory / "pmuctl", int(directory))
    elif runtime := environ.get("XDG_RUNTIME_DIR"):
        found += _entries(Path(runtime) / "pmuctl", uid)
    return sorted(found, key=lambda entry: (entry.name or "", str(entry.path)))


def _listdir(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _entries(directory: Path, owner: int | None = None) -> Iterator[Entry]:
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
                yield Entry(name=name, path=directory / file, owner=owner)


@contextlib.contextmanager
def claim(
    path: Path, *, group: str = "kvm", procs: Procfs | None = None
) -> Iterator[socket.socket]:
    """A listening socket at `path`, gone again at the end.

    Its directory is made on first use (0755). The socket is 0660 root:`group` where this is root
    and that group exists, else 0600. A socket that a dead process left behind is replaced; one
    that answers, or whose process (pid and start time beside it) still lives, is not. Raises
    UsageError for a path that cannot be a socket's, RefusedError for one that is taken,
    DeniedError where the directory does not let this user write.
    """
    if len(os.fsencode(path)) > SUN_PATH_MAX:
        raise UsageError(f"{path}: too long for a socket", why=f"at most {SUN_PATH_MAX} bytes")
    procs = procs or Procfs()
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _lock(path.parent):
            _clear_stale(path, procs)
            listener = _bind(path, group)
            its = path.lstat()
            _record(path).write_text(f"{os.getpid()} {procs.start_time(os.getpid())}\n")
    except PermissionError as error:
        raise DeniedError(f"{path}: {error.strerror}", fix="set PMUCTL_RUNTIME_DIR") from error
    try:
        yield listener
    finally:
        listener.close()
        with contextlib.suppress(OSError), _lock(path.parent):
            now = path.lstat()
            if (now.st_dev, now.st_ino) == (its.st_dev, its.st_ino):
                path.unlink()
                _record(path).unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    fd = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".pid")


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
        match = re.fullmatch(r"([0-9]{1,10}) ([0-9]{1,20})\n", _record(path).read_text())
    except (OSError, UnicodeDecodeError):
        return None
    if match and procs.start_time(int(match[1])) == int(match[2]):
        return int(match[1])
    return None


def _bind(path: Path, group: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # bind() gives the file this mode, so it is never open to others, not for a moment
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(os.fspath(path))
        if os.geteuid() == 0 and (gid := _group_id(group)) is not None:
            os.chown(path, 0, gid, follow_symlinks=False)
            path.chmod(0o660)
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    return listener


def _group_id(name: str) -> int | None:
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
