# SPDX-License-Identifier: Apache-2.0
"""`pmuctl run` with VMMs of every kind, and what is told of a VM that has a supervisor."""

import json

import pytest

from tests.lab.machine import Lab
from tests.lab.runs import (
    A53,
    A72,
    CPUS,
    CYCLES_BIT,
    LISTED,
    ONLY_CYCLES,
    PMUS,
    RESIDENT_MAX,
    RUNTIME_DIR,
    check_counting,
    resident,
    running,
    shell,
    to_the_end,
    wait_nothing_left,
    wait_unsupervised,
)
from tests.lab.tracing import trace
from tests.lab.vmms import calls, lines, lkvm, put_bare_metal, qemu, runs, standin
from tests.lab.vms import pmuctl
from tests.lab.waiting import until
from tests.lab.workloads.bare import End

pytestmark = pytest.mark.one_kernel

QMP = ("-qmp", "unix:/tmp/run-qmp,server=on,wait=off")
DO = """
import json, socket, sys
qmp = socket.socket(socket.AF_UNIX)
qmp.connect("/tmp/run-qmp")
for command in "qmp_capabilities", *sys.argv[1:]:
    qmp.sendall(json.dumps({"execute": command}).encode())
    while b'"return"' not in qmp.recv(4096):
        pass
"""


def check_runs(stdout: str, pmu: str, vms: int = 1) -> None:
    """Two vCPUs of each VM have counted cycles, which is all they may, where the PMU is."""
    seen = runs(stdout)
    assert sorted((its["vm"], its["vcpu"]) for its in seen) == [
        (vm, vcpu) for vm in range(vms) for vcpu in range(2)
    ]
    for its in seen:
        assert its["exit"] == "KVM_EXIT_MMIO"
        assert set(its["mask"]) == CPUS[pmu]
        assert its["cpu"] in CPUS[pmu]
        assert int(its["pmceid0"], 16) == CYCLES_BIT
        assert its["cycles"] > 0
        assert its["event_0x11"]["end"] > its["event_0x11"]["start"]
    (status,) = [its for its in lines(stdout) if its.get("event") == "status"]
    assert {its["TracerPid"] for its in status["threads"].values()} == {0}
    assert (status["Seccomp"], status["NoNewPrivs"]) == (2, 0)


@pytest.mark.parametrize("pmu", PMUS)
def test_kvmtool_chooses_the_wanted_pmu_itself(lab: Lab, pmu: str) -> None:
    """For it takes that of the CPU it is on, and KVM agrees."""
    ran = to_the_end(lab, "--pmu", pmu, "--filter", ONLY_CYCLES, vmm=standin("kvmtool"))
    assert ran.status == 0, ran
    assert [its for its in calls(ran.stdout) if its[0] == "SET_PMU"] == [("SET_PMU", "OK")] * 2
    check_runs(ran.stdout, pmu)


def test_kvmtool_that_insists_on_another_pmu_says_so_itself(lab: Lab) -> None:
    """In its own words, with its own exit status."""
    number = shell(lab, f"cat /sys/bus/event_source/devices/{A53}/type").strip()
    ran = to_the_end(lab, "--pmu", A72, vmm=standin("kvmtool", "--pmu-type", number))
    assert ran.status == 1, ran
    assert ran.stderr == "PMU KVM_SET_DEVICE_ATTR: Device or resource busy\n"
    assert ("SET_PMU", "EBUSY") in calls(ran.stdout)
    assert runs(ran.stdout) == []


@pytest.mark.parametrize("kind", ["crosvm", "cloud-hypervisor"])
@pytest.mark.parametrize("pmu", PMUS)
def test_others_get_the_pmu_as_well(lab: Lab, kind: str, pmu: str) -> None:
    """All vCPUs made before one is initialised, or all by a thread that is not the first."""
    ran = to_the_end(lab, "--pmu", pmu, "--filter", ONLY_CYCLES, vmm=standin(kind))
    assert ran.status == 0, ran
    assert {result for _, result in calls(ran.stdout)} == {"OK"}
    check_runs(ran.stdout, pmu)


