# SPDX-License-Identifier: Apache-2.0
"""A supervisor for the engine's tests: the real rules and loop, a story that is a log.

Started by `pmuctl.launch.launcher.launch` as the real one is. What happens goes to the file that
the orders have as their socket, a JSON object a line. At each window it sets an event filter,
which x86-64 has for a VM: allow one event, none of whose counting matters here. Orders whose name
begins with "wrong" get a filter that KVM refuses, "many" get it very many times. A held VM is
released by a file `….release`; one that is "interrupted" gets a SIGINT in the midst of a look
at it.
"""

import json
import os
import signal
import struct
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pmuctl.control.server.backend import VcpuStatus
from pmuctl.errors import PmuctlError
from pmuctl.host.procfs import Procfs
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.launch import handshake
from pmuctl.launch.__main__ import ignore_signals, take_launcher_socket, try_to_trace
from pmuctl.launch.event_loop import EventLoop
from pmuctl.launch.ioctls import IoctlCall
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.supervisor import Supervisor
from pmuctl.launch.trace.arch import native_arch
from pmuctl.launch.trace.seccomp_gate import Listener
from pmuctl.launch.vmm_stderr import VmmStderr
from pmuctl.model.cpuset import CpuSet
from pmuctl.uapi.ioctl import _IOC, _IOC_WRITE
from pmuctl.uapi.kvm import KVMIO

MANY = 2000
"""Calls, as for a filter of so many ranges: they take a time that signals can fall into."""
KVM_SET_PMU_EVENT_FILTER = _IOC(_IOC_WRITE, KVMIO, 0xB2, 32)


def filter_call(action: int) -> IoctlCall:
    """Struct kvm_pmu_event_filter of x86: action, nevents, fixed bitmap, flags, pad, events."""
    return IoctlCall(
        description="KVM_SET_PMU_EVENT_FILTER",
        request=KVM_SET_PMU_EVENT_FILTER,
        argument=struct.pack("<IIIIIIIIQ", action, 1, 0, 0, 0, 0, 0, 0, 0xC0),
    )


class Log:
    """A story as lines of a file."""

    def __init__(self, orders: LaunchSpec, pid: int) -> None:
        self.pid = pid
        self._path = orders.socket
        # open from the start: it is also told of a supervisor that may open nothing any more
        self._file = open(self._path, "a", buffering=1)
        self._orders = orders
        self._is_to_interrupt = False
        self.tell("ready", supervisor=os.getpid())

    def tell(self, what: str, **more: object) -> None:
        self._file.write(json.dumps({"what": what} | more) + "\n")

    def on_process(self, pid: int) -> None:
        self.pid = pid
        self.tell("began", pid=pid)

    def on_vcpus(self, vcpus: Sequence[VcpuStatus]) -> None:
        self.tell("has", vcpus=[[its.index, its.tid, its.has_run] for its in vcpus])

    def pmu_cpus(self) -> CpuSet | None:
        return None

    def recorded_cpus(self, pid: int) -> Mapping[int, CpuSet]:
        return {}

    def on_vpmu(self, *, has_vpmu: bool) -> None:
        if not has_vpmu:
            self.tell("without vpmu")

    def on_default_pmu(self, pmu: tuple[int, str] | None) -> None:
        self.tell("chose", pmu=pmu)

    def on_applied(self, descriptions: Sequence[str]) -> None:
        self.tell("applied", words=list(descriptions))

    def on_refused(self, error: PmuctlError) -> None:
        self.tell("refused", message=error.message, why=error.why)

    def on_no_vm(self, error: PmuctlError) -> None:
        self.tell("no vm", why=error.why)

    def on_held(self, descriptions: Sequence[str]) -> None:
        self.tell("applied", words=list(descriptions))
        self.tell("held")
        self._is_to_interrupt = self._orders.name.startswith("interrupted")

    def make_pending_calls(self) -> None:
        pass

    def released_spec(self) -> LaunchSpec | None:
        if self._is_to_interrupt:
            self._is_to_interrupt = False
            os.kill(self.pid, signal.SIGINT)
        return self._orders if self._path.with_suffix(".release").exists() else None

    def on_vmm_exit(self) -> None:
        self.tell("ended")

    def flush(self) -> None:
        pass


def main(fd: int) -> None:
    ignore_signals()
    with take_launcher_socket(fd) as launcher:
        handshake.send_message(launcher, str(os.getpid()).encode())
        text, stderr = handshake.recv_message(launcher)
        pid, orders = text.split(b"\n", 1)
        its, watch = LaunchSpec.decode(orders), EventLoop()
        calls = [filter_call(7 if its.name.startswith("wrong") else 0)]
        calls *= MANY if its.name.startswith("many") else 1
        log = Log(its, int(pid))
        supervisor = Supervisor(
            its,
            calls,
            log,
            VmmStderr(-1 if stderr is None else stderr),
            native_arch(),
            pid=int(pid),
            procs=Procfs(),
            threads=ThreadAffinity(),
            fd_of=lambda vcpu: vcpu.vm_fd,
        )
        try:
            try_to_trace(supervisor, int(pid), Procfs(), stay=False)
        except PmuctlError as error:
            handshake.send_message(launcher, handshake.encode_error(error))
            return
        handshake.send_message(launcher, b"")
        _, listener = handshake.recv_message(launcher)
        assert listener is not None
        handshake.send_message(launcher, b"")
        launcher.close()
        try:
            watch.run(supervisor, Listener(listener), log)
        except BaseException:
            log.tell("failed", traceback=traceback.format_exc())
            raise
        finally:
            log.on_vmm_exit()
        log.tell("left", stops=supervisor.tracer.stops)


if __name__ == "__main__":
    main(int(sys.argv[2]))
