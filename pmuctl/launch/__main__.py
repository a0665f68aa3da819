# SPDX-License-Identifier: Apache-2.0
"""The supervisor's process: started by `launch`, a fresh interpreter without site packages.

    python3 -I -S …/pmuctl/launch/__main__.py NAME FD

FD is a socket to the launcher. It ends when nobody stands behind the gate any more.
"""

import sys

if __name__ == "__main__":
    # run by its path, for the interpreter to look nowhere else
    sys.path.insert(0, __file__.rpartition("/pmuctl/")[0])

import gc
import os
import socket
from contextlib import suppress

from pmuctl.errors import PmuctlError
from pmuctl.host.procfs import Procfs
from pmuctl.host.thread_affinity import Threads
from pmuctl.launch import parcel
from pmuctl.launch.calls import call_of, steps
from pmuctl.launch.gate import Listener
from pmuctl.launch.machine import this_machine
from pmuctl.launch.obstacles import may_trace_all, yama_scope
from pmuctl.launch.orders import Orders
from pmuctl.launch.service import Service
from pmuctl.launch.start import ignore_signals, own_socket, try_to_trace
from pmuctl.launch.supervisor import Supervisor
from pmuctl.launch.voice import Voice
from pmuctl.launch.watch import Watch
from pmuctl.uapi.ptrace import set_thread_name


def main(fd: int) -> None:
    """Supervise whoever sends the orders over this socket."""
    ignore_signals()
    with own_socket(fd) as launcher, suppress(EOFError, ConnectionError):
        parcel.send(launcher, str(os.getpid()).encode())
        text, stderr = parcel.receive(launcher)
        supervise(launcher, *text.split(b"\n", 1), voice=Voice(-1 if stderr is None else stderr))


def supervise(launcher: socket.socket, pid: bytes, orders: bytes, *, voice: Voice) -> None:
    """Be ready for the process `pid`, take over its gate, and stay for as long as it stands."""
    watch = Watch()
    its = Orders.decode(orders)
    procs = Procfs()
    must_stay = yama_scope(procs) == 1 and not may_trace_all(procs)
    try:
        service = Service(its, int(pid), procs=procs, wake=watch.wake)
        supervisor = Supervisor(
            its,
            [call_of(step) for step in steps(its)],
            service,
            voice,
            this_machine(),
            pid=int(pid),
            procs=procs,
            threads=Threads(),
            must_stay=must_stay,
        )
        try_to_trace(supervisor, int(pid), procs, stay=must_stay)
        keeper = supervisor.keeper
        service.open(keeper.set_attr, keeper.check_cpus, lambda: supervisor.tracer.stops)
    except PmuctlError as error:
        parcel.send(launcher, parcel.error_text(error))
        return
    try:
        parcel.send(launcher, b"")
        _, listener = parcel.receive(launcher)
        if listener is not None:
            parcel.send(launcher, b"")
            launcher.close()
            gc.freeze()  # what is here stays: no VMM is to wait for a look at all of it
            watch.over(supervisor, Listener(listener), service)
    finally:
        service.ended()


if __name__ == "__main__":
    set_thread_name("pmuctl-run")
    main(int(sys.argv[2]))
