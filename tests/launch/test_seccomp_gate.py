# SPDX-License-Identifier: Apache-2.0
"""Gate, window and injected call, with the VMM of these tests and this machine's KVM."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from pmuctl.launch.spec import LaunchSpec
from tests.launch.conftest import Start
from tests.launch.native import (
    STARTER,
    TEST_SUPERVISOR,
    Gated,
    python,
    spec,
    tracers,
    vmm,
    wait_for,
)
from tests.launch.supervisor import MANY
from tests.skips import skip

HLT = 5
"""KVM_EXIT_HLT: the guest came as far as its one instruction."""


def check_applied(its: Gated, vcpus: int) -> None:
    """Every vCPU was made as it should be and ran, and each time the filter was taken."""
    made = its.all_said("vcpu")
    assert its.status() == 0, its.complaint()
    assert [vcpu["link"] for vcpu in made] == [
        f"anon_inode:kvm-vcpu:{vcpu['vcpu']}" for vcpu in made
    ]
    assert len(made) == vcpus
    assert [(ran["result"], ran["reason"]) for ran in its.all_said("ran")] == [(0, HLT)] * vcpus
    its.is_left_alone()
    assert (
        its.events("applied")
        == [{"what": "applied", "words": ["KVM_SET_PMU_EVENT_FILTER"]}] * vcpus
    )
    assert its.events("failed") == its.events("refused") == []
    assert len(its.events("left")) == 1
    assert its.complaint() == ""


def test_main_thread(kvm: Start) -> None:
    check_applied(kvm(*vmm("--vcpus", "3", "--run")), 3)


def test_a_thread_for_each(kvm: Start) -> None:
    check_applied(kvm(*vmm("--vcpus", "6", "--threads", "--run")), 6)


def test_a_second_vm_of_the_same_process(kvm: Start) -> None:
    check_applied(kvm(*vmm("--vcpus", "2", "--vms", "3", "--run")), 6)


def test_registers_and_the_stack_are_as_they_were(kvm: Start) -> None:
    its = kvm(*vmm("--vcpus", "2", "--registers", "--run"))
    check_applied(its, 2)
    assert [vcpu["wrong"] for vcpu in its.all_said("vcpu")] == [[], []]


@pytest.mark.parametrize("threads", [(), ("--threads",)], ids=["main", "threads"])
def test_a_daemon(kvm: Start, threads: tuple[str, ...]) -> None:
    its = kvm(*vmm("--fork", "--vcpus", "2", "--run", *threads, "--pause", "before,last"))
    assert its.status() == 0  # that of the process that was started, which is gone
    its.hear("at", "before")
    daemon = its.said[-2 if "pid" in its.said[-2] else -1]["pid"]
    assert daemon != its.pid
    its.go_on()
    its.hear("at", "last")
    wait_for(lambda: set(tracers(daemon).values()) == {"0"}, "nobody traces it")
    its.go_on()
    check_applied(its, 2)
    assert [event["pid"] for event in its.events("began")] == [daemon]


@pytest.mark.parametrize("orders", [{}, {"hold": True}], ids=str)
def test_a_process_that_shares_memory_but_is_no_thread(
    kvm: Start, orders: dict[str, bool]
) -> None:
    """Made by clone() with CLONE_VM and without CLONE_THREAD, as vfork() does."""
    its = kvm(*vmm("--process", "--vcpus", "2", "--attribute"), orders=orders)
    its.orders.socket.with_suffix(".release").touch()
    child = its.hear("child")
    assert child["status"] == 0
    assert its.event("began")["pid"] == child["child"] != its.pid
    assert its.status() == 0
    its.is_left_alone()
    assert len(its.events("applied")) == (1 if orders else 2)
    assert its.events("failed") == []


def test_nobody_traces_it_afterwards(kvm: Start) -> None:
    its = kvm(*vmm("--vcpus", "2", "--threads", "--idle", "2", "--pause", "before,made,last"))
    its.hear("at", "before")
    assert set(tracers(its.pid).values()) == {"0"}
    its.go_on()
    its.hear("at", "made")
    wait_for(lambda: set(tracers(its.pid).values()) == {"0"}, "nobody traces it")
    assert len(tracers(its.pid)) == 5
    its.go_on()
    its.hear("at", "last")
    assert its.supervisor in [int(pid) for pid in os.listdir("/proc") if pid.isdigit()]
    its.go_on()
    assert its.all_said("end")[0]["end"] == {
        "TracerPid": "0",
        "Seccomp": "2",
        "NoNewPrivs": "0" if os.geteuid() == 0 else "1",
    }


@pytest.mark.parametrize("kind", ["restart", "interrupt"])
def test_signals_do_not_starve_it(kvm: Start, kind: str) -> None:
    its = kvm(*vmm("--vcpus", "8", "--signals", kind, "--run"))
    check_applied(its, 8)
    interrupted = sum(vcpu["interrupted"] for vcpu in its.all_said("vcpu"))
    assert interrupted == 0 if kind == "restart" else interrupted < 100


@pytest.mark.parametrize("kind", ["restart", "interrupt"])
def test_signals_do_not_starve_very_many_calls(kvm: Start, kind: str) -> None:
    """A signal every 3 ms, while 2000 calls a vCPU are put into the thread that takes it."""
    its = kvm(*vmm("--vcpus", "2", "--run", "--signals", kind), prefix="many")
    assert [ran["result"] for ran in its.all_said("ran")] == [0, 0]
    assert its.status() == 0
    its.is_left_alone()
    assert [len(event["words"]) for event in its.events("applied")] == [MANY, MANY]
    assert its.events("failed") == its.events("refused") == []


@pytest.mark.parametrize("its_signal", [signal.SIGTSTP, signal.SIGSTOP])
def test_job_control_while_very_many_calls_are_made(kvm: Start, its_signal: int) -> None:
    """Stopped and continued again and again, from before the first call to after the last."""
    # in a group of its own, which is no orphan: in one that is, SIGTSTP does nothing
    its = kvm(*vmm("--vcpus", "2", "--run", "--idle", "1"), prefix="many", preexec=os.setpgrp)
    its.event("began")
    times = 0
    while not its.events("applied"):
        its.process.send_signal(its_signal)
        time.sleep(0.002)  # there is nothing to wait for: a stopped thread may be a traced one
        its.process.send_signal(signal.SIGCONT)
        times += 1
    assert times > 1
    assert [ran["result"] for ran in its.all_said("ran")] == [0, 0]
    assert its.status() == 0
    its.is_left_alone()
    assert [len(event["words"]) for event in its.events("applied")] == [MANY, MANY]
    assert its.events("failed") == its.events("refused") == []


def test_a_status_is_the_vmms_own(kvm: Start) -> None:
    its = kvm(*vmm("--run", "--status", "3"))
    assert its.status() == 3


def test_what_kvm_refuses_ends_the_vmm(kvm: Start) -> None:
    its = kvm(*vmm("--vcpus", "2", "--run"), prefix="wrong")
    assert its.status() == 125
    assert its.complaint() == (
        f"error: {its.name}: KVM_SET_PMU_EVENT_FILTER was refused\n  now: the VM was not started\n"
    )
    assert its.all_said("vcpu") == its.all_said("ran") == []
    its.is_left_alone()
    assert its.events("refused")[0]["message"] == "KVM_SET_PMU_EVENT_FILTER was refused"
    assert its.events("applied") == its.events("failed") == []


@pytest.mark.parametrize("how", ["errno", "trap"])
def test_a_vmm_that_may_not_exit_is_killed_before_anything_is_told(kvm: Start, how: str) -> None:
    """Its own seccomp filter refuses exit_group(2)."""
    its = kvm(*vmm("--run", "--no-exit", how), prefix="wrong")
    assert its.status() == -signal.SIGKILL
    assert "now: the VM was not started" in its.complaint()
    assert its.all_said("ran") == its.all_said("end") == []
    its.is_left_alone()


def test_what_kvm_refuses_a_thread_ends_the_vmm(kvm: Start) -> None:
    its = kvm(*vmm("--vcpus", "4", "--threads", "--run"), prefix="wrong")
    assert its.status() == 125
    assert "the VM was not started" in its.complaint()
    assert its.all_said("ran") == []
    its.is_left_alone()
    assert its.events("failed") == []


def test_best_effort_goes_on_with_a_warning(kvm: Start) -> None:
    its = kvm(*vmm("--run"), prefix="wrong", orders={"best_effort": True})
    assert [ran["result"] for ran in its.all_said("ran")] == [0]
    assert its.status() == 0
    assert its.complaint() == (
        f"warning: {its.name}: KVM_SET_PMU_EVENT_FILTER was refused\n"
        "  now: the VM starts without it\n"
    )


def test_a_gate_inside_a_gate_is_refused(gate: Start) -> None:
    inner = LaunchSpec(name="inner", socket=Path(os.devnull), command=("echo", '{"pid": 1}'))
    its = gate(*python(STARTER, spec(inner, TEST_SUPERVISOR)))
    assert its.status() == 9
    complaint = its.complaint()
    assert "calls of the VMM to KVM cannot be stopped" in complaint
    assert "EBUSY" in complaint
    assert its.all_said("pid") == []
    its.is_left_alone()


def test_qemu(kvm: Start) -> None:
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        skip("qemu-system-x86_64 is not installed", runs="with the package qemu-system-x86")
    words = (
        "-accel",
        "kvm",
        "-smp",
        "2",
        "-display",
        "none",
        "-nodefaults",
        "-S",
        "-qmp",
        "stdio",
    )
    its = kvm(qemu, *words)
    its.hear("QMP")
    # it greets before it makes its vCPUs and heeds SIGTERM, and answers once it has done both
    assert its.process.stdin is not None
    its.process.stdin.write(b'{"execute": "qmp_capabilities"}\n')
    its.process.stdin.flush()
    its.hear("return")
    assert its.events("applied")
    wait_for(lambda: set(tracers(its.pid).values()) == {"0"}, "nobody traces it")
    its.process.terminate()
    assert its.status() == 0
    its.is_left_alone()
