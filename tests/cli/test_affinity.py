# SPDX-License-Identifier: Apache-2.0
"""`pmuctl affinity` and the key `affinity` of `vm set`, on threads that behave as the kernel's."""

import errno
import json
import os
import shutil
import signal
from typing import Any

import pytest

from pmuctl.model.cpuset import CpuSet
from tests.cli.conftest import Machine, Ran
from tests.cli.host_cpus import put_cpuset, put_online, threads_of
from tests.fakes.peers import mute
from tests.fakes.vmm import FakeVm, KernelThreads, fake_proc, fake_vmm

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
TIDS = (1001, 1002)


def masks(machine: Machine) -> list[str]:
    return [str(threads_of(machine).masks[tid]) for tid in TIDS]


def set_masks(machine: Machine, *texts: str) -> None:
    for tid, text in zip(TIDS, texts, strict=True):
        threads_of(machine).masks[tid] = CpuSet.parse(text)


def checked(machine: Machine, *words: str, status: int = 0) -> list[dict[str, Any]]:
    ran = machine.run("affinity", "check", *words, "-J", "-O")
    assert ran.status == status, ran
    found: list[dict[str, Any]] = json.loads(ran.stdout)["vcpus"]
    return found


def refused(ran: Ran, status: int, *words: str) -> None:
    assert ran.status == status, ran
    assert ran.stderr.startswith("error: ")
    for word in words:
        assert word in ran.stderr, ran.stderr


def new_vm(machine: Machine, name: str = "web1") -> FakeVm:
    vm = FakeVm(name)
    if machine.threads is None:
        machine.threads = KernelThreads(vm.threads.masks)
        fake_proc(machine.proc, os.getpid(), tids=TIDS, uid=os.geteuid(), start=5)
    vm.threads = threads_of(machine)
    return machine.start(vm)


def running(machine: Machine, pmu: str | None = A72, name: str = "web1") -> FakeVm:
    """A VM that runs, with this PMU set."""
    vm = new_vm(machine, name)
    if pmu:
        assert machine.run("vm", "set", name, "pmu", pmu).status == 0
    machine.servers[name].seal("it was released")
    vm.initialise()
    vm.run()
    return vm


# check


def test_a_vm_on_its_pmu_is_aligned(machine: Machine) -> None:
    running(machine)
    rows = checked(machine)
    assert [(its["consequence"], its["blocker"], its["aligned"]) for its in rows] == [
        (None, None, True)
    ] * 2
    assert rows[0]["pmu_cpus"] == [2, 3]
    assert machine.run("affinity", "check").stderr == ""


def test_a_vcpu_that_can_leave_a_pmu_that_was_set(machine: Machine) -> None:
    running(machine)
    set_masks(machine, "2-3", "0-2")
    rows = checked(machine, status=1)
    assert [its["aligned"] for its in rows] == [True, False]
    assert (rows[1]["consequence"], rows[1]["outside"]) == ("fail-entry", [0, 1])
    ran = machine.run("affinity", "check", "web1")
    assert ran.status == 1
    assert ran.lines[2].split() == ["web1", "1", "1002", "0-2", "2-3", "?", "fail-entry", "-"]
    assert "KVM_EXIT_FAIL_ENTRY" in ran.stderr


def test_a_pmu_that_kvm_chose_is_judged_over_all_it_can_be(machine: Machine) -> None:
    running(machine, None)
    set_masks(machine, "1-2", "2-3")
    ran = machine.run("affinity", "check", "-O", "-J")
    assert ran.status == 1
    rows = json.loads(ran.stdout)["vcpus"]
    assert [its["consequence"] for its in rows] == ["counters-stop", None]
    assert "which PMU" in rows[0]["blocker"]
    assert "it is not known whether 1 vCPU can leave its PMU" in ran.stderr
    assert machine.run("affinity", "check").lines[2].split()[6] == "?"


def test_vcpus_on_two_pmus_are_no_everywhere(machine: Machine) -> None:
    """Each may be on the right one, both cannot: all commands say so of such a VM."""
    running(machine, None)
    set_masks(machine, "0-1", "2-3")
    means = (
        f"vCPUs 0-1 may run outside its PMU, on CPUs 2-3 if that is {A53} or CPUs 0-1 if that is "
        f"{A72}: the guest's counters stop there silently"
    )
    ran = machine.run("affinity", "check", "-J", "-O")
    assert ran.status == 1
    rows = json.loads(ran.stdout)["vcpus"]
    assert [(its["aligned"], its["vm_aligned"]) for its in rows] == [(None, False)] * 2
    assert all("which PMU" in its["blocker"] for its in rows)
    assert ran.stderr == f"web1: {means}\n"
    (vm,) = json.loads(machine.run("vm", "list", "-J", "-O").stdout)["vms"]
    assert (vm["aligned"], vm["means"]) == (False, means)
    found = json.loads(machine.run("doctor", "web1", "-J").stdout)["findings"]
    assert [(its["result"], its["why"]) for its in found if its["id"] == "vm.aligned"] == [
        ("WARN", means)
    ]
    told = machine.run("monitor", "--timeout", "0", "--format", "jsonl").stdout
    event = json.loads(told)
    assert (event["event"], event["what"], event["cpus"]) == ("vcpu-left", means, None)


