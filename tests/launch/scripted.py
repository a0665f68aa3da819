# SPDX-License-Identifier: Apache-2.0
"""A VMM whose threads are scripted, and the kernel's side of it: its vCPUs and descriptors.

The calls go to a tracker, which tells a master of vCPUs.
"""

import errno
import struct
from collections.abc import Callable, Collection
from pathlib import Path

from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.launch.trace.address_space import AddressSpaces, PendingVcpu
from pmuctl.launch.trace.arch import ARCHES
from pmuctl.launch.trace.tracee import StuckError, Tracee
from pmuctl.launch.trace.vcpu_tracker import VcpuTracker
from pmuctl.uapi.kvm import KVM_ARM_VCPU_INIT, KVM_CREATE_VCPU
from pmuctl.value import field, value

ARM64 = ARCHES["aarch64"]
WITH, WITHOUT, ADDRESS = 1 << 3, 0, 0xFFFF_0000
FCNTL, DUP3, FUTEX, SENDMSG, RECVMSG, CLOSE_RANGE = 25, 24, 98, 211, 212, 436
NOWHERE = Path("/nonexistent")


class VcpuFile:
    """An open vCPU."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.has_vpmu: bool | None = None
        """None until it is initialised."""


Table = dict[int, VcpuFile]


@value
class Kernel(Procfs):
    """What the kernel knows of scripted threads: the descriptors of each, and its process."""

    tables: dict[int, Table] = field(default_factory=dict)
    tgids: dict[int, int] = field(default_factory=dict)
    memories: dict[int, int] = field(default_factory=dict)
    """By process, whose memory it has, where that is another's."""
    is_mute: bool = False
    """Whether it cannot compare tasks: a kernel without kcmp(2)."""
    hides: bool = False
    """Whether descriptors may not be looked at."""

    def vcpu_fds(self, pid: int, tid: int | None = None) -> dict[int, int]:
        if self.hides:
            raise PermissionError(errno.EACCES, "hidden")
        table = self.tables.get(pid if tid is None else tid, {})
        return {fd: file.index for fd, file in table.items()}

    def list_threads(self, pid: int) -> tuple[frozenset[int], bool]:
        return frozenset(tid for tid, tgid in self.tgids.items() if tgid == pid), True

    def pids(self) -> list[int]:
        return sorted(set(self.tgids.values()))

    def shares_memory(self, pid: int, other_pid: int) -> bool | None:
        if self.is_mute or not {pid, other_pid} <= set(self.tgids.values()):
            return None
        return self.memories.get(pid, pid) == self.memories.get(other_pid, other_pid)

    def is_same_file(self, pid: int, fd: int, other_pid: int, other_fd: int) -> bool | None:
        if self.is_mute:
            return None
        return self.tables[pid][fd] is self.tables[other_pid][other_fd]

    def shares_fds(self, tid: int, other_tid: int) -> bool | None:
        return None if self.is_mute else self.tables[tid] is self.tables[other_tid]


class FakeTracee(Tracee):
    """A thread whose memory is what a test says, and whose signals are only noted."""

    def __init__(self, tid: int = 1, tgid: int = 1, kernel: Kernel | None = None) -> None:
        super().__init__(tid, tgid, ARM64)
        self.memory = b""
        self.blocked = False
        self.asked = 0
        """Calls made in it."""
        self.comes_again = False
        self.arguments: dict[int, int] = {}
        """Arguments that were changed at a call's entry."""
        self._kernel = Kernel(NOWHERE) if kernel is None else kernel

    def read(self, address: int, size: int) -> bytes:
        offset = address - ADDRESS
        return self.memory[offset : offset + size].ljust(size, b"\0")

    def write(self, address: int, data: bytes) -> None:
        offset = address - ADDRESS
        self.memory = self.memory[:offset] + data + self.memory[offset + len(data) :]

    def set_argument(self, position: int, value: int) -> None:
        self.arguments[position] = value

    def block_signals(self) -> None:
        self.blocked = True

    def unblock_signals(self) -> None:
        self.blocked = False

    def skip_call(self) -> list[int]:
        return []

    def set_registers(self, registers: list[int]) -> None:
        self.comes_again = True

    def ask(self, fd: int, request: int, address: int) -> int:
        self.asked += 1
        file = self._kernel.tables[self.tid].get(fd)
        if file is None:
            return -errno.EBADF
        return -errno.ENOEXEC if file.has_vpmu is None else -errno.EFAULT

    def ask_instead(self, request: int, address: int) -> int:
        assert self.call is not None
        self.comes_again = True
        return self.ask(self.call[1][0] & 0xFFFFFFFF, request, address)

    def ioctl(self, fd: int, request: int, argument: bytes, pointer: int | None = None) -> int:
        self.asked += 1
        file = self._kernel.tables[self.tid].get(fd)
        return 0 if file is not None and file.has_vpmu else -errno.ENXIO


class NoEvents:
    """Nobody, to whom the tracer reports."""

    def on_enter(self, *_: object) -> None: ...
    def on_exit(self, *_: object) -> None: ...
    def on_gone(self, *_: object) -> None: ...
    def on_new_process(self, *_: object) -> bool:
        return False


