# SPDX-License-Identifier: Apache-2.0
"""`pmuctl vm wait`: until a VM is in a state, or the time is over."""

import io
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pmuctl.cli.main import main
from pmuctl.manage.inventory.wait import Awaited
from pmuctl.model.cpuset import CpuSet
from tests.cli.conftest import Machine, Ran
from tests.fakes.vmm import FakeVm, fake_proc, fake_vmm

A72 = "armv8_cortex_a72"
PATIENCE = "30"
"""Seconds that no test waits when all is well."""
SOON = 0.3
"""Seconds after which something happens: longer than the pause between two questions."""


def wait(machine: Machine, state: str, *words: str, name: str = "web1") -> Ran:
    return machine.run("vm", "wait", name, "--for", state, *words)


def reached(machine: Machine, state: str, *, name: str = "web1") -> bool:
    """Whether the VM is in that state now."""
    ran = wait(machine, state, "--timeout", "0", name=name)
    assert ran.stdout == ""
    assert ran.stderr.startswith("" if ran.status == 0 else f"{name}: not {state} after 0 s: ")
    assert bool(ran.stderr) == bool(ran.status)
    assert ran.status in (0, 1)
    return ran.status == 0


@contextmanager
def soon(act: Callable[[], object]) -> Iterator[None]:
    """Do it in the background, in a moment."""
    timer = threading.Timer(SOON, act)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def states(machine: Machine) -> set[str]:
    return {its for its in Awaited if reached(machine, its)}


def test_what_holds_at_each_point_of_a_vms_life(machine: Machine) -> None:
    assert states(machine) == {"stopped"}
    vm = machine.start(FakeVm())
    assert states(machine) == {"open"}
    assert machine.run("vm", "set", "web1", "pmu", A72).status == 0
    assert states(machine) == {"open", "aligned"}
    assert machine.run("vm", "release", "web1").status == 0
    assert states(machine) == {"sealed", "aligned"}
    vm.initialise()
    vm.run()
    assert states(machine) == {"sealed", "aligned", "running"}
    vm.threads.masks[1001] = CpuSet.parse("0-3")
    assert states(machine) == {"sealed", "running"}
    machine.stack.close()
    assert states(machine) == {"stopped"}


def test_a_vm_without_a_vpmu_has_no_window(machine: Machine) -> None:
    machine.start(FakeVm(has_pmu=False))
    assert states(machine) == set()


@pytest.mark.parametrize("state", ["sealed", "running", "aligned", "stopped"])
def test_waiting_ends_when_it_is_so(machine: Machine, state: str) -> None:
    vm = machine.start(FakeVm())
    machine.run("vm", "set", "web1", "pmu", A72)
    vm.threads.masks[1001] = CpuSet.parse("0-3")

    def run() -> None:
        vm.initialise()
        vm.run()

    acts: dict[str, Callable[[], object]] = {
        "sealed": vm.initialise,
        "running": run,
        "aligned": lambda: vm.threads.masks.update({1001: CpuSet.parse("2-3")}),
        "stopped": machine.stack.close,
    }
    assert not reached(machine, state)
    out, err = io.StringIO(), io.StringIO()
    env = machine.env(out, err, threads=vm.threads)
    words = ("vm", "wait", "web1", "--for", state, "--timeout", PATIENCE)
    with soon(acts[state]):
        assert main(words, env) == 0
    assert (out.getvalue(), err.getvalue()) == ("", "")


def test_a_vm_that_is_not_there_yet_is_waited_for(machine: Machine) -> None:
    with soon(lambda: machine.start(FakeVm())):
        assert wait(machine, "open", "--timeout", PATIENCE).status == 0


def test_the_time_is_kept(machine: Machine) -> None:
    machine.start(FakeVm())
    begin = time.monotonic()
    ran = wait(machine, "running", "--timeout", "0.5")
    assert 0.5 <= time.monotonic() - begin < 5
    assert (ran.status, ran.stdout) == (1, "")
    assert ran.stderr == "web1: not running after 0.5 s: waiting, window open\n"
    assert wait(machine, "running", "--timeout", "0", "-q").stderr == ""


def test_a_silent_vm_does_not_stretch_the_time(machine: Machine) -> None:
    machine.runtime.mkdir()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(machine.runtime / "web1.sock"))
        silent.listen()
        begin = time.monotonic()
        ran = wait(machine, "open", "--timeout", "0.3", "--deadline", PATIENCE)
        assert time.monotonic() - begin < 10
    assert ran.status == 1


