# SPDX-License-Identifier: Apache-2.0
"""From a vCPU's making to its window: what is followed of a VMM, and when it has been enough."""

import struct
from dataclasses import dataclass
from typing import Protocol

from pmuctl.launch.machine import Machine
from pmuctl.launch.tracee import Tracee
from pmuctl.uapi.kvm import (
    KVM_ARM_VCPU_INIT,
    KVM_CREATE_VCPU,
    KVM_HAS_DEVICE_ATTR,
    KVM_RUN,
    KVM_SET_DEVICE_ATTR,
)
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_PMU_V3_CTRL

REQUEST_BITS = 0xFFFFFFFF
"""Of an ioctl's request the kernel looks at an unsigned int."""


@dataclass(slots=True, kw_only=True)
class NewVcpu:
    """A vCPU whose window has not come yet.

    `has_vpmu` is None until it is initialised; `is_mapped` tells that its kvm_run page is mapped:
    who asks KVM for its features only, as QEMU does first, does not map it.
    """

    tgid: int
    tid: int
    vm_fd: int
    fd: int
    index: int
    has_vpmu: bool | None = None
    is_mapped: bool = False


class Master(Protocol):
    """Who decides what is done when a vCPU's window comes, its thread stopped at a call's exit."""

    def opened(self, thread: Tracee, vcpu: NewVcpu) -> None:
        """Its window is open."""

    def without_vpmu(self, thread: Tracee, vcpu: NewVcpu) -> None:
        """It was made to run without a vPMU: there will be no window."""

    def spread(self, thread: Tracee) -> None:
        """At the entry of a call by which other threads could learn of a vCPU that is new."""

    def at_attribute(self, thread: Tracee, fd: int) -> None:
        """At the entry of a call for an attribute that is, if `fd` is a vCPU, one of its PMU."""

    def settled(self) -> None:
        """No vCPU is waiting for its window any more."""


class Windows:
    """Follows the calls that make vCPUs, in every process behind the gate."""

    def __init__(self, machine: Machine, master: Master) -> None:
        self.awaits_attribute = False
        """Whether to follow on to the first call for a PMU attribute, past the windows."""
        self._machine = machine
        self._master = master
        self._new: list[NewVcpu] = []

    def entered(self, thread: Tracee, nr: int, args: tuple[int, ...]) -> None:
        """At the entry of a call of a thread that is followed."""
        mine = any(vcpu.tgid == thread.tgid for vcpu in self._new)
        quiet = (self._machine.nr_ioctl, self._machine.nr_mmap, self._machine.nr_close)
        if mine and nr not in self._machine.private and nr not in quiet:
            self._master.spread(thread)
        if nr == self._machine.nr_ioctl:
            self._entered_ioctl(thread, args[0], args[1] & REQUEST_BITS, args[2])
        elif nr == self._machine.nr_mmap and (vcpu := self._find(thread.tgid, args[4])):
            vcpu.is_mapped = True
        elif nr == self._machine.nr_close and (vcpu := self._find(thread.tgid, args[0])):
            self._settle(vcpu)
            self._check_settled()

    def _entered_ioctl(self, thread: Tracee, fd: int, request: int, address: int) -> None:
        if request == KVM_CREATE_VCPU:
            thread.at_gate = True
            thread.block_signals()
        elif request in (KVM_HAS_DEVICE_ATTR, KVM_SET_DEVICE_ATTR) and self.awaits_attribute:
            group = struct.unpack_from("<I", thread.read(address, 24), 4)[0]
            if group == KVM_ARM_VCPU_PMU_V3_CTRL:
                self._master.at_attribute(thread, fd)
        elif request == KVM_ARM_VCPU_INIT and (vcpu := self._find(thread.tgid, fd)):
            features = struct.unpack_from("<I", thread.read(address, 8), 4)[0]
            vcpu.has_vpmu = bool(features >> KVM_ARM_VCPU_PMU_V3 & 1)
            thread.block_signals()
        elif request == KVM_RUN and (vcpu := self._find(thread.tgid, fd)):
            self._settle(vcpu)
            self._master.without_vpmu(thread, vcpu)

    def left(self, thread: Tracee, nr: int, args: tuple[int, ...], result: int) -> None:
        """At the exit of that call."""
        if nr != self._machine.nr_ioctl:
            return
        fd, request = args[0], args[1] & REQUEST_BITS
        if request == KVM_CREATE_VCPU:
            thread.at_gate = False
            if result >= 0:
                made = NewVcpu(
                    tgid=thread.tgid, tid=thread.tid, vm_fd=fd, fd=result, index=args[2]
                )
                self._new.append(made)
        if request == self._machine.window and result >= 0:
            wanted = result if request == KVM_CREATE_VCPU else fd
            if vcpu := self._find(thread.tgid, wanted):
                self._reach(thread, vcpu)
        if thread.call is None and not any(vcpu.tid == thread.tid for vcpu in self._new):
            thread.unblock_signals()
        self._check_settled()

    def _reach(self, thread: Tracee, vcpu: NewVcpu) -> None:
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

    def of_process(self, tgid: int) -> list[NewVcpu]:
        """The vCPUs of a process that wait for their window and are not initialised yet."""
        return [vcpu for vcpu in self._new if vcpu.tgid == tgid and vcpu.has_vpmu is None]

    def reach(self, thread: Tracee, vcpu: NewVcpu) -> None:
        """A vCPU turned out to be initialised with a vPMU, by a thread that was not followed."""
        vcpu.has_vpmu = True
        self._reach(thread, vcpu)

    def ended(self, tgid: int) -> None:
        """A process is gone, and its vCPUs with it."""
        self._new = [vcpu for vcpu in self._new if vcpu.tgid != tgid]

    def _find(self, tgid: int, fd: int) -> NewVcpu | None:
        # int arguments are 32 bits, the registers 64
        its = (vcpu for vcpu in self._new if vcpu.tgid == tgid and vcpu.fd == fd & REQUEST_BITS)
        return next(its, None)

    def _settle(self, vcpu: NewVcpu) -> None:
        self._new.remove(vcpu)

    def _check_settled(self) -> None:
        if self.is_idle:
            self._master.settled()
