# SPDX-License-Identifier: Apache-2.0
"""A captured /proc of another machine: how it is made of the VMs' processes, and how it is read.

A captured tree is treated as hostile: no link in it is followed, only regular files are opened.
"""

import errno
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence

from pmuctl.host.cpuset_cgroup import Cpusets, cpuset_mounts
from pmuctl.host.kvm.cache import to_captured
from pmuctl.host.kvm.owners import scan_owners
from pmuctl.host.mounts import PATH_MOUNTS
from pmuctl.host.proc_files import check_count, read_all
from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import Allowance, TooLargeError, take_names
from pmuctl.host.runtime_dirs import PATH_CAPTURED
from pmuctl.host.snapshot_files import Captured
from pmuctl.host.sysfs import TEXT_LIMIT, Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.model.vm_ref import ProcessId
from pmuctl.uapi.kvm import KVM_RUN
from pmuctl.value import field, value

UNREADABLE = "pmuctl-unreadable"
"""In a captured /proc: how many processes could not be read when it was made, and whether others
were hidden. A tree without it does not tell which processes there were."""

PROCESS_MAX = 24 << 20
"""Characters of the files of one process: 4096 threads have 8 Mi."""

MASKS_MAX = 1 << 22
"""CPUs in the masks of all threads: 8000 vCPUs that may each run on 512."""

OF_PROCESS = ("status", "stat", "cmdline", "comm", "cgroup")
OF_THREAD = ("stat", "status", "comm", "cgroup", "syscall")

_UNREADABLE = re.compile(rb"([0-9]{1,9})( hidden)?\n?")


@value
class CapturedProcfs(Procfs):
    """A captured /proc at `root`, which must not be a link either."""

    _cpus: Allowance = field(
        default_factory=lambda: Allowance(MASKS_MAX, "CPUs of threads"), compare=False, repr=False
    )

    def affinity(self, pid: int, tid: int) -> CpuSet | None:
        """Return the CPUs a thread may run on; raise TooLargeError if threads have very many."""
        cpus = super().affinity(pid, tid)
        self._cpus.take(len(cpus or ()), f"proc/{pid}/task/{tid}/status")
        return cpus

    def count_hidden(self, pids: Collection[int]) -> tuple[int, bool]:
        """Return what it was when the capture was made.

        Others may be hidden if the tree does not tell: it was made by hand or by another program,
        which need not have looked for VMs.
        """
        try:
            told = _UNREADABLE.fullmatch(self._read_file(UNREADABLE))
        except OSError:
            told = None
        return (int(told[1]), bool(told[2])) if told else (0, True)

    def _read_file(self, path: str) -> bytes:
        directory, name = self._open_parent(path)
        try:
            # opening a device node can have side effects, opening a FIFO blocks
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

    def _list_names(self, path: str) -> list[str]:
        fd = self._open_directory(path)
        try:
            with os.scandir(fd) as files:
                return take_names((file.name for file in files), f"proc/{path}")
        finally:
            os.close(fd)

    def _count_directories(self, path: str) -> int:
        """Return 0: a capture does not change, and its file system may count otherwise."""
        return 0

    def iter_links(self, path: str, *, most: int | None = None) -> Iterator[tuple[int, str]]:
        fd = self._open_directory(path)
        try:
            with os.scandir(fd) as files:
                there = (file.name for file in files)
                names = check_count(there, most) if most else take_names(there, f"proc/{path}")
            for name in names:
                try:
                    link = int(name), os.readlink(name, dir_fd=fd)
                except (OSError, ValueError):
                    continue
                yield link
        finally:
            os.close(fd)

    def _open_directory(self, path: str) -> int:
        directory, name = self._open_parent(path)
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(name, flags, dir_fd=directory)
        finally:
            os.close(directory)

    def _open_parent(self, path: str) -> tuple[int, str]:
        """Open the directory of a path's last component; return its descriptor and that name."""
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


