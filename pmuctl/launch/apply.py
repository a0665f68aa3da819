# SPDX-License-Identifier: Apache-2.0
"""Making the calls in a stopped thread, and what becomes of a VMM in which that fails."""

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
    """Fails closed: a VM that could not be set up does not start, but with the best effort."""

    def __init__(
        self, spec: LaunchSpec, observer: VmObserver, vmm_stderr: VmmStderr, procs: Procfs
    ) -> None:
        self.vmm_stderr = vmm_stderr
        self._spec = spec
        self._observer = observer
        self._procs = procs

    def apply(self, thread: Tracee, fd: int, ioctls: Sequence[IoctlCall]) -> list[str]:
        """Make the calls on a descriptor; their words. Raises PmuctlError at the first refusal."""
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
        """Tell an error, and end the VMM for it unless it was to be started all the same."""
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
        """A thread that may not be traced makes no vCPU; nor does its VMM start, if it has not."""
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
            # first: with its call denied it could end by itself, and its status is to be 137
            with suppress(ProcessLookupError):
                os.kill(tgid, signal.SIGKILL)
        listener.deny(notification)