@pytest.mark.parametrize(
    ("kind", "options"), [("cloud-hypervisor", ("--reboot",)), ("crosvm", ())]
)
def test_second_vm_gets_the_same(lab: Lab, kind: str, options: tuple[str, ...]) -> None:
    """In the same process: in place of the first one, or beside it."""
    with trace(lab, starts=False) as seen:
        vmm = standin(kind, *options, "--vms", "2")
        ran = to_the_end(lab, "--pmu", A72, "--filter", ONLY_CYCLES, vmm=vmm)
        assert ran.status == 0, ran
        assert (seen.exits(), seen.lost()) == ([], 0)
    check_runs(ran.stdout, A72, vms=2)


def test_supervised_vm_is_told_of(lab: Lab) -> None:
    """Its name, process, vCPUs, threads, PMU, filter and who says so, its state and its end."""
    vmm = standin("kvmtool", "--rounds", "1000")
    with running(lab, "--pmu", A72, "--filter", ONLY_CYCLES, vmm=vmm, name="told") as run:
        run.wait("running")
        tids = {its["vcpu"]: its["tid"] for its in runs(run.job.output())}
        (row,) = json.loads(run.done("list", "-J"))["vms"]
        assert (row["name"], row["state"], row["pid"]) == ("told", "running", run.pid)
        assert (row["vcpus"], row["pmu"], row["window"]) == (2, A72, "sealed")
        shown = run.show()
        assert {its["vcpu"]: its["tid"] for its in shown["vcpu_list"]} == tids
        assert (shown["pmu_origin"], shown["filter_origin"]) == ("applied", "applied")
        assert shown["filter"]["default"] == "deny"
        assert [its["code"] for its in shown["filter"]["except"]] == [0x11]
        assert (shown["applied_by"], shown["command"]) == ("pmuctl run", vmm)
        placed = json.loads(run.done("vcpus", "-J"))["vcpus"]
        assert {its["vcpu"]: its["tid"] for its in placed} == tids
        assert all(its["aligned"] for its in placed)
        assert all(its["affinity"] == its["pmu_cpus"] == [2, 3] for its in placed)
        late = run.vm("set", "pmu", A53)
        assert (late.status, late.stdout) == (5, "")
        assert "it was started without --hold" in late.stderr
        run.job.kill(9)
        run.wait("stopped")
    wait_nothing_left(lab, "told")
    assert pmuctl(lab, "vm", "show", "told").status == 4


def test_supervisor_stays_small(qemu_lab: Lab) -> None:
    """Once the VM runs, and clients have asked for all there is."""
    vmm = qemu("7.2", *put_bare_metal(qemu_lab, End.WFI))
    with running(qemu_lab, "--pmu", A72, "--filter", ONLY_CYCLES, vmm=vmm) as run:
        run.wait_reports()
        run.wait_given_back()
        run.wait("running")
        assert run.show()["state"] == "running"
        assert resident(qemu_lab, run.record()["supervisor"]) < RESIDENT_MAX


def test_qemu_is_left_alone_once_it_has_closed_a_vcpu_that_it_only_asked(qemu_lab: Lab) -> None:
    """By query-gic-capabilities, and later by a reset of its guest."""
    vmm = qemu("7.2", *put_bare_metal(qemu_lab, End.WFI), *QMP)
    with running(qemu_lab, "--pmu", A72, "--filter", ONLY_CYCLES, vmm=vmm) as run:
        run.wait_reports()
        run.wait_given_back()
        with trace(qemu_lab, starts=False) as seen:
            qemu_lab.run(["python3", "-c", DO, *["query-gic-capabilities"] * 3], check=True)
            until(lambda: {its.tracer for its in run.threads()} == {0}, "nobody traces it")
            qemu_lab.run(["python3", "-c", DO, "system_reset"], check=True)
            check_counting(run.wait_reports(4), times=2)
            assert {its.tracer for its in run.threads()} == {0}
            assert seen.exits() == []


