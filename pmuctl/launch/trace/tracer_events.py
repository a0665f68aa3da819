# SPDX-License-Identifier: Apache-2.0
"""What the tracer reports to whoever follows a VMM."""

from typing import Protocol

from pmuctl.launch.trace.tracee import Tracee


class SyscallEvents(Protocol):
    """What the tracer reports of system calls and processes, each time with the thread stopped.

    The receiver may park the thread, or have the tracer detach it; else it goes on afterwards.
    """

    def on_enter(self, thread: Tracee, nr: int, args: tuple[int, ...]) -> None:
        """Handle the entry of a system call."""

    def on_exit(self, thread: Tracee, nr: int, args: tuple[int, ...], result: int) -> None:
        """Handle the exit of a system call; `result` is -errno for an error."""

    def on_new_process(self, tgid: int) -> bool:
        """Return whether to follow a process that a traced one has made."""

    def on_gone(self, tgid: int) -> None:
        """Handle that no thread of this process is traced any more, or that it called execve()."""


class SignalEvents(Protocol):
    """What the tracer reports of signals, each time with the thread stopped."""

    def on_group_stop(self, thread: Tracee) -> None:
        """Handle that job control stops the thread's process."""

    def on_signal(self, thread: Tracee, signum: int) -> int:
        """Return the signal to deliver to the thread in place of this one, 0 for none."""
