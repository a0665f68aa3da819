# SPDX-License-Identifier: Apache-2.0
"""Settings that reach no VM: told on standard error and in the record, and only where there are
settings."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pmuctl.control.runtime.start_record import Record, read_record
from pmuctl.errors import PmuctlError
from pmuctl.launch.first_vm import AWAITED_SECONDS, LEFT_BEHIND_SECONDS, FirstVm
from pmuctl.launch.observer import VmObserver
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.vmm_stderr import VmmStderr
from pmuctl.model.cpuset import CpuSet
from tests.launch.native import Gated, fresh_name, need, no_gate, no_kvm, vmm, wait_for

CPUS = CpuSet.of(os.sched_getaffinity(0))
Serve = Callable[..., Gated]


class Awaited:
    """The first VM of a command with these settings, and what was told: by record and stderr."""

    def __init__(self, *command: str, affinity: CpuSet | None = CPUS) -> None:
        self.recorded: list[PmuctlError] = []
        read, write = os.pipe()
        self._stderr = open(read, encoding="utf-8")
        observer = cast(VmObserver, SimpleNamespace(on_no_vm=self.recorded.append))
        spec = LaunchSpec(
            name="web1", socket=Path(os.devnull), command=command or ("sh",), affinity=affinity
        )
        self._vmm_stderr = VmmStderr(write)
        self.vm = FirstVm(spec, observer, self._vmm_stderr, pid=os.getpid())
        self.start = time.monotonic()

    def written(self) -> list[str]:
        """All that was written; nothing can be from now on."""
        self._vmm_stderr.close()
        with self._stderr:
            return self._stderr.read().splitlines()


def test_a_command_that_goes_on_without_a_vm_is_told_once() -> None:
    its = Awaited()
    seconds = its.vm.poll(its.start)
    assert seconds is not None
    assert AWAITED_SECONDS - 1 < seconds <= AWAITED_SECONDS + 1
    assert its.recorded == []
    assert its.vm.poll(its.start + AWAITED_SECONDS + 1) is None
    assert its.vm.poll(its.start + AWAITED_SECONDS + 2) is None
    its.vm.on_exit()
    its.vm.on_gate_closed()
    why = [(error.why or "").partition(":")[0] for error in its.recorded]
    assert why == ["it has gone on for 30 s without one", *["it ended without one"] * 2]
    assert its.written()[:3] == [
        "warning: web1: no KVM VM was made so far",
        f"  why: {why[0]}: neither it nor its children asked KVM for a vCPU",
        "  now: the settings wait for one that is made yet",
    ]


def test_while_a_process_is_left_there_is_none_so_far() -> None:
    """A command may fetch an image for a minute, or wait for orders, before it makes its VM."""
    its = Awaited()
    its.vm.poll(its.start + AWAITED_SECONDS + 1)
    its.vm.on_exit()
    message = "no KVM VM was made"
    assert [error.message for error in its.recorded] == [f"{message} so far", message]
    assert its.recorded[-1].now == "the settings reached no VM"
    assert its.written()[0] == f"warning: web1: {message} so far"


def test_what_it_leaves_behind_has_some_seconds_to_make_one() -> None:
    its = Awaited()
    its.vm.on_exit()
    assert len(its.recorded) == 1
    seconds = its.vm.poll(time.monotonic())
    assert seconds is not None
    assert seconds <= LEFT_BEHIND_SECONDS
    assert its.vm.poll(time.monotonic() + LEFT_BEHIND_SECONDS) is None
    assert its.written()[0] == "warning: web1: no KVM VM was made so far"


def test_nothing_is_told_once_there_is_one() -> None:
    its = Awaited()
    its.vm.on_made()
    assert its.vm.poll(its.start + AWAITED_SECONDS + 1) is None
    its.vm.on_exit()
    its.vm.on_gate_closed()
    assert (its.recorded, its.written()) == ([], [])


def test_nothing_is_told_without_settings() -> None:
    its = Awaited(affinity=None)
    assert its.vm.poll(its.start + AWAITED_SECONDS + 1) is None
    its.vm.on_gate_closed()
    assert (its.recorded, its.written()) == ([], [])


@pytest.fixture
def serve(room: Path) -> Iterator[Serve]:
    """Starts a command with these CPUs as its settings, the true supervisor beside it."""
    need(no_gate())
    room.chmod(0o755)
    started: list[Gated] = []

    def start(*command: str) -> Gated:
        name = fresh_name("vm")
        spec = LaunchSpec(name=name, socket=room / f"{name}.sock", command=command, affinity=CPUS)
        started.append(Gated(spec, supervisor=None))
        return started[-1]

    yield start
    for its in started:
        its.close()


def recorded(its: Gated) -> Record:
    path = its.orders.socket
    record = read_record(path.with_name(f"{path.name}.json"), {os.geteuid()})
    assert record is not None
    return record


@pytest.mark.parametrize(
    ("command", "fix"),
    [
        (("sh", "-c", "echo out; exit 7"), "give the command line of the VMM itself after --"),
        (("sh", "-c", "exit 7", "qemu-system-aarch64"), "give the command line of the VMM itself"),
    ],
)
def test_a_command_that_ends_without_a_vm_is_told(
    serve: Serve, command: tuple[str, ...], fix: str
) -> None:
    its = serve(*command)
    assert its.status() == 7
    complaint = its.complaint().splitlines()
    assert complaint[:3] == [
        f"warning: {its.name}: no KVM VM was made",
        "  why: it ended without one: neither it nor its children asked KVM for a vCPU",
        "  now: the settings reached no VM",
    ]
    assert complaint[3].startswith(f"  fix: {fix}")
    its.is_left_alone()
    problem = recorded(its).problem
    assert problem is not None
    assert (problem.message, problem.status) == ("no KVM VM was made", 0)
    assert not its.orders.socket.exists()


def test_a_daemon_without_a_vm_is_told_where_the_command_has_ended(serve: Serve) -> None:
    its = serve("sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!")
    daemon = int(its.line())
    try:
        assert its.status() == 0
        assert its.complaint().startswith(f"warning: {its.name}: no KVM VM was made so far\n")
        assert subprocess.run(["kill", "-0", str(daemon)], check=False).returncode == 0
    finally:
        os.kill(daemon, 9)
    its.is_left_alone()


def test_a_vm_made_later_takes_it_back(serve: Serve) -> None:
    """By what the command left behind, after it was recorded that the command had made none."""
    need(no_kvm())
    words = " ".join(vmm("--vcpus", "1", "--pause", "before,made"))
    its = serve("sh", "-c", f"exec 3<&0; {words} <&3 & exit 0")
    its.hear("at", "before")
    assert its.status() == 0
    wait_for(lambda: recorded(its).problem, "it is recorded")
    its.go_on()
    its.hear("at", "made")
    wait_for(lambda: recorded(its).problem is None, "it is taken back")
    its.go_on()
    its.is_left_alone()
    assert its.complaint() == ""
