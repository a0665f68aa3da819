# SPDX-License-Identifier: Apache-2.0
"""What pmuctl is for, on real kernels: a guest counts on the PMU that was chosen, and only that.

Under TCG both PMUs have the same events and numbers; what tells them apart is where they count.
So each VM is made on CPUs 0-1, whose PMU KVM would choose, and runs on CPUs 2-3.
"""

import json
from typing import Any

import pytest

from tests.lab.machine import Lab
from tests.lab.vms import pmuctl, reference_vm

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
MADE_ON_01 = ("--create-cpus", "0-1")
CYCLES_BIT = 1 << 0x11
ONLY_CYCLES = ("filter", "default", "deny", "allow", "cpu_cycles")
NO_CYCLES = ("filter", "default", "allow", "deny", "cpu_cycles")

Reports = list[dict[str, Any]]


def pmceid0(report: dict[str, Any]) -> int:
    return int(report["pmceid0"], 16)


@pytest.fixture(scope="module")
def seen_without_pmuctl() -> dict[str, Reports]:
    """What was seen, by kernel: it is the same for every test."""
    return {}


@pytest.fixture
def without_pmuctl(lab: Lab, seen_without_pmuctl: dict[str, Reports]) -> Reports:
    """What the guest sees on CPUs 2-3 when nobody chooses."""
    if lab.kernel not in seen_without_pmuctl:
        with reference_vm(lab, *MADE_ON_01, "--run-cpus", "2-3", "--no-socket") as vm:
            seen_without_pmuctl[lab.kernel] = vm.reports()
    return seen_without_pmuctl[lab.kernel]


def test_pmu_list_shows_both_with_their_cpus(lab: Lab) -> None:
    ran = pmuctl(lab, "pmu", "list", "-J")
    pmus = json.loads(ran.stdout)["pmus"]
    assert [(its["name"], its["cpus"], its["online"]) for its in pmus] == [
        (A53, [0, 1], [0, 1]),
        (A72, [2, 3], [2, 3]),
    ]
    for its in pmus:
        text = lab.run(["cat", f"/sys/bus/event_source/devices/{its['name']}/type"]).stdout
        assert its["type"] == int(text)
        # QEMU's own CPU model is in no table, and the PMU's name is no evidence
        assert its["core"] == [None]


def test_the_lab_has_libudev_and_pyudev_is_used(lab: Lab) -> None:
    code = (
        "from pmuctl.host.pmus import scan_event_sources; from pmuctl.host.sysfs import Sysfs;"
        "print(scan_event_sources(Sysfs()).source)"
    )
    assert lab.run(["python3", "-c", code]).stdout == "udev\n"


def test_allow_only_cpu_cycles(lab: Lab, without_pmuctl: Reports) -> None:
    with reference_vm(lab, *MADE_ON_01) as vm:
        vm.set("pmu", A72, *ONLY_CYCLES)
        reports = vm.finish()
    assert len(reports) == len(without_pmuctl) == 2
    for without in without_pmuctl:
        assert without["affinity"] == [2, 3]
        assert without["cycles"] == 0
        assert without["event_0x11"]["start"] == without["event_0x11"]["end"]
    for report in reports:
        assert report["affinity"] == [2, 3]
        assert report["cycles"] > 0
        assert report["event_0x11"]["end"] > report["event_0x11"]["start"]
        assert pmceid0(report) == CYCLES_BIT
        assert int(report["pmceid1"], 16) == 0


def test_deny_only_cpu_cycles(lab: Lab, without_pmuctl: Reports) -> None:
    with reference_vm(lab, *MADE_ON_01) as vm:
        vm.set("pmu", A72, *NO_CYCLES)
        reports = vm.finish()
    assert pmceid0(without_pmuctl[0]) & CYCLES_BIT
    for report, without in zip(reports, without_pmuctl, strict=True):
        assert pmceid0(report) == pmceid0(without) & ~CYCLES_BIT
        assert report["pmceid1"] == without["pmceid1"]
        assert report["cycles"] == 0
        assert report["event_0x11"]["end"] == report["event_0x11"]["start"] > 0


def test_the_chosen_pmu_counts_where_it_is(lab: Lab) -> None:
    """Denied or allowed, a counter that stands still could have another cause: this one counts."""
    with reference_vm(lab, *MADE_ON_01) as vm:
        vm.set("pmu", A72)
        for report in vm.finish():
            assert report["cycles"] > 0
            assert report["event_0x11"]["end"] > report["event_0x11"]["start"]


