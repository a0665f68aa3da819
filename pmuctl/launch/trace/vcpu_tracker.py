# SPDX-License-Identifier: Apache-2.0
"""From a vCPU's making to its window: what is followed of a VMM, and when it has been enough."""

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

BITS = 0xFFFFFFFF
"""Descriptors, requests and vCPU numbers are 32 bits to the kernel, registers have 64."""


class PendingVcpu:
    """A vCPU whose window has not come yet.

    `has_vpmu` is None until it is initialised; `is_mapped` tells that its kvm_run page is mapped:
    who asks KVM for its features only, as QEMU does first, does not map it.
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
    """Who decides what is done when a vCPU's window comes, its thread stopped at a call's exit."""

    def made(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """It was made, and nobody knows of it yet."""

    def initialising(self, tgid: int, tid: int | None) -> None:
        """Before, and after, a vCPU is initialised with a vPMU by this thread of the process.

        KVM may choose the VM's PMU by where that is. None is for what was not seen, and for a
        vCPU that asks for no choice (KVM_ARM_VCPU_PMU_V3_STRICT).
        """

    def opened(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """Its window is open."""

    def without_vpmu(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """It was made to run without a vPMU: there will be no window."""

    def spread(self, thread: Tracee) -> None:
        """At the entry of a call by which other threads could learn of a vCPU that is new."""

    def at_attribute(self, thread: Tracee, fd: int) -> None:
        """At the entry of a call for an attribute that is, if `fd` is a vCPU, one of its PMU."""

    def lost(self, thread: Tracee, shortage: ResourceExhaustedError) -> None:
        """What becomes of a vCPU could not be read, for want of descriptors or memory."""

    def settled(self) -> None:
        """No vCPU is waiting for its window any more."""


class VcpuTracker:
    """Follows the calls that make vCPUs, in every process behind the gate."""

    def __init__(self, machine: Arch, procs: Procfs, master: VcpuEvents) -> None:
        self.awaits_attribute = False
        """Whether to follow on to the first call for a PMU attribute, past the windows."""
        self._machine = machine
        self._procs = procs
        self._master = master
        self._new: list[PendingVcpu] = []
        self._given: dict[tuple[int, int], int] = {}
        """By process and descriptor: the numbers of all vCPUs it was given."""

    def entered(self, thread: Tracee, nr: int, args: tuple[int, ...]) -> None:
        """At the entry of a call of a thread that is followed."""
        if (shortage := thread.shortage) is not None:
            thread.shortage = None
            self._master.lost(thread, shortage)
            return
        try:
            self._entered(thread, nr, args)
        except ResourceExhaustedError as error:
            self._master.lost(thread, error)

    def _entered(self, thread: Tracee, nr: int, args: tuple[int, ...]) -> None:
        is_ioctl, request = nr == self._machine.nr_ioctl, args[1] & BITS
        if thread.is_entering and not (is_ioctl and request == KVM_CREATE_VCPU):
            thread.is_entering = False  # a signal took it away from the gate
            thread.unblock_signals()
        if nr in self._machine.masking:
            thread.unblock_signals()  # a thread that it makes would inherit that for good
        mine = any(vcpu.tgid == thread.tgid for vcpu in self._new)
        quiet = (self._machine.nr_ioctl, self._machine.nr_mmap, self._machine.nr_close)
        if mine and nr not in self._machine.private and nr not in quiet:
            self._master.spread(thread)
        if is_ioctl:
            self._entered_ioctl(thread, args[0] & BITS, request, args[2])
        elif nr == self._machine.nr_mmap and (vcpu := self._find(thread.tgid, args[4] & BITS)):
            vcpu.is_mapped = True

    def _entered_ioctl(self, thread: Tracee, fd: int, request: int, address: int) -> None:
        if request == KVM_CREATE_VCPU:
            thread.is_entering = True
            thread.block_signals()
        elif request in (KVM_HAS_DEVICE_ATTR, KVM_SET_DEVICE_ATTR) and self.awaits_attribute:
            if _word(thread, address + 4) == KVM_ARM_VCPU_PMU_V3_CTRL:
                self._master.at_attribute(thread, fd)
        elif request == KVM_ARM_VCPU_INIT and (vcpu := self._find_any(thread.tgid, fd)):
            features = _word(thread, address + 4)
            # what cannot be read is found out when the calls are made
            vcpu.has_vpmu = features is None or bool(features >> KVM_ARM_VCPU_PMU_V3 & 1)
            if vcpu.has_vpmu:
                strict = features is None or bool(features >> KVM_ARM_VCPU_PMU_V3_STRICT & 1)
                self._master.initialising(thread.tgid, None if strict else thread.tid)
            thread.block_signals()
        elif request == KVM_RUN and (vcpu := self._find_any(thread.tgid, fd)):
            self._settle(vcpu)
            self._master.without_vpmu(thread, vcpu)

    def left(self, thread: Tracee, nr: int, args: tuple[int, ...], result: int) -> None:
        """At the exit of that call."""
        try:
            self._left(thread, nr, args, result)
        except ResourceExhaustedError as error:
            self._master.lost(thread, error)

    def _left(self, thread: Tracee, nr: int, args: tuple[int, ...], result: int) -> None:
        fd, request = args[0] & BITS, args[1] & BITS
        if nr in self._machine.masking and any(its.tid == thread.tid for its in self._new):
            thread.block_signals()
        if nr in self._machine.closing and thread.tgid in self.awaited():
            self._drop_closed(thread.tgid)
            self._check_settled()
        if nr != self._machine.nr_ioctl:
            return
        if request == KVM_CREATE_VCPU:
            thread.is_entering = False
            if result >= 0:
                self._made(thread, vm_fd=fd, fd=result, index=args[2] & BITS)
        if request == KVM_ARM_VCPU_INIT and (tried := self._find(thread.tgid, fd)):
            if tried.has_vpmu:
                self._master.initialising(thread.tgid, thread.tid)
        if request == self._machine.window and result >= 0:
            wanted = result if request == KVM_CREATE_VCPU else fd
            if vcpu := self._find(thread.tgid, wanted):
                self._reach(thread, vcpu)
        if not thread.is_ending and not any(vcpu.tid == thread.tid for vcpu in self._new):
            thread.unblock_signals()
        self._check_settled()

    def _made(self, thread: Tracee, *, vm_fd: int, fd: int, index: int) -> None:
        """A vCPU is there, unless its VMM is to end for it."""
        vcpu = PendingVcpu(tgid=thread.tgid, tid=thread.tid, vm_fd=vm_fd, fd=fd, index=index)
        if (closed := self._find(thread.tgid, fd)) is not None:
            self._settle(closed)
        self._master.made(thread, vcpu)
        if not thread.is_ending:
            self._new.append(vcpu)
            self._given[thread.tgid, fd] = index

    def _reach(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """A vCPU is where its window opens, if it has one."""
        if vcpu.has_vpmu is not False:
            self._settle(vcpu)
            self._master.opened(thread, vcpu)
        elif vcpu.is_mapped:
            self._settle(vcpu)
            self._master.without_vpmu(thread, vcpu)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to follow any thread for."""
        return not self._new and not self.awaits_attribute

    def of_process(self, tgid: int) -> list[PendingVcpu]:
        """The vCPUs of a process that wait for their window and are not initialised yet."""
        return [vcpu for vcpu in self._new if vcpu.tgid == tgid and vcpu.has_vpmu is None]

    def reach(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """A vCPU turned out to be initialised with a vPMU, by a thread that was not followed."""
        vcpu.has_vpmu = True
        self._master.initialising(thread.tgid, None)
        self._reach(thread, vcpu)

    def awaited(self) -> set[int]:
        """The processes that have a window to come."""
        return {vcpu.tgid for vcpu in self._new}

    def gone(self, tgid: int) -> None:
        """A process is gone, or is another program now, and its vCPUs with it."""
        self._new = [vcpu for vcpu in self._new if vcpu.tgid != tgid]
        self._given = {key: index for key, index in self._given.items() if key[0] != tgid}

    def _find(self, tgid: int, fd: int) -> PendingVcpu | None:
        return next((its for its in self._new if (its.tgid, its.fd) == (tgid, fd)), None)

    def _find_any(self, tgid: int, fd: int) -> PendingVcpu | None:
        """The same, also by a duplicate of the descriptor, which then takes its place."""
        if (known := self._find(tgid, fd)) or tgid not in self.awaited():
            return known
        self._drop_closed(tgid)
        its_open = self._open(tgid)
        for vcpu in self._new:
            if vcpu.tgid != tgid or vcpu.index != its_open.get(fd):
                continue
            is_open = its_open.get(vcpu.fd) == vcpu.index
            is_same = kcmp_file(tgid, vcpu.fd, tgid, fd) if is_open else None
            # where the kernel does not tell, by what it was not given to another vCPU as
            if is_same or (is_same is None and self._given.get((tgid, fd)) != vcpu.index):
                vcpu.fd = fd
                return vcpu
        return None

    def _drop_closed(self, tgid: int) -> None:
        """Forget the vCPUs that the process has closed."""
        its_open = self._open(tgid)
        for vcpu in [its for its in self._new if its.tgid == tgid]:
            others = [
                fd
                for fd, index in its_open.items()
                if index == vcpu.index and self._given.get((tgid, fd)) != index
            ]
            if its_open.get(vcpu.fd) != vcpu.index and not others:
                self._settle(vcpu)

    def _open(self, tgid: int) -> dict[int, int]:
        try:
            return self._procs.vcpu_fds(tgid)
        except PermissionError:
            return {}

    def _settle(self, vcpu: PendingVcpu) -> None:
        self._new.remove(vcpu)

    def _check_settled(self) -> None:
        if self.is_idle:
            self._master.settled()


def _word(thread: Tracee, address: int) -> int | None:
    """A 32-bit word of its memory; None where that cannot be read."""
    try:
        return int.from_bytes(thread.read(address, 4), "little")
    except OSError:
        return None
