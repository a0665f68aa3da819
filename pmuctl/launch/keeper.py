# SPDX-License-Identifier: Apache-2.0
"""Keeping a VMM held: from its first call for a PMU attribute until it is released or ended."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from pmuctl.errors import PmuctlError
from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ShortageError
from pmuctl.launch.apply import Applier
from pmuctl.launch.calls import Call, call_of, lock, steps
from pmuctl.launch.hold import ENDING, Hold
from pmuctl.launch.obstacles import no_memory, not_released
from pmuctl.launch.orders import Orders
from pmuctl.launch.place import Placement
from pmuctl.launch.story import Story
from pmuctl.launch.tracee import ThreadGoneError, Tracee
from pmuctl.launch.tracer import Tracer
from pmuctl.launch.window import Windows
from pmuctl.model.cpuset import CpuSet

OUT_SECONDS = 1.0
"""How long a client waits for a held thread that is out to take a signal."""


class Keeper:
    """The one hold there is: of the VM that comes first. `started` is called when it is over.

    `hold` is None before and after; `is_awaited` is whether one is to come.
    """

    def __init__(
        self,
        orders: Orders,
        calls: Sequence[Call],
        applier: Applier,
        placement_of: Callable[[int], Placement],
        story: Story,
        tracer: Tracer,
        procs: Procfs,
        started: Callable[[Sequence[Call], int], None],
    ) -> None:
        self.hold: Hold | None = None
        self.is_awaited = orders.hold
        self.windows: Windows
        self._orders = orders
        self._calls = [call for call in calls if call.step != lock()]  # that comes at the end
        self._applier = applier
        self._placement_of = placement_of
        self._story = story
        self._tracer = tracer
        self._procs = procs
        self._started = started
        self._out_since = 0.0
        self._asked_to_end: dict[int, set[int]] = {}
        """By process: the signals it was given on the way to its hold."""

    # --- what the tracer tells -----------------------------------------------------------------

    def stopped(self, thread: Tracee) -> None:
        """Job control stops its process: what is held must stop with it."""
        if self.hold is not None and thread.tgid == self.hold.thread.tgid:
            self.hold.is_to_stop = True

    def signalled(self, thread: Tracee, its_signal: int) -> int:
        """Before a signal is delivered: one that asks a held VMM to end has to end it."""
        if self.hold is not None:
            return self.hold.before_delivery(thread, its_signal)
        if self.is_awaited and its_signal in ENDING:  # one that is not caught ends it by itself
            self._asked_to_end.setdefault(thread.tgid, set()).add(its_signal)
        return its_signal

    # --- the hold ------------------------------------------------------------------------------

    def at_attribute(self, thread: Tracee, fd: int, target: int) -> None:
        """A call for an attribute: if a vCPU's, this is where the VMM is held.

        `target` is the descriptor that the calls are for.
        """
        if self.hold is not None:
            if thread is self.hold.thread and self.hold.is_out:
                self.windows.awaits_attribute = False
                self.hold.catch()
            return
        try:
            vcpus = self._procs.vcpu_fds(thread.tgid)
        except PermissionError as error:
            self._applier.fail(thread, no_memory(error))
            return
        if fd not in vcpus:
            return
        ignored = self._procs.signals(thread.tgid, thread.tid)["SigIgn"]
        self.windows.awaits_attribute = self.is_awaited = False
        self._tracer.let_run(thread.tgid)
        hold = Hold(thread, vcpus, self._procs, timeout=self._orders.timeout)
        try:
            placement = self._placement_of(thread.tgid)
            placement.cpus = self._orders.affinity
            placement.narrow()
            words = self._applier.apply(thread, target, self._calls)
        except PmuctlError as error:
            self._applier.fail(thread, error)
            self._let_start(hold, [])
        else:
            self.hold = hold
            if asked := self._asked_to_end.get(thread.tgid, set()) - ignored:
                # its handler has run, and may have set a flag that is read after this call
                hold.ending = min(asked)
            self._story.held(words)

    def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
        """Make a call in the held thread; raises OSError with KVM's errno, ESRCH if it is gone."""
        if self.hold is None:
            raise ProcessLookupError("it is not held any more")
        self.hold.set_attr(vcpu, attr, payload)

    def check_cpus(self, cpus: CpuSet) -> None:
        """Refuse CPUs that a thread of the held VMM may not be put on; raises PinnedError."""
        if self.hold is not None:
            self._placement_of(self.hold.thread.tgid).check(cpus)

    def tend(self) -> None:
        """Do what is due."""
        if self._asked_to_end:
            followed = self._tracer.followed()
            self._asked_to_end = {
                tgid: asked for tgid, asked in self._asked_to_end.items() if tgid in followed
            }
        hold = self.hold
        if hold is not None and hold.thread.tid not in self._tracer.threads:
            self.hold = hold = None
        if hold is None:
            self._story.carry_out()
            return
        # a shortage will pass: the VMM waits all the same
        with suppress(ProcessLookupError, ThreadGoneError, ShortageError):
            self._tend(hold)

    def _tend(self, hold: Hold) -> None:
        if hold.thread.is_ending:
            return
        if hold.is_out:
            if time.monotonic() - self._out_since > OUT_SECONDS:
                self._story.carry_out()  # they hear that it is not there
            return
        if hold.ending is not None:
            hold.thread.exit_group(128 + hold.ending)
            return
        # once: a signal that came between two looks would be taken for a harmless one
        masks = hold.signals()
        if ending := hold.find_ending_signal(masks):
            hold.end_by(ending, masks)
        elif time.monotonic() >= hold.until:
            self._applier.fail(hold.thread, not_released(self._orders.timeout or 0), is_final=True)
        elif (given := self._story.released()) is not None:
            self._release(hold, given)
        else:
            self._story.carry_out()
            if hold.is_wanted(masks):
                self._out_since = time.monotonic()
                self.windows.awaits_attribute = True
                hold.let_out()

    def _release(self, hold: Hold, given: Orders) -> None:
        """Go on with what the VM was given: it is locked, and its threads are placed."""
        calls = [call_of(step) for step in steps(given)]
        locks = [call_of(lock())] if given.pmu is not None else []
        try:
            placement = self._placement_of(hold.thread.tgid)
            placement.cpus = given.affinity
            placement.narrow()
            self._applier.apply(hold.thread, hold.vcpu_fd, locks)
        except PmuctlError as error:
            self._applier.fail(hold.thread, error)
        self._let_start(hold, calls)

    def _let_start(self, hold: Hold, calls: Sequence[Call]) -> None:
        """Let a held VMM go on, if it was not ended; `calls` are for the VMs it makes later."""
        if hold.thread.is_ending:
            self.hold = hold  # until it is gone
            return
        self.hold = None
        hold.release()
        self._tracer.let_go(keep=self.windows.awaited())
        self._tracer.free(hold.thread)
        self._started(calls, hold.thread.tgid)
