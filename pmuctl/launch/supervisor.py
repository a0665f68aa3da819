# SPDX-License-Identifier: Apache-2.0
"""The supervisor's rules: when to attach to a VMM, what to do at a window, when to let go."""

import time
from collections.abc import Callable, Sequence

from pmuctl.errors import PinnedError, PmuctlError
from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.launch.apply import Applier
from pmuctl.launch.confinement import Backoff, Confinement
from pmuctl.launch.default_pmu import DefaultPmuTracker
from pmuctl.launch.failures import lost_sight, no_memory, no_vpmu, not_stopped, not_traceable
from pmuctl.launch.hold import HOLD_SECONDS, VmHold
from pmuctl.launch.ioctls import IoctlCall, attr_call
from pmuctl.launch.observer import VmObserver
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.trace.arch import Arch
from pmuctl.launch.trace.seccomp_gate import Listener, Notification
from pmuctl.launch.trace.tracee import Tracee
from pmuctl.launch.trace.tracer import Tracer
from pmuctl.launch.trace.vcpu_tracker import PendingVcpu, VcpuTracker
from pmuctl.launch.vcpu_table import VcpuTable
from pmuctl.launch.vmm_stderr import VmmStderr
from pmuctl.uapi.kvm import KVM_HAS_DEVICE_ATTR
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_SET_PMU