class Master:
    """Writes down what the windows tell."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.seen: list[object] = []
        self.refuses = False
        self.can_seal = True
        self.is_hindered = False
        """Whether threads cannot be followed, and the VMM goes on all the same."""
        self.followed = False
        """Whether all threads are, from the first call on by which they can learn of a vCPU."""

    def follows_all(self, tgids: Collection[int]) -> bool:
        return self.followed

    def on_created(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        self.seen.append(("made", vcpu.index))
        thread.is_ending = self.refuses

    def on_init(self, tgid: int, tid: int | None) -> None:
        self.seen.append((tgid, tid))

    def on_window_open(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        self.told.append(("opened", vcpu.index))

    def on_reset(self, thread: Tracee, fd: int) -> None:
        self.told.append(("reset", fd))

    def on_closing(self, thread: Tracee, vcpu: PendingVcpu) -> bool:
        self.told.append(("sealed" if self.can_seal else "unsealed", vcpu.index))
        return self.can_seal

    def on_no_vpmu(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        self.told.append(("without", vcpu.index))

    def on_sharing_call(self, thread: Tracee) -> None:
        self.followed = not self.is_hindered
        self.told.append("spread")

    def on_run_unheld(self, thread: Tracee) -> None:
        self.told.append("unheld")

    def on_silent_maker(self, vcpu: PendingVcpu) -> None:
        self.followed = True
        self.told.append(("silent", vcpu.index))

    def on_attribute_call(self, thread: Tracee, fd: int) -> None:
        self.told.append(("attribute", fd))

    def on_lost(self, thread: Tracee, error: ResourceExhaustedError | StuckError | None) -> None:
        self.told.append(("lost", error and error.errno))
        thread.is_ending = True

    def on_idle(self) -> None:
        self.followed = False
        if self.told[-1:] != ["settled"]:
            self.told.append("settled")


class Vmm:
    """Makes the calls of one thread, one after the other."""

    def __init__(
        self,
        windows: VcpuTracker | None = None,
        *,
        tid: int = 1,
        tgid: int = 1,
        kernel: Kernel | None = None,
        table: Table | None = None,
    ) -> None:
        self.master = Master()
        self.kernel = Kernel(NOWHERE) if kernel is None else kernel
        self.table = {} if table is None else table
        self.kernel.tables[tid], self.kernel.tgids[tid] = self.table, tgid
        self.spaces = AddressSpaces(self.kernel)
        self.windows = windows or VcpuTracker(ARM64, self.kernel, self.spaces, self.master)
        self.thread = FakeTracee(tid, tgid, self.kernel)

    def beside(self, tid: int, *, tgid: int | None = None, table: Table | None = None) -> "Vmm":
        """Another thread of it, or of a process beside it; with descriptors of its own, or not."""
        other = Vmm(
            self.windows,
            tid=tid,
            tgid=self.thread.tgid if tgid is None else tgid,
            kernel=self.kernel,
            table=self.table if table is None else table,
        )
        other.master, other.spaces = self.master, self.spaces
        return other

    def call(
        self, nr: int, *args: int, result: int = 0, effect: Callable[[], object] = lambda: None
    ) -> None:
        """A system call, which has its effect in the kernel between its entry and its exit."""
        its = (*args, *[0] * (6 - len(args)))
        self.enter(nr, its)
        if not self.thread.is_ending:
            effect()
            self.leave(nr, its, result)

    def enter(self, nr: int, args: tuple[int, ...]) -> None:
        while True:
            self.thread.call, self.thread.comes_again = (nr, args), False
            self.windows.on_enter(self.thread, nr, args)
            if not self.thread.comes_again:
                return

    def leave(self, nr: int, args: tuple[int, ...], result: int = 0) -> None:
        self.thread.call = None
        self.windows.on_exit(self.thread, nr, args, result)

    def ioctl(
        self,
        fd: int,
        request: int,
        argument: int = ADDRESS,
        result: int = 0,
        effect: Callable[[], object] = lambda: None,
    ) -> None:
        self.call(ARM64.nr_ioctl, fd, request, argument, result=result, effect=effect)

    def create(self, index: int, *, fd: int = 0, vm_fd: int = 4) -> None:
        fd = fd or 10 + index
        self.ioctl(
            vm_fd,
            KVM_CREATE_VCPU,
            index,
            result=fd,
            effect=lambda: self.table.update({fd: VcpuFile(index)}),
        )

    def init(self, fd: int, features: int = WITH, result: int = 0) -> None:
        def initialise() -> None:
            if result >= 0 and (file := self.table.get(fd & 0xFFFFFFFF)) is not None:
                file.has_vpmu = bool(features & WITH)

        self.thread.memory = struct.pack("<II", 5, features)  # target, features[0]
        self.ioctl(fd, KVM_ARM_VCPU_INIT, result=result, effect=initialise)

    def map(self, fd: int) -> None:
        self.call(ARM64.nr_mmap, 0, 4096, 3, 1, fd, 0)

    def close(self, fd: int) -> None:
        self.call(ARM64.nr_close, fd, effect=lambda: self.table.pop(fd, None))

    def duplicate(self, fd: int, to: int) -> None:
        """F_DUPFD, which need not be told of."""
        self.call(FCNTL, fd, 0, to, effect=lambda: self.table.update({to: self.table[fd]}))

    def move(self, fd: int, to: int) -> None:
        """dup3 and close."""
        self.call(DUP3, fd, to, effect=lambda: self.table.update({to: self.table[fd]}))
        self.close(fd)

    def send(self, *, control: int) -> None:
        """sendmsg, with so many bytes of control data."""
        self.thread.memory = bytes(40) + struct.pack("<Q", control)
        self.call(SENDMSG, 5, ADDRESS, 0)

    def receive(self, *, control: int) -> None:
        """recvmsg, by which so many bytes of control data came."""
        self.thread.memory = bytes(40) + struct.pack("<Q", control)
        self.call(RECVMSG, 5, ADDRESS, 0, result=1)