def test_a_vm_that_does_not_answer_has_not_stopped(machine: Machine) -> None:
    machine.runtime.mkdir()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(machine.runtime / "web1.sock"))
        silent.listen()
        words = ("--timeout", "0", "--deadline", "0.2")
        assert wait(machine, "stopped", *words).status == 1
    assert wait(machine, "stopped", *words).status == 0  # its socket is dead now


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("web1",), 2, "--for"),
        (("--for", "open"), 2, "VM"),
        (("web1", "--for", "opened"), 2, "open"),
        (("web1", "--for", "open", "--timeout", "-1"), 2, "--timeout"),
        (("web1", "--for", "open", "--timeout", "soon"), 2, "--timeout"),
        (("a/b", "--for", "open"), 2, "not a VM"),
        (("web1", "--for", "open", "--socket", "/nonexistent", "--timeout", "0"), 1, "not open"),
    ],
)
def test_what_cannot_be_waited_for(
    machine: Machine, words: tuple[str, ...], status: int, told: str
) -> None:
    ran = machine.run("vm", "wait", *words)
    assert (ran.status, ran.stdout) == (status, "")
    assert told in ran.stderr


def test_a_vm_that_may_not_be_asked_is_an_error(machine: Machine) -> None:
    machine.start(FakeVm("web2"), machine.runtime / "web1.sock")
    ran = wait(machine, "open", "--timeout", PATIENCE)
    assert ran.status == 9
    assert "calls itself web2" in ran.stderr


def test_a_vm_by_its_uuid(machine: Machine) -> None:
    machine.start(FakeVm())
    assert reached(machine, "open", name=f"uuid/{FakeVm.uuid}")
    assert reached(machine, "stopped", name="uuid/6695eb01-f6a4-8304-79aa-000000000000")


def qemu(machine: Machine, name: str = "db1") -> None:
    """A VM without a control socket, in process 5120."""
    fake_vmm(machine.proc, 5120, ("qemu-system-aarch64", "-name", name))


@pytest.mark.parametrize("name", ["pid/5120", "db1", "uuid/6695eb01-f6a4-8304-79aa-000000000000"])
def test_what_may_not_be_looked_at_is_not_said_to_have_stopped(
    machine: Machine, name: str
) -> None:
    qemu(machine)
    machine.unreadable.add(5120)
    ran = machine.run("vm", "wait", name, "--for", "stopped", "--timeout", PATIENCE, uid=1000)
    assert (ran.status, ran.stdout) == (6, "")
    assert f"error: {name}: it cannot be told whether it has stopped\n" in ran.stderr
    assert "may not be read by this user" in ran.stderr
    assert f"  fix: sudo pmuctl vm wait {name} --for stopped\n" in ran.stderr


def test_a_process_that_is_gone_has_stopped_whatever_else_may_not_be_looked_at(
    machine: Machine,
) -> None:
    qemu(machine)
    machine.unreadable.add(5120)
    assert reached(machine, "stopped", name="pid/5121")  # there is none
    fake_proc(machine.proc, 6000, holds_kvm=False, start=5)
    assert reached(machine, "stopped", name="pid/6000")


def test_a_vm_that_was_seen_to_end_has_stopped(machine: Machine) -> None:
    """Though it cannot be told of other processes whether they have one of this name."""
    qemu(machine)
    machine.unreadable.add(7000)
    fake_proc(machine.proc, 7000, start=5)
    assert not reached(machine, "stopped", name="db1")
    with soon(lambda: shutil.rmtree(machine.proc / "5120")):
        assert wait(machine, "stopped", "--timeout", PATIENCE, name="db1").status == 0


def test_why_it_is_not_aligned_is_told(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    ran = wait(machine, "aligned", "--timeout", "0")
    assert ran.stderr == (
        "web1: not aligned after 0 s: waiting, window open; it has no PMU, and a VM without one "
        "is never aligned\n"
    )
    assert machine.run("vm", "set", "web1", "pmu", A72).status == 0
    vm.threads.masks[1001] = CpuSet.parse("0-3")
    ran = wait(machine, "aligned", "--timeout", "0")
    assert f"; vCPU 0 may run on CPUs 0-1, outside {A72} (2-3): KVM_RUN fails" in ran.stderr