class Supervisor:
    """Supervises what stands behind one gate: P, the process that was started, and its children.

    Turns come from outside: `turn` after every stop, `at_gate` when a thread waits there.
    `must_stay` says that a child of P could not be attached to again once it is let go (Yama 1).
    `fd_of` is the descriptor that the calls are for.
    """

    def __init__(
        self,
        orders: LaunchSpec,
        calls: Sequence[IoctlCall],
        story: VmObserver,
        voice: VmmStderr,
        machine: Arch,
        *,
        pid: int,
        procs: Procfs,
        threads: ThreadAffinity,
        must_stay: bool = False,
        fd_of: Callable[[PendingVcpu], int] = lambda vcpu: vcpu.fd,
    ) -> None:
        self.tracer = Tracer(machine, procs)
        self.tracer.children = must_stay
        self._calls = calls
        self._story = story
        self._procs = procs
        self._pid = pid
        self._fd_of = fd_of
        self._orders = orders
        self._machine = machine
        self._threads = threads
        self._placements: dict[int, Confinement] = {}
        self._looks: dict[int, Backoff] = {}
        self._applier = Applier(orders, story, voice, procs)
        self.keeper = VmHold(
            orders,
            calls,
            self._applier,
            self._placement_of,
            story,
            self.tracer,
            procs,
            self._started,
        )
        self._windows = self.keeper.windows = VcpuTracker(machine, procs, self)
        self.tracer.calls, self.tracer.signals = self._windows, self.keeper
        self._roster = VcpuTable()
        self._witness = DefaultPmuTracker(orders.defaults, procs, threads)

    @property
    def is_busy(self) -> bool:
        """Whether a VMM waits for what is done here."""
        return self.keeper.hold is None and bool(self.tracer.followed())

    def close_stderr(self) -> None:
        """The VMM has ended, perhaps before it made any vCPU: whoever reads its stderr waits."""
        self._applier.voice.close()

    # --- turns ---------------------------------------------------------------------------------

    def turn(self) -> float | None:
        """Do what is due; the seconds until the next turn at the latest."""
        has_more = self.tracer.take_stops()
        self.keeper.poll()
        self.settled()
        now = time.monotonic()
        for pid in [pid for pid, look in self._looks.items() if now >= look.due]:
            self._look(pid)
        if has_more:
            return 0.0
        times = [max(0.0, look.due - now) for look in self._looks.values()]
        if self.keeper.hold is not None:
            times.append(HOLD_SECONDS)
        return min(times, default=None)

    def at_gate(self, listener: Listener, waiting: Notification) -> None:
        """A thread waits for its KVM_CREATE_VCPU: let it on only where that is followed."""
        thread = self.tracer.threads.get(waiting.tid)
        if thread is not None and thread.followed and thread.call is not None:
            thread.leaving = False  # it had stopped at the entry just before it was to be let go
            listener.let_on(waiting)
            return
        shortage: ResourceExhaustedError | None = None
        try:
            tgid = self._procs.tgid(waiting.tid)
        except ResourceExhaustedError as error:
            tgid, shortage = waiting.tid, error
        if tgid is None:
            return
        try:
            self.tracer.follow(waiting.tid, tgid)
        except ProcessLookupError:
            return
        except PermissionError:
            its = self._placements.get(tgid)
            has_run = its is not None and bool(its.running)
            self._witness.record(tgid, None)
            self._applier.turn_away(listener, waiting, tgid, has_run=has_run)
            return
        # it is made to stop: the call begins anew, and this wait is nobody's
        thread = self.tracer.threads[waiting.tid]
        thread.is_entering = True
        thread.shortage = thread.shortage or shortage

    # --- what the windows tell -----------------------------------------------------------------

    def made(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """A vCPU was made: KVM may choose the PMU by where it is initialised, so narrow that."""
        its = self._placement_of(vcpu.tgid)
        if self.keeper.is_awaited:
            its.cpus = self._orders.affinity
        if its.cpus is None:
            return
        try:
            its.confine()
        except PinnedError as error:
            if not self._orders.best_effort:  # else it is told where the settings are applied
                self._applier.fail(thread, error)
        self._looks.setdefault(vcpu.tgid, Backoff())

    def lost(self, thread: Tracee, shortage: ResourceExhaustedError) -> None:
        """Nobody could tell when its window comes, nor where it is."""
        self._applier.fail(thread, lost_sight(shortage))

    def initialising(self, tgid: int, tid: int | None) -> None:
        """A vCPU is, or was just, initialised by this thread."""
        self._witness.record(tgid, tid)

    def opened(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """A vCPU's window is open: apply what was ordered, or go on to where it is held."""
        self._meet(vcpu)
        if self.keeper.is_awaited:
            self._windows.awaits_attribute = True
            self._follow_all(thread)
            return
        try:
            self._placement_of(vcpu.tgid).confine()
            words = self._applier.apply(thread, self._fd_of(vcpu), self._calls)
        except PmuctlError as error:
            self._applier.fail(thread, error)
        else:
            self._story.on_applied(words)
        self._looks[vcpu.tgid] = Backoff()

    def without_vpmu(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """A vCPU was made to run without a vPMU."""
        self._meet(vcpu)
        self._applier.fail(thread, no_vpmu())

    def at_attribute(self, thread: Tracee, fd: int) -> None:
        """A call for an attribute."""
        vcpu = self._roster.find(fd)
        self.keeper.at_attribute(thread, fd, fd if vcpu is None else self._fd_of(vcpu))

    def spread(self, thread: Tracee) -> None:
        """Other threads can learn of a new vCPU from here on: miss none of them.

        One that knew of it before may have initialised it already; KVM has the PMU's attributes
        for such a vCPU only.
        """
        if not self.tracer.follows_all(thread.tgid) and self._follow_all(thread):
            again = thread.skip_call()
            try:
                self._find_initialised(thread)
            except PmuctlError as error:
                self._applier.fail(thread, error)
            if thread.is_ending:
                return
            thread.set_registers(again)

    def _find_initialised(self, thread: Tracee) -> None:
        has = attr_call(KVM_ARM_VCPU_PMU_V3_SET_PMU, b"")
        for vcpu in self._windows.of_process(thread.tgid):
            try:
                result = thread.ioctl(vcpu.fd, KVM_HAS_DEVICE_ATTR, has.argument)
            except ProcessLookupError:
                raise
            except OSError as error:
                raise no_memory(error) from error
            if result == 0:
                self._windows.reach(thread, vcpu)
            if thread.is_ending:
                return

    def _follow_all(self, thread: Tracee) -> bool:
        try:
            self.tracer.follow_all(thread.tgid)
        except PermissionError:
            self._applier.fail(thread, not_traceable(self._procs, thread.tgid))
            return False
        except TimeoutError as error:
            self._applier.fail(thread, not_stopped(error))
            return False
        return True

    def settled(self) -> None:
        """Trace nobody any more of whose process no vCPU is on the way to its window."""
        tracer, hold = self.tracer, self.keeper.hold
        if hold is None and self._windows.awaits_attribute:
            return
        busy = self._windows.awaited() | ({hold.thread.tgid} if hold is not None else set())
        busy |= {its.tgid for its in tracer.threads.values() if its.is_entering}
        if not (done := tracer.followed() - busy):
            return
        if self._roster.pid is not None and hold is None:
            self.close_stderr()
        if not tracer.children or done == {self._pid}:
            tracer.let_go(keep=busy)
        else:
            for tgid in done:
                tracer.let_run(tgid)

    # --- what runs -----------------------------------------------------------------------------

    def _placement_of(self, pid: int) -> Confinement:
        """That of a process; those of processes that are gone are forgotten."""
        if pid not in self._placements:
            for gone in [its for its in self._placements if not self._procs.threads(its)]:
                del self._placements[gone]
            its = Confinement(pid, self._machine, self._procs, self._threads)
            its.cpus = None if self._orders.hold else self._orders.affinity
            self._placements[pid] = its
        return self._placements[pid]

    def _meet(self, vcpu: PendingVcpu) -> None:
        """Tell of a vCPU whose window has come; while a VM is held, of that one's only."""
        self._placement_of(vcpu.tgid).add(vcpu.fd, vcpu.index, vcpu.tid)
        hold = self.keeper.hold
        if hold is not None and hold.thread.tgid != vcpu.tgid:
            return
        if self._roster.pid != vcpu.tgid:
            self._story.on_process(vcpu.tgid)
        self._roster.add(vcpu)
        self._story.on_vcpus(self._roster.statuses({}))
        self._story.on_default_pmu(self._witness.default_pmu(vcpu.tgid))

    def _started(self, calls: Sequence[IoctlCall], pid: int) -> None:
        """A VMM that was held goes on."""
        self._calls = calls
        self.close_stderr()
        self._looks[pid] = Backoff()

    def _look(self, pid: int) -> None:
        """See which vCPUs run; once all do, threads that are none get their masks back."""
        try:
            its = self._placement_of(pid)
            is_done = its.restore_masks()
        except ResourceExhaustedError:  # it will pass: nobody waits for this
            self._looks[pid] = self._looks[pid].later()
            return
        if its.running and self._roster.pid == pid:
            self._story.on_vcpus(self._roster.statuses(its.running))
        if not is_done:
            self._looks[pid] = self._looks[pid].later()
            return
        del self._looks[pid]
        if self.tracer.children and not self._looks:
            self.tracer.let_go(keep=self._windows.awaited())
