# SPDX-License-Identifier: Apache-2.0
"""vCPUs from their making to their window: which system calls are followed, and for how long."""

from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.launch.trace.address_space import AddressSpace, AddressSpaces, PendingVcpu
from pmuctl.launch.trace.arch import LOW_32_BITS, Arch
from pmuctl.launch.trace.descriptor_calls import have_child_traced
from pmuctl.launch.trace.tracee import StuckError, Tracee
from pmuctl.launch.trace.vcpu_descriptors import VcpuDescriptors
from pmuctl.launch.trace.vcpu_events import VcpuEvents
from pmuctl.launch.trace.vcpu_questions import (
    NO_ADDRESS,
    has_vpmu,
    is_first_answer,
    is_gone,
    is_uninitialised,
)
from pmuctl.uapi.kvm import (
    KVM_ARM_VCPU_INIT,
    KVM_CREATE_VCPU,
    KVM_GET_ONE_REG,
    KVM_HAS_DEVICE_ATTR,
    KVM_RUN,
    KVM_SET_DEVICE_ATTR,
)
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3,
    KVM_ARM_VCPU_PMU_V3_CTRL,
    KVM_ARM_VCPU_PMU_V3_STRICT,
)


class VcpuTracker:
    """The vCPUs on the way to their window, of every process behind the gate.

    A vCPU waits for its window until it is initialised for the first time, until no task is left
    that could do that, or until no descriptor of it can be left anywhere.
    """

    def __init__(
        self, arch: Arch, procs: Procfs, spaces: AddressSpaces, events: VcpuEvents
    ) -> None:
        self.awaits_attribute = False
        """Whether to follow on to the first call for a PMU attribute, past the windows."""
        self._spaces = spaces
        self._arch = arch
        self._events = events
        self._descriptors = VcpuDescriptors(arch, procs, events.on_closing)
        self._first_inits: dict[Tracee, bool] = {}
        """By thread that makes its KVM_ARM_VCPU_INIT again: whether the vCPU never had one."""
        self._may_run: set[Tracee] = set()
        """The threads that make their KVM_RUN again, of a vCPU that is not without a vPMU."""
        self._initialising: dict[Tracee, tuple[PendingVcpu, int]] = {}
        """By thread in a KVM_ARM_VCPU_INIT: the vCPU it is counted as, and the descriptor."""

    # --- entries -------------------------------------------------------------------------------

    def on_enter(self, thread: Tracee, nr: int, args: tuple[int, ...]) -> None:
        """Handle the entry of a call of a thread that is followed."""
        if (shortage := thread.shortage) is not None:
            thread.shortage = None
            self._events.on_lost(thread, shortage)
            return
        try:
            self._handle_enter(thread, nr, args)
        except (ResourceExhaustedError, StuckError) as error:
            self._events.on_lost(thread, error)

    def _handle_enter(self, thread: Tracee, nr: int, args: tuple[int, ...]) -> None:
        is_ioctl, request = nr == self._arch.nr_ioctl, args[1] & LOW_32_BITS
        if thread.is_entering and not (is_ioctl and request == KVM_CREATE_VCPU):
            thread.is_entering = False  # a signal took it out of the gate
            thread.unblock_signals()
        if nr in self._arch.masking_calls:
            thread.unblock_signals()  # a thread that it makes would inherit the mask for good
        space = self._spaces.find(thread.tgid)
        if space is not None and space.vcpus:
            if not have_child_traced(self._arch, thread, nr, args):
                self._events.on_lost(thread, None)
                return
            if self._is_sharing_call(nr) and not self._share(thread, space):
                return
            if not self._descriptors.on_enter(thread, space, nr, args):
                if self.is_idle:
                    self._events.on_idle()
                return
        if is_ioctl:
            self._handle_ioctl_enter(thread, space, args[0] & LOW_32_BITS, request, args[2])
        elif nr == self._arch.nr_mmap and space is not None:
            self._handle_mmap_enter(thread, space, args[4] & LOW_32_BITS)

    def _is_sharing_call(self, nr: int) -> bool:
        """Return whether other tasks could learn of a vCPU by this call."""
        handled_calls = (self._arch.nr_ioctl, self._arch.nr_mmap, self._arch.nr_close)
        return nr not in self._arch.private_calls and nr not in handled_calls

    def _share(self, thread: Tracee, space: AddressSpace) -> bool:
        """Have all tasks of the address space followed, before they can learn of a new vCPU.

        Return False if the thread does not make its call now. A task that knew of a vCPU before
        may have initialised it already.
        """
        if not space.has_unfollowed and not self._events.follows_all(space.tgids):
            self._events.on_sharing_call(thread)
            if thread.is_ending:
                return False
            # with best effort it goes on: it is not to wait, and be warned of, at each call
            space.has_unfollowed = not self._events.follows_all(space.tgids)
        new = [vcpu for vcpu in space.vcpus if vcpu.tid == thread.tid and not vcpu.is_shared]
        if not new:
            return True
        registers = thread.skip_call()
        for vcpu in new:
            vcpu.is_shared = True
            self._open_if_initialised(thread, space, vcpu)
            if thread.is_ending:
                return False
        thread.set_registers(registers)
        return False

    def _open_if_initialised(self, thread: Tracee, space: AddressSpace, vcpu: PendingVcpu) -> None:
        """Open the window of a vCPU that another task has initialised already."""
        answer = thread.ask(vcpu.fd, KVM_GET_ONE_REG, NO_ADDRESS)
        if is_gone(answer):  # it was moved, and may run already
            self._events.on_lost(thread, None)
            return
        if is_first_answer(answer):
            return
        space.has_initialised = True
        vcpu.has_vpmu = has_vpmu(thread, vcpu.fd)
        if vcpu.has_vpmu:
            self._events.on_init(thread.tgid, None)
        self._open_window(thread, space, vcpu)

    def _handle_ioctl_enter(
        self, thread: Tracee, space: AddressSpace | None, fd: int, request: int, address: int
    ) -> None:
        if request == KVM_CREATE_VCPU:
            thread.is_entering = True
            thread.block_signals()
        elif request in (KVM_HAS_DEVICE_ATTR, KVM_SET_DEVICE_ATTR) and self.awaits_attribute:
            if _read_word(thread, address + 4) == KVM_ARM_VCPU_PMU_V3_CTRL:
                self._events.on_attribute_call(thread, fd)
        elif space is not None and space.vcpus and request == KVM_ARM_VCPU_INIT:
            self._handle_init_enter(thread, space, fd, address)
        elif space is not None and request == KVM_RUN:
            self._handle_run_enter(thread, space, fd)

    def _handle_init_enter(
        self, thread: Tracee, space: AddressSpace, fd: int, address: int
    ) -> None:
        """Find out whether a vCPU is initialised for the first time, and count it as one of those.

        Later ones are resets: then KVM takes no settings any more.
        """
        thread.block_signals()
        vcpu = space.find(fd)
        if vcpu is None or vcpu.tid != thread.tid or vcpu.is_shared or vcpu.has_vpmu is not None:
            vcpu = self._ask_which(thread, space, fd)
        if vcpu is None:
            return
        features = _read_word(thread, address + 4)
        # features that cannot be read show when the ioctls are made
        vcpu.wants_vpmu = features is None or bool(features >> KVM_ARM_VCPU_PMU_V3 & 1)
        self._initialising[thread] = vcpu, fd
        if vcpu.wants_vpmu:
            strict = features is None or bool(features >> KVM_ARM_VCPU_PMU_V3_STRICT & 1)
            self._events.on_init(thread.tgid, None if strict else thread.tid)

    def _ask_which(self, thread: Tracee, space: AddressSpace, fd: int) -> PendingVcpu | None:
        """Return the vCPU that is initialised, None if it was initialised before.

        KVM is asked where that can be: then return None, and the thread makes its call again.
        """
        is_first = self._first_inits.pop(thread, None)
        if is_first is None and space.has_initialised:
            answer = thread.ask_instead(KVM_GET_ONE_REG, NO_ADDRESS)
            self._first_inits[thread] = is_first_answer(answer)
            return None
        if is_first is False:
            return None
        for other, (initialised, other_fd) in self._initialising.items():
            if self._descriptors.is_same_vcpu(thread, fd, other, other_fd):
                return initialised  # by two threads at once: it counts once
        index = self._descriptors.read_fds(thread).get(fd)
        vcpu = space.choose(fd, index)
        if vcpu is None and is_first:  # it is one that was lost sight of
            vcpu = PendingVcpu(tgid=thread.tgid, tid=thread.tid, vm_fd=-1, fd=fd, index=index or 0)
        return vcpu

    def _handle_run_enter(self, thread: Tracee, space: AddressSpace, fd: int) -> None:
        """Report a vCPU that is to run without a vPMU, or before its VM was held.

        KVM refuses one that is not initialised.
        """
        for overdue in [vcpu for vcpu in space.vcpus if vcpu.is_overdue]:
            if self._descriptors.is_at(thread, fd, overdue):
                self._ask_overdue(thread, space, overdue, fd)
                return
        may_run = thread in self._may_run
        self._may_run.discard(thread)
        without = [vcpu for vcpu in space.vcpus if vcpu.has_vpmu is False]
        if may_run or not without:
            if self.awaits_attribute:
                self._events.on_run_unheld(thread)
            return
        vcpu = next((vcpu for vcpu in without if vcpu.fd == fd), None)
        if vcpu is None:
            thread.block_signals()  # else a handler could make other calls before this one again
            registers = thread.skip_call()
            if is_uninitialised(thread, fd) is not True and not has_vpmu(thread, fd):
                vcpu = without[0]
            else:
                self._may_run.add(thread)
                thread.set_registers(registers)  # the call comes again
        if vcpu is not None:
            space.remove(vcpu)
            self._events.on_no_vpmu(thread, vcpu)

    def _ask_overdue(
        self, thread: Tracee, space: AddressSpace, vcpu: PendingVcpu, fd: int
    ) -> None:
        """Open the window of a vCPU that is to run, if it was initialised unseen."""
        thread.block_signals()
        registers = thread.skip_call()
        vcpu.fd, vcpu.is_shared, vcpu.is_overdue = fd, True, False
        self._open_if_initialised(thread, space, vcpu)
        if not thread.is_ending:
            thread.set_registers(registers)  # the call comes again

    def _handle_mmap_enter(self, thread: Tracee, space: AddressSpace, fd: int) -> None:
        """Take note that a vCPU's kvm_run page is mapped: it is to run."""
        if (vcpu := space.find(fd)) is not None:
            vcpu.is_mapped = True
            if vcpu.has_vpmu is False:
                space.remove(vcpu)
                self._events.on_no_vpmu(thread, vcpu)

    # --- exits ---------------------------------------------------------------------------------

    def on_exit(self, thread: Tracee, nr: int, args: tuple[int, ...], result: int) -> None:
        """Handle the exit of that call."""
        try:
            self._handle_exit(thread, nr, args, result)
        except (ResourceExhaustedError, StuckError) as error:
            self._events.on_lost(thread, error)

    def _handle_exit(self, thread: Tracee, nr: int, args: tuple[int, ...], result: int) -> None:
        space = self._spaces.find(thread.tgid)
        if nr in self._arch.masking_calls and self._has_made_pending(thread):
            thread.block_signals()
        if space is not None and space.vcpus:
            self._descriptors.on_exit(thread, space, nr, args, result)
        fd, request = args[0] & LOW_32_BITS, args[1] & LOW_32_BITS
        if nr == self._arch.nr_ioctl and request == KVM_CREATE_VCPU:
            thread.is_entering = False
            if result >= 0:
                self._add_vcpu(thread, vm_fd=fd, fd=result, index=args[2] & LOW_32_BITS)
        elif nr == self._arch.nr_ioctl and request == KVM_ARM_VCPU_INIT and space is not None:
            self._handle_init_exit(thread, space, fd, result)
        if not thread.is_ending and not self._has_made_pending(thread):
            thread.unblock_signals()
        if self.is_idle:
            self._events.on_idle()

    def _handle_init_exit(self, thread: Tracee, space: AddressSpace, fd: int, result: int) -> None:
        """Open the window of a vCPU that was initialised, if it has one."""
        if thread not in self._initialising:
            if result >= 0 and space.vcpus:
                self._events.on_reset(thread, fd)
            return
        vcpu, _ = self._initialising.pop(thread)
        if vcpu.wants_vpmu:
            self._events.on_init(thread.tgid, thread.tid)
        if result < 0:
            return
        space.has_initialised = True
        vcpu.tgid, vcpu.tid, vcpu.fd = thread.tgid, thread.tid, fd
        vcpu.has_vpmu = vcpu.wants_vpmu or has_vpmu(thread, fd)
        self._open_window(thread, space, vcpu)

    def _add_vcpu(self, thread: Tracee, *, vm_fd: int, fd: int, index: int) -> None:
        """Add a vCPU that was made, unless its VMM is to end for it."""
        vcpu = PendingVcpu(tgid=thread.tgid, tid=thread.tid, vm_fd=vm_fd, fd=fd, index=index)
        space = self._spaces.find_or_add(thread.tgid)
        vcpu.is_shared = self._events.follows_all(space.tgids)
        self._events.on_created(thread, vcpu)
        if thread.is_ending:
            return
        space.add(vcpu)
        if self._arch.window_ioctl == KVM_CREATE_VCPU:
            self._open_window(thread, space, vcpu)

    def _open_window(self, thread: Tracee, space: AddressSpace, vcpu: PendingVcpu) -> None:
        """Report a vCPU that is where its window opens, if it has one."""
        if vcpu.has_vpmu is not False:
            space.remove(vcpu)
            self._events.on_window_open(thread, vcpu)
        elif vcpu.is_mapped:
            space.remove(vcpu)
            self._events.on_no_vpmu(thread, vcpu)

    # --- turns ---------------------------------------------------------------------------------

    def check_makers(self, now: float) -> float | None:
        """Have all tasks followed where the maker of a vCPU makes no call; return the next time.

        Others could guess the descriptor meanwhile, and run the vCPU. `now` and the time are of
        time.monotonic().
        """
        for vcpu in self._spaces.vcpus_of_makers():
            if now >= vcpu.due:
                vcpu.is_overdue = True
                self._events.on_silent_maker(vcpu)
        return min((vcpu.due for vcpu in self._spaces.vcpus_of_makers()), default=None)

    # --- processes -----------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to follow any thread for."""
        return not self.awaits_attribute and not self._spaces.has_pending()

    def pending_processes(self) -> set[int]:
        """Return the processes that have a window to come."""
        return self._spaces.pending_processes()

    def on_new_process(self, tgid: int) -> bool:
        """Return whether to follow a process that one behind the gate has just made."""
        return self._spaces.add_child(tgid)

    def on_gone(self, tgid: int) -> None:
        """Drop the vCPUs of a process that is gone, or is another program now."""
        for waiting in (self._first_inits, self._initialising):
            for thread in [thread for thread in waiting if thread.tgid == tgid]:
                del waiting[thread]
        self._may_run = {thread for thread in self._may_run if thread.tgid != tgid}
        self._descriptors.on_gone(tgid)
        self._spaces.drop(tgid)

    def _has_made_pending(self, thread: Tracee) -> bool:
        """Return whether a vCPU that this thread has made, and still has open, is pending."""
        space = self._spaces.find(thread.tgid)
        return space is not None and any(
            vcpu.tid == thread.tid and vcpu.fd >= 0 for vcpu in space.vcpus
        )


def _read_word(thread: Tracee, address: int) -> int | None:
    """Return a 32-bit word of the process's memory, None if it cannot be read."""
    try:
        return int.from_bytes(thread.read(address, 4), "little")
    except OSError:
        return None
