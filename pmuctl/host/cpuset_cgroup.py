# SPDX-License-Identifier: Apache-2.0
"""The CPUs that a thread's cpuset cgroup allows, and the group that sets them.

Both cgroup v2 and v1 are read (Documentation/admin-guide/cgroup-v2.rst "Cpuset",
cgroup-v1/cpusets.rst). Each thread has a group of its own: v2 has threaded groups, and v1 takes
single threads everywhere. Files are trusted no further than Sysfs trusts them: a path that leaves
the hierarchy is ignored.
"""

from collections.abc import Iterator

from pmuctl.host.mounts import MOUNTS_LIMIT, PATH_MOUNTS, parse_mount
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.value import value

PATH_CGROUP = "proc/{pid}/task/{tid}/cgroup"
DEPTH_LIMIT = 256
"""Groups in one path, far more than any has; /proc shows at most one page of it."""
PATH_LIMIT = 4096
"""Characters of a group's path (PATH_MAX, include/uapi/linux/limits.h)."""


@value(kw_only=True)
class Cpuset:
    """The CPUs that a cpuset cgroup allows a thread.

    `version` is that of the cgroup hierarchy, 1 or 2, and `path` the directory of the group that
    sets the CPUs: the thread's own, or one above it. `cpus` are the allowed CPUs, none of them
    offline. `prefix` begins the names of the group's files.
    """

    version: int
    path: str
    cpus: CpuSet
    prefix: str = "cpuset."

    @property
    def file(self) -> str:
        """The file in which the group's CPUs are set."""
        return f"{self.path}/{self.prefix}cpus"


@value
class _Mount:
    """One mount of a hierarchy, which shows the group `root` at the directory `point`."""

    version: int
    root: str
    point: str
    prefix: str = "cpuset."


class Cpusets:
    """The cpusets of one machine at one time: each group is read once."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs
        self._mounts: list[_Mount] | None = None
        self._groups: dict[tuple[int, str], Cpuset | None] = {}

    def read(self, pid: int, tid: int) -> Cpuset | None:
        """Return the cpuset of a thread.

        Return None if the thread is in no cpuset or is gone, or its hierarchy is not mounted
        here. The thread's group is read each time, so a move to another one is seen.
        """
        text = self._sysfs.read_text(PATH_CGROUP.format(pid=pid, tid=tid))
        group = None if text is None else _parse_group(text)
        if group is None:
            return None
        if group not in self._groups:
            self._groups[group] = self._find_cpuset(*group)
        return self._groups[group]

    def forget(self) -> None:
        """Forget the groups read so far, so that later calls see changes to them."""
        self._groups.clear()

    def _find_cpuset(self, version: int, group: str) -> Cpuset | None:
        if self._mounts is None:
            self._mounts = list(_scan_mounts(self._sysfs))
        for mount in self._mounts:
            parts = _split_group(mount, group) if mount.version == version else None
            if parts is not None:
                cpuset = _read_cpuset(self._sysfs, mount, parts)
                if cpuset is not None:
                    return cpuset
        return None


def cpuset_mounts(text: str) -> str:
    """Return the lines of mountinfo about cpusets; the others name disks, paths, containers."""
    return "".join(f"{line}\n" for line in text.split("\n") if _parse_cpuset_mount(line))


def _parse_group(text: str) -> tuple[int, str] | None:
    """Return the hierarchy's version and the group's path from /proc/PID/cgroup (cgroups(7)).

    The cpuset controller is in one hierarchy: v1's if that has a line for it, else v2's.
    """
    unified = None
    for line in text.split("\n"):
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not colon or not path.startswith("/"):
            continue
        if "cpuset" in controllers.split(","):
            return 1, path
        if number == "0" and not controllers:
            unified = path
    return None if unified is None else (2, unified)


def _scan_mounts(sysfs: Sysfs) -> Iterator[_Mount]:
    """Yield the mounts in /proc/self/mountinfo (proc(5)) of hierarchies that can have cpusets."""
    text = sysfs.read_text(PATH_MOUNTS, limit=MOUNTS_LIMIT)
    for line in (text or "").split("\n"):
        if mount := _parse_cpuset_mount(line):
            yield mount


def _parse_cpuset_mount(line: str) -> _Mount | None:
    """Return the mount of a hierarchy that can have cpusets, None for any other line."""
    mount = parse_mount(line)
    if mount is None:
        return None
    root, point, fs_type, options = mount
    if fs_type == "cgroup2":
        return _Mount(2, root, point)
    if (fs_type == "cgroup" and "cpuset" in options) or fs_type == "cpuset":
        # the cpuset filesystem, older than cgroups, names its files without the controller
        bare = fs_type == "cpuset" or "noprefix" in options
        return _Mount(1, root, point, "" if bare else "cpuset.")
    return None


def _split_group(mount: _Mount, group: str) -> list[str] | None:
    """Return the names that lead from a mount's directory to a group, None if it is not below."""
    if len(group) > PATH_LIMIT or not mount.point.startswith("/"):
        return None
    root = mount.root.rstrip("/")
    if group != root and not group.startswith(f"{root}/"):
        return None
    parts = [part for part in group[len(root) :].split("/") if part]
    if len(parts) > DEPTH_LIMIT or any(part in (".", "..") for part in parts):
        return None  # ".." is a group outside this process's cgroup namespace
    return parts


def _read_cpuset(sysfs: Sysfs, mount: _Mount, parts: list[str]) -> Cpuset | None:
    """Return the cpuset of a group, found by going from it upwards; None if there is none.

    A group that sets no CPUs has those of its parent (v2). If a group gets fewer CPUs than it
    sets, a group above limits it, and the result names that one.
    """
    allowed: CpuSet | None = None
    path: str | None = None
    missing = CpuSet()
    for depth in range(len(parts), -1, -1):
        directory = "/".join((mount.point, *parts[:depth]))
        if allowed is None:
            allowed = _read_effective_cpus(sysfs, mount, directory)
        own = _read_cpus(sysfs, f"{directory}/{mount.prefix}cpus")
        if not own or allowed is None:
            continue
        if path is None or missing - own:
            is_cause, path = path is not None, directory
            everywhere = _read_effective_cpus(sysfs, mount, mount.point)
            missing = own - allowed if everywhere is None else (own - allowed) & everywhere
            if is_cause or not missing:
                break
    if allowed is None:
        return None
    path = path or mount.point
    return Cpuset(version=mount.version, path=path, cpus=allowed, prefix=mount.prefix)


def _read_effective_cpus(sysfs: Sysfs, mount: _Mount, directory: str) -> CpuSet | None:
    """Return the CPUs left to a group by itself and all groups above, None without a cpuset."""
    name = "cpus.effective" if mount.version == 2 else "effective_cpus"
    return _read_cpus(sysfs, f"{directory}/{mount.prefix}{name}")


def _read_cpus(sysfs: Sysfs, path: str) -> CpuSet | None:
    return sysfs.read_cpuset(path.lstrip("/"))
