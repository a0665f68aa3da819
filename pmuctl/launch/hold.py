# SPDX-License-Identifier: Apache-2.0
"""A VMM held at its window, from its first call for a PMU attribute until it is released or ended.

One thread is stopped before that call, the others run. Settings are applied by calls put into the
held thread. Signals are not lost on it: for each one it is let out for a moment, comes back with
the same call and is held again.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from pmuctl.errors import PmuctlError
from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.launch.apply import Applier
from pmuctl.launch.confinement import Confinement
from pmuctl.launch.failures import no_memory, not_released
from pmuctl.launch.ioctls import IoctlCall, attr_call, ioctl_of, lock, steps
from pmuctl.launch.observer import VmObserver
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.trace.tracee import ThreadGoneError, Tracee
from pmuctl.launch.trace.tracer import Tracer
from pmuctl.launch.trace.vcpu_tracker import VcpuTracker
from pmuctl.model.cpuset import CpuSet

HOLD_SECONDS = 0.1
"""How often a held VMM is looked at for signals."""
ENDING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
"""Signals that ask a process to end: a held VMM could only do so once it is released."""
OUT_SECONDS = 1.0
"""How long a client waits for a held thread that is out to take a signal."""

SignalMasks = Mapping[str, frozenset[int]]
"""Signals by SigPnd, ShdPnd, SigBlk, SigIgn and SigCgt, as Procfs.signals() returns them."""


class HeldThread:
    """One thread, held; `vcpus` maps file descriptors of its VM's vCPUs to their numbers.

    `until` is when it has been held long enough (time.monotonic()), `is_out` whether the thread
    is on its way to a signal and back, `is_to_stop` whether job control stops its process,
    `ending` the signal that asked the VMM to end and was caught, so that it has to be ended.
    """

    def __init__(
        self, thread: Tracee, vcpus: Mapping[int, int], procs: Procfs, *, timeout: float | None
    ) -> None:
        self.thread = thread
        self.until = float("inf") if timeout is None else time.monotonic() + timeout
        self.is_out = False
        self.is_to_stop = False
        self._vcpus = {index: fd for fd, index in vcpus.items()}
        self._procs = procs
        self.ending: int | None = None
        self._masks: SignalMasks = {}
        self.catch()

    @property
    def vcpu_fd(self) -> int:
        """Of any of its vCPUs: the settings of a VM are set through one."""
        return next(iter(self._vcpus.values()))

    def catch(self) -> None:
        """Stop the thread, which is at the entry of a call, before that call."""
        self._again = self.thread.skip_call()
        self.thread.unblock_signals()
        self.thread.parked, self.is_out = True, False

    def let_out(self) -> None:
        """Let the thread take its signals, and come back by the call it was held at."""
        self.is_to_stop = False
        self._resume(followed=True)

    def release(self) -> None:
        """Set the thread to make its call; it is still stopped, at the exit of none."""
        self.thread.set_registers(self._again)
        self.thread.parked = False

    def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
        """KVM_SET_DEVICE_ATTR of a vCPU's PMU, made in the thread.

        Raises OSError with KVM's errno, ESRCH where the thread is gone or out.
        """
        if self.is_out or vcpu not in self._vcpus:
            raise ProcessLookupError("it is not held just now")
        call = attr_call(attr, payload)
        try:
            fd = self._vcpus[vcpu]
            result = self.thread.ioctl(fd, call.request, call.argument, call.pointer)
        except ThreadGoneError:
            raise ProcessLookupError("its VMM is gone") from None
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def before_delivery(self, thread: Tracee, its_signal: int) -> int:
        """Before a signal is delivered to a thread: the one to deliver, 0 for none.

        One that asks the held VMM to end, and that it would catch, ends it instead. While the
        held thread is out, it is delivered as well, and ends the VMM once the thread is back.
        """
        if thread.tgid != self.thread.tgid or its_signal not in ENDING:
            return its_signal
        try:
            masks = self.signals()
        except ResourceExhaustedError:
            masks = self._masks  # as they were a moment ago
        if its_signal not in masks.get("SigCgt", ()):
            return its_signal
        self.ending = its_signal
        # its handler may never return, or only set a flag that is read after the call
        return its_signal if self.is_out else 0

    def end_by(self, its_signal: int, masks: SignalMasks) -> None:
        """End the VMM as the signal would: by it, or with its status where there is a handler."""
        if its_signal in masks["SigCgt"] | masks["SigBlk"]:
            self.thread.exit_group(128 + its_signal)
        else:
            # not only let go: another thread may have taken it, and be slower than this one
            self._resume(followed=False, its_signal=its_signal)

    def signals(self) -> SignalMasks:
        """The signals of the held thread, as they are now; raises ResourceExhaustedError."""
        self._masks = self._procs.signals(self.thread.tgid, self.thread.tid)
        return self._masks

    def find_ending_signal(self, masks: SignalMasks) -> int | None:
        """Return the pending signal that asks the VMM to end, None if there is none."""
        waiting = (masks["SigPnd"] | masks["ShdPnd"]) & ENDING - masks["SigIgn"]
        return min(waiting, default=None)

    def is_wanted(self, masks: SignalMasks) -> bool:
        """Whether the held thread has to take a signal, or to stop with its process."""
        pending = (masks["SigPnd"] | masks["ShdPnd"]) - masks["SigBlk"]
        return self.is_to_stop or bool(pending)

    def _resume(self, *, followed: bool, its_signal: int = 0) -> None:
        self.is_out = True
        self.release()
        self.thread.followed = followed
        self.thread.resume(its_signal)


class VmHold:
    """The one hold there is: of the VM that comes first. `started` is called when it is over.

    `hold` is None before and after; `is_awaited` is whether one is to come.
    """

    def __init__(
        self,
        orders: LaunchSpec,
        calls: Sequence[IoctlCall],
        applier: Applier,
        placement_of: Callable[[int], Confinement],
        story: VmObserver,
        tracer: Tracer,
        procs: Procfs,
        started: Callable[[Sequence[IoctlCall], int], None],
    ) -> None:
        self.hold: HeldThread | None = None
        self.is_awaited = orders.hold
        self.windows: VcpuTracker
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
        hold = HeldThread(thread, vcpus, self._procs, timeout=self._orders.timeout)
        try:
            placement = self._placement_of(thread.tgid)
            placement.cpus = self._orders.affinity
            placement.confine()
            words = self._applier.apply(thread, target, self._calls)
        except PmuctlError as error:
            self._applier.fail(thread, error)
            self._let_start(hold, [])
        else:
            self.hold = hold
            if asked := self._asked_to_end.get(thread.tgid, set()) - ignored:
                # its handler has run, and may have set a flag that is read after this call
                hold.ending = min(asked)
            self._story.on_held(words)

    def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
        """Make a call in the held thread; raises OSError with KVM's errno, ESRCH if it is gone."""
        if self.hold is None:
            raise ProcessLookupError("it is not held any more")
        self.hold.set_attr(vcpu, attr, payload)

    def check_cpus(self, cpus: CpuSet) -> None:
        """Refuse CPUs that a thread of the held VMM may not be put on; raises PinnedError."""
        if self.hold is not None:
            self._placement_of(self.hold.thread.tgid).check(cpus)

    def poll(self) -> None:
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
        with suppress(ProcessLookupError, ThreadGoneError, ResourceExhaustedError):
            self._tend(hold)

    def _tend(self, hold: HeldThread) -> None:
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

    def _release(self, hold: HeldThread, given: LaunchSpec) -> None:
        """Go on with what the VM was given: it is locked, and its threads are placed."""
        calls = [ioctl_of(step) for step in steps(given)]
        locks = [ioctl_of(lock())] if given.pmu is not None else []
        try:
            placement = self._placement_of(hold.thread.tgid)
            placement.cpus = given.affinity
            placement.confine()
            self._applier.apply(hold.thread, hold.vcpu_fd, locks)
        except PmuctlError as error:
            self._applier.fail(hold.thread, error)
        self._let_start(hold, calls)

    def _let_start(self, hold: HeldThread, calls: Sequence[IoctlCall]) -> None:
        """Let a held VMM go on, if it was not ended; `calls` are for the VMs it makes later."""
        if hold.thread.is_ending:
            self.hold = hold  # until it is gone
            return
        self.hold = None
        hold.release()
        self._tracer.let_go(keep=self.windows.awaited())
        self._tracer.free(hold.thread)
        self._started(calls, hold.thread.tgid)
