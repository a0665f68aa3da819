# SPDX-License-Identifier: Apache-2.0
"""A vCPU thread that can leave its PMU is found and brought back, and what is in the way named."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.lab.cpusets import cpuset_v1, cpuset_v2, sh
from tests.lab.errors import Result
from tests.lab.machine import Lab, boot
from tests.lab.vms import ReferenceVm, clear_sockets, pmuctl, reference_vm

A72 = "armv8_cortex_a72"
ONLINE = "/sys/devices/system/cpu/cpu{}/online"


@pytest.fixture
def vm(lab: Lab) -> Iterator[ReferenceVm]:
    """A VM that was given the PMU of CPUs 2-3, by which its vCPU threads were put there.

    It is the only one: VMMs of other tests, which were killed, have left sockets.
    """
    clear_sockets(lab)
    with reference_vm(lab, "--create-cpus", "0-1") as its:
        its.set("pmu", A72)
        yield its


def move(vm: ReferenceVm, mask: str, vcpu: int = 0) -> None:
    """What an admin's taskset does; the mask is hexadecimal."""
    vm.lab.run(["taskset", "-p", mask, str(vm.tids[vcpu])], check=True)


def affinity(vm: ReferenceVm, verb: str, *words: str, **options: Any) -> Result:
    return pmuctl(vm.lab, "affinity", verb, vm.name, *words, **options)


def check(vm: ReferenceVm, *, status: int) -> list[dict[str, Any]]:
    ran = affinity(vm, "check", "-J", "-O")
    assert ran.status == status, ran
    rows: list[dict[str, Any]] = json.loads(ran.stdout)["vcpus"]
    assert [row["tid"] for row in rows] == vm.tids
    return rows


def masks(vm: ReferenceVm) -> list[str]:
    """The CPUs of each vCPU thread, as the kernel tells."""
    told = (vm.lab.read_file(f"/proc/{tid}/status").decode() for tid in vm.tids)
    return [text.partition("Cpus_allowed_list:\t")[2].split("\n")[0] for text in told]


def test_a_thread_that_was_moved_is_found_and_brought_back(vm: ReferenceVm) -> None:
    check(vm, status=0)
    move(vm, "f")
    row, other = check(vm, status=1)
    assert (row["vcpu"], row["affinity"], row["outside"]) == (0, [0, 1, 2, 3], [0, 1])
    assert (row["consequence"], row["blocker"]) == ("fail-entry", None)
    assert row["cpu"] in range(4)
    assert other["aligned"] is True
    planned = affinity(vm, "align", "--dry-run")
    assert planned.stdout == (
        f"{vm.name}: sched_setaffinity({vm.tids[0]}, 2-3)  vCPU 0, was 0-3\n"
    )
    assert masks(vm) == ["0-3", "2-3"]
    assert affinity(vm, "align").status == 0
    assert masks(vm) == ["2-3", "2-3"]
    check(vm, status=0)


def test_a_mask_that_does_not_meet_the_pmu_gets_what_pmuctl_had_set(vm: ReferenceVm) -> None:
    assert affinity(vm, "set", "3", "--vcpu", "1").status == 0
    for vcpu in range(2):
        move(vm, "3", vcpu)
    assert [row["outside"] for row in check(vm, status=1)] == [[0, 1]] * 2
    assert affinity(vm, "align").status == 0
    assert masks(vm) == ["2-3", "3"]


def test_a_pin_that_pmuctl_does_not_know_is_not_widened(lab: Lab) -> None:
    with reference_vm(lab, "--create-cpus", "0-1") as vm:
        vm.set("pmu", A72, "affinity", "none")
        for vcpu in range(2):
            move(vm, "3", vcpu)
        ran = affinity(vm, "align")
        assert (ran.status, masks(vm)) == (9, ["0-1", "0-1"]), ran
        fix = ran.stderr.partition("fix: ")[2].split()
        assert fix == ["pmuctl", "affinity", "set", vm.name, "2-3"]
        assert lab.run(fix).status == 0
        check(vm, status=0)


