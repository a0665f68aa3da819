# SPDX-License-Identifier: Apache-2.0
"""Descriptors of pending vCPUs in the tables of a VMM's tasks: which are closed, which are left.

A descriptor shows no more than the number of its vCPU: two VMs can have the same, and a descriptor
may be moved, copied, sent away and received again. Where the last one that can be seen is closed,
a process beside the VMM may still have another, and give it back. So a vCPU that was never
initialised is not just dropped there. It is sealed first: the thread that closes it makes its
first KVM_ARM_VCPU_INIT, and the calls for the PMU and the filter, so that whoever gets it back
runs it with these (`Applier.seal`). One without a vPMU is dropped.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from pmuctl.host.procfs import Procfs
from pmuctl.launch.trace.address_space import AddressSpace, PendingVcpu
from pmuctl.launch.trace.arch import LOW_32_BITS, Arch
from pmuctl.launch.trace.descriptor_calls import closed_fds, may_bring_back, may_carry_out
from pmuctl.launch.trace.tracee import Tracee
from pmuctl.launch.trace.vcpu_questions import has_vpmu, is_uninitialised
from pmuctl.uapi.kvm import KVM_RUN
from pmuctl.value import value

Tables = Mapping[int, Mapping[int, int]]
"""By a thread of each table of descriptors: the numbers of the vCPUs there, by descriptor."""


@value
class LastDescriptor:
    """A descriptor that a call closes, and of whose file no other is to be seen.

    `candidates` are the vCPUs it can be of. If there is more than one, or another file has the
    same number, KVM has to be asked (`is_certain` is False).
    """

    fd: int
    candidates: Sequence[PendingVcpu]
    is_certain: bool


@value
class Closing:
    """A call that closes the last descriptors of `vcpus`, made by a thread of this process.

    They have no vPMU. `left` are the other descriptors that show the numbers of these vCPUs. If
    there are more of them after the call, one was duplicated meanwhile.
    """

    tgid: int
    fds: range
    vcpus: tuple[PendingVcpu, ...]
    left: frozenset[int]


class VcpuDescriptors:
    """The descriptors of pending vCPUs: who closes the last ones.

    `seal` sets up a vCPU in a thread that is stopped at a call's exit, and returns whether it can
    only be run with its settings from then on.
    """

    def __init__(
        self, arch: Arch, procs: Procfs, seal: Callable[[Tracee, PendingVcpu], bool]
    ) -> None:
        self._arch = arch
        self._procs = procs
        self._seal = seal
        self._coming_again: set[Tracee] = set()
        """The threads that make a call again of which the descriptors were looked at."""
        self._closing: dict[int, Closing] = {}
        """The calls that threads are in, by thread id."""
        self._closed: list[Closing] = []
        """Those that have returned and are yet to be looked at."""
        self._moving: dict[int, int] = {}
        """The processes of threads in a call that duplicates a descriptor, by thread id."""
        self._running: dict[int, tuple[int, int]] = {}
        """By thread in KVM_RUN: its process, and the descriptor of the vCPU, which is busy."""

    # --- calls ---------------------------------------------------------------------------------

    def on_enter(
        self, thread: Tracee, space: AddressSpace, nr: int, args: tuple[int, ...]
    ) -> bool:
        """Take note of what a call does to descriptors of vCPUs, and seal those that it ends.

        Return False if calls were made for that: then the thread makes its own again.
        """
        if may_carry_out(self._arch, thread, nr, args):
            space.has_lost_sight = True
        if nr in self._arch.duplicating_calls:
            self._moving[thread.tid] = thread.tgid
        if nr == self._arch.nr_ioctl and args[1] & LOW_32_BITS == KVM_RUN:
            self._running[thread.tid] = thread.tgid, args[0] & LOW_32_BITS
        fds = closed_fds(self._arch, nr, args)
        if thread in self._coming_again:
            self._coming_again.discard(thread)
            return True
        if not fds or space.has_lost_sight or not any(fd in fds for fd in self.read_fds(thread)):
            return True
        try:
            last, left = self._find_last(thread, space, fds, is_exit=nr == self._arch.nr_exit)
        except PermissionError:
            return True
        return self._end_vcpus(thread, space, fds, last, left)

    def _end_vcpus(
        self,
        thread: Tracee,
        space: AddressSpace,
        fds: range,
        last: Sequence[LastDescriptor],
        left: frozenset[int],
    ) -> bool:
        """Seal the vCPUs that these last descriptors are of; drop those without a vPMU later.

        Return as `on_enter`.
        """
        registers: list[int] | None = None
        without: list[PendingVcpu] = []
        for descriptor in last:
            vcpu: PendingVcpu | None = descriptor.candidates[0]
            if not descriptor.is_certain or descriptor.candidates[0].has_vpmu is None:
                registers = registers or thread.skip_call()
            if not descriptor.is_certain:
                vcpu = self._find_pending(thread, descriptor)
            if vcpu is None or vcpu not in space.vcpus or vcpu in without:
                continue
            if vcpu.has_vpmu is None:
                vcpu.fd = descriptor.fd
                vcpu.is_shared = True  # who has it is not known any more
                if self._seal(thread, vcpu):
                    space.remove(vcpu)
            else:
                without.append(vcpu)
        if without:
            self._closing[thread.tid] = Closing(thread.tgid, fds, tuple(without), left)
        if registers is None:
            return True
        self._coming_again.add(thread)
        thread.set_registers(registers)
        return False

    def on_exit(
        self, thread: Tracee, space: AddressSpace, nr: int, args: tuple[int, ...], result: int
    ) -> None:
        """Drop vCPUs of which no descriptor is left; the thread is stopped at a call's exit."""
        self._moving.pop(thread.tid, None)
        self._running.pop(thread.tid, None)
        if may_bring_back(self._arch, thread, nr, args, result):
            space.has_lost_sight = True
        closing = self._closing.pop(thread.tid, None)
        # close(2) closes the descriptor even if it returns an error
        if result >= 0 or nr == self._arch.nr_close:
            space.forget_fds(thread.tid, closed_fds(self._arch, nr, args))
            if closing is not None:
                self._closed.append(closing)
        if space.tgids & set(self._moving.values()):
            return
        for closing in [closing for closing in self._closed if closing.tgid in space.tgids]:
            self._closed.remove(closing)
            self._drop_closed_vcpus(thread, closing, space)

    def on_gone(self, tgid: int) -> None:
        """Drop what is known of a process that is gone."""
        self._coming_again = {thread for thread in self._coming_again if thread.tgid != tgid}
        for tid in [tid for tid, closing in self._closing.items() if closing.tgid == tgid]:
            del self._closing[tid]
        self._closed = [closing for closing in self._closed if closing.tgid != tgid]
        for tid in [tid for tid, mover in self._moving.items() if mover == tgid]:
            del self._moving[tid]
        for tid in [tid for tid, (runner, _) in self._running.items() if runner == tgid]:
            del self._running[tid]

    # --- proof ---------------------------------------------------------------------------------

    def _find_last(
        self, thread: Tracee, space: AddressSpace, fds: range, *, is_exit: bool
    ) -> tuple[list[LastDescriptor], frozenset[int]]:
        """Return the descriptors that a call closes as the last of pending vCPUs, and those left.

        Raise PermissionError if tables may not be read.
        """
        own = self.read_fds(thread)
        made = [vcpu for vcpu in space.vcpus if vcpu.tid == thread.tid and vcpu.fd in fds]
        if made and not is_exit and not any(vcpu.is_shared for vcpu in space.vcpus):
            numbers = {vcpu.index for vcpu in made}
            left = {fd for fd, index in own.items() if index in numbers and fd not in fds}
            # another thread may have guessed a descriptor, and duplicated it
            if not any(self._is_open_at(thread, vcpu.fd, left) for vcpu in made):
                known = [LastDescriptor(vcpu.fd, (vcpu,), is_certain=True) for vcpu in made]
                return known, frozenset(left)
        if is_exit and not self._is_only_user(thread, space):
            return [], frozenset()  # its descriptors stay, or go with the process
        tables = self._read_tables(thread, space)
        last: list[LastDescriptor] = []
        left = set()
        for number in {vcpu.index for vcpu in space.vcpus}:
            closing = [fd for fd, index in own.items() if index == number and fd in fds]
            others = [
                (tid, fd)
                for tid, table in tables.items()
                for fd, index in table.items()
                if index == number and not (tid == thread.tid and fd in fds)
            ]
            left |= {fd for _, fd in others}
            pending = [vcpu for vcpu in space.vcpus if vcpu.index == number]
            if closing and not others and all(vcpu.has_vpmu is False for vcpu in pending):
                last += [LastDescriptor(closing[0], (vcpu,), is_certain=True) for vcpu in pending]
                continue
            last += [
                LastDescriptor(fd, pending, is_certain=False)
                for fd in self._last_of_files(thread, closing, others)
                if not self._may_run(thread, fd)
            ]
        return last, frozenset(left)

    def _is_open_at(self, thread: Tracee, fd: int, others: Collection[int]) -> bool:
        """Return whether one of a thread's other descriptors is certain to be of the same file."""
        return any(self._procs.is_same_file(thread.tid, fd, thread.tid, other) for other in others)

    def _is_only_user(self, thread: Tracee, space: AddressSpace) -> bool:
        """Return whether a thread has descriptors of its own, which nobody shares.

        Without kcmp(2), tables that show the same are taken for one. Raise PermissionError.
        """
        own = self._procs.vcpu_fds(thread.tgid, thread.tid)
        for tgid in space.tgids:
            for tid in self._procs.threads(tgid) - {thread.tid}:
                shares = self._procs.shares_fds(thread.tid, tid)
                if shares or (shares is None and self._procs.vcpu_fds(tgid, tid) == own):
                    return False
        return True

    def _last_of_files(
        self, thread: Tracee, closing: list[int], others: list[tuple[int, int]]
    ) -> Iterator[int]:
        """Yield a descriptor of each file that has no other than those which are closed."""
        seen: list[int] = []
        for fd in closing:
            places = [*others, *((thread.tid, other) for other in seen)]
            is_same = self._procs.is_same_file
            if all(is_same(thread.tid, fd, tid, other) is False for tid, other in places):
                seen.append(fd)
                yield fd

    def _may_run(self, thread: Tracee, fd: int) -> bool:
        """Return whether a vCPU may be one that runs: KVM would answer once it does not."""
        return any(
            self._procs.is_same_file(thread.tid, fd, tid, running) is not False
            for tid, (_, running) in self._running.items()
        )

    def _find_pending(self, thread: Tracee, descriptor: LastDescriptor) -> PendingVcpu | None:
        """Return a vCPU of those that are pending as the one at a descriptor is, by KVM's word."""
        fd = descriptor.fd
        is_fresh = is_uninitialised(thread, fd)
        if is_fresh is None:
            return None
        has_vpmu_now = None if is_fresh else False
        found = [vcpu for vcpu in descriptor.candidates if vcpu.has_vpmu is has_vpmu_now]
        if not is_fresh and found and has_vpmu(thread, fd):
            return None
        return min(found, key=lambda vcpu: vcpu.fd != fd, default=None)

    def _drop_closed_vcpus(self, thread: Tracee, closing: Closing, space: AddressSpace) -> None:
        """Drop the vCPUs of which a call has closed the last descriptors."""
        if space.has_lost_sight:
            return
        numbers = {vcpu.index for vcpu in closing.vcpus}
        try:
            tables = self._read_tables(thread, space)
        except PermissionError:
            return
        now = {fd for table in tables.values() for fd, index in table.items() if index in numbers}
        if not now <= closing.left:
            return
        for vcpu in closing.vcpus:
            space.remove(vcpu)

    def is_at(self, thread: Tracee, fd: int, vcpu: PendingVcpu) -> bool:
        """Return whether a thread's descriptor is of this vCPU, or may be as it was moved."""
        is_same = self._procs.is_same_file(thread.tid, fd, vcpu.tid, vcpu.fd)
        if is_same is not None:
            return is_same
        try:
            is_moved = self._procs.vcpu_fds(vcpu.tgid, vcpu.tid).get(vcpu.fd) != vcpu.index
        except PermissionError:
            is_moved = True
        return is_moved and self.read_fds(thread).get(fd) == vcpu.index

    def is_same_vcpu(self, thread: Tracee, fd: int, other: Tracee, other_fd: int) -> bool:
        """Return whether descriptors of two threads are of one vCPU, as far as can be told."""
        is_same = self._procs.is_same_file(thread.tid, fd, other.tid, other_fd)
        if is_same is None:
            return self.read_fds(thread).get(fd) == self.read_fds(other).get(other_fd)
        return is_same

    # --- tables --------------------------------------------------------------------------------

    def read_fds(self, thread: Tracee) -> dict[int, int]:
        """Return the vCPU numbers of a thread by descriptor, empty if they may not be read."""
        try:
            return self._procs.vcpu_fds(thread.tgid, thread.tid)
        except PermissionError:
            return {}

    def _read_tables(self, thread: Tracee, space: AddressSpace) -> Tables:
        """Return the tables of all tasks of an address space, the thread's own among them.

        Without kcmp(2), tables that show the same are taken for one. Raise PermissionError.
        """
        tables = {thread.tid: self._procs.vcpu_fds(thread.tgid, thread.tid)}
        for tgid in space.tgids:
            for tid in self._procs.threads(tgid) - tables.keys():
                answers = [self._procs.shares_fds(tid, other) for other in tables]
                if True in answers:
                    continue
                table = self._procs.vcpu_fds(tgid, tid)
                if None not in answers or table not in tables.values():
                    tables[tid] = table
        return tables