def test_outside_is_told_for_each_pmu_it_can_be(machine: Machine) -> None:
    running(machine, None)
    set_masks(machine, "1-2", "3")
    lines = machine.run("affinity", "check", "-o", "VCPU,OUTSIDE,VM-ALIGNED").lines
    assert [line.split() for line in lines[1:]] == [["0", "2", "or", "1?", "no"], ["1", "?", "no"]]
    rows = checked(machine, status=1)
    assert [its["outside"] for its in rows] == [None, None]


def test_strict_takes_what_is_not_known_for_a_no(machine: Machine) -> None:
    running(machine, None)
    set_masks(machine, "2-3", "2-3")
    assert machine.run("affinity", "check").status == 0
    for words in ((), ("web1",)):
        ran = machine.run("affinity", "check", "--strict", *words, "-J")
        assert (ran.status, json.loads(ran.stdout)["unknown"]) == (1, ["web1"])


def test_strict_takes_what_cannot_be_seen_for_a_no(machine: Machine) -> None:
    running(machine)
    set_masks(machine, "2-3", "2-3")
    fake_proc(machine.proc, 7000, holds_kvm=False, uid=1234)
    assert machine.run("affinity", "check", "--strict").status == 0
    machine.unreadable.add(7000)
    assert machine.run("affinity", "check").status == 0
    ran = machine.run("affinity", "check", "--strict", "-J")
    assert (ran.status, json.loads(ran.stdout)["unreadable"]) == (1, 1)
    assert machine.run("affinity", "check", "--strict", "web1").status == 0


def test_strict_has_nothing_against_a_vm_that_stays_or_has_no_pmu(machine: Machine) -> None:
    new_vm(machine, "open")
    running(machine)
    ran = machine.run("affinity", "check", "--strict", "-J")
    assert (ran.status, json.loads(ran.stdout)["unknown"]) == (0, [])


def test_managed_leaves_out_vms_without_settings(machine: Machine) -> None:
    fake_vmm(machine.proc, 5120, ("qemu-system-aarch64", "-name", "db1"))
    running(machine)
    threads_of(machine).masks |= dict.fromkeys((5121, 5122), CpuSet.parse("0-3"))
    assert {row["vm"] for row in checked(machine, status=1)} == {"web1", "db1"}
    assert {row["vm"] for row in checked(machine, "--managed", "--strict")} == {"web1"}
    # that pmuctl itself pinned it is a setting, too
    assert machine.run("affinity", "set", "db1", "2-3").status == 0
    assert {row["vm"] for row in checked(machine, "--managed")} == {"web1", "db1"}
    ran = machine.run("affinity", "check", "--managed", "web1")
    refused(ran, 2, "--managed", "fix: omit --managed")


def test_managed_leaves_out_a_vm_with_a_control_socket_that_was_given_nothing(
    machine: Machine,
) -> None:
    running(machine, None)
    set_masks(machine, "1-2", "1-2")
    checked(machine, status=1)
    assert checked(machine, "--managed") == []
    assert machine.run("affinity", "check", "--managed").stderr == "no VM has settings\n"


def test_json_tells_no_pmu_from_a_pmu_that_is_not_known(machine: Machine) -> None:
    machine.start(FakeVm(has_pmu=False))
    for words, key in (("affinity check", "vcpus"), ("vm vcpus", "vcpus"), ("vm list", "vms")):
        rows = json.loads(machine.run(*words.split(), "-J").stdout)[key]
        assert {row["has_pmu"] for row in rows} == {False}, words
    running(machine, None, "web2")
    for words, key in (("affinity check", "vcpus"), ("vm vcpus", "vcpus"), ("vm list", "vms")):
        rows = json.loads(machine.run(*words.split(), "web2", "-J").stdout)[key]
        assert {(row["has_pmu"], row.get("pmu")) for row in rows} == {(True, None)}, words


