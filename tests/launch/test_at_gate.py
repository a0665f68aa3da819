# SPDX-License-Identifier: Apache-2.0
"""A thread at the gate while its supervisor may open nothing; the gate is scripted."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pmuctl.errors import PmuctlError, RefusedError
from pmuctl.host.procfs import Procfs
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.launch.apply import Applier
from pmuctl.launch.observer import VmObserver
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.supervisor import Supervisor
from pmuctl.launch.trace.arch import native_arch
from pmuctl.launch.trace.seccomp_gate import Listener, Notification
from pmuctl.launch.trace.tracee import Tracee
from pmuctl.launch.trace.tracer import Tracer
from pmuctl.launch.vmm_stderr import VmmStderr
from tests.fakes.peers import PATIENCE
from tests.fakes.shortage import no_descriptors
from tests.launch.native import end_sleeper, need, no_gate, read_vmm_processes, start_sleeper
from tests.launch.scripted import NoEvents


class FakeListener:
    """A gate at which a thread waits, for as long as the test says."""

    def __init__(self, *, valid: bool = True) -> None:
        self.valid = valid
        self.answers: list[str] = []

    def is_valid(self, notification: Notification) -> bool:
        return self.valid

    def allow(self, notification: Notification) -> None:
        self.answers.append("allow")

    def deny(self, notification: Notification) -> None:
        self.answers.append("deny")


def make_supervisor(
    pid: int, refused: list[PmuctlError], *, best_effort: bool = False
) -> Supervisor:
    story = cast(
        VmObserver, SimpleNamespace(on_refused=refused.append, make_pending_calls=lambda: None)
    )
    spec = LaunchSpec(
        name="vm", socket=Path("/nonexistent"), command=("sleep",), best_effort=best_effort
    )
    return Supervisor(
        spec,
        (),
        story,
        VmmStderr(-1),
        native_arch(),
        pid=pid,
        procs=Procfs(),
        threads=ThreadAffinity(),
    )


class EndingThread(Tracee):
    """A thread that is told to end its process: that ends while `other` fails, too."""

    def __init__(self, vmm: subprocess.Popen[bytes], other: Tracee) -> None:
        super().__init__(vmm.pid, vmm.pid, native_arch())
        self.ended = 0
        self._vmm = vmm
        self._other = other

    def exit_group(self, status: int) -> None:
        self.ended += 1
        self.applier.fail(self._other, RefusedError("the other"))
        self._vmm.kill()

    applier: Applier


@pytest.mark.parametrize("best_effort", [False, True])
def test_one_error_is_written_where_two_threads_fail(*, best_effort: bool) -> None:
    refused: list[PmuctlError] = []
    read, write = os.pipe()
    spec = LaunchSpec(
        name="vm", socket=Path("/nonexistent"), command=("sleep",), best_effort=best_effort
    )
    story = cast(VmObserver, SimpleNamespace(on_refused=refused.append))
    tracer = Tracer(native_arch(), Procfs())
    applier = Applier(spec, story, VmmStderr(write), read_vmm_processes(tracer))
    error = RefusedError("the one")
    with subprocess.Popen(("sleep", str(PATIENCE))) as vmm:
        other = Tracee(vmm.pid + 1, vmm.pid, native_arch())
        thread = EndingThread(vmm, other)
        thread.applier, tracer.threads[vmm.pid] = applier, thread
        applier.fail(thread, error, is_final=True)
    os.close(write)
    with open(read, encoding="utf-8") as complaint:
        assert complaint.read() == "error: vm: the one\n  now: the VM was not started\n"
    assert (thread.ended, refused) == (1, [error])
    assert other.is_ending
    assert other.parked  # it makes no call any more


@pytest.mark.parametrize("tid", [0, 1 << 22])
@pytest.mark.parametrize("best_effort", [False, True])
def test_a_thread_that_is_not_in_proc_gets_an_answer(tid: int, *, best_effort: bool) -> None:
    """It is in another pid namespace, or hidden: nobody can follow it, and it waits."""
    refused: list[PmuctlError] = []
    with subprocess.Popen(("sleep", str(PATIENCE / 2)), stderr=subprocess.PIPE) as vmm:
        its = make_supervisor(vmm.pid, refused, best_effort=best_effort)
        listener = FakeListener()
        its.on_notification(cast(Listener, listener), Notification(1, tid))
        vmm.kill()
        assert vmm.stderr is not None
        complaint = vmm.stderr.read().decode()
    assert listener.answers == ["allow" if best_effort else "deny"]
    assert len(refused) == (not best_effort)
    word = "warning" if best_effort else "error"
    assert complaint.startswith(f"{word}: vm: the VMM may not be traced\n")
    assert "a thread that makes a vCPU is not in /proc" in complaint


def test_a_thread_that_waits_no_more_gets_none() -> None:
    refused: list[PmuctlError] = []
    listener = FakeListener(valid=False)
    its = make_supervisor(os.getpid(), refused)
    its.on_notification(cast(Listener, listener), Notification(1, 1 << 22))
    its.on_notification(cast(Listener, listener), Notification(1, os.getpid()))
    assert (listener.answers, refused) == ([], [])
    assert not its.tracer.threads


def test_a_thread_that_took_over_an_id_is_let_go() -> None:
    """The one that waited is gone, and its id another's by the time it is traced."""
    need(no_gate())
    stranger = start_sleeper(PATIENCE)
    try:
        tracer = Tracer(native_arch(), Procfs())
        tracer.syscall_events = NoEvents()
        assert not tracer.follow(stranger.pid, stranger.pid, lambda: False)
        while tracer.threads:
            tracer.take_stop(stranger.pid)
        assert Procfs().tracer(stranger.pid) == 0
        assert stranger.poll() is None
    finally:
        end_sleeper(stranger)


def test_a_thread_that_could_not_be_told_is_ended_though_that_has_passed() -> None:
    need(no_gate())
    refused: list[PmuctlError] = []
    with subprocess.Popen(("sleep", str(PATIENCE / 2)), stderr=subprocess.PIPE) as vmm:
        its = make_supervisor(vmm.pid, refused)
        try:
            with no_descriptors():
                its.on_notification(cast(Listener, FakeListener()), Notification(1, vmm.pid))
            while not refused and its.tracer.take_stop(vmm.pid):
                pass
        finally:
            vmm.kill()
            while its.tracer.take_stop(vmm.pid):
                pass
        assert vmm.stderr is not None
        complaint = vmm.stderr.read().decode()
    assert [error.errno for error in refused] == ["EMFILE"]
    assert complaint.startswith("error: vm: the VMM cannot be followed\n")