def test_what_the_check_says_of_a_vm_is_what_happens(lab: Lab) -> None:
    """Off its PMU a vCPU fails to enter the guest; back on it, it goes on."""
    with reference_vm(lab, "--create-cpus", "0-1", "--forever") as vm:
        vm.set("pmu", A72)
        assert vm.pmuctl("release").status == 0
        vm.job.wait_for('"cycles"')
        check(vm, status=0)
        assert affinity(vm, "set", "3").status == 0
        assert masks(vm) == ["3", "3"]
        assert vm.pmuctl("set", "affinity", "2").status == 0
        assert masks(vm) == ["2", "2"]
        assert affinity(vm, "set", "0").status == 9
        check(vm, status=0)
        move(vm, "3")
        assert check(vm, status=1)[0]["consequence"] == "fail-entry"
        assert affinity(vm, "align").status == 0
        assert masks(vm) == ["2", "2"]


def test_the_last_cpu_of_the_pmu_goes_offline(vm: ReferenceVm) -> None:
    """A thread that runs is moved at once; one that sleeps has no CPU until it wakes up."""
    try:
        for cpu in (2, 3):
            sh(vm.lab, f"echo 0 >{ONLINE.format(cpu)}")
        for row in check(vm, status=1):
            assert (row["affinity"], row["outside"]) in (
                ([0, 1, 2, 3], [0, 1]),
                ([2, 3], None),
            )
            assert (row["aligned"], row["consequence"]) == (False, "fail-entry")
            assert "CPUs 2-3 are offline" in row["blocker"]
        ran = affinity(vm, "align")
        assert ran.status == 9, ran
        assert f"fix: echo 1 >{ONLINE.format(2)}" in ran.stderr
    finally:
        for cpu in (2, 3):
            sh(vm.lab, f"echo 1 >{ONLINE.format(cpu)}")
    assert affinity(vm, "align").status == 0
    check(vm, status=0)


def test_a_cpu_that_is_offline_for_a_moment_is_not_pinned_away(vm: ReferenceVm) -> None:
    """The mask that align gives keeps it, as far as the kernel does: that of 6.1 does not."""
    move(vm, "f")
    sh(vm.lab, f"echo 0 >{ONLINE.format(3)}")
    try:
        planned = affinity(vm, "align", "--dry-run")
        assert planned.stdout.endswith(f"sched_setaffinity({vm.tids[0]}, 2-3)  vCPU 0, was 0-3\n")
        assert affinity(vm, "align").status == 0
        move(vm, "c", 1)
    finally:
        sh(vm.lab, f"echo 1 >{ONLINE.format(3)}")
    assert masks(vm) == [{"6.1": "2"}.get(vm.lab.kernel, "2-3")] * 2
    check(vm, status=0)


def check_that_it_is_named(vm: ReferenceVm, path: str, version: int) -> None:
    """A cpuset keeps the VM off its PMU; the fix that is told lets it back."""
    sh(vm.lab, f"echo {vm.pid} >{path}/cgroup.procs")
    assert masks(vm) == ["0-1", "0-1"]
    words = f"the cpuset cgroup (v{version}) {path} allows only 0-1"
    assert [row["blocker"] for row in check(vm, status=1)] == [words] * 2
    for verb in (("align",), ("set", "2")):
        ran = affinity(vm, *verb)
        assert ran.status == 9, ran
        assert words in ran.stderr
        assert "EINVAL" in ran.stderr
    fix = affinity(vm, "align").stderr.partition("fix: ")[2].strip()
    sh(vm.lab, fix)
    assert affinity(vm, "align").status == 0
    check(vm, status=0)


def test_a_cpuset_in_the_way_is_named(vm: ReferenceVm) -> None:
    with cpuset_v2(vm.lab) as path:
        check_that_it_is_named(vm, path, 2)


