# SPDX-License-Identifier: Apache-2.0
"""The VMs' processes of another machine: their capture, and /proc as it shows in one.

A captured tree is read as hostile: no link in it is followed, and only regular files are opened.
"""

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence

from pmuctl.host.cpuset_cgroup import PATH_MOUNTS, Cpusets, cpuset_mounts
from pmuctl.host.kvm.cache import to_captured
from pmuctl.host.kvm.fds import KvmScan
from pmuctl.host.kvm.owners import scan_owners
from pmuctl.host.proc_files import read_all
from pmuctl.host.procfs import Procfs
from pmuctl.host.runtime_dirs import PATH_CAPTURED
from pmuctl.host.snapshot_files import Captured
from pmuctl.host.sysfs import TEXT_LIMIT, Sysfs
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.model.vm_ref import ProcessId
from pmuctl.uapi.kvm import KVM_RUN
from pmuctl.value import replace, value

UNREADABLE = "pmuctl-unreadable"
"""In a captured /proc: how many processes could not be looked at when it was made."""

OF_PROCESS = ("status", "stat", "cmdline", "comm", "cgroup")
OF_THREAD = ("stat", "status", "comm", "cgroup", "syscall")

_NUMBER = re.compile(rb"([0-9]{1,9})\n?")


@value
class CapturedProcfs(Procfs):
    """A captured /proc, `root`; that must be no link either."""

    def scan_kvm(self) -> KvmScan:
        """As it was when the capture was made."""
        found = super().scan_kvm()
        try:
            number = _NUMBER.fullmatch(self._read(UNREADABLE))
        except OSError:
            number = None
        more = int(number[1]) if number else 0
        return replace(found, unreadable=found.unreadable + more, is_partial=False)

    def _read(self, path: str) -> bytes:
        directory, name = self._parent(path)
        try:
            # opening a device node can already do something, opening a FIFO waits
            if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), path)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(name, flags, dir_fd=directory)
        finally:
            os.close(directory)
        try:
            return read_all(fd)
        finally:
            os.close(fd)

    def _names(self, path: str) -> list[str]:
        fd = self._directory(path)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def _links(self, path: str) -> dict[int, str]:
        found = {}
        fd = self._directory(path)
        try:
            for name in os.listdir(fd):
                try:
                    found[int(name)] = os.readlink(name, dir_fd=fd)
                except (OSError, ValueError):
                    continue
        finally:
            os.close(fd)
        return found

    def _directory(self, path: str) -> int:
        directory, name = self._parent(path)
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(name, flags, dir_fd=directory)
        finally:
            os.close(directory)

    def _parent(self, path: str) -> tuple[int, str]:
        """The directory that a path's last part is in, for the caller to close, and that part."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        *parts, name = path.split("/")
        fd = os.open(self.root, flags)
        try:
            for part in parts:
                above, fd = fd, os.open(part, flags, dir_fd=fd)
                os.close(above)
        except OSError:
            os.close(fd)
            raise
        return fd, name or "."


class _Recorder(Sysfs):
    """A machine, and all texts that were read of it by their paths: each is read once.

    Of mountinfo it has no more than what tells of cpusets.
    """

    def __init__(self, sysfs: Sysfs) -> None:
        super().__init__(sysfs.root)
        self.texts: dict[str, str | None] = {}

    def read_text(self, path: str, *, limit: int = TEXT_LIMIT) -> str | None:
        """As Sysfs, from the first time on."""
        if path not in self.texts:
            text = super().read_text(path, limit=limit)
            self.texts[path] = cpuset_mounts(text) if text and path == PATH_MOUNTS else text
        return self.texts[path]


def scan_captured_vms(
    procs: Procfs, sysfs: Sysfs, vmms: Iterable[ProcessId] = ()
) -> Iterator[Captured]:
    """What pmuctl reads of the processes that have VMs of their own, and of `vmms`, of which that
    may not be known; the others are only counted.

    That names VMs, and has the command lines of their VMMs. Of cgroups it has what `Cpusets`
    reads for their threads.
    """
    found = scan_owners(procs, sysfs)
    cgroups = _Recorder(sysfs)
    cpusets = Cpusets(cgroups)
    for process in dict.fromkeys([*(its.process for its in found.holders), *vmms]):
        its = [*_process(procs, process.pid)]
        # another process may have its pid by now
        if procs.is_there(process):
            yield from its
            for tid in procs.threads(process.pid):
                cpusets.read(process.pid, tid)
    for path, text in cgroups.texts.items():
        # those of threads are captured above; the kernel names no mount by a link, and the capture
        # has none of those on the way
        is_group = not path.startswith("proc/") and sysfs.resolve(path) == f"/{path}"
        if text is not None and (is_group or path == PATH_MOUNTS):
            yield Captured(path=path, text=text)
    # a VM's age is told by it
    uptime = procs.read_text("uptime")
    if uptime is not None:
        yield Captured(path="proc/uptime", text=uptime)
    if found.unreadable:
        yield Captured(path=f"proc/{UNREADABLE}", text=f"{found.unreadable}\n")


def _process(procs: Procfs, pid: int) -> Iterator[Captured]:
    for fd, target in sorted(procs.links(pid).items()):
        yield Captured(path=f"proc/{pid}/fd/{fd}", text=target, is_link=True)
    paths = [f"{pid}/{name}" for name in OF_PROCESS]
    for tid in sorted(procs.threads(pid)):
        paths += [f"{pid}/task/{tid}/{name}" for name in OF_THREAD]
    for path in paths:
        text = procs.read_text(path)
        if text is not None:
            text = _bare_call(text) if path.endswith("/syscall") else text
            yield Captured(path=f"proc/{path}", text=text)


def _bare_call(text: str) -> str:
    """A system call without the addresses it has, which /proc tells nobody else: its number, and
    of KVM_RUN the descriptor and the request, too (proc_pid_syscall(5))."""
    words = text.split()
    kept = words[:3] if words[2:3] == [f"{KVM_RUN:#x}"] else words[:1]
    return " ".join(kept) + "\n"


def capture_probed(probed: KvmCaps, pmus: Sequence[Pmu]) -> Captured:
    """What probes found of KVM, as `read_cached` finds it in a captured tree."""
    return Captured(path=PATH_CAPTURED, text=to_captured(probed, pmus))