@pytest.mark.parametrize("cpus", ["0-1", "2-3", "2"])
def test_a_pin_on_a_pmu_that_is_not_known_to_be_its_own_is_no_success_in_silence(
    machine: Machine, cpus: str
) -> None:
    running(machine, None)
    ran = machine.run("affinity", "set", "web1", cpus)
    assert ran.status == 0
    assert ran.stderr.startswith("warning: web1: it is not known whether these CPUs are")
    assert "fix: in the guest: perf stat -e cycles true" in ran.stderr
    assert machine.run("vm", "list").lines[1].split()[-1] == "?"
    found = json.loads(machine.run("doctor", "web1", "-J").stdout)["findings"]
    (aligned,) = [finding for finding in found if finding["id"] == "vm.aligned"]
    assert (aligned["result"], "perf stat" in aligned["fix"]) == ("WARN", True)


def test_a_vm_without_a_pmu_has_nothing_to_leave(machine: Machine) -> None:
    new_vm(machine)
    assert [its["aligned"] for its in checked(machine)] == [None, None]
    ran = machine.run("affinity", "check")
    assert (ran.status, ran.stderr) == (0, "")
    assert ran.lines[1].split()[4:] == ["-", "?", "-", "-"]


def test_the_last_cpu_of_the_pmu_goes_offline(machine: Machine) -> None:
    running(machine)
    put_online(machine, "0-1")
    set_masks(machine, "0-3", "0-3")  # what select_fallback_rq() does
    rows = checked(machine, status=1)
    assert [its["outside"] for its in rows] == [[0, 1]] * 2
    assert all("CPUs 2-3 are offline" in its["blocker"] for its in rows)


def test_a_thread_that_sleeps_has_no_cpu_left_then(machine: Machine) -> None:
    """Its mask is as it was, though all of it is offline; it is moved when it wakes up."""
    running(machine)
    put_online(machine, "0-1")
    rows = checked(machine, status=1)
    assert [(its["affinity"], its["outside"]) for its in rows] == [([2, 3], None)] * 2
    assert all("CPUs 2-3 are offline" in its["blocker"] for its in rows)
    fix = "fix: echo 1 >/sys/devices/system/cpu/cpu2/online"
    refused(machine.run("affinity", "align", "web1"), 9, "CPUs 2-3 are offline", fix)
    assert machine.run("vm", "set", "web1", "affinity", "none").status == 0
    refused(machine.run("affinity", "align", "web1"), 9, "CPUs 2-3 are offline", fix)
    ran = machine.run("affinity", "set", "web1", "2", "--dry-run")
    refused(ran, 9, "CPU 2 is offline")


def test_a_cpuset_in_the_way_is_named(machine: Machine) -> None:
    running(machine)
    path = put_cpuset(machine, "0-1", *TIDS)
    set_masks(machine, "0-1", "0-1")
    for its in checked(machine, status=1):
        assert its["blocker"] == f"the cpuset cgroup (v2) {path} allows only 0-1"
    refused(machine.run("affinity", "align", "web1"), 9, path, "EINVAL", f"echo 0-3 >{path}/")
    assert masks(machine) == ["0-1", "0-1"]


def test_what_another_user_cannot_do_is_a_blocker(machine: Machine) -> None:
    running(machine)
    uid = os.geteuid() or 77  # only root's socket may speak for another user's process
    fake_proc(machine.proc, os.getpid(), tids=TIDS, uid=uid, start=5)
    set_masks(machine, "0-3", "0-3")
    ran = machine.run("affinity", "check", "-J", uid=os.geteuid() + 1)
    owner = f"it is uid {os.geteuid()}'s"
    assert [its["blocker"] for its in json.loads(ran.stdout)["vcpus"]] == [
        f"not permitted: {owner}, that takes CAP_SYS_NICE"
    ] * 2


def test_who_cannot_be_asked_is_an_error_if_it_was_named(machine: Machine) -> None:
    running(machine)
    refused(machine.run("affinity", "check", "web1", "web2"), 4, "web2")
    ran = machine.run("affinity", "check", "web2", "web1", "-k")
    assert (ran.status, "web1" in ran.stdout) == (64, True)
    assert machine.run("affinity", "check", "web2", "-k").status == 4


# align


def test_align_cuts_the_mask_down(machine: Machine) -> None:
    running(machine)
    set_masks(machine, "0-3", "1-2")
    ran = machine.run("affinity", "align", "web1")
    assert ran.status == 0, ran
    assert [line.split() for line in ran.lines] == [
        ["web1", "0", "1001", "set", "2-3"],
        ["web1", "1", "1002", "set", "2"],
    ]
    assert masks(machine) == ["2-3", "2"]
    again = machine.run("affinity", "align", "--all")
    assert [line.split()[3] for line in again.lines] == ["unchanged"] * 2


