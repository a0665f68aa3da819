# SPDX-License-Identifier: Apache-2.0
"""A thread at the gate while its supervisor may open nothing; the gate is scripted."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from pmuctl.errors import PmuctlError
from pmuctl.host.procfs import Procfs
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.launch.observer import VmObserver
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.supervisor import Supervisor
from pmuctl.launch.trace.arch import native_arch
from pmuctl.launch.trace.seccomp_gate import Listener, Notification
from pmuctl.launch.vmm_stderr import VmmStderr
from tests.fakes.peers import PATIENCE
from tests.fakes.shortage import no_descriptors
from tests.launch.native import need, no_gate


def test_a_thread_that_could_not_be_told_is_ended_though_that_has_passed() -> None:
    need(no_gate())
    refused: list[PmuctlError] = []
    story = cast(
        VmObserver, SimpleNamespace(on_refused=refused.append, make_pending_calls=lambda: None)
    )
    with subprocess.Popen(("sleep", str(PATIENCE / 2)), stderr=subprocess.PIPE) as vmm:
        its = Supervisor(
            LaunchSpec(name="vm", socket=Path("/nonexistent"), command=("sleep",)),
            (),
            story,
            VmmStderr(-1),
            native_arch(),
            pid=vmm.pid,
            procs=Procfs(),
            threads=ThreadAffinity(),
        )
        try:
            with no_descriptors():
                its.on_notification(cast(Listener, None), Notification(1, vmm.pid))
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
