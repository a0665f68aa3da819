# SPDX-License-Identifier: Apache-2.0
"""The supervisor's process: started by `launch`, a fresh interpreter without site packages.

    python3 -I -S …/pmuctl/launch/__main__.py NAME FD

FD is a socket to the launcher. The process ends once no process is behind the gate any more.
"""

import gc
import sys

if __name__ == "__main__":
    gc.disable()  # looking for garbage in what is loaded is a tenth of the start, and finds 0.2 MB
    # it is run by its path with -I, so that nothing else is on the search path
    sys.path.insert(0, __file__.rpartition("/pmuctl/")[0])

import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial

from pmuctl.errors import PmuctlError
from pmuctl.host.procfs import Procfs
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.launch import handshake
from pmuctl.launch.event_loop import EventLoop
from pmuctl.launch.failures import may_trace_all, no_supervisor, not_traceable, yama_scope
from pmuctl.launch.ioctls import ioctl_of, steps
from pmuctl.launch.serve.control_service import ControlService
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.supervisor import Supervisor
from pmuctl.launch.trace.arch import native_arch
from pmuctl.launch.trace.seccomp_gate import Listener
from pmuctl.launch.vmm_stderr import VmmStderr
from pmuctl.uapi.ptrace import set_thread_name

IGNORED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGTSTP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""Signals that a service manager or terminal sends to a whole service or job. The supervisor ends
with the VMM, not before it."""


def main(fd: int) -> None:
    """Supervise the process that sends its launch spec over this socket."""
    ignore_signals()
    with ExitStack() as at_end:
        run: Callable[[], None] | None = None
        with take_launcher_socket(fd) as launcher, suppress(EOFError, ConnectionError):
            try:
                run = prepare(launcher, at_end)
            except PmuctlError as error:
                handshake.send_message(launcher, handshake.encode_error(error))
            except (OSError, ImportError) as error:
                handshake.send_message(launcher, handshake.encode_error(no_supervisor(error)))
        if run is not None:
            gc.freeze()  # these objects stay: no VMM is to wait while the GC walks them
            gc.enable()
            run()


def prepare(launcher: socket.socket, at_end: ExitStack) -> Callable[[], None] | None:
    """Prepare for the launcher's process, take over its gate, and return how to supervise it.

    Return None if it has put up no gate. Raise PmuctlError, OSError and ImportError, which the
    launcher is to be told, and EOFError if it is gone. `at_end` is closed at the end of all.
    """
    handshake.send_message(launcher, str(os.getpid()).encode())
    text, stderr = handshake.recv_message(launcher)
    vmm_stderr = VmmStderr(-1 if stderr is None else stderr)
    words = text.split(b"\n", 1)
    pid, spec = int(words[0]), LaunchSpec.decode(words[1])
    event_loop = EventLoop()
    procs = Procfs()
    must_stay = yama_scope(procs) == 1 and not may_trace_all(procs)
    service = ControlService(
        spec,
        pid,
        procs=procs,
        wake=event_loop.wake,
        warn=lambda error: vmm_stderr.write_error(error, service.pid, word="warning"),
    )
    supervisor = Supervisor(
        spec,
        [ioctl_of(step) for step in steps(spec)],
        service,
        vmm_stderr,
        native_arch(),
        pid=pid,
        procs=procs,
        threads=ThreadAffinity(),
        must_stay=must_stay,
    )
    try_to_trace(supervisor, pid, procs, stay=must_stay)
    vm_hold = supervisor.vm_hold
    service.open(vm_hold.set_attr, vm_hold.check_cpus, lambda: supervisor.tracer.stops)
    at_end.callback(service.on_vmm_exit)
    handshake.send_message(launcher, b"")
    _, listener = handshake.recv_message(launcher)
    if listener is None:
        return None
    handshake.send_message(launcher, b"")
    return partial(event_loop.run, supervisor, Listener(listener), service)


def ignore_signals() -> None:
    """Ignore the signals that end a whole service or a terminal's job."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a blocked SIGCHLD would wake nobody
    for signum in IGNORED:
        signal.signal(signum, signal.SIG_IGN)


def take_launcher_socket(fd: int) -> socket.socket:
    """Return the launcher's socket, set to close on exec: no other descriptor needs that."""
    os.set_inheritable(fd, False)  # noqa: FBT003 (positional only)
    return socket.socket(fileno=fd)


def try_to_trace(supervisor: Supervisor, pid: int, procs: Procfs, *, stay: bool) -> None:
    """Check that the launcher may be traced while it can still report it; DeniedError if not.

    With `stay` it is traced from here on: under Yama 1 its children could not be attached to
    later.
    """
    try:
        thread = supervisor.tracer.seize(pid, pid)
    except PermissionError:
        raise not_traceable(procs, pid) from None
    if not stay:
        supervisor.tracer.detach_all()
        while thread.tid in supervisor.tracer.threads:
            supervisor.tracer.take_stop()


if __name__ == "__main__":
    set_thread_name("pmuctl-run")
    main(int(sys.argv[2]))
