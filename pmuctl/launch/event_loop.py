# SPDX-License-Identifier: Apache-2.0
"""The supervisor's loop: it sleeps until the gate, a traced thread, a client or a clock calls."""

import os
import select
import signal
from contextlib import suppress
from typing import Protocol

from pmuctl.host.resource_errors import shortage_of
from pmuctl.launch.supervisor import Supervisor
from pmuctl.launch.trace.seccomp_gate import Listener


class Watched(Protocol):
    """What tells which process is the VMM, and wants to know of its end."""

    @property
    def pid(self) -> int:
        """The process that makes VMs."""

    def ended(self) -> None:
        """It is gone."""

    def rest(self) -> None:
        """None of its threads is stopped."""


class EventLoop:
    """One loop, of the thread that made this: only that thread may trace."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # without a handler of Python's nothing is written for a signal
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._pid = 0
        self._pidfd = -1

    def wake(self) -> None:
        """Have a turn soon; may be called from any thread."""
        with suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._write, b"\0")

    def over(self, supervisor: Supervisor, listener: Listener, vmm: Watched) -> None:
        """Give all their turns until nobody stands behind the gate any more."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        poll.register(listener.fd, select.POLLIN)
        stands = True
        while True:
            left = supervisor.turn()
            # nothing would wake it any more where the last thread ended in that turn
            if not stands and not supervisor.tracer.threads:
                return
            if not supervisor.is_busy:
                vmm.rest()
            self._watch_end(poll, vmm)
            ready = dict(poll.poll(None if left is None else left * 1000))
            if self._read in ready:
                os.read(self._read, 4096)
            if self._pidfd in ready:
                poll.unregister(self._pidfd)
                os.close(self._pidfd)
                self._pidfd = -1
                supervisor.close_stderr()
                vmm.ended()
            if listener.fd in ready:
                try:
                    waiting = listener.take()
                except EOFError:
                    poll.unregister(listener.fd)
                    stands = False
                    continue
                if waiting is not None:
                    supervisor.at_gate(listener, waiting)

    def _watch_end(self, poll: select.poll, vmm: Watched) -> None:
        pid = vmm.pid
        if pid == self._pid:
            return
        self._pid = pid
        if self._pidfd >= 0:
            poll.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            vmm.ended()
        except OSError as error:
            if shortage_of(error) is None:
                raise
            self._pid = 0  # later; till then its end is seen at the gate
        else:
            poll.register(self._pidfd, select.POLLIN)
