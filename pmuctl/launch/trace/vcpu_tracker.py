# SPDX-License-Identifier: Apache-2.0
"""vCPUs from their making to their window: which system calls are followed, and for how long."""

from typing import Protocol

from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.launch.trace.arch import Arch
from pmuctl.launch.trace.tracee import Tracee
from pmuctl.uapi.kvm import (
    KVM_ARM_VCPU_INIT,
    KVM_CREATE_VCPU,
    KVM_HAS_DEVICE_ATTR,
    KVM_RUN,
    KVM_SET_DEVICE_ATTR,
)
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3,
    KVM_ARM_VCPU_PMU_V3_CTRL,
    KVM_ARM_VCPU_PMU_V3_STRICT,
)
from pmuctl.uapi.pidfd import kcmp_file

LOW_32_BITS = 0xFFFFFFFF
"""Descriptors, requests and vCPU numbers are 32 bits to the kernel, registers have 64."""


class PendingVcpu:
    """A vCPU whose window has not come yet.

    `has_vpmu` is None until the vCPU is initialised; `is_mapped` says that its kvm_run page is
    mapped: a VMM that only asks KVM for its features, as QEMU does first, does not map it.
    """

    def __init__(self, *, tgid: int, tid: int, vm_fd: int, fd: int, index: int) -> None:
        self.tgid = tgid
        self.tid = tid
        self.vm_fd = vm_fd
        self.fd = fd
        self.index = index
        self.has_vpmu: bool | None = None
        self.is_mapped = False


