# SPDX-License-Identifier: Apache-2.0
"""The supervisor's event loop: it sleeps until a seccomp notification, a traced thread, a client
or a timeout needs it."""

import os
import select
import signal
from contextlib import suppress

from pmuctl.host.resource_errors import find_exhaustion
from pmuctl.launch.observer import VmObserver
from pmuctl.launch.supervisor import Supervisor
from pmuctl.launch.trace.seccomp_gate import Listener


class EventLoop:
    """The one loop of the thread that made it: only that thread may trace."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # without a handler set by Python nothing is written to the wakeup fd for a signal
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._pid = 0
        self._pidfd = -1

    def wake(self) -> None:
        """Make the loop take a turn soon; may be called from any thread."""
        with suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._write, b"\0")

    def run(self, supervisor: Supervisor, listener: Listener, observer: VmObserver) -> None:
        """Run until no process is behind the gate any more."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        poll.register(listener.fd, select.POLLIN)
        has_processes = True
        while True:
            seconds = supervisor.turn()
            # nothing would wake the loop any more if the last thread ended in that turn
            if not has_processes and not supervisor.tracer.threads:
                return
            if not supervisor.is_busy:
                observer.flush()
            self._watch_vmm_exit(poll, supervisor, observer)
            ready = dict(poll.poll(None if seconds is None else seconds * 1000))
            if self._read in ready:
                os.read(self._read, 4096)
            if self._pidfd in ready:
                poll.unregister(self._pidfd)
                os.close(self._pidfd)
                self._pidfd = -1
                supervisor.on_process_exit()
                observer.on_vmm_exit()
            if listener.fd in ready:
                try:
                    notification = listener.receive()
                except EOFError:
                    poll.unregister(listener.fd)
                    has_processes = False
                    supervisor.on_gate_closed()
                    continue
                if notification is not None:
                    supervisor.on_notification(listener, notification)

    def _watch_vmm_exit(
        self, poll: select.poll, supervisor: Supervisor, observer: VmObserver
    ) -> None:
        """Poll a pidfd of the process that makes VMs now, in place of the one before."""
        pid = observer.pid
        if pid == self._pid:
            return
        self._pid = pid
        if self._pidfd >= 0:
            poll.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:  # its parent was quicker than this look
            supervisor.on_process_exit()
            observer.on_vmm_exit()
        except OSError as error:
            if find_exhaustion(error) is None:
                raise
            self._pid = 0  # retried in the next turn; until then the gate shows its end
        else:
            poll.register(self._pidfd, select.POLLIN)
