# SPDX-License-Identifier: Apache-2.0
"""A call that is put into a VMM and does not return: its supervisor does not wait with it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pmuctl.errors import PmuctlError
from pmuctl.host.procfs import Procfs
from pmuctl.launch.apply import Applier
from pmuctl.launch.failures import memory_not_writable
from pmuctl.launch.ioctls import IoctlCall
from pmuctl.launch.observer import VmObserver
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.trace.arch import native_arch
from pmuctl.launch.trace.tracee import StuckError, Tracee
from pmuctl.launch.trace.tracer import Tracer
from pmuctl.launch.vmm_stderr import VmmStderr
from pmuctl.uapi.seccomp import SECCOMP_IOCTL_NOTIF_RECV
from tests.fakes.peers import PATIENCE
from tests.launch.native import HERE, need, no_gate, read_vmm_processes
from tests.launch.scripted import NoEvents

WAITING = f"""
import sys, time
sys.path.insert(0, {str(HERE.parents[1])!r})
from pmuctl.launch.trace.arch import native_arch
from pmuctl.launch.trace.seccomp_gate import install
print(install(native_arch()), flush=True)
while True:
    time.sleep(0.01)
"""
"""A process with a descriptor on which one ioctl waits for something that never happens."""


@pytest.fixture
def vmm() -> Iterator["subprocess.Popen[str]"]:
    need(no_gate())
    with subprocess.Popen(
        (sys.executable, "-c", WAITING), stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


class AtExit(NoEvents):
    """Puts the call into the first thread that returns from one of its own."""

    def __init__(self, fd: int, applier: Applier) -> None:
        self._fd = fd
        self._applier = applier
        self.raised: StuckError | None = None

    def on_exit(self, *args: object) -> None:
        thread = cast(Tracee, args[0])
        try:
            thread.ioctl(self._fd, SECCOMP_IOCTL_NOTIF_RECV, bytes(80))
        except StuckError as error:
            self.raised = error
            self._applier.fail(thread, memory_not_writable(error))


class AtReset(AtExit):
    """Does so as at the reset of a vCPU, where a refusal by KVM is none."""

    def on_exit(self, *args: object) -> None:
        thread = cast(Tracee, args[0])
        call = IoctlCall(
            description="", request=SECCOMP_IOCTL_NOTIF_RECV, argument=bytes(80), pointer=None
        )
        self._applier.try_apply(thread, self._fd, [call])
        self.raised = StuckError(thread.tid)


@pytest.mark.parametrize("at", [AtExit, AtReset])
@pytest.mark.parametrize("best_effort", [False, True])
def test_a_vmm_with_a_call_that_does_not_return_is_ended_and_told_so(
    vmm: "subprocess.Popen[str]", tmp_path: Path, at: type[AtExit], *, best_effort: bool
) -> None:
    assert vmm.stdout is not None
    fd = int(vmm.stdout.readline())
    refused: list[PmuctlError] = []
    story = cast(VmObserver, SimpleNamespace(on_refused=refused.append))
    spec = LaunchSpec(
        name="vm", socket=tmp_path / "s", command=("sleep",), best_effort=best_effort
    )
    tracer = Tracer(native_arch(), Procfs(), patience=0.2)
    with open(tmp_path / "stderr", "w+", encoding="utf-8") as complaint:
        stderr = VmmStderr(os.dup(complaint.fileno()))
        applier = Applier(spec, story, stderr, read_vmm_processes(tracer))
        events = at(fd, applier)
        tracer.syscall_events = events
        tracer.signal_events = NoSignals()
        tracer.follow_all(vmm.pid)
        until = time.monotonic() + PATIENCE
        while events.raised is None and time.monotonic() < until:
            tracer.take_stops()
        complaint.seek(0)
        told = complaint.read()
    assert not Path(f"/proc/{vmm.pid}").exists()
    assert told.startswith("error: vm: no call can be put into the VMM\n"), told
    assert "  now: the VMM was ended; its guest may have run for a moment\n" in told
    assert [error.errno for error in refused] == ["EIO"]


class NoSignals:
    """Nobody, to whom signals are reported."""

    def on_group_stop(self, thread: Tracee) -> None: ...

    def on_signal(self, thread: Tracee, signum: int) -> int:
        return signum
