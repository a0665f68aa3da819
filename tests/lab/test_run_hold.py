# SPDX-License-Identifier: Apache-2.0
"""`pmuctl run --hold`: a VMM that waits at its window is set, released, stopped and ended."""

import json
import re
import signal

import pytest

from tests.lab.conftest import GetLab
from tests.lab.layers import all_layers
from tests.lab.machine import Lab
from tests.lab.runs import (
    A53,
    A72,
    CPUS,
    CYCLES_BIT,
    NO_CYCLES,
    ONLY_CYCLES,
    check_counting,
    check_placed,
    running,
    wait_nothing_left,
)
from tests.lab.vmms import calls, put_bare_metal, qemu, runs, standin
from tests.lab.vms import pmuctl, start_pmuctl
from tests.lab.waiting import until
from tests.lab.workloads.bare import End

pytestmark = pytest.mark.one_kernel

ONLY = ("filter", *ONLY_CYCLES.split())
BUT = ("filter", *NO_CYCLES.split())

# A stand-in that catches both; by itself it leaves them to the kernel, as QEMU does so early.
CATCHING = (
    "import signal, sys;"
    "[signal.signal(its, lambda *_: sys.exit(3)) for its in (signal.SIGINT, signal.SIGTERM)];"
    "signal.signal = lambda *_: None;"
    "from tests.lab.standins.__main__ import main; sys.exit(main(['kvmtool']))"
)
CAUGHT = ["python3", "-c", CATCHING]


@pytest.fixture
def run_lab(kernel: str, get_lab: GetLab) -> Lab:
    """A host with two PMUs and QEMUs: the one that test_run_qemu.py has."""
    return get_lab(kernel, "two", all_layers(kernel))


def test_a_thread_with_descriptors_of_its_own_is_held_and_all_its_vms_are_set(lab: Lab) -> None:
    vmm = ("python3", "-m", "tests.lab.standins.moving", "own-table")
    with running(lab, "--hold", vmm=vmm) as run:
        run.wait_open()
        run.done("set", "pmu", A72, *ONLY)
        run.done("release")
        ended = run.end()
    assert ended.status == 0, ended
    seen = [(its["exit"], its["pmceid0"], frozenset(its["mask"])) for its in runs(ended.stdout)]
    assert seen == [("KVM_EXIT_MMIO", f"{CYCLES_BIT:#x}", CPUS[A72])] * 2


def test_qemu_is_set_while_it_is_held(run_lab: Lab) -> None:
    """And counts as it was told once it is released; who applied what is kept."""
    vmm = qemu("7.2", *put_bare_metal(run_lab, End.WFI))
    with running(run_lab, "--hold", vmm=vmm) as run:
        run.wait_open()
        held = run.show()
        assert (held["state"], held["window"], held["pid"]) == ("waiting", "open", run.pid)
        assert (held["pmu"], held["filter"], held["applied_by"]) == (None, None, None)
        assert {its.state for its in run.threads()} >= {"t"}

        refused = run.vm("set", "pmu", A72, "counters", "2")
        assert (refused.status, refused.stdout) == (7, ""), refused
        assert "counters" in refused.stderr
        assert "nothing was changed" in refused.stderr
        assert run.record()["applied"] == []

        run.done("set", "pmu", A72, *ONLY)
        (applied,) = run.wait_applied(1)
        attributes = [re.findall(r"_PMU_V3_(\w+)", its) for its in applied["steps"]]
        assert attributes == [["SET_PMU"], ["FILTER"]]
        shown = run.show()
        assert (shown["state"], shown["pmu"], shown["pmu_origin"]) == ("waiting", A72, "applied")
        assert shown["applied_by"] == applied["by"] != "pmuctl run"

        run.done("release")
        check_counting(run.wait_reports())
        run.wait_given_back()
        run.wait("running")
        shown = run.show()
        assert (shown["state"], shown["window"], shown["pmu"]) == ("running", "sealed", A72)
        check_placed(run.threads(), [its["tid"] for its in shown["vcpu_list"]], A72)


def test_two_admins_at_once_cannot_half_apply(run_lab: Lab) -> None:
    """One whole setting stands, the other is refused, and the guest has the first."""
    with running(run_lab, "--hold", vmm=standin("kvmtool")) as run:
        run.wait_open()
        wanted = ((A53, ONLY), (A72, BUT))
        words = ("vm", "set", run.name, "pmu")
        jobs = [start_pmuctl(run_lab, *words, pmu, *rules) for pmu, rules in wanted]
        ran = [job.wait() for job in jobs]
        assert sorted(its.status for its in ran) == [0, 5], ran
        (lost,) = (its for its in ran if its.status == 5)
        assert "nothing was changed" in lost.stderr
        pmu, rules = wanted[[its.status for its in ran].index(0)]
        shown = run.show()
        assert shown["pmu"] == pmu
        assert shown["filter"]["default"] == rules[2]
        run.wait_applied(1)
        run.done("release")
        ended = run.end()
    assert ended.status == 0, ended
    assert ("SET_PMU", "OK") in calls(ended.stdout)
    for its in runs(ended.stdout):
        assert set(its["mask"]) == CPUS[pmu]
        assert bool(int(its["pmceid0"], 16) & CYCLES_BIT) is (rules is ONLY)
        assert (its["cycles"] > 0) is (rules is ONLY)


