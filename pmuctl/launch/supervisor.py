# SPDX-License-Identifier: Apache-2.0
"""The supervisor's rules: when to trace a VMM, what to do at a window, when to detach."""

import time
from collections.abc import Callable, Collection, Sequence

from pmuctl.errors import PinnedError, PmuctlError
from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.launch.affinity_watch import AffinityWatch
from pmuctl.launch.apply import Applier
from pmuctl.launch.confined_processes import ConfinedProcesses
from pmuctl.launch.confinement import Backoff
from pmuctl.launch.default_pmu import DefaultPmuTracker
from pmuctl.launch.failures import (
    made_without_vpmu,
    memory_not_writable,
    not_followable,
    vcpu_moved,
)
from pmuctl.launch.first_vm import FirstVm
from pmuctl.launch.hold import HOLD_POLL_SECONDS, VmHold
from pmuctl.launch.ioctls import IoctlCall, deny_all, ioctl_of
from pmuctl.launch.observer import VmObserver
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.trace.address_space import AddressSpaces, PendingVcpu
from pmuctl.launch.trace.arch import Arch
from pmuctl.launch.trace.process_end import open_pidfd
from pmuctl.launch.trace.seccomp_gate import Listener, Notification
from pmuctl.launch.trace.tracee import StuckError, Tracee
from pmuctl.launch.trace.tracer import Tracer
from pmuctl.launch.trace.vcpu_tracker import VcpuTracker
from pmuctl.launch.vcpu_table import VcpuTable
from pmuctl.launch.vmm_processes import VmmProcesses
from pmuctl.launch.vmm_stderr import VmmStderr
from pmuctl.model.vmm.identity import identify


