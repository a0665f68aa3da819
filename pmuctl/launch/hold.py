# SPDX-License-Identifier: Apache-2.0
"""A VMM held at its window, from its first call for a PMU attribute until it is released or ended.

One thread is stopped before that call (`held_thread`), the others run.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from pmuctl.errors import PmuctlError
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.launch.apply import Applier
from pmuctl.launch.failures import memory_not_writable, not_held, not_released
from pmuctl.launch.held_thread import ENDING_SIGNALS, HeldThread
from pmuctl.launch.ioctls import IoctlCall, ioctl_of, lock, steps
from pmuctl.launch.observer import VmObserver
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.trace.tracee import StuckError, ThreadGoneError, Tracee
from pmuctl.launch.trace.vcpu_tracker import VcpuTracker
from pmuctl.launch.vmm_processes import VmmProcesses
from pmuctl.model.cpuset import CpuSet

HOLD_POLL_SECONDS = 0.1
"""How often a held VMM is checked for signals (seconds)."""
RESUMED_SECONDS_MAX = 1.0
"""How long a client waits for a held thread that was resumed to take a signal (seconds)."""


class VmHold:
    """The hold of a supervisor: there is one at most, of the first VM.

    `held` is None before and after the hold; `is_awaited` says that it is still to come.
    `on_released` is called when it is over.
    """

    def __init__(
        self,
        spec: LaunchSpec,
        ioctls: Sequence[IoctlCall],
        observer: VmObserver,
        applier: Applier,
        processes: VmmProcesses,
        on_released: Callable[[Sequence[IoctlCall], int], None],
    ) -> None:
        self.held: HeldThread | None = None
        self.is_awaited = spec.hold
        self.vcpu_tracker: VcpuTracker
        self._spec = spec
        # the lock comes at the release
        self._ioctls = [ioctl for ioctl in ioctls if ioctl.step != lock()]
        self._applier = applier
        self._observer = observer
        self._tracer = processes.tracer
        self._procs = processes.procs
        self._confined = processes.confined
        self._on_released = on_released
        self._all_ioctls = ioctls
        self._awaiting: set[int] = set()
        """The processes whose windows opened before a VM was held: one of them is, the others get
        their settings at their first call for an attribute, too."""
        self._resumed_since = 0.0
        self._ending_signals: dict[int, set[int]] = {}
        """By process: the signals that asked it to end, delivered on the way to its hold."""

    @property
    def is_to_come(self) -> bool:
        """Whether the settings are yet to come: there will be a hold, or there is one."""
        return self.is_awaited or self.held is not None

    def await_attribute(self, tgid: int) -> None:
        """Take note that a window of this process has opened, and the hold is still to come."""
        self._awaiting.add(tgid)
        self.vcpu_tracker.awaits_attribute = True

    def busy_processes(self) -> set[int]:
        """Return the processes that are to be followed, or held."""
        held = set() if self.held is None else {self.held.thread.tgid}
        return self._awaiting | held

    def _end_waiting(self, tgid: int) -> None:
        """Take note that a process, with all that share its memory, need not be followed on."""
        shares = self._procs.shares_memory
        self._awaiting -= {pid for pid in self._awaiting if pid == tgid or shares(tgid, pid)}
        self.vcpu_tracker.awaits_attribute = bool(self._awaiting)

    # --- signal events -------------------------------------------------------------------------

    def on_group_stop(self, thread: Tracee) -> None:
        """Note that job control stops a process: what is held must stop with it."""
        if self.held is not None and thread.tgid == self.held.thread.tgid:
            self.held.is_stop_pending = True

    def on_signal(self, thread: Tracee, signum: int) -> int:
        """Return the signal to deliver: one that asks a held VMM to end has to end it."""
        if self.held is not None:
            return self.held.filter_signal(thread, signum)
        # one that is not caught ends the VMM by itself
        if self.is_awaited and signum in ENDING_SIGNALS:
            self._ending_signals.setdefault(thread.tgid, set()).add(signum)
        return signum

    # --- the hold ------------------------------------------------------------------------------

    def on_attribute_call(self, thread: Tracee, fd: int, target: int) -> None:
        """Hold the VMM if this call for an attribute is for one of its vCPUs.

        `fd` is the descriptor of the call, `target` the one that the settings are applied to.
        """
        if self.held is not None:
            if thread is self.held.thread and self.held.is_resumed:
                self.vcpu_tracker.awaits_attribute = bool(self._awaiting)
                self.held.park()
                return
        if not self.is_awaited and thread.tgid not in self._awaiting:
            return
        try:
            vcpus = self._procs.vcpu_fds(thread.tgid, thread.tid)
        except PermissionError as error:
            self._applier.fail(thread, memory_not_writable(error))
            return
        if fd not in vcpus:
            return
        if not self.is_awaited:
            self._set_beside(thread, vcpus, target)
            return
        ignored = self._procs.signals(thread.tgid, thread.tid)["SigIgn"]
        self.is_awaited = False
        self._end_waiting(thread.tgid)
        self._tracer.unfollow(thread.tgid)
        held = HeldThread(thread, vcpus, self._procs, timeout=self._spec.timeout)
        try:
            confinement = self._confined.find_or_add(thread.tgid)
            confinement.cpus = self._spec.affinity
            confinement.confine()
            descriptions = self._apply_to_vms(held, target, self._ioctls)
        except PmuctlError as error:
            self._applier.fail(thread, error)
            self._resume_vmm(held, [])
        else:
            self.held = held
            if asked := self._ending_signals.get(thread.tgid, set()) - ignored:
                # the handler has run, and may have set a flag that is read after this call
                held.ending_signal = min(asked)
            self._observer.on_held(descriptions)

    def _apply_to_vms(
        self, held: HeldThread, target: int, ioctls: Sequence[IoctlCall]
    ) -> list[str]:
        """Apply settings to the VM of `target`, and to others of its process."""
        descriptions = self._applier.apply(held.thread, target, ioctls)
        # each of several VMs; to set the one of `target` again changes nothing
        for other in held.vm_fds if len(held.vm_fds) > 1 else ():
            self._applier.apply(held.thread, other, ioctls)
        return descriptions

    def _set_beside(self, thread: Tracee, vcpus: Mapping[int, int], target: int) -> None:
        """Apply the settings of the start to a VM beside the one that is, or was, held."""
        self._end_waiting(thread.tgid)
        beside = HeldThread(thread, vcpus, self._procs, timeout=None)
        try:
            confinement = self._confined.find_or_add(thread.tgid)
            confinement.cpus = self._spec.affinity
            confinement.confine()
            descriptions = self._apply_to_vms(beside, target, self._all_ioctls)
        except PmuctlError as error:
            self._applier.fail(thread, error)
        else:
            self._observer.on_applied(descriptions)
        if not thread.is_ending:
            beside.release()

    def on_run(self, thread: Tracee) -> None:
        """Fail: a vCPU is to run, and its VM was not held. With best effort, none will be."""
        if self.is_awaited or thread.tgid in self._awaiting:
            self.is_awaited = False
            self._end_waiting(thread.tgid)
            self._applier.fail(thread, not_held())

    def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
        """Make a call in the held thread; raise OSError with KVM's errno, ESRCH if it is gone."""
        if self.held is None:
            raise ProcessLookupError("it is not held any more")
        self.held.set_attr(vcpu, attr, payload)

    def check_cpus(self, cpus: CpuSet) -> None:
        """Raise PinnedError if a thread of the held VMM could not be confined to these CPUs."""
        if self.held is not None:
            self._confined.find_or_add(self.held.thread.tgid).check(cpus)

    def poll(self) -> None:
        """Do what is due: end, release or resume the held VMM, make the calls that wait."""
        if self._ending_signals:
            followed = self._tracer.followed_processes()
            self._ending_signals = {
                tgid: asked for tgid, asked in self._ending_signals.items() if tgid in followed
            }
        if self._awaiting and not self.is_awaited:
            self._awaiting &= self._tracer.followed_processes()
        held = self.held
        if held is not None and held.thread.tid not in self._tracer.threads:
            self.held = held = None
        if held is None:
            self._observer.make_pending_calls()
            return
        # a shortage passes, and the VMM waits all the same
        with suppress(ProcessLookupError, ThreadGoneError, ResourceExhaustedError):
            self._poll_held_thread(held)

    def _poll_held_thread(self, held: HeldThread) -> None:
        """Do what is due for the held thread.

        Raise ProcessLookupError or ThreadGoneError if it is gone, ResourceExhaustedError if it
        cannot be read for want of descriptors or memory.
        """
        if held.thread.is_ending:
            return
        if held.thread.is_running:
            self._applier.fail(held.thread, memory_not_writable(StuckError(held.thread.tid)))
            return
        if held.is_resumed:
            if time.monotonic() - self._resumed_since > RESUMED_SECONDS_MAX:
                self._observer.make_pending_calls()  # clients get ESRCH, as the thread is resumed
            return
        if held.ending_signal is not None:
            held.thread.exit_group(128 + held.ending_signal)
            return
        # read once: a signal that came between two reads would be taken for a harmless one
        masks = held.read_signals()
        if ending_signal := held.find_ending_signal(masks):
            held.end_by_signal(ending_signal, masks)
        elif time.monotonic() >= held.deadline:
            self._applier.fail(held.thread, not_released(self._spec.timeout or 0), is_final=True)
        elif (spec := self._observer.released_spec()) is not None:
            self._release_thread(held, spec)
        else:
            self._observer.make_pending_calls()
            if held.needs_resume(masks):
                self._resumed_since = time.monotonic()
                self.vcpu_tracker.awaits_attribute = True
                held.resume_for_signal()

    def _release_thread(self, held: HeldThread, spec: LaunchSpec) -> None:
        """Confine the threads as the spec says, lock the PMU, and let the VMM go on."""
        ioctls = [ioctl_of(step) for step in steps(spec)]
        locks = [ioctl_of(lock())] if spec.pmu is not None else []
        try:
            confinement = self._confined.find_or_add(held.thread.tgid)
            confinement.cpus = spec.affinity
            confinement.confine()
            for fd in held.vm_fds:
                self._applier.apply(held.thread, fd, locks)
        except PmuctlError as error:
            self._applier.fail(held.thread, error)
        self._resume_vmm(held, ioctls)

    def _resume_vmm(self, held: HeldThread, ioctls: Sequence[IoctlCall]) -> None:
        """Let a held VMM go on unless it was ended; `ioctls` are for VMs that it makes later."""
        if held.thread.is_ending:
            self.held = held  # it stays held until it is gone
            return
        self.held = None
        held.release()
        self._tracer.detach_all(keep=self.vcpu_tracker.pending_processes() | self._awaiting)
        self._tracer.detach(held.thread)
        self._on_released(ioctls, held.thread.tgid)
