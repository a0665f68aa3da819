# SPDX-License-Identifier: Apache-2.0
"""A VMM whose threads are scripted: its calls go to a tracker, which tells a master of vCPUs."""

import struct
from pathlib import Path

from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.launch.trace.arch import ARCHES
from pmuctl.launch.trace.tracee import Tracee
from pmuctl.launch.trace.vcpu_tracker import PendingVcpu, VcpuTracker
from pmuctl.uapi.kvm import KVM_ARM_VCPU_INIT, KVM_CREATE_VCPU

ARM64 = ARCHES["aarch64"]
WITH, WITHOUT, ADDRESS = 1 << 3, 0, 0xFFFF_0000


class FakeTracee(Tracee):
    """A thread whose memory is what a test says, and whose signals are only noted."""

    def __init__(self, tid: int = 1, tgid: int = 1) -> None:
        super().__init__(tid, tgid, ARM64)
        self.memory = b""
        self.blocked = False

    def read(self, address: int, size: int) -> bytes:
        offset = address - ADDRESS
        return self.memory[offset : offset + size].ljust(size, b"\0")

    def block_signals(self) -> None:
        self.blocked = True

    def unblock_signals(self) -> None:
        self.blocked = False


NOWHERE = Path("/nonexistent")


class Master:
    """Writes down what the windows tell."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.seen: list[object] = []
        self.refuses = False

    def on_created(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        self.seen.append(("made", vcpu.index))
        thread.is_ending = self.refuses

    def on_init(self, tgid: int, tid: int | None) -> None:
        self.seen.append((tgid, tid))

    def on_window_open(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        self.told.append(("opened", vcpu.index))

    def on_no_vpmu(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        self.told.append(("without", vcpu.index))

    def on_sharing_call(self, thread: Tracee) -> None:
        self.told.append("spread")

    def on_attribute_call(self, thread: Tracee, fd: int) -> None:
        self.told.append(("attribute", fd))

    def on_lost(self, thread: Tracee, shortage: ResourceExhaustedError) -> None:
        self.told.append(("lost", shortage.errno))

    def on_idle(self) -> None:
        if self.told[-1:] != ["settled"]:
            self.told.append("settled")


class Vmm:
    """Makes the calls of one thread, one after the other."""

    def __init__(self, windows: VcpuTracker | None = None, *, tid: int = 1, tgid: int = 1) -> None:
        self.master = Master()
        self.windows = windows or VcpuTracker(ARM64, Procfs(NOWHERE), self.master)
        self.thread = FakeTracee(tid, tgid)

    def call(self, nr: int, *args: int, result: int = 0) -> None:
        its = (*args, *[0] * (6 - len(args)))
        self.thread.call = nr, its
        self.windows.on_enter(self.thread, nr, its)
        self.thread.call = None
        self.windows.on_exit(self.thread, nr, its, result)

    def ioctl(self, fd: int, request: int, argument: int = ADDRESS, result: int = 0) -> None:
        self.call(ARM64.nr_ioctl, fd, request, argument, result=result)

    def create(self, index: int, *, fd: int = 0, vm_fd: int = 4) -> None:
        self.ioctl(vm_fd, KVM_CREATE_VCPU, index, result=fd or 10 + index)

    def init(self, fd: int, features: int = WITH, result: int = 0) -> None:
        self.thread.memory = struct.pack("<II", 5, features)  # target, features[0]
        self.ioctl(fd, KVM_ARM_VCPU_INIT, result=result)

    def map(self, fd: int) -> None:
        self.call(ARM64.nr_mmap, 0, 4096, 3, 1, fd, 0)

    def close(self, fd: int) -> None:
        self.call(ARM64.nr_close, fd)