def test_a_cpu_that_is_offline_for_a_moment_is_not_pinned_away(machine: Machine) -> None:
    running(machine)
    set_masks(machine, "0-3", "0-3")
    put_online(machine, "0-2")
    assert machine.run("affinity", "align", "web1").status == 0
    assert masks(machine) == ["2-3", "2-3"]


def test_align_restores_what_pmuctl_had_set(machine: Machine) -> None:
    running(machine)
    assert machine.run("affinity", "set", "web1", "3", "--vcpu", "1").status == 0
    set_masks(machine, "0-1", "0-1")
    assert machine.run("affinity", "align", "web1").status == 0
    assert masks(machine) == ["2-3", "3"]


def test_align_leaves_a_pin_it_does_not_know(machine: Machine) -> None:
    vm = new_vm(machine)
    assert machine.run("vm", "set", "web1", "pmu", A72, "affinity", "none").status == 0
    vm.initialise()
    vm.run()
    set_masks(machine, "0-1", "2-3")
    ran = machine.run("affinity", "align", "web1")
    refused(ran, 9, "never widened")
    assert ran.stderr.endswith("  fix: pmuctl affinity set web1 2-3 --vcpu 0\n")
    assert masks(machine) == ["0-1", "2-3"]
    assert checked(machine, status=1)[0]["blocker"] == "a pin to 0-1 that pmuctl did not make"


def test_the_record_of_another_process_is_none(machine: Machine) -> None:
    running(machine)
    set_masks(machine, "0-1", "0-1")
    fake_proc(machine.proc, os.getpid(), tids=TIDS, uid=os.geteuid(), start=6)
    refused(machine.run("affinity", "align", "web1"), 9, "never widened")


def test_align_without_a_pmu(machine: Machine) -> None:
    new_vm(machine)
    refused(machine.run("affinity", "align", "web1"), 9, "no PMU yet", f"vm set web1 pmu {A72}\n")
    assert machine.run("affinity", "align", "--all").status == 0


def test_align_on_a_host_without_a_pmu(machine: Machine) -> None:
    running(machine, None)
    for name in (A53, A72):  # what is left is of the kernel itself
        (machine.root / "sys/bus/event_source/devices" / name).unlink()
    for words in (("affinity", "align", "web1"), ("vm", "set", "web1", "affinity", "auto")):
        ran = machine.run(*words)
        refused(ran, 7, "this host has no CPU PMU", "fix: pmuctl doctor\n")


def test_align_before_there_is_a_vcpu(machine: Machine) -> None:
    fake_vmm(machine.proc, 5120, ("qemu-system-aarch64", "-name", "db1"), vcpus={}, ran=0)
    ran = machine.run("affinity", "align", "db1")
    refused(ran, 9, "no PMU yet", "not made a vCPU", "pmuctl vm wait pid/5120 --for running")


def test_align_where_kvm_chose(machine: Machine) -> None:
    running(machine, None)
    ran = machine.run("affinity", "align", "web1")
    refused(ran, 9, "not known", f"KVM chose {A53} (0-1) or {A72} (2-3) by itself")
    assert "fix: pmuctl affinity set web1 2-3\n" in ran.stderr
    ran = machine.run("affinity", "align", "--all")
    assert ran.status == 0
    assert "web1: left alone" in ran.stderr


def test_align_takes_names_or_all(machine: Machine) -> None:
    refused(machine.run("affinity", "align"), 2, "a VM or --all is missing")
    both = machine.run("affinity", "align", "web1", "--all")
    refused(both, 2, "VMs and --all cannot be combined")


def test_several_vms(machine: Machine) -> None:
    running(machine)
    set_masks(machine, "0-3", "0-3")
    assert machine.run("affinity", "align", "gone", "web1").status == 4
    assert masks(machine) == ["0-3", "0-3"]
    ran = machine.run("affinity", "align", "gone", "web1", "-k")
    assert ran.status == 64
    assert "gone" in ran.stderr
    assert masks(machine) == ["2-3", "2-3"]
    # what is not there is refused before any is touched
    set_masks(machine, "0-3", "0-3")
    assert machine.run("affinity", "align", "web1", "gone").status == 4
    assert masks(machine) == ["0-3", "0-3"]
    assert machine.run("affinity", "align", "gone", "-k").status == 4


@pytest.fixture
def two(machine: Machine) -> Machine:
    """web1 is not on its PMU; kt1, of another process, has none."""
    running(machine)
    set_masks(machine, "0-3", "0-3")
    fake_vmm(machine.proc, 6000, ("lkvm", "run", "--name", "kt1"), masks="0-1")
    for tid in range(6000, 6004):
        threads_of(machine).masks[tid] = CpuSet.parse("0-1")
    return machine


