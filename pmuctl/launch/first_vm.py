# SPDX-License-Identifier: Apache-2.0
"""The first KVM VM behind a gate: settings that reach none are reported, once."""

import time

from pmuctl.launch.failures import no_vm
from pmuctl.launch.observer import VmObserver
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.vmm_stderr import VmmStderr

AWAITED_SECONDS = 30.0
"""How long a command may go on without a VM before that is reported (seconds)."""
LEFT_BEHIND_SECONDS = 5.0
"""The same for what a command that has ended leaves behind, such as a daemon (seconds).

A pipe that was its standard error stays open that long.
"""


class FirstVm:
    """Whether a VM was made for the settings of a launch spec; without settings, none is awaited.

    The report goes to the VMM's standard error once, and to the observer each time it changes.
    """

    def __init__(
        self, spec: LaunchSpec, observer: VmObserver, vmm_stderr: VmmStderr, *, pid: int
    ) -> None:
        """Wait for the VM of process `pid`, which was started, or of its descendants."""
        self._is_awaited = spec.has_settings
        self._spec = spec
        self._observer = observer
        self._vmm_stderr = vmm_stderr
        self._why = f"it has gone on for {AWAITED_SECONDS:g} s without one"
        self._due = time.monotonic() + AWAITED_SECONDS
        self._is_written = False
        self._pid: int | None = pid

    @property
    def is_to_be_reported(self) -> bool:
        """Whether there is still something to write to the standard error."""
        return self._is_awaited and not self._is_written

    def on_made(self) -> None:
        """Take note that a vCPU is being made, so that there is a VM."""
        self._is_awaited = False

    def poll(self, now: float) -> float | None:
        """Report that there is no VM if that is due; return the seconds until it is, else None.

        `now` is time.monotonic().
        """
        if not self.is_to_be_reported:
            return None
        if now < self._due:
            return self._due - now
        self._report(is_final=True, may_come=True)
        return None

    def on_exit(self) -> None:
        """Report that the command has ended without a VM, to the observer: it may have left
        behind what makes one."""
        self._why, self._pid = "it ended without one", None
        self._due = min(self._due, time.monotonic() + LEFT_BEHIND_SECONDS)
        self._report(is_final=False)

    def on_gate_closed(self) -> None:
        """Report that there was no VM: no process is left that could make one."""
        self._why, self._pid = "it ended without one", None
        self._report(is_final=True)

    def _report(self, *, is_final: bool, may_come: bool = False) -> None:
        """Tell the observer; if `is_final`, write the warning, too, unless it is written."""
        if not self._is_awaited:
            return
        error = no_vm(self._spec.command, self._why, may_come=may_come)
        error.subject = self._spec.name
        self._observer.on_no_vm(error)
        if is_final and not self._is_written:
            self._is_written = True
            self._vmm_stderr.write_error(error, self._pid, word="warning")
            self._vmm_stderr.close()