def test_qemu_goes_on_without_its_supervisor(qemu_lab: Lab) -> None:
    """It is told of from its record, and can be reset; its vCPUs stay where they were."""
    guest = put_bare_metal(qemu_lab, End.WFI)
    vmm = qemu("7.2", *guest, *QMP)
    with (
        trace(qemu_lab, starts=False) as seen,
        running(qemu_lab, "--pmu", A72, "--filter", ONLY_CYCLES, vmm=vmm) as run,
    ):
        run.wait_reports()
        run.wait_given_back()
        before = {its.tid: its.cpus for its in run.threads()}
        run.kill_supervisor()
        (row,) = json.loads(run.done("list", "-J"))["vms"]
        assert (row["state"], row["pid"], row["pmu"]) == ("orphaned", run.pid, A72)
        shown = run.show()
        assert (shown["pmu_origin"], shown["applied_by"]) == ("recorded", "pmuctl run")
        assert "its supervisor has ended" in shown["problem"]
        qemu_lab.run(["python3", "-c", DO, "system_reset"], check=True)
        check_counting(run.wait_reports(4), times=2)
        after = {its.tid: its.cpus for its in run.threads()}
        assert sorted(after.values()).count(LISTED[A72]) == 2
        assert (
            before.items() >= {tid: cpus for tid, cpus in after.items() if tid in before}.items()
        )
        assert seen.exits() == []
    shell(qemu_lab, f"rm {RUNTIME_DIR}/{run.name}.*")


def test_no_vcpu_is_made_without_the_supervisor(lab: Lab) -> None:
    """The first VM runs to its end; the second gets ENOSYS at once."""
    vmm = standin("crosvm", "--vms", "2", "--rounds", "20")
    with running(lab, "--pmu", A72, vmm=vmm) as run:
        run.job.wait_for('"event": "run"')
        run.kill_supervisor()
        assert ("KVM_CREATE_VCPU", "ENOSYS") not in calls(run.job.output())
        ended = run.end()
    assert ended.status == 1, ended
    assert "Function not implemented" in ended.stderr
    assert calls(ended.stdout)[-1] == ("KVM_CREATE_VCPU", "ENOSYS")
    assert len(runs(ended.stdout)) == 40
    assert all(its["exit"] == "KVM_EXIT_MMIO" for its in runs(ended.stdout))
    shell(lab, f"rm {RUNTIME_DIR}/{run.name}.*")


def test_refused_start_is_told_afterwards(lab: Lab) -> None:
    """Its reason stays until the next start of that name, of which nothing stays."""
    without = standin("crosvm", "--no-pmu")
    ran = to_the_end(lab, "--pmu", A72, vmm=without, name="refused")
    assert (ran.status, runs(ran.stdout)) == (125, []), ran
    assert "error: refused: its VMM makes vCPUs without a vPMU" in ran.stderr
    wait_unsupervised(lab)
    told = pmuctl(lab, "vm", "show", "refused")
    assert (told.status, told.stdout) == (4, "")
    assert "its last start, " in told.stderr
    assert ": its VMM makes vCPUs without a vPMU" in told.stderr
    again = to_the_end(lab, "--pmu", A72, vmm=standin("crosvm"), name="refused")
    assert again.status == 0, again
    wait_nothing_left(lab, "refused")
    assert "refused: its VMM" not in pmuctl(lab, "vm", "show", "refused").stderr


def test_vm_without_a_vpmu_is_let_go_at_best_effort(qemu_lab: Lab) -> None:
    """It has no PMU and no window, its threads run where they will, and one warning says so."""
    vmm = qemu("7.2", *put_bare_metal(qemu_lab, End.WFI))
    vmm[vmm.index("host")] = "host,pmu=off"
    with running(qemu_lab, "--pmu", A72, "--best-effort", vmm=vmm) as run:
        run.wait_reports()
        run.wait("running")
        (row,) = json.loads(run.done("list", "-J"))["vms"]
        assert (row["window"], row["pmu"], row["filter"], row["aligned"]) == ("none", *[None] * 3)
        assert {thread.cpus for thread in run.threads()} == {"0-3"}
        told = run.job.raw("stderr").decode()
        assert told.count("warning: ") == told.count("fix: give QEMU -cpu host,pmu=on\n") == 1
        assert run.record()["cpus"] is run.record()["pmu"] is None
        assert pmuctl(qemu_lab, "affinity", "check", run.name).status == 0


