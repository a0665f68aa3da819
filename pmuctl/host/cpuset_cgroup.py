# SPDX-License-Identifier: Apache-2.0
"""The CPUs that a thread's cpuset cgroup allows, and the group in which that is set.

Of cgroup v2 and v1 (Documentation/admin-guide/cgroup-v2.rst "Cpuset", cgroup-v1/cpusets.rst). A
thread has its own group: v2 has threaded ones, and v1 takes single threads everywhere. What is
read is believed no further than Sysfs does: a path that leaves the hierarchy is none.
"""

import re
from collections.abc import Iterator

from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.value import value

PATH_CGROUP = "proc/{pid}/task/{tid}/cgroup"
PATH_MOUNTS = "proc/self/mountinfo"

MOUNTS_LIMIT = 64 << 20
"""Bytes: a mount namespace has up to 100,000 mounts (sysctl fs.mount-max), a line each."""
DEPTH_LIMIT = 256
"""Groups in one path, far above any; /proc shows at most one page of it."""
PATH_LIMIT = 4096
"""Characters of a group's path (PATH_MAX, include/uapi/linux/limits.h)."""

_ESCAPE = re.compile(r"\\([0-7]{3})")


@value(kw_only=True)
class Cpuset:
    """What a cpuset cgroup allows a thread.

    `version` is that of the cgroup hierarchy, 1 or 2, and `path` the directory of the group in
    which the CPUs are set: the thread's own, or one above it. `cpus` are those that are allowed,
    none of them offline. `prefix` is what the names of its files begin with.
    """

    version: int
    path: str
    cpus: CpuSet
    prefix: str = "cpuset."

    @property
    def file(self) -> str:
        """Where its CPUs are set."""
        return f"{self.path}/{self.prefix}cpus"


@value
class _Mount:
    """One mount of a hierarchy: `root` is the group that is seen at the directory `point`."""

    version: int
    root: str
    point: str
    prefix: str = "cpuset."


class Cpusets:
    """The cpusets of one machine, as they are at one look: each is read once."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs
        self._mounts: list[_Mount] | None = None
        self._groups: dict[tuple[int, str], Cpuset | None] = {}

    def read(self, pid: int, tid: int) -> Cpuset | None:
        """That of a thread; None where it is in none, is gone, or its hierarchy is not seen.

        The thread may have been moved since it was asked of last, and that is seen.
        """
        text = self._sysfs.read_text(PATH_CGROUP.format(pid=pid, tid=tid))
        found = None if text is None else _group(text)
        if found is None:
            return None
        if found not in self._groups:
            self._groups[found] = self._find(*found)
        return self._groups[found]

    def forget(self) -> None:
        """Read them anew from now on, as after something was changed."""
        self._groups.clear()

    def _find(self, version: int, group: str) -> Cpuset | None:
        if self._mounts is None:
            self._mounts = list(_mounts(self._sysfs))
        for mount in self._mounts:
            parts = _below(mount, group) if mount.version == version else None
            if parts is not None and (its := _climb(self._sysfs, mount, parts)) is not None:
                return its
        return None


def cpuset_mounts(text: str) -> str:
    """The lines of mountinfo that matter here: the others tell of disks, paths and containers."""
    return "".join(f"{line}\n" for line in text.split("\n") if _mount(line))


def _group(text: str) -> tuple[int, str] | None:
    """The hierarchy's version and the path of the group in /proc/PID/cgroup (cgroups(7)).

    The controller cpuset is in one hierarchy: in v1's where that has a line for it, else in v2's.
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


def _mounts(sysfs: Sysfs) -> Iterator[_Mount]:
    """The mounts of hierarchies that can have a cpuset, in /proc/self/mountinfo (proc(5))."""
    text = sysfs.read_text(PATH_MOUNTS, limit=MOUNTS_LIMIT)
    for line in (text or "").split("\n"):
        if mount := _mount(line):
            yield mount


def _mount(line: str) -> _Mount | None:
    before, dash, after = line.partition(" - ")
    fields, its = before.split(" "), after.split(" ")
    if not dash or len(fields) < 6 or len(its) < 3:
        return None
    root, point, options = _unescaped(fields[3]), _unescaped(fields[4]), its[-1].split(",")
    if its[0] == "cgroup2":
        return _Mount(2, root, point)
    if (its[0] == "cgroup" and "cpuset" in options) or its[0] == "cpuset":
        # files without the controller's name are those of the time before cgroups
        bare = its[0] == "cpuset" or "noprefix" in options
        return _Mount(1, root, point, "" if bare else "cpuset.")
    return None


def _unescaped(text: str) -> str:
    """A path of mountinfo, in which space, tab, newline and backslash are octal (mangle())."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)


def _below(mount: _Mount, group: str) -> list[str] | None:
    """The names that lead from a mount's directory to a group, None where it is not below it."""
    if len(group) > PATH_LIMIT or not mount.point.startswith("/"):
        return None
    root = mount.root.rstrip("/")
    if group != root and not group.startswith(f"{root}/"):
        return None
    parts = [part for part in group[len(root) :].split("/") if part]
    if len(parts) > DEPTH_LIMIT or any(part in (".", "..") for part in parts):
        return None  # outside the namespace of this process, so not to be seen here
    return parts


def _climb(sysfs: Sysfs, mount: _Mount, parts: list[str]) -> Cpuset | None:
    """From a group upwards: what holds for the thread, and which group sets that.

    A group that sets no CPUs has those of its parent (v2). One that gets less than it has set is
    cut down by one above, which is the one that is meant.
    """
    allowed: CpuSet | None = None
    path: str | None = None
    missing = CpuSet()
    for depth in range(len(parts), -1, -1):
        directory = "/".join((mount.point, *parts[:depth]))
        if allowed is None:
            allowed = _effective(sysfs, mount, directory)
        own = _read(sysfs, f"{directory}/{mount.prefix}cpus")
        if not own or allowed is None:
            continue
        if path is None or missing - own:
            is_cause, path = path is not None, directory
            everywhere = _effective(sysfs, mount, mount.point)
            missing = own - allowed if everywhere is None else (own - allowed) & everywhere
            if is_cause or not missing:
                break
    if allowed is None:
        return None
    path = path or mount.point
    return Cpuset(version=mount.version, path=path, cpus=allowed, prefix=mount.prefix)


def _effective(sysfs: Sysfs, mount: _Mount, directory: str) -> CpuSet | None:
    """The CPUs that a group has, of those it and all above it set; None where it has no cpuset."""
    name = "cpus.effective" if mount.version == 2 else "effective_cpus"
    return _read(sysfs, f"{directory}/{mount.prefix}{name}")


def _read(sysfs: Sysfs, path: str) -> CpuSet | None:
    return sysfs.read_cpuset(path.lstrip("/"))
