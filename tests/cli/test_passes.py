# SPDX-License-Identifier: Apache-2.0
"""How often a command looks: once at all processes, and once at each VM."""

import io
import os

import pytest

from pmuctl.cli.main import main
from pmuctl.host.procfs import Procfs
from pmuctl.value import field, value
from tests.cli.conftest import Machine
from tests.fakes.vmm import FakeVm, fake_vmm

A72 = "armv8_cortex_a72"
QEMU = "qemu-system-aarch64"


@value
class CountingProcfs(Procfs):
    """One that is told of each pass."""

    passes: list[str] = field(default_factory=list)

    def pids(self) -> list[int]:
        self.passes.append("pass")
        return super().pids()


@pytest.mark.parametrize(
    "line",
    [
        "vm list",
        "vm list web1 db1",
        "vm list web1 nothing",
        "vm show web1",
        "vm show db1",
        "vm show nothing",
        "vm show pid/5120",
        "vm show pid/1",
        "vm vcpus",
        f"vm set web1 pmu {A72}",
        f"vm set pid/SELF pmu {A72}",
        "vm set db1 affinity auto",
        "vm wait db1 --for aligned --timeout 0",
        "affinity set db1 0",
        "affinity align web1 db1 pid/5120 nothing -k",
        "affinity align --all",
        "affinity check",
        "affinity check web1 db1 pid/1 nothing -k",
        "doctor",
        "doctor db1",
        "monitor --timeout 0",
    ],
)
def test_processes_are_passed_once(machine: Machine, line: str) -> None:
    machine.start(FakeVm())
    fake_vmm(machine.proc, 5120, [QEMU, "-name", "db1"])
    # rivals of the name, one of which may be the VM with the socket
    fake_vmm(machine.proc, 6000, [QEMU, "-name", "web1"], uid=1234)
    procs = CountingProcfs(machine.proc)
    env = machine.env(io.StringIO(), io.StringIO(), procs=procs)
    main(line.replace("SELF", str(os.getpid())).split(), env)
    looks = 2 if line.startswith("monitor") else 1  # at its begin and at its end
    assert len(procs.passes) == looks


def test_each_vm_is_asked_once(machine: Machine) -> None:
    machine.start(FakeVm())
    fake_vmm(machine.proc, 5120, [QEMU, "-name", "db1"])
    for words in ("affinity align pid/1 pid/2 db1 -k", "affinity check web1 pid/1 pid/2 -k"):
        ran = machine.run(*words.split(), "-v")
        assert ran.stderr.count("web1 <- query-pmu") == 1, ran