def one_pmu(machine: Machine) -> None:
    """Of all its CPUs, so that every VM has it."""
    for directory in (machine.root / "sys/bus/event_source/devices").iterdir():
        if directory.name == A53:
            directory.unlink() if directory.is_symlink() else shutil.rmtree(directory)


def test_what_fails_is_told_with_what_was_done_before(two: Machine) -> None:
    ran = two.run("affinity", "align", "web1", "kt1")
    assert ran.status == 7, ran
    assert [line.split()[3] for line in ran.lines] == ["set"] * 2
    assert "now: nothing was changed of it; aligned before: web1\n" in ran.stderr


def test_align_all_goes_on_after_a_failure(two: Machine) -> None:
    """A VM that sorts before others does not keep them from being aligned."""
    threads = threads_of(two)
    fake_vmm(two.proc, 6100, ("lkvm", "run", "--name", "a1", "--pmu"), masks="2-3")
    one_pmu(two)
    for tid in range(6100, 6104):
        threads.masks[tid] = CpuSet.parse("2-3")
    threads.refuses[6101] = errno.EPERM
    threads.masks[6101] = CpuSet.parse("0-3")
    ran = two.run("affinity", "align", "--all")
    assert ran.status == 64, ran
    assert "error: a1: vCPU 0: its thread may not be placed" in ran.stderr
    assert masks(two) == ["2-3", "2-3"]


@pytest.mark.parametrize("words", [("check",), ("check", "-k"), ("align", "--all")])
def test_that_a_vm_cannot_be_asked_is_a_failure(machine: Machine, words: tuple[str, ...]) -> None:
    """Nobody knows where its vCPUs may be; of the others it is told, and done, all the same."""
    machine.runtime.mkdir()
    ask = ("affinity", *words, "--deadline", "0.2")
    with mute(machine.runtime / "a1.sock"):
        refused(machine.run(*ask), 3, "error: a1: ")
        running(machine)
        ran = machine.run(*ask)
        assert (ran.status, len(ran.stdout.splitlines()) >= 2) == (64, True), ran
        assert "error: a1: " in ran.stderr
    # now its VMM has ended
    ran = machine.run(*ask)
    assert ran.status == 0, ran
    assert "warning: a1: " in ran.stderr


def test_that_a_vm_has_ended_is_no_failure(machine: Machine) -> None:
    running(machine)
    set_masks(machine, "0-3", "0-3")
    threads_of(machine).refuses[1001] = errno.ESRCH
    ran = machine.run("affinity", "align", "--all")
    assert ran.status == 0, ran
    assert ran.stderr == (
        "web1: left alone, vCPU 0: its thread 1001 is gone\nnothing was aligned\n"
    )
    refused(machine.run("affinity", "align", "web1"), 4, "is gone")


def test_that_threads_are_not_known_is_a_remark(machine: Machine) -> None:
    running(machine)
    (machine.proc / str(os.getpid()) / "task/1002").rmdir()
    ran = machine.run("affinity", "align", "--all")
    assert ran.status == 0, ran
    assert "web1: left alone, which threads run vCPU 1 is not known\n" in ran.stderr
    refused(machine.run("affinity", "align", "web1"), 9, "is not known")


def test_what_is_to_be_left_alone_is(machine: Machine) -> None:
    """By align --all; who names it wants it aligned, and from then on it is again."""
    running(machine)
    set_masks(machine, "0-3", "0-3")
    words = ("vm", "set", "web1", "affinity", "none")
    assert machine.run(*words, "--dry-run", "-J").status == 0
    outcomes = [machine.run(*words).stdout.split() for _ in range(2)]
    assert outcomes == [["web1", "affinity", its, "left", "alone"] for its in ("set", "unchanged")]
    ran = machine.run("affinity", "align", "--all")
    assert (ran.status, ran.stdout) == (0, "")
    assert ran.stderr.startswith("web1: left alone, as affinity none says\n")
    assert masks(machine) == ["0-3", "0-3"]
    assert machine.run("affinity", "align", "web1").status == 0
    assert masks(machine) == ["2-3", "2-3"]
    set_masks(machine, "0-3", "0-3")
    assert machine.run("affinity", "align", "--all").status == 0
    assert masks(machine) == ["2-3", "2-3"]