def test_kvmtool_goes_on_without_a_vcpu_that_fails_to_enter(lab: Lab) -> None:
    """Other than vCPU 0, whose thread it waits for; what is dead is told, with a fix."""
    vmm = lkvm("--rounds", "1000")
    with running(lab, "--pmu", A72, vmm=vmm, name="dead") as run:
        run.wait("running")
        # the tool knows a thread by its name, the supervisor only one that it has seen to run
        until(
            lambda: all(its["has_run"] and its["tid"] for its in run.show()["vcpu_list"]),
            "its supervisor has seen both vCPUs run",
        )
        tid = run.show()["vcpu_list"][1]["tid"]
        assert pmuctl(lab, "affinity", "check", "dead").status == 0
        shell(lab, f"taskset -p -c 0-1 {tid}")
        run.job.wait_for("KVM_EXIT_FAIL_ENTRY")
        until(lambda: not lab.exists(f"/proc/{run.pid}/task/{tid}"), "its thread ends")
        dead = "vCPU 1 is dead: it has run, and its thread has "
        until(lambda: run.show()["means"].startswith(dead), "its supervisor has seen that")
        assert "warning: dead: vCPU 1 is dead\n" in pmuctl(lab, "vm", "list").stderr
        assert pmuctl(lab, "affinity", "check", "dead").status == 1
        found = pmuctl(lab, "doctor", "dead", "-n", "--format", "tsv", "-o", "id,result,fix")
        assert "vm.vcpus\tFAIL\tend dead and start it anew" in found.stdout
        before = len(runs(run.job.output()))
        until(lambda: len(runs(run.job.output())) > before, "vCPU 0 goes on")


def test_cpus_of_its_pmu_that_an_admin_chooses_soon_stay(lab: Lab) -> None:
    """Outside `--affinity`, too; what somebody else does at the same time is put back."""
    with running(
        lab, "--pmu", A72, "--affinity", "2", vmm=lkvm("--rounds", "1000"), name="chosen"
    ) as run:
        run.wait("running")
        until(lambda: all(its["tid"] for its in run.show()["vcpu_list"]), "threads are known")
        one, other = (its["tid"] for its in run.show()["vcpu_list"])
        assert pmuctl(lab, "affinity", "set", "chosen", "2-3").status == 0
        shell(lab, f"taskset -p -c 0-3 {one}")
        run.job.wait_for(f"thread {one} of a vCPU may run outside the CPUs 2")
        its = {thread.tid: thread.cpus for thread in run.threads()}
        assert (its[one], its[other]) == ("2", LISTED[A72])
        assert f"thread {other}" not in run.job.output()


def test_vcpu_thread_that_is_widened_soon_is_put_back(qemu_lab: Lab) -> None:
    """QEMU makes KVM_RUN again and again meanwhile; then its guest goes on."""
    vmm = qemu("7.2", *put_bare_metal(qemu_lab, End.WFI))
    with running(qemu_lab, "--pmu", A72, vmm=vmm, name="wide") as run:
        run.wait("running")
        until(lambda: all(its["tid"] for its in run.show()["vcpu_list"]), "threads are known")
        tid = run.show()["vcpu_list"][1]["tid"]
        shell(qemu_lab, f"taskset -p -c 0-3 {tid}")
        run.job.wait_for(f"thread {tid} of a vCPU may run outside the CPUs 2-3")
        assert {its.tid: its.cpus for its in run.threads()}[tid] == LISTED[A72]
        assert pmuctl(qemu_lab, "affinity", "check", "wide").status == 0
