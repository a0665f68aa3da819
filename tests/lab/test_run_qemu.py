# SPDX-License-Identifier: Apache-2.0
"""`pmuctl run` with real QEMUs, unmodified and unpinned: what their guests count, and where."""

import pytest

from tests.lab.conftest import GetLab
from tests.lab.layers import all_layers
from tests.lab.machine import Lab
from tests.lab.runs import (
    A53,
    A72,
    CPUS,
    CYCLES_BIT,
    LISTED,
    NO_CYCLES,
    ONLY_CYCLES,
    PMUS,
    RUNTIME_DIR,
    Run,
    check_counting,
    check_placed,
    cpus_of_runs,
    running,
    shell,
    to_the_end,
    wait_nothing_left,
    wait_unsupervised,
)
from tests.lab.tracing import TRACING, Trace, trace
from tests.lab.vmms import linux, put_bare_metal, qemu
from tests.lab.workloads.bare import START, End, parse_reports
from tests.lab.workloads.linux import parse_lines

STARTS, PLAIN_EVERY = 50, 5
FAILED = "reason KVM_EXIT_FAIL_ENTRY"


@pytest.fixture
def run_lab(kernel: str, get_lab: GetLab) -> Lab:
    """A host with two PMUs, and every QEMU that there is for its kernel."""
    return get_lab(kernel, "two", all_layers(kernel))


@pytest.fixture
def full_lab(get_lab: GetLab) -> Lab:
    """The one with the newest kernel."""
    return get_lab("newest", "two", all_layers("newest"))


def check_started(seen: Trace, run: Run, pmu: str) -> list[int]:
    """A guest that counts, vCPUs nowhere else from their first KVM_RUN on; their threads."""
    check_counting(run.wait_reports()[:2])
    run.wait_given_back()
    assert seen.lost() == 0
    assert seen.exits() == []
    entered = cpus_of_runs(run.lab)
    assert len(entered) == 2
    for cpus in entered.values():
        assert set(cpus) <= CPUS[pmu]
    check_placed(run.threads(), entered, pmu)
    return sorted(entered)


@pytest.mark.parametrize("pmu", PMUS)
def test_guest_counts_and_stays(run_lab: Lab, pmu: str) -> None:
    """QEMU 7.2: a vCPU moved away by hand fails to enter the guest, moved back it runs on."""
    (other,) = set(PMUS) - {pmu}
    vmm = qemu("7.2", *put_bare_metal(run_lab, End.REPEAT))
    with (
        trace(run_lab) as seen,
        running(run_lab, "--pmu", pmu, "--filter", ONLY_CYCLES, vmm=vmm) as run,
    ):
        tid = check_started(seen, run, pmu)[0]
        shell(
            run_lab,
            f"taskset -pc {LISTED[other]} {tid}\n"
            f"until grep -q -- '-{tid} .*{FAILED}' {TRACING}/instances/*/trace; do :; done\n"
            f"taskset -pc {LISTED[pmu]} {tid}",
        )
        told = len(run.wait_reports())
        reports = run.wait_reports(told + 1)
        assert reports[-1]["cycles"] > 0
        failed = shell(
            run_lab, f"grep '{FAILED}' {TRACING}/instances/*/trace | grep -vc -- '-{tid} ' || true"
        )
        assert failed.strip() == "0"


@pytest.mark.parametrize("pmu", PMUS)
@pytest.mark.parametrize("version", ["10.0", "11"])
def test_newer_qemus_do_as_well(full_lab: Lab, version: str, pmu: str) -> None:
    """With the same guest."""
    vmm = qemu(version, *put_bare_metal(full_lab, End.SPIN))
    with (
        trace(full_lab) as seen,
        running(full_lab, "--pmu", pmu, "--filter", ONLY_CYCLES, vmm=vmm) as run,
    ):
        check_started(seen, run, pmu)


