# SPDX-License-Identifier: Apache-2.0
"""A VMM held at its window: one thread stopped before its call, the others running.

Settings are applied by calls put into the held thread. Signals are not lost on it: for each one
it is let out for a moment, comes back with the same call and is held again.
"""

import os
import signal
import time
from collections.abc import Mapping

from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ShortageError
from pmuctl.launch.calls import attr_call
from pmuctl.launch.tracee import ThreadGoneError, Tracee

HOLD_SECONDS = 0.1
"""How often a held VMM is looked at for signals."""
ENDING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
"""Signals that ask a process to end: a held VMM could only do so once it is released."""

SignalMasks = Mapping[str, frozenset[int]]
"""Signals by SigPnd, ShdPnd, SigBlk, SigIgn and SigCgt, as Procfs.signals() returns them."""


class Hold:
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
        except ShortageError:
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
        """The signals of the held thread, as they are now; raises ShortageError."""
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