def test_held_vmm_ends_when_it_is_asked_to(run_lab: Lab) -> None:
    """By the signal itself, or with its status where the VMM would catch it; by the clock."""
    bare = put_bare_metal(run_lab)
    for vmm, its_signal, status in (
        (qemu("7.2", *bare), signal.SIGTERM, -15),
        (standin("kvmtool"), signal.SIGINT, -2),
        (CAUGHT, signal.SIGTERM, 143),
        (CAUGHT, signal.SIGINT, 130),
    ):
        with running(run_lab, "--hold", vmm=vmm) as run:
            run.wait_open()
            run.job.kill(its_signal)
            ended = run.job.wait(10)
            assert (ended.status, runs(ended.stdout)) == (status, []), ended
            assert "GUEST" not in ended.stdout
        wait_nothing_left(run_lab, run.name)


def test_held_vmm_ends_when_its_time_is_over(run_lab: Lab) -> None:
    """And says so."""
    with running(
        run_lab, "--hold", "--timeout", "0.5", vmm=standin("kvmtool"), name="late"
    ) as run:
        ended = run.end()
    assert (ended.status, runs(ended.stdout)) == (125, [])
    assert "error: late: nobody released it" in ended.stderr
    assert "it was held for 0.5 s (--timeout)" in ended.stderr
    told = pmuctl(run_lab, "vm", "show", "late")
    assert told.status == 4
    assert "nobody released it" in told.stderr
    run_lab.run(["rm", "/run/pmuctl/late.sock.json"], check=True)


def test_job_control_works_while_it_is_held(run_lab: Lab) -> None:
    """Stopped as a whole, then held again, then set and released."""
    with running(run_lab, "--hold", vmm=qemu("7.2", *put_bare_metal(run_lab))) as run:
        run.wait_open()
        assert len(run.threads()) > 1
        for _ in range(2):
            run.job.kill(signal.SIGSTOP)
            run.wait_stopped()
            run.job.kill(signal.SIGCONT)
            run.wait_held()
        assert run.show()["state"] == "waiting"
        run.done("set", "pmu", A72, *ONLY)
        run.done("release")
        ended = run.end()
    assert ended.status == 0, ended
    check_counting(run.wait_reports())


def test_nothing_is_set_before_it_is_held(run_lab: Lab) -> None:
    """Refused, and the VM that is released without settings has what KVM chooses."""
    vmm = ["sh", "-c", f"read go; exec {' '.join(standin('crosvm'))}"]
    with running(run_lab, "--hold", vmm=vmm, stdin=None) as run:
        until(lambda: run_lab.exists(f"/run/pmuctl/{run.name}.sock"), "it has a socket")
        refused = run.vm("set", "pmu", A72, *ONLY)
        assert (refused.status, refused.stdout) == (9, ""), refused
        assert "its VM is not there to be changed" in refused.stderr
        assert f"pmuctl vm wait {run.name} --for open" in refused.stderr
        early = run.show()
        assert (early["state"], early["window"], early["pmu"]) == ("starting", None, None)
        assert run.record()["applied"] == []
        run.job.send(b"\n")
        run.wait_open()
        run.done("release")
        ended = run.end()
    assert ended.status == 0, ended
    seen = runs(ended.stdout)
    assert sorted(its["vcpu"] for its in seen) == [0, 1]
    for its in seen:
        assert its["mask"] == [0, 1, 2, 3]
        assert int(its["pmceid0"], 16) & CYCLES_BIT
        assert int(its["pmceid0"], 16) & ~CYCLES_BIT
    wait_nothing_left(run_lab, run.name)


def test_list_shows_every_window(run_lab: Lab) -> None:
    """Of a held VM with what its options ordered: its filter can be changed, not its PMU."""
    with running(
        run_lab, "--hold", "--pmu", A72, "--filter", NO_CYCLES, vmm=standin("kvmtool")
    ) as run:
        run.wait_open()
        (row,) = json.loads(run.done("list", "-J"))["vms"]
        assert (row["state"], row["window"], row["pmu"]) == ("waiting", "open", A72)
        assert run.show()["applied_by"] == "pmuctl run"
        other = run.vm("set", "pmu", A53)
        assert (other.status, other.stdout) == (5, ""), other
        assert "nothing was changed" in other.stderr
        run.done("set", *ONLY)
        run.wait_applied(2)
        run.done("release")
        ended = run.end()
    assert ended.status == 0, ended
    for its in runs(ended.stdout):
        assert int(its["pmceid0"], 16) == CYCLES_BIT
        assert its["mask"] == [2, 3]
        assert its["cycles"] > 0