def test_what_cannot_be_recorded_is_a_warning(machine: Machine) -> None:
    """But for `none` alone, which is nothing but a record."""
    running(machine)
    machine.runtime.chmod(0o777)
    ran = machine.run("affinity", "set", "web1", "3")
    assert (ran.status, masks(machine)) == (0, ["3", "3"])
    assert "warning: web1: where its vCPU threads were put could not be recorded" in ran.stderr
    assert "others may write to it; later on affinity align takes that for a pin" in ran.stderr
    refused(machine.run("vm", "set", "web1", "affinity", "none"), 9, "could not be recorded")
    new_vm(machine, "web2")
    for its in ("none", "auto"):
        ran = machine.run("vm", "set", "web2", "pmu", A72, "affinity", its)
        assert ran.status == 0, ran
        assert "warning: web2: " in ran.stderr
        assert "could not be recorded" in ran.stderr


class Interrupted(KernelThreads):
    """A signal comes in the middle of a placement."""

    def set(self, tid: int, cpus: CpuSet) -> None:
        super().set(tid, cpus)
        if len(self.calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("with_signals")
@pytest.mark.parametrize("verb", [("align", "web1"), ("align", "--all"), ("set", "web1", "2-3")])
def test_a_signal_cuts_no_placement_in_two(machine: Machine, verb: tuple[str, ...]) -> None:
    """All is done, recorded and told."""
    running(machine)
    set_masks(machine, "0-3", "0-3")
    machine.threads = Interrupted(threads_of(machine).masks)
    ran = machine.run("affinity", *verb)
    assert (ran.status, masks(machine)) == (143, ["2-3", "2-3"])
    steps = [
        f"web1: sched_setaffinity({tid}, 2-3)  vCPU {n}, was 0-3" for n, tid in enumerate(TIDS)
    ]
    assert f"  now: done: {'; '.join(steps)}\n" in ran.stderr
    set_masks(machine, "0-1", "0-1")
    assert machine.run("affinity", "align", "web1").status == 0


@pytest.mark.usefixtures("with_signals")
def test_a_signal_in_a_placement_that_fails_tells_so(machine: Machine) -> None:
    running(machine)
    machine.threads = Interrupted(threads_of(machine).masks)
    threads_of(machine).refuses[1002] = errno.EPERM
    ran = machine.run("affinity", "set", "web1", "3")
    assert (ran.status, masks(machine)) == (143, ["2-3", "2-3"])
    assert "now: vCPU 0 put back; nothing else was changed" in ran.stderr


# set


@pytest.mark.parametrize(
    ("cpuset", "mask"), [("2", "2"), ("2-3", "2-3"), (f"pmu/{A72},^2", "3"), ("^0-1", "2-3")]
)
def test_set(machine: Machine, cpuset: str, mask: str) -> None:
    running(machine)
    assert machine.run("affinity", "set", "web1", cpuset).status == 0
    assert masks(machine) == [mask, mask]


def test_set_places_the_vcpus_that_are_named(machine: Machine) -> None:
    running(machine)
    assert machine.run("affinity", "set", "web1", "3", "--vcpu", "1").status == 0
    assert masks(machine) == ["2-3", "3"]
    refused(machine.run("affinity", "set", "web1", "3", "--vcpu", "1-2"), 4, "no vCPU 2")
    refused(machine.run("affinity", "set", "web1", "3", "--vcpu", "x"), 2, "list of vCPUs")


def test_set_does_not_leave_a_pmu_that_was_set(machine: Machine) -> None:
    running(machine)
    ran = machine.run("affinity", "set", "web1", "1-2")
    refused(ran, 9, "CPU 1 is not of", "FAIL_ENTRY", "fix: pmuctl affinity set web1 2")
    refused(machine.run("affinity", "set", "web1", "all"), 9, "CPUs 0-1 are not of")
    assert masks(machine) == ["2-3", "2-3"]


def test_set_where_kvm_chose_is_free(machine: Machine) -> None:
    running(machine, None)
    assert machine.run("affinity", "set", "web1", f"pmu/{A53}").status == 0
    assert masks(machine) == ["0-1", "0-1"]


@pytest.mark.parametrize("words", [("affinity", "set", "web1"), ("vm", "set", "web1", "affinity")])
def test_a_cpu_that_this_host_does_not_have(machine: Machine, words: tuple[str, ...]) -> None:
    """As pmu cpus and run have it: it is not there, as a PMU is not."""
    running(machine)
    refused(machine.run(*words, "3,9"), 4, "web1: there is no CPU 9", "pmuctl pmu cpus")
    assert masks(machine) == ["2-3", "2-3"]


@pytest.mark.parametrize("cpuset", ["", "x", "2,^2", "0-"])
def test_no_list_of_this_hosts_cpus(machine: Machine, cpuset: str) -> None:
    running(machine)
    assert machine.run("affinity", "set", "web1", cpuset).status == 2


def test_dry_run_shows_the_calls(machine: Machine) -> None:
    running(machine)
    ran = machine.run("affinity", "set", "web1", "3", "--dry-run")
    assert ran.lines == [
        f"web1: sched_setaffinity({tid}, 3)  vCPU {n}, was 2-3" for n, tid in enumerate(TIDS)
    ]
    assert masks(machine) == ["2-3", "2-3"]
    ran = machine.run("affinity", "align", "web1", "--dry-run")
    assert ran.lines == ["nothing to do: already as requested"]
    rows = json.loads(machine.run("affinity", "set", "web1", "3", "--dry-run", "-J").stdout)
    assert [its["outcome"] for its in rows["results"]] == ["planned"] * 2


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (errno.EINVAL, 9, "EINVAL"),
        (errno.EPERM, 6, "CAP_SYS_NICE"),
        (errno.ESRCH, 4, "is gone"),
        (errno.EBUSY, 9, "EBUSY"),
    ],
)
def test_all_or_nothing(machine: Machine, error: int, status: int, word: str) -> None:
    running(machine)
    threads_of(machine).refuses[1002] = error
    ran = machine.run("affinity", "set", "web1", "3")
    refused(ran, status, "vCPU 1", word, "now: vCPU 0 put back; nothing else was changed")
    assert masks(machine) == ["2-3", "2-3"]
    threads_of(machine).refuses = {1001: error}
    refused(machine.run("affinity", "set", "web1", "3"), status, "now: nothing was changed")


