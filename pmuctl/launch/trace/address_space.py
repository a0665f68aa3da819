# SPDX-License-Identifier: Apache-2.0
"""The tasks that share memory with each other, and the vCPUs made there that are not set up yet.

KVM lets only tasks with the memory of a VM's maker use it (kvm_vcpu_ioctl() looks at the mm): its
threads, and children made by clone(CLONE_VM). So a vCPU is initialised where it was made, or
never.
"""

import time

from pmuctl.host.procfs import Procfs

ALONE_SECONDS = 0.25
"""How long the maker of a vCPU may make no call before others are followed (seconds)."""


class PendingVcpu:
    """A vCPU whose window has not come yet.

    `tgid` and `tid` are the thread that made it, or that initialises it; `fd` is the descriptor
    at which it was last seen, -1 if that is closed. `has_vpmu` is None until the vCPU is
    initialised, `wants_vpmu` whether the KVM_ARM_VCPU_INIT under way asks for a vPMU. `is_mapped`
    says that its kvm_run page is mapped: a VMM that only asks KVM for its features, as QEMU does
    first, does not map it. `is_shared` says that other threads may know of it, `due` when its
    maker has made no call for so long that others may use it (time.monotonic()), and
    `is_overdue` that all are followed since then: it may have been initialised, and have run.
    """

    def __init__(self, *, tgid: int, tid: int, vm_fd: int, fd: int, index: int) -> None:
        self.tgid = tgid
        self.tid = tid
        self.vm_fd = vm_fd
        self.fd = fd
        self.index = index
        self.has_vpmu: bool | None = None
        self.wants_vpmu = False
        self.is_mapped = False
        self.is_shared = False
        self.is_overdue = False
        self.due = time.monotonic() + ALONE_SECONDS


class AddressSpace:
    """The processes that share one memory (`tgids`), and their pending vCPUs.

    `has_initialised` says that a vCPU was initialised here before, `has_lost_sight` that a
    descriptor may be where it cannot be seen, `has_unfollowed` that a task here could not be
    followed, of which its user was told.
    """

    def __init__(self, tgid: int) -> None:
        self.tgids = {tgid}
        self.vcpus: list[PendingVcpu] = []
        self.has_initialised = False
        self.has_lost_sight = False
        self.has_unfollowed = False

    def add(self, vcpu: PendingVcpu) -> None:
        """Add a vCPU that was made."""
        if not self.vcpus:  # whatever has left before is none of this vCPU
            self.has_lost_sight = self.has_unfollowed = False
        for other in self.vcpus:
            if (other.tgid, other.fd) == (vcpu.tgid, vcpu.fd):
                other.fd = -1
        self.vcpus.append(vcpu)

    def remove(self, vcpu: PendingVcpu) -> None:
        """Remove a vCPU that is set up, refused or gone."""
        if vcpu in self.vcpus:
            self.vcpus.remove(vcpu)

    def forget_fds(self, tid: int, fds: range) -> None:
        """Take note that the thread that made vCPUs has closed these descriptors."""
        for vcpu in self.vcpus:
            if vcpu.tid == tid and vcpu.fd in fds:
                vcpu.fd = -1

    def find(self, fd: int) -> PendingVcpu | None:
        """Return the vCPU whose descriptor this was last, None if there is none."""
        return next((vcpu for vcpu in self.vcpus if vcpu.fd == fd), None)

    def choose(self, fd: int, index: int | None) -> PendingVcpu | None:
        """Return a vCPU that this descriptor can be of and that is not initialised.

        `index` is the number that the descriptor shows, None if it cannot be read. One that was
        last seen at this descriptor goes first, then one without any.
        """
        found = [
            vcpu
            for vcpu in self.vcpus
            if vcpu.has_vpmu is None and (index is None or vcpu.index == index)
        ]
        return min(found, key=lambda vcpu: (vcpu.fd != fd, vcpu.fd >= 0), default=None)


class AddressSpaces:
    """The address spaces in which vCPUs were made, each with the processes known to share it."""

    def __init__(self, procs: Procfs) -> None:
        self._procs = procs
        self._spaces: list[AddressSpace] = []

    def find(self, tgid: int) -> AddressSpace | None:
        """Return the address space of a process, None if no vCPU was made there."""
        return next((space for space in self._spaces if tgid in space.tgids), None)

    def find_or_add(self, tgid: int) -> AddressSpace:
        """Return the address space of a process in which a vCPU was made."""
        if (space := self.find(tgid)) is not None:
            return space
        for space in self._spaces:
            if any(self._procs.shares_memory(tgid, pid) for pid in space.tgids):
                space.tgids.add(tgid)
                return space
        # of processes that were detached nobody tells the end
        self._spaces = [space for space in self._spaces if space.vcpus or self._is_used(space)]
        space = AddressSpace(tgid)
        self._spaces.append(space)
        return space

    def _is_used(self, space: AddressSpace) -> bool:
        """Return whether any process of an address space is there, or another with its id."""
        return any(self._procs.threads(pid) for pid in space.tgids)

    def has_pending(self) -> bool:
        """Return whether any vCPU waits for its window."""
        return any(space.vcpus for space in self._spaces)

    def vcpus_of_makers(self) -> list[PendingVcpu]:
        """Return the vCPUs that only their makers know of, as far as that can be told."""
        return [
            vcpu
            for space in self._spaces
            for vcpu in space.vcpus
            if vcpu.has_vpmu is None and not vcpu.is_shared and not vcpu.is_overdue
        ]

    def pending_processes(self) -> set[int]:
        """Return the processes that have a window to come."""
        return {tgid for space in self._spaces if space.vcpus for tgid in space.tgids}

    def sharing_processes(self, tgid: int) -> set[int]:
        """Return the processes known to share the memory of one, as they do now, with that one.

        The id of one that has ended since may be a stranger's.
        """
        space = self.find(tgid)
        known = set() if space is None else space.tgids
        return {tgid} | {pid for pid in known if self._procs.shares_memory(tgid, pid)}

    def scan_sharing_processes(self, tgid: int) -> set[int]:
        """Look for the processes that share the memory of one, and return them all."""
        pids = self._procs.pids()
        space = self.find_or_add(tgid)
        if self._procs.shares_memory(tgid, tgid):  # else nothing can be compared
            space.tgids = {tgid}
        space.tgids |= {pid for pid in pids if self._procs.shares_memory(tgid, pid)}
        return set(space.tgids)

    def add_child(self, tgid: int) -> bool:
        """Return whether to follow a process that one behind the gate has just made.

        It is followed if it shares memory in which a vCPU is pending, or if that cannot be told.
        """
        unsure: list[AddressSpace] = []
        for space in self._spaces:
            shares = {self._procs.shares_memory(tgid, pid) for pid in space.tgids}
            if True in shares:
                unsure = [space]
                break
            if False not in shares:
                unsure.append(space)
        # of processes that have ended untraced it cannot be told either: those are not pending
        shared = max(unsure, key=lambda space: bool(space.vcpus), default=None)
        if shared is None:
            return False
        shared.tgids.add(tgid)
        return bool(shared.vcpus)

    def drop(self, tgid: int) -> None:
        """Drop a process that is gone, or is another program now; with the last, its memory."""
        for space in self._spaces:
            space.tgids.discard(tgid)
        self._spaces = [space for space in self._spaces if space.tgids]
