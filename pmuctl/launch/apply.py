# SPDX-License-Identifier: Apache-2.0
"""Ioctls made in a stopped thread, and what happens to a VMM in which they fail.

They apply the settings to a vCPU in its window, or seal one that its VMM closes before that.
"""

import errno
from collections.abc import Sequence
from functools import partial

from pmuctl.errors import ExitStatus, PmuctlError
from pmuctl.launch.failures import memory_not_writable, not_traceable, not_visible
from pmuctl.launch.ioctls import IoctlCall, init_ioctl
from pmuctl.launch.observer import VmObserver
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.trace.process_end import kill_and_wait
from pmuctl.launch.trace.seccomp_gate import Listener, Notification
from pmuctl.launch.trace.tracee import StuckError, Tracee
from pmuctl.launch.trace.vmm_end import end_process, kill_meant_process
from pmuctl.launch.vmm_processes import VmmProcesses
from pmuctl.launch.vmm_stderr import VmmStderr, write_error

MAY_HAVE_RUN = "the VMM was ended; its guest may have run for a moment"
SEALED_BY_INIT = frozenset({0, errno.EINVAL})
"""Answers of KVM to the KVM_ARM_VCPU_INIT of a vCPU that is sealed. EINVAL: other vCPUs of its VM
have other features, and either the settings of their window, or no vPMU."""
SEALED = frozenset({0, errno.EBUSY, errno.ENODEV})
"""The same to an attribute. EBUSY: its VM has run, with its settings. ENODEV: it has no vPMU."""


