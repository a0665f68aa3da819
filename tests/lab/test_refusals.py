# SPDX-License-Identifier: Apache-2.0
"""What cannot be done is refused with its exit code and the errno's meaning, nothing half-done."""

import json
from collections.abc import Iterator

import pytest

from tests.lab.errors import Result
from tests.lab.machine import Lab
from tests.lab.vms import ReferenceVm, pmuctl, reference_vm

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
ONLY_CYCLES = ("filter", "default", "deny", "allow", "cpu_cycles")


@pytest.fixture
def vm(lab: Lab) -> Iterator[ReferenceVm]:
    """A VM whose window is open, made on CPUs 0-1."""
    with reference_vm(lab, "--create-cpus", "0-1") as its:
        yield its


def settings(vm: ReferenceVm) -> tuple[object, ...]:
    """What a refusal must leave as it is."""
    shown = json.loads(vm.pmuctl("show", "-J").stdout)["vm"]
    masks = [vm.lab.run(["taskset", "-p", str(tid)]).stdout for tid in vm.tids]
    return shown["pmu"], shown["counters"], shown["filter"], shown["window"], masks


def check(ran: Result, status: int, *words: str) -> None:
    assert ran.status == status, ran
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: ")
    assert "Traceback" not in ran.stderr
    for word in words:
        assert word in ran.stderr


def test_an_unknown_pmu(vm: ReferenceVm) -> None:
    before = settings(vm)
    check(vm.pmuctl("set", "pmu", "armv8_cortex_a73"), 4, "no such PMU", A72)
    assert settings(vm) == before


def test_a_pmu_that_is_no_cpu_pmu(vm: ReferenceVm) -> None:
    before = settings(vm)
    check(vm.pmuctl("set", "pmu", "software"), 4, "not a CPU PMU", "ENXIO")
    assert settings(vm) == before


def test_a_range_past_the_event_space(vm: ReferenceVm) -> None:
    before = settings(vm)
    words = ("filter", "default", "deny", "allow", "0xfff0-0x10000")
    check(vm.pmuctl("set", "pmu", A72, *words), 2, "past the event space", "16 bits")
    assert settings(vm) == before


def test_another_pmu_once_a_filter_stands(vm: ReferenceVm) -> None:
    vm.set("pmu", A72, *ONLY_CYCLES)
    before = settings(vm)
    check(vm.pmuctl("set", "pmu", A53), 5, "EBUSY", "filter stands", "nothing was changed")
    assert settings(vm) == before


def test_a_vm_that_was_released_or_has_run_is_sealed(lab: Lab) -> None:
    with reference_vm(lab, "--create-cpus", "0-1", "--forever") as vm:
        vm.set("pmu", A72)
        assert vm.pmuctl("release").status == 0
        vm.job.wait_for('"cycles"')
        before = settings(vm)
        check(
            vm.pmuctl("set", *ONLY_CYCLES), 5, "sealed", "EBUSY", "fix: set it at the next start"
        )
        assert settings(vm) == before


def test_a_vm_without_a_vpmu(lab: Lab) -> None:
    with reference_vm(lab, "--no-vpmu") as vm:
        before = settings(vm)
        check(vm.pmuctl("set", "pmu", A72), 7, "no vPMU", "ENODEV")
        assert settings(vm) == before
        assert before[3] == "none"


def test_counters_that_are_not_there(vm: ReferenceVm) -> None:
    before = settings(vm)
    attributes = json.loads(vm.pmuctl("show", "-J").stdout)["vm"]["attributes"]
    ran = vm.pmuctl("set", "pmu", A72, "counters", "31")
    if "SET_NR_COUNTERS" in attributes:
        check(ran, 2, "EINVAL", "the PMU has 6")
    else:
        check(ran, 7, "SET_NR_COUNTERS", "ENXIO")
    assert settings(vm) == before


