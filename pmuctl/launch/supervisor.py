# SPDX-License-Identifier: Apache-2.0
"""The supervisor's rules: when to attach to a VMM, what to do at a window, when to let go."""

import time
from collections.abc import Callable, Sequence

from pmuctl.errors import PmuctlError
from pmuctl.host.procs import Procfs
from pmuctl.host.threads import Threads
from pmuctl.launch.apply import Applier
from pmuctl.launch.calls import Call, attr_call
from pmuctl.launch.hold import HOLD_SECONDS
from pmuctl.launch.keeper import Keeper
from pmuctl.launch.listener import Listener, Notification
from pmuctl.launch.machine import Machine
from pmuctl.launch.obstacles import no_memory, no_vpmu, not_traceable
from pmuctl.launch.orders import Orders
from pmuctl.launch.place import Placement
from pmuctl.launch.roster import Roster
from pmuctl.launch.story import Story
from pmuctl.launch.tracee import Tracee
from pmuctl.launch.tracer import Tracer
from pmuctl.launch.voice import Voice
from pmuctl.launch.window import NewVcpu, Windows
from pmuctl.uapi.kvm import KVM_HAS_DEVICE_ATTR
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_SET_PMU

LOOK_SECONDS = 0.2
"""How long after its window a VMM is first looked at for vCPUs that run."""
LOOK_SECONDS_MAX = 2.0


class Supervisor:
    """Supervises what stands behind one gate: P, the process that was started, and its children.

    Turns come from outside: `turn` after every stop, `at_gate` when a thread waits there.
    `must_stay` says that a child of P could not be attached to again once it is let go (Yama 1).
    `fd_of` is the descriptor that the calls are for.
    """

    def __init__(
        self,
        orders: Orders,
        calls: Sequence[Call],
        story: Story,
        voice: Voice,
        machine: Machine,
        *,
        pid: int,
        procs: Procfs,
        threads: Threads,
        must_stay: bool = False,
        fd_of: Callable[[NewVcpu], int] = lambda vcpu: vcpu.fd,
    ) -> None:
        self.tracer = Tracer(machine, procs)
        self.tracer.children = must_stay
        self._calls = calls
        self._story = story
        self._procs = procs
        self._pid = pid
        self._fd_of = fd_of
        self._placement = Placement(machine, procs, threads)
        self._placement.cpus = None if orders.hold else orders.affinity
        self._applier = Applier(orders, story, voice, procs)
        self.keeper = Keeper(
            orders,
            calls,
            self._applier,
            self._placement,
            story,
            self.tracer,
            procs,
            self._started,
        )
        self._windows = self.keeper.windows = Windows(machine, procs, self)
        self.tracer.calls, self.tracer.signals = self._windows, self.keeper
        self._roster = Roster()
        self._look_at = float("inf")
        self._look_again = LOOK_SECONDS

    @property
    def is_busy(self) -> bool:
        """Whether a VMM waits for what is done here."""
        return self.keeper.hold is None and self.tracer.is_following

    def hush(self) -> None:
        """The VMM has ended, perhaps before it made any vCPU: whoever reads its stderr waits."""
        self._applier.voice.close()

    # --- turns ---------------------------------------------------------------------------------

    def turn(self) -> float | None:
        """Do what is due; the seconds until the next turn at the latest."""
        self.tracer.take_stops()
        self.keeper.tend()
        self.settled()
        if time.monotonic() >= self._look_at:
            self._look()
        if self.keeper.hold is not None:
            return HOLD_SECONDS
        left = self._look_at - time.monotonic()
        return None if left == float("inf") else max(0.0, left)

    def at_gate(self, listener: Listener, waiting: Notification) -> None:
        """A thread waits for its KVM_CREATE_VCPU: let it on only where that is followed."""
        thread = self.tracer.threads.get(waiting.tid)
        if thread is not None and thread.followed and thread.call is not None:
            thread.leaving = False  # it had stopped at the entry just before it was to be let go
            listener.let_on(waiting)
            return
        tgid = self._procs.tgid(waiting.tid)
        if tgid is None:
            return
        try:
            self.tracer.follow(waiting.tid, tgid)
        except ProcessLookupError:
            return
        except PermissionError:
            has_run = self._roster.pid == tgid and bool(self._placement.running)
            self._applier.turn_away(listener, waiting, tgid, has_run=has_run)
            return
        # it is made to stop: the call begins anew, and this wait is nobody's
        self.tracer.threads[waiting.tid].is_entering = True

    # --- what the windows tell -----------------------------------------------------------------

    def opened(self, thread: Tracee, vcpu: NewVcpu) -> None:
        """A vCPU's window is open: apply what was ordered, or go on to where it is held."""
        self._meet(vcpu)
        if self.keeper.is_awaited:
            self._windows.awaits_attribute = True
            self._follow_all(thread)
            return
        try:
            self._placement.narrow(vcpu.tgid)
            words = self._applier.apply(thread, self._fd_of(vcpu), self._calls)
        except PmuctlError as error:
            self._applier.fail(thread, error)
        else:
            self._story.applied(words)
        self._look_soon()

    def without_vpmu(self, thread: Tracee, vcpu: NewVcpu) -> None:
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
        thread.unblock_signals()  # a thread that it makes would inherit that for good

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
        return True

    def settled(self) -> None:
        """If nobody is on the way to a window any more, trace nobody any more."""
        tracer = self.tracer
        if self.keeper.hold is not None or not self._windows.is_idle or not tracer.is_following:
            return
        if tracer.is_letting_go or any(its.is_entering for its in tracer.threads.values()):
            return
        if self._roster.pid is not None:
            self.hush()
        if tracer.children and self._roster.pid != self._pid:
            for thread in list(tracer.threads.values()):
                tracer.let_run(thread.tgid)
        else:
            tracer.let_go()

    # --- what runs -----------------------------------------------------------------------------

    def _meet(self, vcpu: NewVcpu) -> None:
        """Tell of a vCPU whose window has come."""
        if self._roster.pid != vcpu.tgid:
            self._story.began(vcpu.tgid)
        self._roster.add(vcpu)
        self._story.has(self._roster.statuses({}))

    def _started(self, calls: Sequence[Call]) -> None:
        """A VMM that was held goes on."""
        self._calls = calls
        self.hush()
        self._look_soon()

    def _look_soon(self) -> None:
        self._look_again = LOOK_SECONDS
        self._look_at = time.monotonic() + LOOK_SECONDS

    def _look(self) -> None:
        """See which vCPUs run; once all do, threads that are none get their masks back."""
        is_done = self._placement.give_back(self._roster.made, self._roster.makers)
        if self._placement.running:
            self._story.has(self._roster.statuses(self._placement.running))
        if is_done:
            self._look_at = float("inf")
            if self.tracer.children:
                self.tracer.let_go(keep=self._windows.awaited())
            return
        self._look_at = time.monotonic() + self._look_again
        self._look_again = min(2 * self._look_again, LOOK_SECONDS_MAX)