def test_a_cpuset_of_version_1_in_the_way_is_named(kernel: str) -> None:
    """In a lab of its own: once it was mounted, version 2 has the controller no more."""
    with (
        boot(kernel, "two") as lab,
        cpuset_v1(lab) as path,
        reference_vm(lab, "--create-cpus", "0-1") as its,
    ):
        its.set("pmu", A72)
        check_that_it_is_named(its, path, 1)


def test_a_thread_in_a_threaded_group_of_its_own(vm: ReferenceVm) -> None:
    with cpuset_v2(vm.lab) as path:
        sh(vm.lab, f"echo {vm.pid} >{path}/cgroup.procs; echo 0-3 >{path}/cpuset.cpus")
        sh(vm.lab, f"mkdir {path}/t; echo threaded >{path}/t/cgroup.type")
        sh(vm.lab, f"echo +cpuset >{path}/cgroup.subtree_control; echo 1 >{path}/t/cpuset.cpus")
        sh(vm.lab, f"echo {vm.tids[1]} >{path}/t/cgroup.threads")
        try:
            assert affinity(vm, "align").status == 9
            first, second = check(vm, status=1)
            assert second["blocker"] == f"the cpuset cgroup (v2) {path}/t allows only 1"
            assert first["blocker"] is None
        finally:
            sh(vm.lab, f"echo {vm.tids[1]} >{path}/cgroup.threads; rmdir {path}/t")


def test_a_stranger_may_neither_look_nor_place(vm: ReferenceVm) -> None:
    move(vm, "f")
    group = vm.lab.run(["stat", "-c", "%g", "/dev/kvm"]).stdout.strip()
    for user in ("1001:1001", f"1000:{group}"):
        options: dict[str, Any] = {"user": user, "env": {"XDG_RUNTIME_DIR": "/tmp"}}
        for verb in (("align",), ("set", "2-3")):
            ran = affinity(vm, *verb, **options)
            assert ran.status == 6, ran
    assert affinity(vm, "check", **options | {"user": "1001:1001"}).status == 6
    ran = affinity(vm, "check", "-J", **options)
    assert ran.status == 1, ran
    assert masks(vm) == ["0-3", "2-3"]


@contextmanager
def mute_sockets(lab: Lab, count: int) -> Iterator[None]:
    """Sockets that a user without any VM has made, at which he says nothing."""
    place = "/run/user/1002"
    sh(lab, f"mkdir -p {place} && chown 1002 {place}")
    script = f"""
import os, socket, time
os.makedirs("{place}/pmuctl", exist_ok=True)
its = [socket.socket(socket.AF_UNIX) for _ in range({count})]
for n, one in enumerate(its):
    one.bind(f"{place}/pmuctl/evil{{n}}.sock")
    one.listen()
print("mute", flush=True)
time.sleep(1000)
"""
    job = lab.start(["python3", "-c", script], user="1002:1002")
    try:
        job.wait_for("mute")
        yield
    finally:
        job.kill()
        job.wait()
        sh(lab, f"rm -rf {place}")


def test_a_stranger_does_not_make_roots_job_fail(vm: ReferenceVm) -> None:
    """Nor are root's VMs buried below the sockets he makes."""
    quick = ("--deadline", "1")
    with mute_sockets(vm.lab, 1):
        move(vm, "f")
        for verb, status in ((("check",), 1), (("align", "--all"), 0), (("check",), 0)):
            ran = pmuctl(vm.lab, "affinity", *verb, *quick)
            assert ran.status == status, ran
            assert "warning: evil0: its control socket does not answer" in ran.stderr
        assert masks(vm) == ["2-3", "2-3"]
    with mute_sockets(vm.lab, 40):
        ran = pmuctl(vm.lab, "vm", "list", *quick)
        assert [line.split()[0] for line in ran.stdout.splitlines()] == ["NAME", vm.name]
        assert "40 control sockets of uid 1002 are hidden" in ran.stderr
        assert "evil" not in ran.stderr
        ran = pmuctl(vm.lab, "vm", "list", "-J", *quick)
        assert len(json.loads(ran.stdout)["vms"]) == 41
        assert "evil7" in pmuctl(vm.lab, "vm", "list", "evil7", *quick).stdout