class Supervisor:
    """The supervisor of the processes behind one gate: P, which was started, and its children.

    It is driven from outside: `turn` after every stop, `on_notification` when a thread waits at
    the gate. `must_stay` says that a child of P could not be attached to again once it is detached
    (Yama 1). `fd_of` returns the descriptor that the settings are applied to.
    """

    def __init__(
        self,
        spec: LaunchSpec,
        ioctls: Sequence[IoctlCall],
        observer: VmObserver,
        vmm_stderr: VmmStderr,
        arch: Arch,
        *,
        pid: int,
        procs: Procfs,
        threads: ThreadAffinity,
        must_stay: bool = False,
        fd_of: Callable[[PendingVcpu], int] = lambda vcpu: vcpu.fd,
    ) -> None:
        self.tracer = Tracer(arch, procs)
        self.tracer.trace_children = must_stay
        self._ioctls = ioctls
        self._observer = observer
        self._procs = procs
        self._pid = pid
        self._fd_of = fd_of
        self._spec = spec
        spaces = AddressSpaces(procs)
        self._confined = ConfinedProcesses(
            None if spec.hold else spec.affinity, arch, procs, threads, spaces
        )
        self._processes = VmmProcesses(procs, self.tracer, spaces, self._confined)
        self._applier = Applier(spec, observer, vmm_stderr, self._processes)
        self.vm_hold = VmHold(
            spec, ioctls, observer, self._applier, self._processes, self._on_released
        )
        self._vcpu_tracker = self.vm_hold.vcpu_tracker = VcpuTracker(arch, procs, spaces, self)
        self.tracer.syscall_events, self.tracer.signal_events = self._vcpu_tracker, self.vm_hold
        self._vcpu_table = VcpuTable()
        self._default_pmu_tracker = DefaultPmuTracker(spec.defaults, procs, threads)
        self._affinity_watch = AffinityWatch(observer, self._warn)
        self._first_vm = FirstVm(spec, observer, vmm_stderr, pid=pid)

    @property
    def is_busy(self) -> bool:
        """Whether a VMM waits for what is done here."""
        return self.vm_hold.held is None and bool(self.tracer.followed_processes())

    def close_stderr(self) -> None:
        """Close the VMM's stderr, whose reader would wait for this process, too."""
        self._applier.vmm_stderr.close()

    def on_process_exit(self) -> None:
        """Take note that the process that makes VMs has ended, maybe before it made any."""
        self._affinity_watch.stop(self._observer.pid)
        self._first_vm.on_exit()
        if not self._first_vm.is_to_be_reported:
            self.close_stderr()

    def on_gate_closed(self) -> None:
        """Take note that no process is behind the gate any more."""
        self._first_vm.on_gate_closed()

    # --- turns ---------------------------------------------------------------------------------

    def turn(self) -> float | None:
        """Do what is due; return the seconds to the next turn at most, None for no limit."""
        has_more = self.tracer.take_stops()
        self.vm_hold.poll()
        self.on_idle()
        now = time.monotonic()
        due = self._vcpu_tracker.check_makers(now)
        for pid in [pid for pid, backoff in self._confined.backoffs.items() if now >= backoff.due]:
            self._check_running_vcpus(pid)
        if has_more:
            return 0.0
        dues = [backoff.due for backoff in self._confined.backoffs.values()]
        times = [max(0.0, when - now) for when in (*dues, *([] if due is None else [due]))]
        for poll in (self._first_vm.poll, self._affinity_watch.poll):
            if (seconds := poll(now)) is not None:
                times.append(seconds)
        if self.vm_hold.held is not None:
            times.append(HOLD_POLL_SECONDS)
        return min(times, default=None)

    def on_notification(self, listener: Listener, notification: Notification) -> None:
        """Let a thread make its KVM_CREATE_VCPU only if it is followed; else follow it first."""
        self._first_vm.on_made()
        thread = self.tracer.threads.get(notification.tid)
        if thread is not None and thread.followed and thread.call is not None:
            thread.leaving = False  # it stopped at this entry just before it was to be detached
            listener.allow(notification)
            return
        shortage: ResourceExhaustedError | None = None
        tgid: int | None = notification.tid
        try:
            tgid = self._procs.tgid(notification.tid)
        except ResourceExhaustedError as error:
            shortage = error
        if tgid is None:
            self._refuse_unseen(listener, notification)
            return
        with open_pidfd(tgid) as pidfd:
            # its thread waits, so that it is in this process, and the pidfd is of that
            if not listener.is_valid(notification):
                return
            try:
                is_followed = self.tracer.follow(
                    notification.tid, tgid, lambda: listener.is_valid(notification)
                )
            except ProcessLookupError:
                self._refuse_unseen(listener, notification)
                return
            except PermissionError:
                has_run = self._confined.has_run(tgid)
                self._default_pmu_tracker.record(tgid, None)
                self._applier.refuse_untraceable(
                    listener, notification, tgid, pidfd, has_run=has_run
                )
                return
        if is_followed:
            # the interrupt restarts its call, so that nobody answers this notification
            thread = self.tracer.threads[notification.tid]
            thread.is_entering = True
            thread.shortage = thread.shortage or shortage

    def _refuse_unseen(self, listener: Listener, notification: Notification) -> None:
        """Refuse a vCPU to a thread that is not to be seen here, unless it waits no more."""
        if listener.is_valid(notification):
            self._applier.refuse_unseen(listener, notification, self._pid)

    # --- vCPU events ---------------------------------------------------------------------------

    def on_created(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """Confine the threads of a new vCPU's process.

        KVM may choose the PMU by where the vCPU is initialised.
        """
        self._affinity_watch.stop(vcpu.tgid)
        confinement = self._confined.find_or_add(vcpu.tgid)
        if self.vm_hold.is_awaited:
            confinement.cpus = self._spec.affinity
        if confinement.cpus is None:
            return
        try:
            self._confined.confine(vcpu.tgid)
        except PinnedError as error:
            if not self._spec.best_effort:  # else the warning comes when the settings are applied
                self._applier.fail(thread, error)
        self._confined.backoffs.setdefault(vcpu.tgid, Backoff())

    def on_lost(self, thread: Tracee, error: ResourceExhaustedError | StuckError | None) -> None:
        """Fail: nobody could tell when a vCPU's window comes, nor where it is initialised."""
        if error is None:
            self._applier.fail(thread, vcpu_moved(), may_have_run=True)
        elif isinstance(error, StuckError):
            self._applier.fail(thread, memory_not_writable(error), is_final=True)
        else:
            self._applier.fail(thread, not_followable(error))

    def on_init(self, tgid: int, tid: int | None) -> None:
        """Record that a vCPU is, or was just, initialised by this thread."""
        self._default_pmu_tracker.record(tgid, tid)

    def on_window_open(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """Apply the settings in a vCPU's window, or go on to the call at which the VM is held."""
        self._report_vcpu(vcpu)
        if self.vm_hold.is_awaited:
            self.vm_hold.await_attribute(vcpu.tgid)
            self._follow_all(thread)
            return
        try:
            self._confined.confine(vcpu.tgid)
            descriptions = self._applier.apply(thread, self._fd_of(vcpu), self._ioctls)
        except PmuctlError as error:
            self._applier.fail(thread, error)
        else:
            self._observer.on_applied(descriptions)
        self._confined.backoffs[vcpu.tgid] = Backoff()

    def on_reset(self, thread: Tracee, fd: int) -> None:
        """Apply the settings all the same: the descriptor may have become another vCPU's."""
        self._applier.try_apply(thread, fd, self._ioctls)

    def on_closing(self, thread: Tracee, vcpu: PendingVcpu) -> bool:
        """Seal a vCPU that its VMM closes: without any event if the settings are yet to come."""
        ioctls = [ioctl_of(deny_all())] if self.vm_hold.is_to_come else self._ioctls
        return self._applier.seal(thread, self._fd_of(vcpu), ioctls)

    def on_no_vpmu(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """Fail: a vCPU was made to run without a vPMU; with best effort, warn once for each VM.

        No PMU keeps its threads anywhere then; CPUs that were named do.
        """
        self._report_vcpu(vcpu)
        if not self._spec.best_effort or self._vcpu_table.is_first_without_vpmu(vcpu):
            pid = vcpu.tgid
            vmm = identify(self._procs.command_line(pid), self._procs.comm(pid, pid))
            self._applier.fail(thread, made_without_vpmu(vmm))
        if self._spec.best_effort and not self._spec.names_cpus and not self._vcpu_table.has_vpmu:
            for sharing_pid in self._processes.spaces.sharing_processes(vcpu.tgid):
                self._confined.find_or_add(sharing_pid).release()

    def on_silent_maker(self, vcpu: PendingVcpu) -> None:
        """Follow all tasks with the memory of a thread that runs, and makes no call."""
        thread = self.tracer.threads.get(vcpu.tid)
        if thread is None:
            return
        try:
            self._processes.follow_sharing(thread.tgid)
        except ResourceExhaustedError as error:
            self._applier.fail_running(thread, not_followable(error))
        except PmuctlError as error:
            self._applier.fail_running(thread, error)

    def on_attribute_call(self, thread: Tracee, fd: int) -> None:
        """Pass a call for an attribute on to the hold."""
        vcpu = self._vcpu_table.find(fd)
        self.vm_hold.on_attribute_call(thread, fd, fd if vcpu is None else self._fd_of(vcpu))

    def on_run_unheld(self, thread: Tracee) -> None:
        """Pass a vCPU that is run before the hold on to that."""
        self.vm_hold.on_run(thread)

    def follows_all(self, tgids: Collection[int]) -> bool:
        """Return whether all threads of these processes are followed."""
        return all(self.tracer.follows_all(tgid) for tgid in tgids)

    def on_sharing_call(self, thread: Tracee) -> None:
        """Follow all tasks with this thread's memory: any may learn of a vCPU from here on."""
        self._follow_all(thread)

    def _follow_all(self, thread: Tracee) -> None:
        """Follow all tasks with the memory of this thread; its VMM ends if that fails."""
        try:
            self._processes.follow_sharing(thread.tgid)
        except ResourceExhaustedError:
            raise
        except PmuctlError as error:
            self._applier.fail(thread, error)

    def on_idle(self) -> None:
        """Stop following every process that has no vCPU on the way to its window."""
        tracer, held = self.tracer, self.vm_hold.held
        if held is None and self._vcpu_tracker.awaits_attribute:
            return
        busy = self._vcpu_tracker.pending_processes() | self.vm_hold.busy_processes()
        busy |= {thread.tgid for thread in tracer.threads.values() if thread.is_entering}
        if not (done := tracer.followed_processes() - busy):
            return
        if self._vcpu_table.pid is not None and held is None:
            self.close_stderr()
        if not tracer.trace_children or done == {self._pid}:
            tracer.detach_all(keep=busy)
        else:
            for tgid in done:
                tracer.unfollow(tgid)

    # --- processes and running vCPUs -----------------------------------------------------------

    def _report_vcpu(self, vcpu: PendingVcpu) -> None:
        """Report a vCPU whose window has come; while a VM is held, only vCPUs of its process."""
        self._confined.find_or_add(vcpu.tgid).add(vcpu.fd, vcpu.index, vcpu.tid)
        held = self.vm_hold.held
        if held is not None and held.thread.tgid != vcpu.tgid:
            return
        if self._vcpu_table.pid != vcpu.tgid:
            self._observer.on_process(vcpu.tgid)
        self._vcpu_table.add(vcpu)
        self._observer.on_vcpus(self._vcpu_table.statuses({}))
        self._observer.on_vpmu(has_vpmu=self._vcpu_table.has_vpmu)
        self._observer.on_default_pmu(self._default_pmu_tracker.default_pmu(vcpu.tgid))

    def _on_released(self, ioctls: Sequence[IoctlCall], pid: int) -> None:
        """Go on after a hold: these ioctls are for the VMs that process `pid` makes later."""
        self._ioctls = ioctls
        self.close_stderr()
        self._confined.backoffs[pid] = Backoff()

    def _warn(self, pid: int, error: PmuctlError) -> None:
        error.subject = self._spec.name
        self._applier.vmm_stderr.write_error(error, pid, word="warning")

    def _check_running_vcpus(self, pid: int) -> None:
        """Check which vCPUs run; once all do, the other threads get their masks back."""
        confinement = self._confined.find_watched(pid)
        try:
            is_done = confinement.restore_masks()
        except ResourceExhaustedError:  # a shortage passes, and nobody waits for this
            self._confined.backoffs[pid] = self._confined.backoffs[pid].next_backoff()
            return
        if self.vm_hold.held is None:  # while it is held, clients may set other CPUs
            self._affinity_watch.look(pid, confinement, time.monotonic())
        if confinement.running:
            self._affinity_watch.start(pid, confinement, time.monotonic())
        if confinement.running and self._vcpu_table.pid == pid:
            self._observer.on_vcpus(self._vcpu_table.statuses(confinement.running))
        if not is_done:
            self._confined.backoffs[pid] = self._confined.backoffs[pid].next_backoff()
            return
        del self._confined.backoffs[pid]
        if self.tracer.trace_children and not self._confined.backoffs:
            self.tracer.detach_all(keep=self._vcpu_tracker.pending_processes())
