# SPDX-License-Identifier: Apache-2.0
"""The supervisor's rules: when to attach to a VMM, what to do at a window, when to let go."""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

from pmuctl.errors import (
    ExitStatus,
    PmuctlError,
)
from pmuctl.host.procs import Procfs
from pmuctl.host.threads import Threads
from pmuctl.launch.calls import Call, attr_call
from pmuctl.launch.hold import HOLD_SECONDS, Hold
from pmuctl.launch.listener import Listener, Notification
from pmuctl.launch.machine import Machine
from pmuctl.launch.obstacles import no_memory, no_vpmu, not_released, not_traceable
from pmuctl.launch.orders import Orders
from pmuctl.launch.place import Placement
from pmuctl.launch.roster import Roster
from pmuctl.launch.story import Release, Story
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
    ) -> None:
        self.tracer = Tracer(machine, procs, self)
        self.tracer.children = must_stay
        self._orders = orders
        self._calls = calls
        self._story = story
        self._voice = voice
        self._procs = procs
        self._pid = pid
        self._windows = Windows(machine, self)
        self._awaits_hold = orders.hold
        self._placement = Placement(machine, procs, threads)
        self._placement.cpus = None if orders.hold else orders.affinity
        self._hold: Hold | None = None
        self._roster = Roster()
        self._look_at = float("inf")
        self._look_again = LOOK_SECONDS

    @property
    def is_busy(self) -> bool:
        """Whether a VMM waits for what is done here."""
        return self._hold is None and self.tracer.is_following

    # --- turns ---------------------------------------------------------------------------------

    def turn(self) -> float | None:
        """Do what is due; the seconds until the next turn at the latest."""
        self.tracer.take_stops()
        self._tend_hold()
        self.settled()
        if time.monotonic() >= self._look_at:
            self._look()
        if self._hold is not None:
            return HOLD_SECONDS
        left = self._look_at - time.monotonic()
        return None if left == float("inf") else max(0.0, left)

    def hush(self) -> None:
        """The VMM has ended, perhaps before it made any vCPU: whoever reads its stderr waits."""
        self._voice.close()

    def at_gate(self, listener: Listener, waiting: Notification) -> None:
        """A thread waits for its KVM_CREATE_VCPU: let it on only where that is followed."""
        thread = self.tracer.threads.get(waiting.tid)
        if thread is not None and thread.followed and thread.call is not None:
            thread.leaving = False  # it had stopped at the entry just before it was to be let go
            listener.let_on(waiting)
            return
        tgid = self._procs.tgid(waiting.tid)
        if tgid is not None and self._follow(listener, waiting, tgid):
            # it is made to stop: the call begins anew, and this wait is nobody's
            thread = self.tracer.threads.get(waiting.tid)
            if thread is not None:
                thread.at_gate = True

    def _follow(self, listener: Listener, waiting: Notification, tgid: int) -> bool:
        try:
            self.tracer.follow(waiting.tid, tgid)
        except ProcessLookupError:
            return False
        except PermissionError:
            self._cannot_follow(listener, waiting, tgid)
            return False
        return True

    def _cannot_follow(self, listener: Listener, waiting: Notification, tgid: int) -> None:
        error = not_traceable(self._procs, waiting.tid)
        error.subject = self._orders.name
        self.tracer.let_go()
        if self._orders.best_effort:
            self._voice.say(error, tgid, word="warning")
            listener.let_on(waiting)
            return
        has_run = self._roster.pid == tgid and self._placement.running
        error.now = "no further vCPU was made" if has_run else "the VMM was ended"
        self._voice.say(error, tgid)
        listener.deny(waiting)
        if not has_run:
            self._story.refused(error)
            with suppress(ProcessLookupError):
                os.kill(tgid, signal.SIGKILL)

    # --- what the tracer tells -----------------------------------------------------------------

    def born(self, thread: Tracee) -> None:
        """A thread came to life under the tracer: its mask is one that was narrowed already."""

    def entered(self, thread: Tracee, nr: int, args: tuple[int, ...]) -> None:
        """At the entry of a system call."""
        self._windows.entered(thread, nr, args)

    def left(self, thread: Tracee, nr: int, args: tuple[int, ...], result: int) -> None:
        """At the exit of a system call."""
        self._windows.left(thread, nr, args, result)

    def stopped(self, thread: Tracee) -> None:
        """Job control stops its process: what is held must stop with it."""
        if self._hold is not None:
            self._hold.is_to_stop = True

    def signalled(self, thread: Tracee, its_signal: int) -> int:
        """Before a signal is delivered: one that asks a held VMM to end has to end it."""
        return its_signal if self._hold is None else self._hold.before(thread, its_signal)

    # --- what the windows tell -----------------------------------------------------------------

    def opened(self, thread: Tracee, vcpu: NewVcpu) -> None:
        """A vCPU's window is open: apply what was ordered, or go on to where it is held."""
        self._meet(vcpu)
        if self._awaits_hold:
            self._windows.awaits_attribute = True
            self._follow_all(thread)
            return
        try:
            words = self._apply(thread, vcpu, self._calls)
            self._placement.narrow(vcpu.tgid, {})
        except PmuctlError as error:
            self._fail(thread, error)
        else:
            self._story.applied(words)
        self._look_soon()

    def without_vpmu(self, thread: Tracee, vcpu: NewVcpu) -> None:
        """A vCPU was made to run without a vPMU."""
        self._meet(vcpu)
        self._fail(thread, no_vpmu())

    def spread(self, thread: Tracee) -> None:
        """Other threads can learn of a new vCPU from here on: miss none of them.

        One that knew of it before may have initialised it already; KVM has the PMU's attributes
        for such a vCPU only.
        """
        thread.unblock_signals()  # a thread it makes would inherit that for good
        tgid = thread.tgid
        if self.tracer.follows_all(tgid) or not self._follow_all(thread):
            return
        again = thread.skip_call()
        for vcpu in self._windows.of_process(tgid):
            call = attr_call(KVM_ARM_VCPU_PMU_V3_SET_PMU, b"")
            if thread.ioctl(vcpu.fd, KVM_HAS_DEVICE_ATTR, call.argument) == 0:
                self._windows.reach(thread, vcpu)
            if thread.is_ending:
                return
        thread.set_registers(again)

    def _follow_all(self, thread: Tracee) -> bool:
        try:
            self.tracer.follow_all(thread.tgid)
        except PermissionError:
            self._fail(thread, not_traceable(self._procs, thread.tgid))
            return False
        return True

    def at_attribute(self, thread: Tracee, fd: int) -> None:
        """A call for an attribute: if a vCPU's, this is where the VMM is held."""
        if self._hold is not None:
            if thread is self._hold.thread and self._hold.is_out:
                self._windows.awaits_attribute = False
                self._hold.catch()
            return
        vcpus = self._procs.vcpu_fds(thread.tgid)
        if fd not in vcpus:
            return
        self._windows.awaits_attribute = self._awaits_hold = False
        self.tracer.let_run(thread.tgid)
        self._hold = Hold(thread, vcpus, self._procs, timeout=self._orders.timeout)
        try:
            self._placement.cpus = self._orders.affinity
            self._placement.narrow(thread.tgid, {})
            self._story.held()
        except PmuctlError as error:
            self._fail(thread, error)
            self._let_start(self._hold)

    def settled(self) -> None:
        """If nobody is on the way to a window any more, trace nobody any more."""
        tracer = self.tracer
        if self._hold is not None or not self._windows.is_idle or not tracer.is_following:
            return
        if tracer.is_letting_go or any(its.at_gate for its in tracer.threads.values()):
            return
        if self._roster.pid is not None:
            self._voice.close()
        if tracer.children and self._roster.pid not in (None, self._pid):
            for thread in tracer.threads.values():
                tracer.let_run(thread.tgid)
        else:
            tracer.let_go()

    # --- doing it ------------------------------------------------------------------------------

    def _meet(self, vcpu: NewVcpu) -> None:
        """Tell of a vCPU whose window has come."""
        if self._roster.pid != vcpu.tgid:
            self._story.began(vcpu.tgid)
        self._roster.add(vcpu)
        self._story.has(self._roster.statuses({}))

    def _apply(self, thread: Tracee, vcpu: NewVcpu, calls: Sequence[Call]) -> list[str]:
        """Make the calls in the stopped thread; their words. Raises PmuctlError."""
        for call in calls:
            fd = vcpu.vm_fd if call.is_of_vm else vcpu.fd
            try:
                result = thread.ioctl(fd, call.request, call.argument, call.pointer)
            except OSError as error:
                raise no_memory(error) from error
            if result < 0:
                raise call.refusal(-result)
        return [call.words for call in calls]

    def _fail(self, thread: Tracee, error: PmuctlError, *, is_final: bool = False) -> None:
        """Tell an error, and end the VMM for it unless it was to be started all the same."""
        error.subject = self._orders.name
        if self._orders.best_effort and not is_final:
            error.now = "the VM starts without it"
            self._voice.say(error, thread.tgid, word="warning")
            return
        error.now = "the VM was not started"
        self._voice.say(error, thread.tgid)
        self._story.refused(error)
        if thread.call is not None:
            thread.skip_call()
        self._windows.ended(thread.tgid)
        thread.exit_group(ExitStatus.ENDED)

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
                self.tracer.let_go()
            return
        self._look_at = time.monotonic() + self._look_again
        self._look_again = min(2 * self._look_again, LOOK_SECONDS_MAX)

    # --- the hold ------------------------------------------------------------------------------

    def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
        """Make a call in the held thread; raises OSError with KVM's errno, ESRCH if it is gone."""
        if self._hold is None:
            raise ProcessLookupError("it is not held any more")
        self._hold.set_attr(vcpu, attr, payload)

    def _tend_hold(self) -> None:
        hold = self._hold
        if hold is not None and hold.thread.tid not in self.tracer.threads:
            self._hold = None
        elif hold is not None:
            if hold.is_out or hold.thread.is_ending:
                return
            with suppress(ProcessLookupError):
                self._tend(hold)
        self._story.carry_out()

    def _tend(self, hold: Hold) -> None:
        if ending := hold.asked_to_end():
            hold.end_by(ending)
        elif time.monotonic() >= hold.until:
            self._fail(hold.thread, not_released(self._orders.timeout or 0), is_final=True)
        elif released := self._story.released():
            self._release(hold, released)
        elif hold.is_wanted():
            self._windows.awaits_attribute = True
            hold.let_out()

    def _release(self, hold: Hold, released: Release) -> None:
        thread = hold.thread
        self._calls = released.calls
        try:
            thread.block_signals()
            words = self._apply(thread, self._roster.first, released.last)
            self._placement.cpus = released.cpus
            self._placement.narrow(thread.tgid, released.placed)
        except PmuctlError as error:
            self._fail(thread, error)
        else:
            self._story.applied(words)
        self._let_start(hold)

    def _let_start(self, hold: Hold) -> None:
        """Let a held VMM go on, if it was not ended."""
        self._hold = None
        if hold.thread.is_ending:
            return
        hold.release()
        self._voice.close()
        self.tracer.let_go()
        self.tracer.free(hold.thread)
        self._look_soon()
