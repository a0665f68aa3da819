# SPDX-License-Identifier: Apache-2.0
"""A helper that a VMM has forked has its descriptors and not its VM: it is no VM beside that."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from pmuctl.host.host import Host
from pmuctl.host.procfs import Procfs
from pmuctl.manage.inventory.processes import scan_processes, vms_of_processes
from pmuctl.manage.inventory.session import NOBODY, Session
from pmuctl.model.vm import VmState
from tests.cli.conftest import CAPTURED, Machine
from tests.cli.processes import QEMU, debugfs, listed, with_vmm
from tests.fakes.vmm import FakeVm
from tests.launch.native import need, no_kvm, vmm, wait_for

VMM, HELPER = 6000, 6100


def with_helper(machine: Machine, *, parent: int = VMM, of: int = VMM, ran: int = 0) -> None:
    """A process that has inherited the descriptors of a VMM, all with the same numbers."""
    with_vmm(machine, HELPER, QEMU, "-name", "db1", ran=ran)
    status = machine.proc / str(HELPER) / "status"
    status.write_text(status.read_text().replace("PPid:\t1\n", f"PPid:\t{parent}\n"))
    machine.inherited[HELPER] = of


def pids(machine: Machine) -> list[int]:
    return [its["pid"] for its in listed(machine)]


@pytest.fixture
def host(machine: Machine) -> Machine:
    """A host with a VM that runs."""
    return with_vmm(machine, VMM, QEMU, "-name", "db1")


def test_a_helper_of_a_vm_that_runs_is_no_vm(host: Machine) -> None:
    with_helper(host)
    assert pids(host) == [VMM]
    assert host.run("vm", "show", "db1").status == 0
    assert host.run("vm", "show", f"pid/{HELPER}").status == 4


def test_a_helper_of_a_vm_whose_threads_ran_less_than_a_tick_each_is_no_vm(
    machine: Machine,
) -> None:
    """Only that of the process is a whole tick: it is added up before it is rounded."""
    with_vmm(machine, VMM, QEMU)
    for path in (machine.proc / str(VMM) / "task").glob("*/stat"):
        path.write_text(path.read_text().replace(" 7 0\n", " 0 0\n"))
    with_helper(machine)
    assert pids(machine) == [VMM]


def test_before_it_runs_debugfs_tells_whose_it_is(machine: Machine) -> None:
    with_vmm(machine, VMM, QEMU, ran=0)
    with_helper(machine)
    assert sorted(pids(machine)) == [VMM, HELPER]
    debugfs(machine, VMM + 1, 9, {0: VMM + 1})
    assert pids(machine) == [VMM]


def test_debugfs_tells_it_of_one_whose_parent_has_ended(host: Machine) -> None:
    with_helper(host, parent=1)
    assert len(pids(host)) == 2
    debugfs(host, VMM, 9, {0: VMM + 1})
    assert pids(host) == [VMM]


def test_the_helper_of_a_vm_with_a_socket(machine: Machine) -> None:
    machine.start(FakeVm())
    with_vmm(machine, os.getpid())
    with_helper(machine, parent=os.getpid(), of=os.getpid())
    assert [its["name"] for its in listed(machine)] == ["web1"]


def test_a_helper_that_is_left_alone_is_shown(machine: Machine) -> None:
    """Nobody can run that VM any more; but it is there."""
    with_helper(machine)
    debugfs(machine, VMM, 9, {0: VMM + 1})
    assert pids(machine) == [HELPER]


def test_what_is_not_certain_is_shown(host: Machine) -> None:
    both = [VMM, HELPER]
    with_helper(host)
    host.inherited.clear()  # another open file, or the kernel does not tell
    assert sorted(pids(host)) == both
    with_helper(host, parent=1)
    assert sorted(pids(host)) == both
    with_helper(host, ran=7)
    assert sorted(pids(host)) == both
    with_helper(host)
    other = host.proc / str(VMM) / "fd/10"
    other.symlink_to("anon_inode:kvm-vm")  # which of the two has run?
    assert sorted(pids(host)) == both
    other.unlink()
    assert pids(host) == [VMM]
    (host.proc / str(HELPER) / "fd/10").symlink_to("anon_inode:kvm-vm")
    assert sorted(pids(host)) == both
    (host.proc / str(HELPER) / "fd/10").unlink()
    debugfs(host, HELPER, 9, {0: HELPER + 1})
    assert sorted(pids(host)) == both


def test_a_snapshot_leaves_it_out(host: Machine, tmp_path: Path) -> None:
    with_helper(host)
    out = tmp_path / "out"
    live = host.run("vm", "list", "-o", CAPTURED).stdout
    assert host.run("host", "snapshot", str(out)).status == 0
    assert not (out / "proc" / str(HELPER)).exists()
    assert host.run("vm", "list", "-o", CAPTURED, "--sysroot", str(out)).stdout == live


# On this machine's own KVM


@contextmanager
def running(*words: str) -> Iterator[tuple[int, int, IO[bytes]]]:
    """A VMM with a helper, not yet run: their processes, and what lets it go on."""
    need(no_kvm())
    argv = vmm("--helper", "--pause", "made,ran", *words)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            said: dict[str, Any] = {}
            while "at" not in said:
                said |= json.loads(process.stdout.readline())
            yield process.pid, said["helper"], process.stdin
        finally:
            process.kill()


def seen(*among: int) -> dict[int, VmState]:
    """Those of these processes that are VMs, and their state."""
    session = Session(host=Host(environ={}, uid=NOBODY), deadline=1)
    found = vms_of_processes(scan_processes(session).processes, session)
    return {vm.pid: vm.state for vm in found if vm.pid in among}


def test_a_real_vmm_that_forks() -> None:
    with running("--sleep") as (pid, helper, stdin):
        is_told = any(Path("/sys/kernel/debug/kvm").glob("[1-9]*"))
        both = dict.fromkeys((pid,) if is_told else (pid, helper), VmState.STARTING)
        assert seen(pid, helper) == both
        stdin.write(b"\n")
        stdin.flush()
        wait_for(lambda: seen(pid, helper) == {pid: VmState.RUNNING}, "the VMM alone runs")


def test_the_kernel_tells_one_open_file_from_two() -> None:
    reader, writer = os.pipe()
    again = os.dup(reader)
    try:
        its, other = partial(Procfs().is_same_file, os.getpid()), os.getpid()
        assert its(reader, other, again) is True
        assert its(reader, other, writer) is False
        assert its(reader, other, 1 << 20) is None
        assert Procfs(Path("/tmp")).is_same_file(other, 0, other, 0) is None
    finally:
        for fd in (reader, writer, again):
            os.close(fd)