def test_the_attributes_are_those_of_this_kernel(lab: Lab) -> None:
    """Asked of KVM, not known from its version: some kernels lack SET_NR_COUNTERS."""
    with reference_vm(lab, "--create-cpus", "0-1") as vm:
        attributes = json.loads(vm.pmuctl("show", "-J").stdout)["vm"]["attributes"]
    code = (
        "from pmuctl.host.kvm.probes import probe_kvm_caps;"
        "from pmuctl.model.kvm_caps import ATTR_NAMES;"
        "print(*(ATTR_NAMES[its] for its in sorted(probe_kvm_caps([]).attributes)))"
    )
    assert lab.run(["python3", "-c", code], check=True).stdout.split() == attributes


def test_a_pinned_vm(lab: Lab) -> None:
    with reference_vm(lab, "--create-cpus", "0-1") as vm:
        for tid in vm.tids:
            lab.run(["taskset", "-p", "3", str(tid)], check=True)
        before = settings(vm)
        fix = f"taskset -cp 2-3 {vm.tids[0]}"
        check(vm.pmuctl("set", "pmu", A72), 9, "a pin is never widened", fix)
        assert settings(vm) == before


def test_a_dead_socket(lab: Lab) -> None:
    with reference_vm(lab) as vm:
        vm.job.kill(9)
        vm.job.wait()
        check(vm.pmuctl("set", "pmu", A72), 3, "ECONNREFUSED")
        rows = json.loads(pmuctl(lab, "vm", "list", "-J").stdout)["vms"]
        assert [row["state"] for row in rows if row["name"] == vm.name] == ["dead"]
        with reference_vm(lab, name=vm.name) as again:
            assert again.pmuctl("show").status == 0


def test_a_silent_socket(vm: ReferenceVm) -> None:
    vm.job.kill(19)  # SIGSTOP: it listens, but does not answer
    try:
        check(vm.pmuctl("set", "pmu", A72, "--deadline", "1"), 3, "no greeting in 1 s")
    finally:
        vm.job.kill(18)
    assert settings(vm)[0] is None


def test_a_stranger_may_not_even_ask(vm: ReferenceVm) -> None:
    ran = vm.pmuctl("show", user="1001:1001", env={"XDG_RUNTIME_DIR": "/tmp"})
    check(ran, 6, "may not connect")


def test_a_member_of_group_kvm_may_ask_but_not_change(vm: ReferenceVm) -> None:
    gid = vm.lab.run(["stat", "-c", "%g", "/dev/kvm"]).stdout.strip()
    user = {"user": f"1000:{gid}", "env": {"XDG_RUNTIME_DIR": "/tmp"}}
    assert vm.pmuctl("show", **user).status == 0
    before = settings(vm)
    check(vm.pmuctl("set", "pmu", A72, **user), 6)
    assert settings(vm) == before


def test_without_root_a_users_own_vm_is_theirs(lab: Lab) -> None:
    """The whole job without root: the user's VM, socket and threads."""
    gid = lab.run(["stat", "-c", "%g", "/dev/kvm"]).stdout.strip()
    lab.run(["sh", "-c", "mkdir -p /run/user/1000 && chown 1000 /run/user/1000"], check=True)
    env = {"XDG_RUNTIME_DIR": "/run/user/1000"}
    words = ["python3", "-m", "tests.lab.vmm", "--name", "mine", "--create-cpus", "0-1"]
    job = lab.start(words, user=f"1000:{gid}", env=env)
    vm = ReferenceVm(lab, "mine", job)
    try:
        options = {"user": f"1000:{gid}", "env": env}
        assert vm.pmuctl("set", "pmu", A72, *ONLY_CYCLES, **options).status == 0
        # root finds it in the user's directory, but anybody can take a name
        check(vm.pmuctl("set", "pmu", A72), 2, "another user's VM", "pid/N")
        assert pmuctl(lab, "vm", "set", f"pid/{vm.pid}", "pmu", A72).status == 0
        assert json.loads(vm.pmuctl("show", "-J").stdout)["vm"]["pmu"] == A72
        assert vm.pmuctl("release", **options).status == 0
        assert all(report["cycles"] > 0 for report in vm.reports())
    finally:
        if job.status is None:
            job.kill()