def test_a_vcpu_put_back_on_cpu_0_fails_entry(lab: Lab) -> None:
    """Proof that the PMU was chosen: KVM refuses other CPUs only for a PMU set explicitly."""
    with reference_vm(lab, *MADE_ON_01, "--move-vcpu", "0=0") as vm:
        vm.set("pmu", A72)
        reports = vm.finish()
    last = {report["vcpu"]: report for report in reports}
    assert (last[0]["exit"], last[0]["reason"], last[0]["fail_cpu"]) == (
        "KVM_EXIT_FAIL_ENTRY",
        1,
        0,
    )
    assert last[1]["cycles"] > 0


def test_a_vcpu_moved_without_pmuctl_only_stops_counting(lab: Lab) -> None:
    options = ("--run-cpus", "0-1", "--no-socket", "--move-vcpu", "0=2")
    with reference_vm(lab, *MADE_ON_01, *options) as vm:
        reports = vm.reports()
    first, last = reports[:2], {report["vcpu"]: report for report in reports}
    assert all(report["cycles"] > 0 for report in first)
    assert last[0]["cycles"] == 0


def test_counters_are_what_was_asked_for(lab: Lab) -> None:
    with reference_vm(lab, *MADE_ON_01) as vm:
        attributes = json.loads(vm.pmuctl("show", "-J").stdout)["vm"]["attributes"]
        if "SET_NR_COUNTERS" not in attributes:
            ran = vm.pmuctl("set", "pmu", A72, "counters", "2")
            assert (ran.status, ran.stdout) == (7, "")
            return
        vm.set("counters", "2", "pmu", A72)
        shown = json.loads(vm.pmuctl("show", "-J").stdout)["vm"]
        assert (shown["counters"], shown["counters_origin"]) == (2, "applied")
        for report in vm.finish():
            assert report["pmcr_n"] == 2


def test_a_changed_mind_before_the_release(lab: Lab) -> None:
    """The difference that is sent gives the guest the last filter, and unchanged is unchanged."""
    with reference_vm(lab, *MADE_ON_01) as vm:
        vm.set("pmu", A72, *NO_CYCLES)
        vm.set(*ONLY_CYCLES)
        ran = vm.pmuctl("set", "pmu", A72, *ONLY_CYCLES)
        assert {line.split()[2] for line in ran.stdout.splitlines()} == {"unchanged"}
        for report in vm.finish():
            assert pmceid0(report) == CYCLES_BIT
            assert report["cycles"] > 0


def test_dry_run_leaves_the_guest_as_it_was(lab: Lab, without_pmuctl: Reports) -> None:
    with reference_vm(lab, *MADE_ON_01, "--run-cpus", "2-3") as vm:
        ran = vm.pmuctl("set", "pmu", A72, *ONLY_CYCLES, "--dry-run")
        assert ran.status == 0
        assert [line.split("(")[0].split(": ")[1] for line in ran.stdout.splitlines()] == [
            "sched_setaffinity",
            "sched_setaffinity",
            "KVM_SET_DEVICE_ATTR",
            "KVM_SET_DEVICE_ATTR",
        ]
        for report, without in zip(vm.finish(), without_pmuctl, strict=True):
            assert report["cycles"] == 0
            assert report["pmceid0"] == without["pmceid0"]


def test_one_pmu_for_all_needs_no_name(lab_one: Lab) -> None:
    with reference_vm(lab_one) as vm:
        vm.set(*ONLY_CYCLES)
        shown = json.loads(vm.pmuctl("show", "-J").stdout)["vm"]
        assert shown["pmu"] == "armv8_pmuv3"
        for report in vm.finish():
            assert pmceid0(report) == CYCLES_BIT
            assert report["cycles"] > 0


def listed(lab: Lab, name: str) -> list[dict[str, Any]]:
    """The rows of `vm list` for this VM; VMMs that other tests killed are there, too."""
    rows = json.loads(pmuctl(lab, "vm", "list", "-J").stdout)["vms"]
    return [row for row in rows if row["name"] == name]


def test_vm_list_and_show_tell_its_life(lab: Lab) -> None:
    with reference_vm(lab, *MADE_ON_01, "--forever") as vm:
        (row,) = listed(lab, vm.name)
        assert (row["state"], row["window"], row["pid"]) == ("waiting", "open", vm.pid)
        vm.set("pmu", A72, *ONLY_CYCLES)
        assert vm.pmuctl("release").status == 0
        vm.job.wait_for('"cycles"')
        shown = json.loads(vm.pmuctl("show", "-J").stdout)["vm"]
        assert (shown["state"], shown["window"]) == ("running", "sealed")
        assert [vcpu["tid"] for vcpu in shown["vcpu_list"]] == vm.tids
        assert all(vcpu["initialised"] and vcpu["has_run"] for vcpu in shown["vcpu_list"])
        assert shown["pmu"] == A72
    assert listed(lab, vm.name) == []
