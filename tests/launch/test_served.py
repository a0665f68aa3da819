# SPDX-License-Identifier: Apache-2.0
"""What pmuctl vm list sees of a VM behind the true supervisor, from its start to its end."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmuctl.control.runtime.start_record import read_record
from pmuctl.host.host import Host
from pmuctl.launch.spec import LaunchSpec
from pmuctl.manage.inventory.lookup import list_vms
from pmuctl.manage.inventory.session import Session
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm import Vm, VmState, VmVcpu
from pmuctl.value import replace
from tests.launch.native import (
    Gated,
    fresh_name,
    lowest_free,
    need,
    no_kvm,
    processes_of,
    starved,
    vmm,
    wait_for,
)

Serve = Callable[..., Gated]


@pytest.fixture
def serve(room: Path) -> Iterator[Serve]:
    """Starts the VMM with these words, the true supervisor beside it."""
    need(no_kvm())
    room.chmod(0o755)
    started: list[Gated] = []

    def start(*words: str, affinity: CpuSet | None = None) -> Gated:
        name = fresh_name("vm")
        socket, command = room / f"{name}.sock", vmm(*words)
        orders = LaunchSpec(name=name, socket=socket, command=command, affinity=affinity)
        started.append(Gated(orders, supervisor=None))
        return started[-1]

    yield start
    for its in started:
        its.close()


def listed(room: Path) -> list[Vm]:
    """What an admin would see."""
    environ = {"PMUCTL_RUNTIME_DIR": str(room)}
    found = list_vms(Session(host=Host(environ=environ, uid=os.geteuid()), deadline=5)).vms
    return [vm for vm in found if vm.socket]  # others on this machine are nobody's here


def vcpus(vm: Vm) -> list[VmVcpu]:
    """Those that are known of."""
    return list(vm.vcpus or ())


def files(room: Path) -> list[str]:
    return sorted(path.name for path in room.iterdir() if path.suffix in (".sock", ".json"))


def test_a_vm_from_its_start_to_its_end(serve: Serve, room: Path) -> None:
    its = serve("--vcpus", "2", "--sleep", "--pause", "before,made,ran")
    its.hear("at", "before")
    assert files(room) == [f"{its.name}.sock", f"{its.name}.sock.json"]
    [vm] = listed(room)
    assert (vm.name, vm.pid, vm.state) == (its.name, its.pid, VmState.STARTING)
    assert (vcpus(vm), vm.problem) == ([], None)
    its.go_on()
    its.hear("at", "made")
    [vm] = wait_for(lambda: [vm for vm in listed(room) if len(vcpus(vm)) == 2], "two vCPUs")
    assert (vm.name, vm.pid, vm.state) == (its.name, its.pid, VmState.STARTING)
    assert vm.supervised
    assert vm.command == its.orders.command
    assert [vcpu.tid for vcpu in vcpus(vm)] == [None, None]
    its.go_on()
    running = {its.hear("running")["tid"] for _ in range(2)}
    assert len(running) == 2
    [vm] = wait_for(
        lambda: [vm for vm in listed(room) if all(vcpu.has_run for vcpu in vcpus(vm))], "they run"
    )
    assert vm.state is VmState.RUNNING
    its.go_on()
    assert its.status() == 0
    wait_for(lambda: not files(room), "socket and record are gone")
    assert listed(room) == []
    its.is_left_alone()


def test_one_that_is_killed_leaves_nothing_but_what_is_not_its_own(
    serve: Serve, room: Path
) -> None:
    its = serve("--vcpus", "2", "--pause", "before,made")
    its.hear("at", "before")
    anybodys = room / f"{its.name}.json"
    anybodys.write_text("{}")
    its.go_on()
    its.hear("at", "made")
    its.process.kill()
    its.is_left_alone()
    assert files(room) == [anybodys.name]
    assert anybodys.read_text() == "{}"


def test_one_without_its_supervisor_is_told_from_its_record(serve: Serve, room: Path) -> None:
    its = serve("--vcpus", "2", "--pause", "made,last")
    its.hear("at", "made")
    [vm] = wait_for(lambda: [vm for vm in listed(room) if len(vcpus(vm)) == 2], "two vCPUs")
    [supervisor] = [pid for pid in processes_of(its.name) if pid != its.pid]
    os.kill(supervisor, signal.SIGKILL)
    its.is_left_alone()
    # as long as it ends, its socket still takes connections
    told = lambda: [vm for vm in listed(room) if vm.state is VmState.ORPHANED]  # noqa: E731
    [vm] = wait_for(told, "it is told to be orphaned")
    assert (vm.name, vm.pid) == (its.name, its.pid)


@pytest.mark.parametrize("words", [(), ("--threads",)], ids=str)
def test_one_whose_supervisor_runs_short_is_told_why(
    serve: Serve, room: Path, words: tuple[str, ...]
) -> None:
    """On its standard error, and in the record that it leaves."""
    its = serve("--vcpus", "2", *words, "--pause", "before")
    its.hear("at", "before")
    [supervisor] = [pid for pid in processes_of(its.name) if pid != its.pid]
    with starved(supervisor, lowest_free(supervisor)):
        its.go_on()
        assert its.status() == 125
        its.is_left_alone()
    complaint = its.complaint().splitlines()
    assert complaint[0] == f"error: {its.name}: the VMM cannot be followed"
    assert complaint[1].startswith("  why: its supervisor runs short: /proc/")
    assert complaint[1].endswith("Too many open files (EMFILE)")
    assert complaint[2:4] == [
        "  now: the VM was not started",
        "  fix: allow this process more open files (ulimit -n)",
    ]
    assert files(room) == [f"{its.name}.sock.json"]
    record = read_record(room / f"{its.name}.sock.json", {os.geteuid()})
    assert record is not None
    assert record.problem is not None
    assert (record.problem.message, record.problem.status) == ("the VMM cannot be followed", 125)


def test_a_second_vm_that_fails_is_not_told_to_be_the_first(
    serve: Serve, room: Path, two_cpus: tuple[int, int]
) -> None:
    """One that ran ends with the VMM, and that is what is said."""
    words = ("--vms", "2", "--vcpus", "1", "--sleep", "--pause", "ran")
    its = serve(*words, affinity=CpuSet.of(two_cpus[:1]))
    its.hear("at", "ran")
    wait_for(lambda: [vm for vm in listed(room) if vm.state is VmState.RUNNING], "it runs")
    os.sched_setaffinity(its.pid, two_cpus[1:])
    its.go_on()
    assert its.status() == 125
    its.is_left_alone()
    now = "its VMM was ended, a VM of which had run; the new VM was not started"
    assert f"  now: {now}\n" in its.complaint()
    record = read_record(room / f"{its.name}.sock.json", {os.geteuid()})
    assert record is not None
    assert record.problem is not None
    assert record.problem.now == now


def test_a_record_that_cannot_be_written_is_told_once_and_tried_again(
    serve: Serve, room: Path
) -> None:
    its = serve("--vcpus", "2", "--sleep", "--pause", "before,made,ran")
    its.hear("at", "before")
    record = room / f"{its.name}.sock.json"
    record.unlink()
    (record / "in its place").mkdir(parents=True)
    its.go_on()
    its.hear("at", "made")
    assert its.process.stderr is not None
    told = b"".join(its.process.stderr.readline() for _ in range(4)).decode()
    assert told.startswith(
        f"warning: {its.name}: the record of its start could not be written\n  why: {record}: "
    )
    shutil.rmtree(record)
    time.sleep(1.1)
    its.go_on()
    wait_for(record.is_file, "the record is written")
    assert its.process.poll() is None
    its.process.kill()
    assert its.process.stderr.read() == b""


def test_a_daemons_vm_is_that_of_the_daemon(serve: Serve, room: Path) -> None:
    its = serve("--fork", "--vcpus", "1", "--pause", "made")
    its.hear("at", "made")
    daemon = [said["pid"] for said in its.said if "pid" in said][-1]
    [vm] = wait_for(lambda: [vm for vm in listed(room) if vcpus(vm)], "its vCPU")
    assert vm.pid == daemon != its.pid
    its.go_on()
    wait_for(lambda: not files(room), "socket and record are gone")
    its.is_left_alone()


def test_a_name_that_is_taken_is_refused_before_the_start(serve: Serve, room: Path) -> None:
    first = serve("--pause", "before")
    first.hear("at", "before")
    second = Gated(replace(first.orders, name=fresh_name("vm")), supervisor=None)
    try:
        assert second.status() == 9
        assert "is taken" in second.complaint()
        assert second.all_said("pid") == []
        second.is_left_alone()
    finally:
        second.close()
    first.go_on()
    assert first.status() == 0
    first.is_left_alone()
