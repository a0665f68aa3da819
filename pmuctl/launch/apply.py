# SPDX-License-Identifier: Apache-2.0
"""Ioctls made in a stopped thread, and what happens to a VMM in which they fail."""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress

from pmuctl.errors import ExitStatus, PmuctlError
from pmuctl.host.procfs import Procfs
from pmuctl.launch.failures import memory_not_writable, not_traceable
from pmuctl.launch.ioctls import IoctlCall
from pmuctl.launch.observer import VmObserver
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.trace.seccomp_gate import Listener, Notification
from pmuctl.launch.trace.tracee import Tracee
from pmuctl.launch.vmm_stderr import VmmStderr


class Applier:
    """Settings applied so as to fail closed: without them no VM starts, but with best effort."""

    def __init__(
        self, spec: LaunchSpec, observer: VmObserver, vmm_stderr: VmmStderr, procs: Procfs
    ) -> None:
        self.vmm_stderr = vmm_stderr
        self._spec = spec
        self._observer = observer
        self._procs = procs

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

    def fail(self, thread: Tracee, error: PmuctlError, *, is_final: bool = False) -> None:
        """Write an error, and end the VMM unless it is to start all the same (best effort).

        With `is_final` best effort does not count.
        """
        error.subject = self._spec.name
        if self._spec.best_effort and not is_final:
            error.now = "the VM starts without it"
            self.vmm_stderr.write_error(error, thread.tgid, word="warning")
            return
        error.now = "the VM was not started"
        self.vmm_stderr.write_error(error, thread.tgid)
        self._observer.on_refused(error)
        if thread.call is not None:
            thread.skip_call()
        thread.exit_group(ExitStatus.ENDED)

    def refuse_untraceable(
        self, listener: Listener, notification: Notification, tgid: int, *, has_run: bool
    ) -> None:
        """Refuse a vCPU to a thread that may not be traced, and end its VMM unless that has run.

        With best effort the vCPU is made without settings.
        """
        error = not_traceable(self._procs, notification.tid)
        error.subject = self._spec.name
        if self._spec.best_effort:
            error.now = "the vCPU is made without settings"
            self.vmm_stderr.write_error(error, tgid, word="warning")
            listener.allow(notification)
            return
        error.now = "no further vCPU was made" if has_run else "the VMM was ended"
        self.vmm_stderr.write_error(error, tgid)
        if not has_run:
            self._observer.on_refused(error)
            # before the denial: with that the VMM could exit by itself, not with status 137
            with suppress(ProcessLookupError):
                os.kill(tgid, signal.SIGKILL)
        listener.deny(notification)