class Applier:
    """Settings applied so as to fail closed: without them no VM starts, but with best effort."""

    def __init__(
        self,
        spec: LaunchSpec,
        observer: VmObserver,
        vmm_stderr: VmmStderr,
        processes: VmmProcesses,
    ) -> None:
        self.vmm_stderr = vmm_stderr
        self._spec = spec
        self._observer = observer
        self._processes = processes
        self._ending: set[int] = set()
        """The processes that are being ended."""

    def apply(self, thread: Tracee, fd: int, ioctls: Sequence[IoctlCall]) -> list[str]:
        """Make these ioctls on a descriptor and return their descriptions.

        Raise PmuctlError at the first refusal.
        """
        for ioctl in ioctls:
            try:
                result = thread.ioctl(fd, ioctl.request, ioctl.argument, ioctl.pointer)
            except ProcessLookupError:
                raise
            except OSError as error:
                raise memory_not_writable(error) from error
            if result < 0:
                raise ioctl.refusal(-result)
        return [ioctl.description for ioctl in ioctls]

    def try_apply(self, thread: Tracee, fd: int, ioctls: Sequence[IoctlCall]) -> None:
        """Make these ioctls on the descriptor of a vCPU that may have its settings already.

        KVM refuses them for one whose PMU is initialised (EBUSY), and is to. The VMM ends if they
        do not return: the vCPU runs, and nobody knows with which settings.
        """
        try:
            self.apply(thread, fd, ioctls)
        except PmuctlError as error:
            if thread.is_running:
                self.fail(thread, error)

    def seal(self, thread: Tracee, fd: int, ioctls: Sequence[IoctlCall]) -> bool:
        """Make the first KVM_ARM_VCPU_INIT of a vCPU that its VMM is about to close, then these.

        Whoever kept a descriptor of it can then initialise it with the same features only
        (kvm_vcpu_set_target() in arch/arm64/kvm/arm.c gives EINVAL), and run it with these
        settings only. Return False if it could still be run without.
        """
        calls = [(init_ioctl(), SEALED_BY_INIT), *((ioctl, SEALED) for ioctl in ioctls)]
        try:
            for ioctl, harmless in calls if ioctls else ():
                answer = thread.ioctl(fd, ioctl.request, ioctl.argument, ioctl.pointer)
                if -answer not in harmless:
                    return False
        except (ProcessLookupError, StuckError):
            raise
        except OSError:  # the thread's memory may not be written
            return False
        return True

    def fail(
        self,
        thread: Tracee,
        error: PmuctlError,
        *,
        is_final: bool = False,
        may_have_run: bool = False,
    ) -> None:
        """Write an error, and end the VMM unless it is to start all the same (best effort).

        With `is_final` best effort does not count, nor where the thread cannot be stopped; with
        `may_have_run` it is told that the guest may have run. While a process ends, its other
        threads stay stopped, and nothing is written for them.
        """
        if thread.tgid in self._ending:
            thread.is_ending = thread.parked = True
            return
        error.subject = self._spec.name
        if self._spec.best_effort and not is_final and not thread.is_running:
            error.now = "the VM starts without it"
            self.vmm_stderr.write_error(error, thread.tgid, word="warning")
            return
        error.now = "the VM was not started"
        # KVM gives EBUSY for a VM that has run
        if may_have_run or error.errno == "EBUSY" or thread.is_running:
            error.now = MAY_HAVE_RUN
        elif self._processes.confined.has_run(thread.tgid):
            error.now = "its VMM was ended, a VM of which had run; the new VM was not started"
        self._ending.add(thread.tgid)
        try:
            # that is said once it is true: the VMM's own seccomp filter may not let it exit
            with self.vmm_stderr.taken(thread.tgid) as fd:
                if thread.call is not None and not thread.is_running:
                    thread.skip_call()
                self._kill_sharing(thread.tgid)
                end_process(self._processes.tracer, thread, ExitStatus.ENDED)
                write_error(error, fd)
        finally:
            self._ending.discard(thread.tgid)
        self._observer.on_refused(error)

    def fail_running(self, thread: Tracee, error: PmuctlError) -> None:
        """Fail as `fail` does for a thread that may run: its process is killed, not made to exit.

        With best effort the thread stays one that can be stopped.
        """
        thread.is_running = not self._spec.best_effort
        self.fail(thread, error)

    def _kill_sharing(self, tgid: int) -> None:
        """Kill the other processes that could run a VM of this one: they share its memory."""
        killed = {tgid}
        while others := self._processes.find_sharing(tgid) - killed:  # they may make others
            for pid in others:
                is_meant = partial(self._shares_memory, tgid, pid)
                kill_meant_process(self._processes.tracer, pid, is_meant)
            killed |= others

    def _shares_memory(self, tgid: int, pid: int) -> bool:
        return bool(self._processes.procs.shares_memory(tgid, pid))

    def refuse_untraceable(
        self,
        listener: Listener,
        notification: Notification,
        tgid: int,
        pidfd: int | None,
        *,
        has_run: bool,
    ) -> None:
        """Refuse a vCPU to a thread that may not be traced, and end its VMM unless that has run.

        `pidfd` is of its process; without one the VMM is not ended. With best effort the vCPU is
        made without settings.
        """
        error = not_traceable(self._processes.procs, notification.tid)
        if self._may_make_unset(error, listener, notification, tgid):
            return
        is_to_end = pidfd is not None and not has_run
        error.now = "the VMM was ended" if is_to_end else "no further vCPU was made"
        with self.vmm_stderr.taken(tgid) as fd:
            if is_to_end and pidfd is not None:
                # before the denial: with that the VMM could exit by itself
                self._kill_sharing(tgid)
                kill_and_wait(pidfd)
            write_error(error, fd)
        if not has_run:
            self._observer.on_refused(error)
        listener.deny(notification)

    def refuse_unseen(self, listener: Listener, notification: Notification, tgid: int) -> None:
        """Refuse a vCPU to a thread that is not in /proc, of a VMM that process `tgid` became."""
        error = not_visible()
        if self._may_make_unset(error, listener, notification, tgid):
            return
        error.now = "the vCPU was not made"
        self.vmm_stderr.write_error(error, tgid)
        self._observer.on_refused(error)
        listener.deny(notification)

    def _may_make_unset(
        self, error: PmuctlError, listener: Listener, notification: Notification, tgid: int
    ) -> bool:
        """With best effort, warn and have the vCPU made; return whether that was done."""
        error.subject = self._spec.name
        if self._spec.best_effort:
            error.now = "the vCPU is made without settings"
            self.vmm_stderr.write_error(error, tgid, word="warning")
            listener.allow(notification)
        return self._spec.best_effort