def test_what_cannot_be_put_back_is_told(machine: Machine) -> None:
    running(machine)

    class Stuck(KernelThreads):
        def set(self, tid: int, cpus: CpuSet) -> None:
            if tid == 1002 or (tid, CpuSet.parse("3")) in self.calls:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            super().set(tid, cpus)

    machine.threads = Stuck(threads_of(machine).masks)
    ran = machine.run("affinity", "set", "web1", "3")
    refused(ran, 9, "now: left so: sched_setaffinity(1001, 3)")
    assert masks(machine) == ["3", "2-3"]


def test_a_thread_id_that_means_another_thread_now_is_not_touched(machine: Machine) -> None:
    running(machine)

    class Reused(KernelThreads):
        def get(self, tid: int) -> CpuSet:
            if tid == 1002:  # it ends after the VM was asked
                (machine.proc / str(os.getpid()) / "task/1002").rmdir()
            return super().get(tid)

    machine.threads = Reused(threads_of(machine).masks)
    ran = machine.run("affinity", "set", "web1", "3")
    refused(ran, 4, "thread 1002 is gone", "vCPU 0 put back")
    assert masks(machine) == ["2-3", "2-3"]


def test_what_the_cpuset_leaves_out_is_a_warning(machine: Machine) -> None:
    running(machine)
    path = put_cpuset(machine, "0-2", 1001)
    set_masks(machine, "2", "2")
    ran = machine.run("affinity", "set", "web1", "2-3")
    assert ran.status == 0
    assert "warning: web1: vCPU 0 was put on 2 only" in ran.stderr
    assert path in ran.stderr
    assert [line.split()[3:] for line in ran.lines] == [["unchanged", "2"], ["set", "2-3"]]


# the key of vm set


def test_vm_set_with_a_pmu_implies_auto(machine: Machine) -> None:
    new_vm(machine)
    ran = machine.run("vm", "set", "web1", "pmu", A72, "affinity", "auto")
    assert ran.lines[-1].split() == ["web1", "affinity", "set", "within", "2-3"]
    assert masks(machine) == ["2-3", "2-3"]


def test_vm_set_with_a_pmu_and_cpus(machine: Machine) -> None:
    new_vm(machine)
    ran = machine.run("vm", "set", "web1", "pmu", A72, "affinity", "3")
    assert ran.lines[-1].split() == ["web1", "affinity", "set", "within", "3"]
    assert masks(machine) == ["3", "3"]
    assert machine.run("vm", "set", "web1", "filter", "default", "deny").status == 0
    assert masks(machine) == ["3", "3"]
    refused(machine.run("vm", "set", "web1", "pmu", A72, "affinity", "0"), 9, "CPU 0 is not of")


def test_vm_set_with_a_pmu_that_leaves_the_masks_alone(machine: Machine) -> None:
    new_vm(machine)
    ran = machine.run("vm", "set", "web1", "pmu", A72, "affinity", "none")
    assert ran.lines[-1].split() == ["web1", "affinity", "unchanged", "left", "alone"]
    assert "FAIL_ENTRY" in ran.stderr
    assert masks(machine) == ["0-3", "0-3"]


