# SPDX-License-Identifier: Apache-2.0
"""Descriptors of pending vCPUs in the tables of a VMM's tasks: which are closed, which are left.

A descriptor shows no more than the number of its vCPU: two VMs can have the same, and a descriptor
may be moved, copied, sent away and received again. So a vCPU is dropped only by proof: its maker
alone knew of it and closed it; or no descriptor with its number is left; or the one that is closed
is the last of its file, and KVM says that this vCPU is not set up.
"""

import time
from collections.abc import Iterator, Mapping

from pmuctl.host.procfs import Procfs
from pmuctl.launch.trace.address_space import AddressSpace, PendingVcpu
from pmuctl.launch.trace.arch import LOW_32_BITS, Arch
from pmuctl.launch.trace.descriptor_calls import closed_fds, may_bring_back, may_carry_out
from pmuctl.launch.trace.tracee import Tracee
from pmuctl.launch.trace.vcpu_questions import has_vpmu, is_uninitialised
from pmuctl.uapi.kvm import KVM_RUN
from pmuctl.value import value

LOOK_SECONDS = 0.1
"""Seconds between two looks whether threads are gone whose descriptors go with them."""

Tables = Mapping[int, Mapping[int, int]]
"""By a thread of each table of descriptors: the numbers of the vCPUs there, by descriptor."""


@value
class Closing:
    """A call that closes the last descriptors of `vcpus`, made by a thread of this process.

    `left` are the other descriptors that show the numbers of these vCPUs. If there are more of
    them after the call, one was duplicated meanwhile.
    """

    tgid: int
    fds: range
    vcpus: tuple[PendingVcpu, ...]
    left: frozenset[int]


class VcpuDescriptors:
    """The descriptors of pending vCPUs: who closes the last ones."""

    def __init__(self, arch: Arch, procs: Procfs) -> None:
        self._arch = arch
        self._procs = procs
        self._closing: dict[int, Closing] = {}
        """The calls that threads are in, by thread id."""
        self._exiting: dict[int, Closing] = {}
        """The same of threads that end, and their descriptors with them."""
        self._closed: list[Closing] = []
        """Those that have returned and are yet to be looked at."""
        self._moving: dict[int, int] = {}
        """The processes of threads in a call that duplicates a descriptor, by thread id."""
        self._running: dict[int, tuple[int, int]] = {}
        """By thread in KVM_RUN: its process, and the descriptor of the vCPU, which is busy."""
        self._last_look = 0.0

    # --- calls ---------------------------------------------------------------------------------

    def on_enter(
        self, thread: Tracee, space: AddressSpace, nr: int, args: tuple[int, ...]
    ) -> bool:
        """Take note of what a call does to descriptors of vCPUs.

        Return False if KVM was asked about them: then the thread makes its call again.
        """
        if may_carry_out(self._arch, thread, nr, args):
            space.has_lost_sight = True
        if nr in self._arch.duplicating_calls:
            self._moving[thread.tid] = thread.tgid
        if nr == self._arch.nr_ioctl and args[1] & LOW_32_BITS == KVM_RUN:
            self._running[thread.tid] = thread.tgid, args[0] & LOW_32_BITS
        fds = closed_fds(self._arch, nr, args)
        if not fds or space.has_lost_sight or thread.tid in self._closing:
            return True
        own = self.read_fds(thread)
        if not any(fd in fds for fd in own):
            return True
        vcpus = [vcpu for vcpu in space.vcpus if vcpu.tid == thread.tid and vcpu.fd in fds]
        if vcpus and not any(vcpu.is_shared for vcpu in space.vcpus):
            numbers = {vcpu.index for vcpu in vcpus}
            left = {fd for fd, index in own.items() if index in numbers and fd not in fds}
            is_same = self._procs.is_same_file
            # another thread may have guessed a descriptor, and duplicated it
            if not any(
                is_same(thread.tid, vcpu.fd, thread.tid, fd) for vcpu in vcpus for fd in left
            ):
                closing = Closing(thread.tgid, fds, tuple(vcpus), frozenset(left))
                self._closing[thread.tid] = closing
                return True
        try:
            tables = self._read_tables(thread, space)
        except PermissionError:
            return True
        if nr == self._arch.nr_exit:
            is_last = self._procs.threads(thread.tgid) != {thread.tid} and len(tables) > 1
            if not is_last:  # its descriptors stay, or go with the process
                return True
        return self._note_closing(thread, space, fds, tables, is_exit=nr == self._arch.nr_exit)

    def _note_closing(
        self, thread: Tracee, space: AddressSpace, fds: range, tables: Tables, *, is_exit: bool
    ) -> bool:
        """Find the vCPUs of which a call closes the last descriptors; return as `on_enter`."""
        own = tables[thread.tid]
        vcpus: list[PendingVcpu] = []
        left: set[int] = set()
        registers: list[int] | None = None
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
            if closing and not others:
                vcpus += pending
                continue
            for fd in self._find_last_of_files(thread, closing, others):
                if fd in {running for _, running in self._running.values()}:
                    continue
                registers = registers or thread.skip_call()
                if (found := self._find_pending(thread, fd, pending)) is not None:
                    pending.remove(found)
                    vcpus.append(found)
        if vcpus:
            waiting = self._exiting if is_exit else self._closing
            waiting[thread.tid] = Closing(thread.tgid, fds, tuple(vcpus), frozenset(left))
        if registers is None:
            return True
        self._closing.setdefault(thread.tid, Closing(thread.tgid, fds, (), frozenset()))
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
        if closing is not None and (result >= 0 or nr == self._arch.nr_close):
            space.forget_fds(thread.tid, closing.fds)
            self._closed.append(closing)
        self._take_ended_threads()
        if space.tgids & set(self._moving.values()):
            return
        for closing in [closing for closing in self._closed if closing.tgid in space.tgids]:
            self._closed.remove(closing)
            self._drop_closed_vcpus(thread, closing, space)

    def on_gone(self, tgid: int) -> None:
        """Drop what is known of a process that is gone."""
        for waiting in (self._closing, self._exiting):
            for tid in [tid for tid, closing in waiting.items() if closing.tgid == tgid]:
                del waiting[tid]
        self._closed = [closing for closing in self._closed if closing.tgid != tgid]
        for tid in [tid for tid, mover in self._moving.items() if mover == tgid]:
            del self._moving[tid]
        for tid in [tid for tid, (runner, _) in self._running.items() if runner == tgid]:
            del self._running[tid]

    # --- proof ---------------------------------------------------------------------------------

    def _find_last_of_files(
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

    def _find_pending(
        self, thread: Tracee, fd: int, pending: list[PendingVcpu]
    ) -> PendingVcpu | None:
        """Return a vCPU of those that are pending as the one at a descriptor is, by KVM's word."""
        is_fresh = is_uninitialised(thread, fd)
        if is_fresh is None:
            return None
        found = [vcpu for vcpu in pending if vcpu.has_vpmu is (None if is_fresh else False)]
        if not is_fresh and found and has_vpmu(thread, fd):
            return None
        return min(found, key=lambda vcpu: vcpu.fd != fd, default=None)

    def _take_ended_threads(self) -> None:
        """Take the threads that have ended meanwhile, whose descriptors have ended with them."""
        now = time.monotonic()
        if not self._exiting or now < self._last_look + LOOK_SECONDS:
            return
        self._last_look = now
        for tid, closing in list(self._exiting.items()):
            if tid not in self._procs.threads(closing.tgid):
                self._closed.append(self._exiting.pop(tid))

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
