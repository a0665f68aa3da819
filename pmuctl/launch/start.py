# SPDX-License-Identifier: Apache-2.0
"""How a supervisor begins: what it must outlive, its launcher, and whether it may trace it."""

import os
import signal
import socket

from pmuctl.host.procfs import Procfs
from pmuctl.launch.obstacles import not_traceable
from pmuctl.launch.supervisor import Supervisor

IGNORED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGTSTP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""A service manager sends them to all of a service; this leaves with the VMM, not before."""


def ignore_signals() -> None:
    """Outlive what ends all of a service or a terminal's job."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a blocked SIGCHLD would never wake this
    for its in IGNORED:
        signal.signal(its, signal.SIG_IGN)


def own_socket(fd: int) -> socket.socket:
    """The launcher's socket, and the only descriptor that is not to be inherited further."""
    os.set_inheritable(fd, False)  # noqa: FBT003 (positional only)
    return socket.socket(fileno=fd)


def try_to_trace(supervisor: Supervisor, pid: int, procs: Procfs, *, stay: bool) -> None:
    """See whether the launcher may be traced, while it still can say so; DeniedError if not.

    With `stay` it is traced from here on, for under Yama 1 its children are not to be had later.
    """
    try:
        thread = supervisor.tracer.seize(pid, pid)
    except PermissionError:
        raise not_traceable(procs, pid) from None
    if not stay:
        supervisor.tracer.let_go()
        while thread.tid in supervisor.tracer.threads:
            supervisor.tracer.take_stop()
