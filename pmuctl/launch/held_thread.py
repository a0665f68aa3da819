# SPDX-License-Identifier: Apache-2.0
"""A thread held before a call: settings are applied in it, and its signals wait.

No signal is lost on it: for each one it is resumed for a moment, comes back with the same call and
is held again.
"""

import os
import signal
import time
from collections.abc import Mapping

from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.launch.ioctls import attr_ioctl
from pmuctl.launch.trace.tracee import ThreadGoneError, Tracee

ENDING_SIGNALS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
"""Signals that ask a process to end: a held VMM could only do so once it is released."""

SignalMasks = Mapping[str, frozenset[int]]
"""Signals by SigPnd, ShdPnd, SigBlk, SigIgn and SigCgt, as Procfs.signals() returns them."""


class HeldThread:
    """One held thread; `vcpus` maps file descriptors of its VM's vCPUs to their numbers.

    `timeout` is how long it may be held (seconds), `deadline` when that is over
    (time.monotonic()). `is_resumed` says that the thread is on its way to a signal and back,
    `is_stop_pending` that job control stops its process. `ending_signal` is the signal that asked
    the VMM to end and was caught, so that the VMM has to be ended.
    """

    def __init__(
        self, thread: Tracee, vcpus: Mapping[int, int], procs: Procfs, *, timeout: float | None
    ) -> None:
        self.thread = thread
        self.deadline = float("inf") if timeout is None else time.monotonic() + timeout
        self.is_resumed = False
        self.is_stop_pending = False
        self._procs = procs
        self._fds = self._find_vms(vcpus)
        self.ending_signal: int | None = None
        self._masks: SignalMasks = {}
        self.park()

    def _find_vms(self, vcpus: Mapping[int, int]) -> dict[int, list[int]]:
        """Return by vCPU number a descriptor of each vCPU that has it: one for each VM."""
        found: dict[int, list[int]] = {}
        tid, is_same = self.thread.tid, self._procs.is_same_file
        for fd, index in sorted(vcpus.items()):
            fds = found.setdefault(index, [])
            if not any(is_same(tid, fd, tid, other) for other in fds):
                fds.append(fd)
        return found

    @property
    def vm_fds(self) -> list[int]:
        """A vCPU's descriptor of each of its VMs: the settings of a VM are set through one."""
        return self._fds[min(self._fds)]

    def park(self) -> None:
        """Stop the thread, which is at the entry of a call, before that call."""
        self._restart_registers = self.thread.skip_call()
        self.thread.unblock_signals()
        self.thread.parked, self.is_resumed = True, False

    def resume_for_signal(self) -> None:
        """Let the thread take its signals, and come back by the call it was held at."""
        self.is_stop_pending = False
        self._resume_thread(followed=True)

    def release(self) -> None:
        """Set the thread to make its call; it is still stopped, at the exit of a skipped call."""
        self.thread.set_registers(self._restart_registers)
        self.thread.parked = False

    def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
        """Make KVM_SET_DEVICE_ATTR of a vCPU's PMU in the thread.

        Raise OSError with KVM's errno, ESRCH if the thread is gone or resumed.
        """
        if self.is_resumed or vcpu not in self._fds:
            raise ProcessLookupError("it is not held just now")
        ioctl = attr_ioctl(attr, payload)
        for fd in self._fds[vcpu]:
            try:
                result = self.thread.ioctl(fd, ioctl.request, ioctl.argument, ioctl.pointer)
            except ThreadGoneError:
                raise ProcessLookupError("its VMM is gone") from None
            if result < 0:
                raise OSError(-result, os.strerror(-result))

    def filter_signal(self, thread: Tracee, signum: int) -> int:
        """Return the signal to deliver to a thread in place of this one, 0 for none.

        A signal that asks the held VMM to end, and that it would catch, ends it instead. While the
        held thread is resumed, the signal is delivered as well, and ends the VMM once the thread
        is back.
        """
        if thread.tgid != self.thread.tgid or signum not in ENDING_SIGNALS:
            return signum
        try:
            masks = self.read_signals()
        except ResourceExhaustedError:
            masks = self._masks  # those of a moment ago
        if signum not in masks.get("SigCgt", ()):
            return signum
        self.ending_signal = signum
        # the handler may never return, or only set a flag that is read after the call
        return signum if self.is_resumed else 0

    def end_by_signal(self, signum: int, masks: SignalMasks) -> None:
        """End the VMM by the signal, or with its exit status if it is caught or blocked."""
        if signum in masks["SigCgt"] | masks["SigBlk"]:
            self.thread.exit_group(128 + signum)
        else:
            # this thread needs the signal, too: another may have taken it, and be slower
            self._resume_thread(followed=False, signum=signum)

    def read_signals(self) -> SignalMasks:
        """Return the signals of the held thread as they are now; raise ResourceExhaustedError."""
        self._masks = self._procs.signals(self.thread.tgid, self.thread.tid)
        return self._masks

    def find_ending_signal(self, masks: SignalMasks) -> int | None:
        """Return the pending signal that asks the VMM to end, None if there is none."""
        waiting = (masks["SigPnd"] | masks["ShdPnd"]) & ENDING_SIGNALS - masks["SigIgn"]
        return min(waiting, default=None)

    def needs_resume(self, masks: SignalMasks) -> bool:
        """Return True if the held thread has to take a signal, or to stop with its process."""
        pending = (masks["SigPnd"] | masks["ShdPnd"]) - masks["SigBlk"]
        return self.is_stop_pending or bool(pending)

    def _resume_thread(self, *, followed: bool, signum: int = 0) -> None:
        """Let the thread make its call, and stop at system calls if `followed`."""
        self.is_resumed = True
        self.release()
        self.thread.followed = followed
        self.thread.resume(signum)