class VcpuEvents(Protocol):
    """What is done as a vCPU gets to its window, while its thread is stopped.

    It is stopped at the exit of a call, where calls can be made in it, if a vCPU was created or
    its window is open; at the entry of a call for `on_sharing_call` and `on_attribute_call`; at
    either for `on_no_vpmu` and `on_lost`.
    """

    def on_created(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """Handle a vCPU that was made, and that no other thread knows of yet."""

    def on_init(self, tgid: int, tid: int | None) -> None:
        """Handle that this thread initialises a vCPU with a vPMU; called before and after.

        KVM may choose the VM's PMU by where the thread is. `tid` is None for what was not
        observed, and for a vCPU that asks for no choice (KVM_ARM_VCPU_PMU_V3_STRICT).
        """

    def on_window_open(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """Handle that a vCPU's window is open."""

    def on_no_vpmu(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """Handle a vCPU that was made to run without a vPMU: there will be no window."""

    def on_sharing_call(self, thread: Tracee) -> None:
        """Handle the entry of a call by which other threads could learn of a new vCPU."""

    def on_attribute_call(self, thread: Tracee, fd: int) -> None:
        """Handle the entry of a call for an attribute: one of a vCPU's PMU if `fd` is a vCPU."""

    def on_lost(self, thread: Tracee, shortage: ResourceExhaustedError) -> None:
        """Handle that a vCPU could not be followed, for want of descriptors or memory."""

    def on_idle(self) -> None:
        """Handle that no vCPU waits for its window any more."""


class VcpuTracker:
    """The vCPUs on the way to their window, of every process behind the gate."""

    def __init__(self, arch: Arch, procs: Procfs, events: VcpuEvents) -> None:
        self.awaits_attribute = False
        """Whether to follow on to the first call for a PMU attribute, past the windows."""
        self._arch = arch
        self._procs = procs
        self._events = events
        self._pending: list[PendingVcpu] = []
        self._index_by_fd: dict[tuple[int, int], int] = {}
        """By process and descriptor: the number of the last vCPU that KVM returned there."""

    def on_enter(self, thread: Tracee, nr: int, args: tuple[int, ...]) -> None:
        """Handle the entry of a call of a thread that is followed."""
        if (shortage := thread.shortage) is not None:
            thread.shortage = None
            self._events.on_lost(thread, shortage)
            return
        try:
            self._handle_enter(thread, nr, args)
        except ResourceExhaustedError as error:
            self._events.on_lost(thread, error)

    def _handle_enter(self, thread: Tracee, nr: int, args: tuple[int, ...]) -> None:
        is_ioctl, request = nr == self._arch.nr_ioctl, args[1] & LOW_32_BITS
        if thread.is_entering and not (is_ioctl and request == KVM_CREATE_VCPU):
            thread.is_entering = False  # a signal took it out of the gate
            thread.unblock_signals()
        if nr in self._arch.masking_calls:
            thread.unblock_signals()  # a thread that it makes would inherit the mask for good
        has_pending = any(vcpu.tgid == thread.tgid for vcpu in self._pending)
        handled_calls = (self._arch.nr_ioctl, self._arch.nr_mmap, self._arch.nr_close)
        if has_pending and nr not in self._arch.private_calls and nr not in handled_calls:
            self._events.on_sharing_call(thread)
        if is_ioctl:
            self._handle_ioctl_enter(thread, args[0] & LOW_32_BITS, request, args[2])
        elif nr == self._arch.nr_mmap and (
            vcpu := self._find_vcpu(thread.tgid, args[4] & LOW_32_BITS)
        ):
            vcpu.is_mapped = True

    def _handle_ioctl_enter(self, thread: Tracee, fd: int, request: int, address: int) -> None:
        if request == KVM_CREATE_VCPU:
            thread.is_entering = True
            thread.block_signals()
        elif request in (KVM_HAS_DEVICE_ATTR, KVM_SET_DEVICE_ATTR) and self.awaits_attribute:
            if _read_word(thread, address + 4) == KVM_ARM_VCPU_PMU_V3_CTRL:
                self._events.on_attribute_call(thread, fd)
        elif request == KVM_ARM_VCPU_INIT and (vcpu := self._find_vcpu_by_any_fd(thread.tgid, fd)):
            features = _read_word(thread, address + 4)
            # features that cannot be read show when the ioctls are made
            vcpu.has_vpmu = features is None or bool(features >> KVM_ARM_VCPU_PMU_V3 & 1)
            if vcpu.has_vpmu:
                strict = features is None or bool(features >> KVM_ARM_VCPU_PMU_V3_STRICT & 1)
                self._events.on_init(thread.tgid, None if strict else thread.tid)
            thread.block_signals()
        elif request == KVM_RUN and (vcpu := self._find_vcpu_by_any_fd(thread.tgid, fd)):
            self._pending.remove(vcpu)
            self._events.on_no_vpmu(thread, vcpu)

    def on_exit(self, thread: Tracee, nr: int, args: tuple[int, ...], result: int) -> None:
        """Handle the exit of that call."""
        try:
            self._handle_exit(thread, nr, args, result)
        except ResourceExhaustedError as error:
            self._events.on_lost(thread, error)

    def _handle_exit(self, thread: Tracee, nr: int, args: tuple[int, ...], result: int) -> None:
        fd, request = args[0] & LOW_32_BITS, args[1] & LOW_32_BITS
        if nr in self._arch.masking_calls and any(
            vcpu.tid == thread.tid for vcpu in self._pending
        ):
            thread.block_signals()
        if nr in self._arch.closing_calls and thread.tgid in self.pending_processes():
            self._drop_closed_vcpus(thread.tgid)
            self._notify_if_idle()
        if nr != self._arch.nr_ioctl:
            return
        if request == KVM_CREATE_VCPU:
            thread.is_entering = False
            if result >= 0:
                self._add_vcpu(thread, vm_fd=fd, fd=result, index=args[2] & LOW_32_BITS)
        if request == KVM_ARM_VCPU_INIT and (tried := self._find_vcpu(thread.tgid, fd)):
            if tried.has_vpmu:
                self._events.on_init(thread.tgid, thread.tid)
        if request == self._arch.window_ioctl and result >= 0:
            wanted = result if request == KVM_CREATE_VCPU else fd
            if vcpu := self._find_vcpu(thread.tgid, wanted):
                self._open_window(thread, vcpu)
        if not thread.is_ending and not any(vcpu.tid == thread.tid for vcpu in self._pending):
            thread.unblock_signals()
        self._notify_if_idle()

    def _add_vcpu(self, thread: Tracee, *, vm_fd: int, fd: int, index: int) -> None:
        """Add a vCPU that was made, unless its VMM is to end for it."""
        vcpu = PendingVcpu(tgid=thread.tgid, tid=thread.tid, vm_fd=vm_fd, fd=fd, index=index)
        if (closed := self._find_vcpu(thread.tgid, fd)) is not None:
            self._pending.remove(closed)
        self._events.on_created(thread, vcpu)
        if not thread.is_ending:
            self._pending.append(vcpu)
            self._index_by_fd[thread.tgid, fd] = index

    def _open_window(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """Report a vCPU that is where its window opens, if it has one."""
        if vcpu.has_vpmu is not False:
            self._pending.remove(vcpu)
            self._events.on_window_open(thread, vcpu)
        elif vcpu.is_mapped:
            self._pending.remove(vcpu)
            self._events.on_no_vpmu(thread, vcpu)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to follow any thread for."""
        return not self._pending and not self.awaits_attribute

    def uninitialised_vcpus(self, tgid: int) -> list[PendingVcpu]:
        """Return the vCPUs of a process that wait for their window and are not initialised yet."""
        return [vcpu for vcpu in self._pending if vcpu.tgid == tgid and vcpu.has_vpmu is None]

    def mark_initialised(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """Open the window of a vCPU that an unfollowed thread has initialised with a vPMU."""
        vcpu.has_vpmu = True
        self._events.on_init(thread.tgid, None)
        self._open_window(thread, vcpu)

    def pending_processes(self) -> set[int]:
        """Return the processes that have a window to come."""
        return {vcpu.tgid for vcpu in self._pending}

    def on_gone(self, tgid: int) -> None:
        """Drop the vCPUs of a process that is gone, or is another program now."""
        self._pending = [vcpu for vcpu in self._pending if vcpu.tgid != tgid]
        self._index_by_fd = {
            key: index for key, index in self._index_by_fd.items() if key[0] != tgid
        }

    def _find_vcpu(self, tgid: int, fd: int) -> PendingVcpu | None:
        """Return the pending vCPU with this descriptor, None if there is none."""
        return next((vcpu for vcpu in self._pending if (vcpu.tgid, vcpu.fd) == (tgid, fd)), None)

    def _find_vcpu_by_any_fd(self, tgid: int, fd: int) -> PendingVcpu | None:
        """Return the same, also for a duplicate of the descriptor, which then replaces it."""
        if (known := self._find_vcpu(tgid, fd)) or tgid not in self.pending_processes():
            return known
        self._drop_closed_vcpus(tgid)
        open_fds = self._read_vcpu_fds(tgid)
        for vcpu in self._pending:
            if vcpu.tgid != tgid or vcpu.index != open_fds.get(fd):
                continue
            is_open = open_fds.get(vcpu.fd) == vcpu.index
            is_same = kcmp_file(tgid, vcpu.fd, tgid, fd) if is_open else None
            # without kcmp(2): unless KVM returned this descriptor for another vCPU
            if is_same or (is_same is None and self._index_by_fd.get((tgid, fd)) != vcpu.index):
                vcpu.fd = fd
                return vcpu
        return None

    def _drop_closed_vcpus(self, tgid: int) -> None:
        """Drop the pending vCPUs that the process has closed."""
        open_fds = self._read_vcpu_fds(tgid)
        for vcpu in [vcpu for vcpu in self._pending if vcpu.tgid == tgid]:
            others = [
                fd
                for fd, index in open_fds.items()
                if index == vcpu.index and self._index_by_fd.get((tgid, fd)) != index
            ]
            if open_fds.get(vcpu.fd) != vcpu.index and not others:
                self._pending.remove(vcpu)

    def _read_vcpu_fds(self, tgid: int) -> dict[int, int]:
        """Return the vCPU numbers of a process by descriptor, empty if they may not be read."""
        try:
            return self._procs.vcpu_fds(tgid)
        except PermissionError:
            return {}

    def _notify_if_idle(self) -> None:
        """Report that no vCPU waits any more, if so."""
        if self.is_idle:
            self._events.on_idle()


def _read_word(thread: Tracee, address: int) -> int | None:
    """Return a 32-bit word of the process's memory, None if it cannot be read."""
    try:
        return int.from_bytes(thread.read(address, 4), "little")
    except OSError:
        return None