def test_vm_set_of_the_affinity_alone_is_done_at_once(machine: Machine) -> None:
    running(machine)
    ran = machine.run("vm", "set", "web1", "affinity", "3")
    assert [line.split() for line in ran.lines] == [["web1", "affinity", "set", "within", "3"]]
    assert masks(machine) == ["3", "3"]
    ran = machine.run("vm", "set", "web1", "affinity", "2", "--dry-run")
    assert ran.lines[0] == "web1: sched_setaffinity(1001, 2)  vCPU 0, was 3"
    set_masks(machine, "0-1", "0-3")
    assert machine.run("vm", "set", "web1", "affinity", "auto").status == 0
    assert masks(machine) == ["3", "3"]
    assert machine.run("vm", "set", "web1", "affinity", "none").status == 0
    set_masks(machine, "0-1", "0-3")
    refused(machine.run("vm", "set", "web1", "affinity", "auto"), 9, "never widened")
    refused(machine.run("vm", "set", "web1", "affinity", "1-2"), 9, "CPU 1 is not of")


# VMs without a control socket


@pytest.fixture
def unmanaged(machine: Machine) -> Machine:
    """A QEMU, pid 5120, whose vCPU threads are 5121 and 5122; KVM has chosen the PMU."""
    argv = ("qemu-system-aarch64", "-name", "guest=db1,debug-threads=on")
    fake_vmm(machine.proc, 5120, argv)
    machine.threads = KernelThreads(dict.fromkeys((5120, 5121, 5122, 5123), CpuSet.parse("0-3")))
    return machine


def test_a_vm_without_a_socket_is_checked_and_placed(unmanaged: Machine) -> None:
    rows = checked(unmanaged, "db1", status=1)
    assert [(its["tid"], its["consequence"]) for its in rows] == [
        (5121, "counters-stop"),
        (5122, "counters-stop"),
    ]
    ran = unmanaged.run("affinity", "align", "db1")
    refused(ran, 9, "not known", "affinity set pid/5120 2-3")
    assert unmanaged.run("affinity", "set", "db1", f"pmu/{A72}").status == 0
    assert unmanaged.run("vm", "set", "pid/5120", "affinity", "3").status == 0
    assert {tid: str(its) for tid, its in threads_of(unmanaged).masks.items()} == {
        5120: "0-3",
        5121: "3",
        5122: "3",
        5123: "0-3",
    }
    refused(unmanaged.run("vm", "set", "db1", "pmu", A72), 7, "no control socket")


def test_another_users_vm_is_named_by_its_process(unmanaged: Machine) -> None:
    fake_vmm(unmanaged.proc, 5120, ("qemu-system-aarch64", "-name", "db1"), uid=1001)
    refused(unmanaged.run("affinity", "set", "db1", "3"), 2, "fix: name it by its process: pid/")
    assert unmanaged.run("affinity", "set", "pid/5120", "3").status == 0


@pytest.mark.parametrize(
    ("argv", "fix"),
    [
        (
            ("qemu-system-aarch64", "-name", "db1"),
            "start QEMU with -name NAME,debug-threads=on, or start the VM with pmuctl run",
        ),
        (("crosvm", "run", "--name", "db1"), "start the VM with pmuctl run"),
    ],
)
def test_that_no_thread_is_known_is_told_by_all(
    machine: Machine, argv: tuple[str, ...], fix: str
) -> None:
    """The VM has run: to wait for that would tell nothing."""
    fake_vmm(machine.proc, 5120, argv, has_names=False)
    machine.threads = KernelThreads(dict.fromkeys(range(5120, 5124), CpuSet.parse("0-3")))
    for words in (("set", "pid/5120", "0-1"), ("align", "pid/5120")):
        ran = machine.run("affinity", *words)
        refused(ran, 9, "which threads run", "is not known", "why: it has run, but neither")
        assert ran.stderr.endswith(f"  fix: {fix}\n")
    found = json.loads(machine.run("doctor", "pid/5120", "-J").stdout)["findings"]
    (aligned,) = [its for its in found if its["id"] == "vm.aligned"]
    assert aligned["why"].startswith("which threads run its vCPUs is not known: not known whether")
    assert (aligned["result"], aligned["fix"]) == ("WARN", fix)


def test_that_no_thread_is_known_yet(machine: Machine) -> None:
    """What has not run is worth waiting for."""
    argv = ("qemu-system-aarch64", "-name", "db1")
    fake_vmm(machine.proc, 5120, argv, has_names=False, ran=0)
    ran = machine.run("affinity", "set", "pid/5120", "0-1")
    refused(ran, 9, "no vCPU has run yet", "fix: pmuctl vm wait pid/5120 --for running\n")
