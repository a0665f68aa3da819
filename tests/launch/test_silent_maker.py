# SPDX-License-Identifier: Apache-2.0
"""The maker of a vCPU that makes no call for a while, where its VMM cannot be followed then."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pmuctl.errors import PmuctlError
from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import raise_if_exhausted
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.launch.observer import VmObserver
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.supervisor import Supervisor
from pmuctl.launch.trace.address_space import PendingVcpu
from pmuctl.launch.trace.arch import native_arch
from pmuctl.launch.vmm_stderr import VmmStderr
from tests.launch.native import end_sleeper, need, no_gate, start_sleeper


class Starved(Procfs):
    """The processes of this machine, for one that may not open the list of them."""

    def pids(self) -> list[int]:
        raise_if_exhausted(OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/proc"))
        return []


@pytest.fixture
def maker() -> Iterator[int]:
    need(no_gate())
    process = start_sleeper(60)
    try:
        yield process.pid
    finally:
        with suppress(ProcessLookupError):  # it was ended, and reaped by its tracer
            end_sleeper(process)
        process.wait()


@pytest.mark.parametrize("best_effort", [False, True])
def test_a_shortage_as_all_are_to_be_followed_ends_the_vmm_and_not_its_supervisor(
    maker: int, tmp_path: Path, *, best_effort: bool
) -> None:
    refused: list[PmuctlError] = []
    observer = SimpleNamespace(on_refused=refused.append, pid=maker)
    spec = LaunchSpec(name="vm", socket=tmp_path / "s", command=("qemu",), best_effort=best_effort)
    with open(tmp_path / "stderr", "w+", encoding="utf-8") as complaint:
        supervisor = Supervisor(
            spec,
            [],
            cast(VmObserver, observer),
            VmmStderr(os.dup(complaint.fileno())),
            native_arch(),
            pid=maker,
            procs=Starved(),
            threads=ThreadAffinity(),
        )
        supervisor.tracer.seize(maker, maker)
        supervisor.on_silent_maker(PendingVcpu(tgid=maker, tid=maker, vm_fd=9, fd=10, index=0))
        complaint.seek(0)
        told = complaint.read()
    word = "warning" if best_effort else "error"
    assert told.startswith(f"{word}: vm: the VMM cannot be followed\n"), told
    assert "(EMFILE)" in told
    assert [error.errno for error in refused] == ([] if best_effort else ["EMFILE"])
    assert Procfs().is_zombie(maker, maker) is not best_effort
    while maker in supervisor.tracer.threads and not best_effort:
        supervisor.tracer.take_stops()
    supervisor.tracer.detach_all()
    while supervisor.tracer.threads:
        supervisor.tracer.take_stops()