class _RecordingSysfs(Sysfs):
    """A machine's files and the text of each one read, by path: each is read once.

    Of mountinfo it keeps only the lines about cpusets.
    """

    def __init__(self, sysfs: Sysfs) -> None:
        super().__init__(sysfs.root)
        self.texts: dict[str, str | None] = {}

    def read_text(self, path: str, *, limit: int = TEXT_LIMIT) -> str | None:
        """Return what Sysfs returned when the path was read first."""
        if path not in self.texts:
            text = super().read_text(path, limit=limit)
            self.texts[path] = cpuset_mounts(text) if text and path == PATH_MOUNTS else text
        return self.texts[path]


def scan_captured_vms(
    procs: Procfs, sysfs: Sysfs, vmms: Iterable[ProcessId] = ()
) -> Iterator[Captured]:
    """Yield the /proc files of every process that owns a VM, and of the given `vmms`.

    `vmms` are VMMs that the scan may not have found to own a VM. Processes that are unreadable, or
    have more text than is kept, are only counted, and whether others are hidden is told. The
    capture contains the names of VMs and the command lines of their VMMs, and of cgroups the files
    that `Cpusets` reads for their threads.
    """
    scan = scan_owners(procs, sysfs)
    cgroups = _RecordingSysfs(sysfs)
    cpusets = Cpusets(cgroups)
    too_large = 0
    for process in dict.fromkeys([*(owner.process for owner in scan.processes), *vmms]):
        try:
            files = [*_capture_process(procs, process.pid)]
        except TooLargeError:
            too_large += 1
            continue
        # another process may have been given this pid during the capture
        if procs.is_there(process):
            yield from files
            for tid in procs.threads(process.pid):
                cpusets.read(process.pid, tid)
    for path, text in cgroups.texts.items():
        # the files of threads are captured above, and a path through a link cannot be captured:
        # the kernel names no mount by a link, and the capture has none of the links on the way
        is_group = not path.startswith("proc/") and sysfs.resolve(path) == f"/{path}"
        if text is not None and (is_group or path == PATH_MOUNTS):
            yield Captured(path=path, text=text)
    # the age of a VM is counted from it
    uptime = procs.read_text("uptime")
    if uptime is not None:
        yield Captured(path="proc/uptime", text=uptime)
    unseen = too_large + scan.unreadable + sum(scan.left_out.values())
    hidden = " hidden" if scan.is_partial else ""
    yield Captured(path=f"proc/{UNREADABLE}", text=f"{unseen}{hidden}\n")


def _capture_process(procs: Procfs, pid: int) -> Iterator[Captured]:
    left = Allowance(PROCESS_MAX, "characters of a process")
    for fd, target in sorted(procs.links(pid).items()):
        yield Captured(path=f"proc/{pid}/fd/{fd}", text=target, is_link=True)
    paths = [f"{pid}/{name}" for name in OF_PROCESS]
    for tid in sorted(procs.threads(pid)):
        paths += [f"{pid}/task/{tid}/{name}" for name in OF_THREAD]
    for path in paths:
        text = procs.read_text(path)
        if text is not None:
            text = _strip_addresses(text) if path.endswith("/syscall") else text
            left.take(len(text), path)
            yield Captured(path=f"proc/{path}", text=text)


def _strip_addresses(text: str) -> str:
    """Return a /proc/PID/syscall text without addresses, which /proc shows to no other user.

    What is left is the number of the system call, and for KVM_RUN the descriptor and the request
    (proc_pid_syscall(5)).
    """
    words = text.split()
    kept = words[:3] if words[2:3] == [f"{KVM_RUN:#x}"] else words[:1]
    return " ".join(kept) + "\n"


def capture_probed(probed: KvmCaps, pmus: Sequence[Pmu]) -> Captured:
    """Return the probe results as the file that `read_cached` reads in a captured tree."""
    return Captured(path=PATH_CAPTURED, text=to_captured(probed, pmus))