def test_denied_event_stands_still(run_lab: Lab) -> None:
    """The guest sees that it is not there, and its counter stays where it was set."""
    vmm = qemu("7.2", *put_bare_metal(run_lab))
    ran = to_the_end(run_lab, "--pmu", A72, "--filter", NO_CYCLES, vmm=vmm)
    assert ran.status == 0, ran
    reports = parse_reports(ran.stdout)
    assert [its["cpu"] for its in reports] == [0, 1]
    for its in reports:
        assert its["pmceid0"] & ~CYCLES_BIT
        assert not its["pmceid0"] & CYCLES_BIT
        assert (its["cycles"], its["event_0x11"]) == (0, START)


def check_linux(lab: Lab, version: str, pmu: str) -> None:
    """A Linux guest that may count cycles alone does so on both its CPUs."""
    vmm = qemu(version, *linux(), memory="256M")
    ran = to_the_end(lab, "--pmu", pmu, "--filter", ONLY_CYCLES, vmm=vmm)
    assert ran.status == 0, ran
    (line,) = parse_lines(ran.stdout)
    assert (line.pmu, line.events) == ("armv8_pmuv3", ["cpu_cycles"])
    assert [its.cpu for its in line.cpus] == [0, 1]
    assert all(its.cycles > 0 and its.event_0x11 > 0 for its in line.cpus)


def test_linux_guest_counts(run_lab: Lab) -> None:
    """In QEMU 7.2, with the PMU that KVM would not choose by itself on 6.1."""
    check_linux(run_lab, "7.2", A72)


@pytest.mark.parametrize(("version", "pmu"), [("10.0", A53), ("11", A72)])
def test_linux_guest_counts_in_newer_qemus(full_lab: Lab, version: str, pmu: str) -> None:
    """With the same words."""
    check_linux(full_lab, version, pmu)


def test_vmm_that_may_not_run_there_is_not_started(run_lab: Lab) -> None:
    """Where its mask has none of the PMU's CPUs: before the start, and at the window."""
    vmm = qemu("7.2", *put_bare_metal(run_lab))
    outside = run_lab.run(["taskset", "-c", "0", "pmuctl", "run", "--pmu", A72, "--", *vmm])
    assert (outside.status, outside.stdout) == (9, "")
    assert f"the VMM may not run on any CPU of {A72}" in outside.stderr
    assert "it inherits the mask 0, wanted are 2-3" in outside.stderr
    ran = to_the_end(run_lab, "--pmu", A72, name="pinned", vmm=["taskset", "-c", "0", *vmm])
    assert (ran.status, ran.stdout) == (125, "")
    assert "may not run on any of the CPUs 2-3" in ran.stderr
    assert "it is pinned to 0, and a mask is never widened" in ran.stderr
    assert "now: the VM was not started" in ran.stderr
    wait_unsupervised(run_lab)
    record = "pinned.sock.json"
    assert shell(run_lab, f"cd {RUNTIME_DIR}; ls pinned*; rm {record}") == f"{record}\n"


def test_fifty_starts_in_a_row(full_lab: Lab) -> None:
    """Under one name; no vCPU fails to enter its guest, nothing hangs, nothing stays behind.

    One in five is started as an admin starts it, the others by a pmuctl that has imported all.
    """
    vmm = qemu("7.2", *put_bare_metal(full_lab))
    wait_nothing_left(full_lab, "many")
    with trace(full_lab, starts=False) as seen:
        for number in range(STARTS):
            options = ("--pmu", PMUS[number % len(PMUS)], "--filter", ONLY_CYCLES)
            preloaded = number % PLAIN_EVERY != 0
            ran = to_the_end(full_lab, *options, vmm=vmm, name="many", preloaded=preloaded)
            assert ran.status == 0, (number, ran)
            check_counting(parse_reports(ran.stdout))
        assert seen.lost() == 0
        assert seen.exits() == []
    wait_nothing_left(full_lab, "many")
