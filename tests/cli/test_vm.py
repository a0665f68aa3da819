# SPDX-License-Identifier: Apache-2.0
"""`pmuctl vm`: the transaction, its refusals and their exit codes, against the model's KVM."""

import errno
import json
import os
import socket
from pathlib import Path

import pytest

from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import EventSet
from pmuctl.model.event_filter import Action, FilterRange
from tests.cli.conftest import Machine
from tests.fakes.peers import answering, bad_server, query
from tests.fakes.vmm import FakeVm, fake_proc

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
ONLY_CYCLES = ("filter", "default", "deny", "allow", "cpu_cycles")


def test_set_is_one_transaction_in_the_kernels_order(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    ran = machine.run("vm", "set", "web1", "counters", "2", "pmu", A72, *ONLY_CYCLES)
    assert (ran.status, ran.stderr) == (0, "")
    assert vm.calls == [
        ("SET_PMU", 11),
        ("SET_NR_COUNTERS", 2),
        ("FILTER", FilterRange(0x11, 1, Action.ALLOW)),
    ]
    assert [line.split()[:3] for line in ran.lines] == [
        ["web1", "pmu", "set"],
        ["web1", "counters", "set"],
        ["web1", "filter", "set"],
        ["web1", "affinity", "set"],
    ]
    assert vm.threads.masks == {1001: CpuSet.parse("2-3"), 1002: CpuSet.parse("2-3")}


def test_the_same_again_is_unchanged(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    words = ("vm", "set", "web1", "pmu", A72, "counters", "2", *ONLY_CYCLES)
    machine.run(*words)
    calls = len(vm.calls)
    ran = machine.run(*words)
    assert ran.status == 0
    assert {line.split()[2] for line in ran.lines} == {"unchanged"}
    assert len(vm.calls) == calls


def test_unchanged_holds_for_a_sealed_vm_too(machine: Machine) -> None:
    machine.start(FakeVm())
    machine.run("vm", "set", "web1", "pmu", A72)
    machine.run("vm", "release", "web1")
    assert machine.run("vm", "set", "web1", "pmu", A72).status == 0


def test_what_kvm_chose_was_not_set(machine: Machine) -> None:
    """Not even of the same PMU: to set it would make it the strict one."""
    vm = machine.start(FakeVm())
    vm.default = (11, A72)
    assert machine.run("vm", "release", "web1").status == 0
    its = json.loads(machine.run("vm", "show", "web1", "-J").stdout)["vm"]
    assert (its["pmu"], its["pmu_origin"], its["filter"]) == (A72, "derived", None)
    for words in (("pmu", A72), ONLY_CYCLES, ("pmu", A72, *ONLY_CYCLES)):
        ran = machine.run("vm", "set", "web1", *words)
        assert (ran.status, ran.stdout) == (5, ""), ran
    assert vm.calls == []


def test_a_filter_does_not_go_with_a_pmu_that_kvm_chose(machine: Machine) -> None:
    """A server can say so while its window is open: the PMU must still be named."""
    machine.runtime.mkdir()
    derived = {"name": A72, "type": 11, "origin": "derived"}
    planned = {"outcome": "planned", "steps": []}
    with bad_server(
        machine.runtime / "web1.sock",
        answering({"query-pmu": query(pmu=derived), "pmu-apply": planned}),
    ):
        ran = machine.run("vm", "set", "web1", *ONLY_CYCLES)
    assert (ran.status, ran.stdout) == (2, ""), ran
    assert "a PMU must be named" in ran.stderr


def test_a_standing_filter_is_changed_by_the_difference(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    machine.run("vm", "set", "web1", "pmu", A72, *ONLY_CYCLES)
    ran = machine.run("vm", "set", "web1", "filter", "default", "deny", "allow", "0x12,0x8")
    assert ran.status == 0
    assert vm.calls[2:] == [
        ("FILTER", FilterRange(0x11, 1, Action.DENY)),
        ("FILTER", FilterRange(0x08, 1, Action.ALLOW)),
        ("FILTER", FilterRange(0x12, 1, Action.ALLOW)),
    ]
    assert vm.vpmu.allowed == EventSet.of_ranges([(0x08, 1), (0x12, 1)])


def test_another_pmu_keeps_the_counters_that_were_asked_for(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    machine.run("vm", "set", "web1", "pmu", A53, "counters", "3")
    ran = machine.run("vm", "set", "web1", "pmu", A72)
    assert [line.split()[1:] for line in ran.lines] == [
        ["pmu", "set", A72],
        ["counters", "set", "3"],
        ["affinity", "set", "within", "2-3"],
    ]
    assert vm.vpmu.counters == 3


def test_a_mask_that_pmuctl_made_is_no_pin(machine: Machine) -> None:
    vm = machine.start(FakeVm(cpus="0-2"))
    machine.run("vm", "set", "web1", "pmu", A53)
    assert machine.run("vm", "set", "web1", "pmu", A72).status == 0
    assert vm.threads.masks == {1001: CpuSet.parse("2"), 1002: CpuSet.parse("2")}
    assert machine.run("vm", "set", "web1", "pmu", A53).status == 0
    assert vm.threads.masks[1001] == CpuSet.parse("0-1")
    vm.threads.masks[1001] = CpuSet.parse("1")
    status, text = refused(machine, "pmu", A72)
    assert status == 9
    assert "pinned to 1," in text


def test_dry_run_prints_kernel_words_and_touches_nothing(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    ran = machine.run("vm", "set", "web1", "pmu", A72, *ONLY_CYCLES, "--dry-run")
    assert ran.status == 0
    assert ran.lines == [
        "web1: sched_setaffinity(1001, 2-3)  vCPU 0, was 0-3",
        "web1: sched_setaffinity(1002, 2-3)  vCPU 1, was 0-3",
        "web1: KVM_SET_DEVICE_ATTR(vcpu 0, KVM_ARM_VCPU_PMU_V3_SET_PMU, 11)  armv8_cortex_a72",
        "web1: KVM_SET_DEVICE_ATTR(vcpu 0, KVM_ARM_VCPU_PMU_V3_FILTER, {0x0011, 1, ALLOW})",
    ]
    assert vm.calls == []
    assert vm.threads.masks[1001] == CpuSet.parse("0-3")


def refused(machine: Machine, *words: str, name: str = "web1") -> tuple[int, str]:
    ran = machine.run("vm", "set", name, *words)
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: ")
    assert "Traceback" not in ran.stderr
    return ran.status, ran.stderr


def test_an_unknown_pmu_is_not_found_with_near_names(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    status, text = refused(machine, "pmu", "armv8_cortex_a73")
    assert status == 4
    assert A72 in text
    assert vm.calls == []


def test_what_is_no_cpu_pmu_is_not_found(machine: Machine) -> None:
    machine.start(FakeVm())
    status, text = refused(machine, "pmu", "software")
    assert status == 4
    assert "not a CPU PMU" in text


def test_a_glob_for_two_pmus_is_a_usage_error(machine: Machine) -> None:
    machine.start(FakeVm())
    assert refused(machine, "pmu", "armv8_*")[0] == 2


@pytest.mark.parametrize("words", [("filter", "default", "deny"), ("counters", "2")])
def test_with_two_pmus_one_must_be_named(machine: Machine, words: tuple[str, ...]) -> None:
    machine.start(FakeVm())
    status, text = refused(machine, *words)
    assert status == 2
    assert A53 in text
    assert A72 in text


def test_a_range_past_the_event_space(machine: Machine) -> None:
    vm = machine.start(FakeVm(event_bits=10))
    status, text = refused(
        machine, "pmu", A72, "filter", "default", "deny", "allow", "0x3ff-0x400"
    )
    assert status == 2
    assert "10 bits" in text
    assert vm.calls == []


def test_a_filter_may_have_all_events_of_the_pmu_that_it_comes_with(machine: Machine) -> None:
    """Whatever the width of the PMU is that KVM would choose."""
    vm = machine.start(FakeVm(event_bits=10, event_bits_of={11: 16}))
    wide = ("filter", "default", "deny", "allow", "0x4004")
    status, text = refused(machine, "pmu", A53, *wide)
    assert (status, vm.calls) == (2, [])
    assert "10 bits" in text
    assert machine.run("vm", "set", "web1", "pmu", A72, *wide).status == 0
    assert [name for name, _ in vm.calls] == ["SET_PMU", "FILTER"]
    # from now on the VM has that PMU, and needs no name of it
    assert machine.run("vm", "set", "web1", *wide[:-1], "0x4004,0x4005").status == 0


def test_another_pmu_once_a_filter_stands(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    machine.run("vm", "set", "web1", "pmu", A72, *ONLY_CYCLES)
    calls = list(vm.calls)
    status, text = refused(machine, "pmu", A53)
    assert status == 5
    assert "EBUSY" in text
    assert "filter stands" in text
    assert vm.calls == calls
    assert vm.threads.masks[1001] == CpuSet.parse("2-3")


def test_a_sealed_vm_says_why_and_what_to_do(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    machine.run("vm", "release", "web1")
    vm.initialise()
    vm.run()
    status, text = refused(machine, "pmu", A72)
    assert status == 5
    assert "sealed" in text
    assert "EBUSY" in text
    assert "fix: set it at the next start of web1" in text


def test_a_vm_without_a_vpmu(machine: Machine) -> None:
    machine.start(FakeVm(has_pmu=False))
    status, text = refused(machine, "pmu", A72)
    assert status == 7
    assert "ENODEV" in text


def test_a_kernel_without_set_nr_counters(machine: Machine) -> None:
    vm = machine.start(FakeVm(has_nr_counters=False))
    status, text = refused(machine, "pmu", A72, "counters", "2")
    assert status == 7
    assert "ENXIO" in text
    assert vm.calls == []


def test_more_counters_than_the_pmu_has(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    status, text = refused(machine, "pmu", A72, "counters", "7")
    assert status == 2
    assert "the PMU has 6" in text
    assert vm.calls == []


def test_a_pinned_thread_is_never_widened(machine: Machine) -> None:
    vm = machine.start(FakeVm(cpus="0-1"))
    status, text = refused(machine, "pmu", A72)
    assert status == 9
    assert "taskset -cp 2-3 1001" in text
    assert vm.calls == []


def test_a_refused_placement_takes_the_others_back(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    vm.threads.refuses[1002] = errno.EINVAL
    status, text = refused(machine, "pmu", A72)
    assert status == 9
    assert "cpuset" in text
    assert "nothing was changed" in text
    assert vm.calls == []
    assert vm.threads.masks[1001] == CpuSet.parse("0-3")


def test_a_late_refusal_says_exactly_what_was_applied(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    vm.faults["FILTER"] = errno.ENOMEM
    status, text = refused(machine, "pmu", A72, *ONLY_CYCLES)
    assert status == 9
    assert "ENOMEM" in text
    assert "now: applied before: sched_setaffinity(1001, 2-3)" in text
    assert "SET_PMU, 11" in text
    shown = json.loads(machine.run("vm", "show", "web1", "-J").stdout)["vm"]
    assert (shown["pmu"], shown["pmu_type"], shown["pmu_origin"]) == (A72, 11, "applied")
    assert shown["filter"] is None


def test_no_such_vm(machine: Machine) -> None:
    machine.start(FakeVm())
    status, text = refused(machine, "pmu", A72, name="web2")
    assert status == 4
    assert "similar names: web1" in text


def test_a_dead_socket(machine: Machine) -> None:
    machine.runtime.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(machine.runtime / "web1.sock"))
    status, text = refused(machine, "pmu", A72)
    assert status == 3
    assert "ECONNREFUSED" in text
    assert machine.run("vm", "list").lines[1].split()[:2] == ["web1", "dead"]


def test_a_silent_socket(machine: Machine) -> None:
    machine.runtime.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(machine.runtime / "web1.sock"))
        listener.listen()
        ran = machine.run("vm", "set", "web1", "pmu", A72, "--deadline", "0.2")
        listed = machine.run("vm", "list", "--deadline", "0.2")
    assert ran.status == 3
    assert "no greeting in 0.2 s" in ran.stderr
    assert listed.lines[1].split()[:2] == ["web1", "silent"]
    assert listed.status == 0


def test_a_peer_without_a_vm_is_not_believed(machine: Machine, tmp_path: Path) -> None:
    vm = machine.start(FakeVm())
    fake_proc(machine.proc, os.getpid(), holds_kvm=False)
    status, text = refused(machine, "pmu", A72)
    assert status == 9
    assert "has no VM open" in text
    assert vm.calls == []


def test_a_socket_that_answers_for_another_name_is_not_believed(machine: Machine) -> None:
    vm = machine.start(FakeVm("web2"), machine.runtime / "web1.sock")
    status, text = refused(machine, "pmu", A72)
    assert status == 9
    assert "calls itself web2" in text
    assert vm.calls == []


def test_a_socket_by_its_path(machine: Machine, tmp_path: Path) -> None:
    vm = machine.start(FakeVm(), tmp_path / "elsewhere")
    words = ("vm", "set", "web1", "pmu", A72, "--socket", str(tmp_path / "elsewhere"))
    assert machine.run(*words).status == 0
    assert vm.calls == [("SET_PMU", 11)]
    assert machine.run(*words[:2], "web9", *words[3:]).status == 4


def test_changing_commands_refuse_a_sysroot(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    status, _ = refused(machine, "pmu", A72, "--sysroot", str(machine.root))
    assert status == 2
    assert vm.calls == []


def test_list_and_show(machine: Machine) -> None:
    machine.start(FakeVm())
    machine.start(FakeVm("web2"))
    machine.run("vm", "set", "web2", "pmu", A72, *ONLY_CYCLES)
    listed = machine.run("vm", "list")
    pid = str(os.getpid())
    assert [line.split() for line in listed.lines] == [
        ["NAME", "STATE", "PID", "VCPUS", "PMU", "FILTER", "WINDOW", "ALIGNED"],
        ["web1", "waiting", pid, "2", "-", "-", "open", "-"],
        ["web2", "waiting", pid, "2", A72, "1", "allowed", "open", "yes"],
    ]
    shown = json.loads(machine.run("vm", "show", "web2", "-J").stdout)
    assert shown["pmuctl"] == {"schema": 1, "command": "vm show"}
    assert shown["vm"]["filter"] == {
        "default": "deny",
        "except": [{"code": 17, "code_hex": "0x0011", "nevents": 1}],
    }
    assert shown["vm"]["filter_origin"] == "applied"
    text = machine.run("vm", "show", "web2").stdout
    assert "default deny allow cpu_cycles" in text


def test_an_empty_list_is_still_one_object(machine: Machine) -> None:
    assert json.loads(machine.run("vm", "list", "-J").stdout) == {
        "pmuctl": {"schema": 1, "command": "vm list"},
        "vms": [],
        "unreadable": 0,
        "unscanned": 0,
        "unsearched": [],
        "partial": False,
        "left_out": 0,
        "scratch": 0,
    }


def test_release_seals_and_says_so(machine: Machine) -> None:
    machine.start(FakeVm())
    assert machine.run("vm", "release", "web1").stdout == "web1  window  released  sealed\n"
    assert machine.run("vm", "release", "web1").stdout == "web1  window  unchanged  sealed\n"
    assert machine.servers["web1"].settings.released.is_set()
    assert machine.run("vm", "list").lines[1].split()[-2] == "sealed"


def test_errors_as_json_leave_stdout_empty(machine: Machine) -> None:
    machine.start(FakeVm(has_pmu=False))
    ran = machine.run("vm", "set", "web1", "pmu", A72, "-J")
    assert ran.stdout == ""
    error = json.loads(ran.stderr)["error"]
    assert (error["code"], error["exit"], error["object"]) == ("unsupported", 7, "web1")
    assert error["errno"] == "ENODEV"


def test_quiet_says_nothing_and_json_says_all(machine: Machine) -> None:
    machine.start(FakeVm())
    assert machine.run("vm", "set", "web1", "pmu", A72, "-q").stdout == ""
    ran = machine.run("vm", "set", "web1", *ONLY_CYCLES, "-J")
    results = json.loads(ran.stdout)["results"]
    assert [(its["key"], its["outcome"]) for its in results] == [("filter", "set")]


def test_verbose_shows_requests_and_kernel_calls(machine: Machine) -> None:
    machine.start(FakeVm())
    ran = machine.run("vm", "set", "web1", "pmu", A72, "-v")
    assert "web1 <- pmu-apply" in ran.stderr
    assert "KVM_ARM_VCPU_PMU_V3_SET_PMU, 11" in ran.stderr


def test_half_a_filter_is_told_with_the_default_that_kvm_has(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    words = ("filter", "default", "deny", "allow", "0x0-0xbfff")
    assert machine.run("vm", "set", "web1", "pmu", A72, *words).status == 0
    vm.faults["FILTER"] = errno.ENOMEM
    vm.fault_after = 1
    assert refused(machine, "filter", "default", "deny", "allow", "0x1-0x2,0x4")[0] == 9
    shown = json.loads(machine.run("vm", "show", "web1", "-J").stdout)["vm"]
    assert shown["filter"]["default"] == "deny"
    assert vm.vpmu.allowed is not None
    ranges = [(its["code"], its["nevents"]) for its in shown["filter"]["except"]]
    assert ranges == vm.vpmu.allowed.runs()


@pytest.mark.parametrize("words", [("set", "web1", "pmu", A72), ("release", "web1")])
def test_a_wrong_column_is_refused_before_anything_is_done(
    machine: Machine, words: tuple[str, ...]
) -> None:
    vm = machine.start(FakeVm())
    ran = machine.run("vm", *words, "-o", "nmae")
    assert (ran.status, ran.stdout) == (2, "")
    assert vm.calls == []
    assert not machine.servers["web1"].settings.released.is_set()


def test_the_affinity_that_was_chosen_is_shown_and_listed_only_if_asked_for(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = machine.start(FakeVm("web1"))
    column = ("-n", "-o", "AFFINITY")

    def shown() -> str:
        return machine.run("vm", "show", "web1", *column, "--format", "tsv").stdout.strip()

    assert shown() == "-"
    assert machine.run("vm", "set", "web1", "affinity", "2-3").status == 0
    machine.threads = vm.threads
    assert shown() == "2-3"
    assert machine.run("vm", "list", *column).stdout.strip() == "2-3"
    assert machine.run("affinity", "set", "web1", "3", "--vcpu", "1").status == 0
    assert shown() == "0=2-3,1=3"
    listed = machine.run("vm", "show", "web1", "-J", "-o", "AFFINITY").stdout
    assert json.loads(listed)["vm"] == {
        "affinity": {"left_alone": False, "vcpus": {"0": [2, 3], "1": [3]}}
    }
    assert machine.run("vm", "set", "web1", "affinity", "none").status == 0
    assert shown() == "none"
    monkeypatch.setattr("pmuctl.manage.affinity.assess.read_affinity_record", None)
    assert machine.run("vm", "list").status == 0
    assert machine.run("vm", "list", "-J").status == 0
    assert machine.run("vm", "list", *column).status == 70
