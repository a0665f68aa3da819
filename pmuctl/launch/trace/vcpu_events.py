# SPDX-License-Identifier: Apache-2.0
"""What the tracker of vCPUs reports to whoever sets them up."""

from collections.abc import Collection
from typing import Protocol

from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.launch.trace.address_space import PendingVcpu
from pmuctl.launch.trace.tracee import StuckError, Tracee


class VcpuEvents(Protocol):
    """What is done as a vCPU gets to its window, while its thread is stopped.

    It is stopped at the exit of a call, where calls can be made in it, if a vCPU was created, is
    closed, or its window is open; at the entry of a call for `on_sharing_call`,
    `on_attribute_call` and `on_run_unheld`; at either for `on_no_vpmu` and `on_lost`.
    """

    def on_created(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """Handle a vCPU that was made, before its thread goes on."""

    def on_init(self, tgid: int, tid: int | None) -> None:
        """Handle that this thread initialises a vCPU with a vPMU; called before and after.

        KVM may choose the VM's PMU by where the thread is. `tid` is None for what was not
        observed, and for a vCPU that asks for no choice (KVM_ARM_VCPU_PMU_V3_STRICT).
        """

    def on_window_open(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """Handle that a vCPU's window is open."""

    def on_reset(self, thread: Tracee, fd: int) -> None:
        """Handle that a vCPU was initialised again, while another waits for its window."""

    def on_closing(self, thread: Tracee, vcpu: PendingVcpu) -> bool:
        """Seal a vCPU never initialised, whose last descriptor that can be seen is to be closed.

        The thread is stopped at a call's exit. Return False if that failed: whoever kept another
        descriptor could run the vCPU without its settings.
        """

    def on_no_vpmu(self, thread: Tracee, vcpu: PendingVcpu) -> None:
        """Handle a vCPU that was made to run without a vPMU: there will be no window."""

    def follows_all(self, tgids: Collection[int]) -> bool:
        """Return whether all threads of these processes are followed."""

    def on_sharing_call(self, thread: Tracee) -> None:
        """Handle the entry of a call by which other tasks could learn of a new vCPU.

        From here on all that could have to be followed.
        """

    def on_silent_maker(self, vcpu: PendingVcpu) -> None:
        """Handle that the maker of a vCPU has made no call for ALONE_SECONDS, and may run.

        From here on all tasks with its memory have to be followed.
        """

    def on_attribute_call(self, thread: Tracee, fd: int) -> None:
        """Handle the entry of a call for an attribute: one of a vCPU's PMU if `fd` is a vCPU."""

    def on_run_unheld(self, thread: Tracee) -> None:
        """Handle the entry of a KVM_RUN before any call for an attribute of a PMU was seen.

        Another thread may have changed what such a call was for, after it was looked at.
        """

    def on_lost(self, thread: Tracee, error: ResourceExhaustedError | StuckError | None) -> None:
        """Handle that a vCPU could not be followed, for want of descriptors or memory.

        Or because a question to KVM is not answered. Without an error, another task has moved its
        descriptor before all were followed.
        """

    def on_idle(self) -> None:
        """Handle that no vCPU waits for its window any more."""
