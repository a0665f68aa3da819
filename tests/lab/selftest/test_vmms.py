# SPDX-License-Identifier: Apache-2.0
"""The VMMs and guests of the lab do what tests of `pmuctl run` take for granted."""

import time

import pytest

from tests.lab.channel import PATIENCE
from tests.lab.conftest import GetLab
from tests.lab.errors import LabError, Result
from tests.lab.layers import QEMUS, all_layers
from tests.lab.machine import Lab, boot
from tests.lab.tracing import trace
from tests.lab.vmms import (
    calls,
    lines,
    linux,
    put_bare_metal,
    qemu,
    runs,
    standin,
)
from tests.lab.workloads.bare import START, End, bare_metal, parse_reports
from tests.lab.workloads.linux import parse_lines

KINDS = ("kvmtool", "crosvm", "cloud-hypervisor")
# 6.1 takes the PMU of CPUs 0-1 by default, wherever the VMM is.
FIRST_CLUSTER = ("taskset", "-c", "0-1")


@pytest.fixture
def full_lab(get_lab: GetLab) -> Lab:
    """The newest kernel with every layer: one lab for the tests that need any."""
    return get_lab("newest", "two", all_layers("newest"))


def run(lab: Lab, *command: str) -> Result:
    """On the first cluster, to its end."""
    return lab.run([*FIRST_CLUSTER, *command])


def check_reports(console: str, times: int = 1) -> None:
    """Each of two vCPUs has counted, in turn."""
    reports = parse_reports(console)
    assert [report["cpu"] for report in reports] == [0, 1] * times
    for report in reports:
        assert report["cycles"] > 0
        assert report["event_0x11"] > START
        assert report["pmceid0"] >> 0x11 & 1
        assert report["pmcr_n"] == 6


@pytest.mark.parametrize("version", [its.version for its in QEMUS])
def test_every_qemu_runs_a_guest(full_lab: Lab, version: str) -> None:
    """On the newest kernel, with its own libraries; and is of that version."""
    name = run(full_lab, f"qemu-{version}", "--version").stdout
    assert f" version {version}." in name
    ran = run(full_lab, *qemu(version, *put_bare_metal(full_lab)))
    assert ran.status == 0, ran
    check_reports(ran.stdout)


def test_qemu_resets_a_guest(qemu_lab: Lab) -> None:
    """It tells its lines twice; the VM and its vCPUs stay the same."""
    ran = run(qemu_lab, *qemu("7.2", *put_bare_metal(qemu_lab, End.RESET)))
    assert ran.status == 0, ran
    check_reports(ran.stdout, times=2)


def test_guests_stay_as_they_are_told(full_lab: Lab) -> None:
    """Busy, or asleep, with all vCPUs; or telling again, and asleep in between."""
    used: dict[End, float] = {}
    for end, told in ((End.SPIN, 2), (End.WFI, 2), (End.REPEAT, 4)):
        job = full_lab.start([*FIRST_CLUSTER, *qemu("7.2", *put_bare_metal(full_lab, end))])
        job.wait_for(rf"(?s)(GUEST.*\n){{{told}}}")
        before = cpu_seconds(full_lab, job.pid)
        time.sleep(1)
        used[end] = cpu_seconds(full_lab, job.pid) - before
        job.kill(9)
        job.wait()
    assert used[End.WFI] < 0.3 < used[End.SPIN], used
    assert used[End.REPEAT] < used[End.SPIN], used


def cpu_seconds(lab: Lab, pid: int) -> float:
    """The processor time a process has used."""
    fields = lab.read_file(f"/proc/{pid}/stat").decode().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_linux_guest_counts(full_lab: Lab) -> None:
    """On both its CPUs, cycles and a programmable counter."""
    ran = run(full_lab, *qemu("7.2", *linux(), memory="256M"))
    assert ran.status == 0, ran
    (line,) = parse_lines(ran.stdout)
    assert line.pmu == "armv8_pmuv3"
    assert "cpu_cycles" in line.events
    assert [its.cpu for its in line.cpus] == [0, 1]
    assert all(its.cycles > 0 and its.event_0x11 > 0 for its in line.cpus)


@pytest.mark.parametrize("kind", KINDS)
def test_every_standin_runs(lab: Lab, kind: str) -> None:
    """All its calls are taken, and its guest counts on every vCPU."""
    ran = run(lab, *standin(kind))
    assert ran.status == 0, ran
    assert {result for _, result in calls(ran.stdout)} == {"OK"}
    assert sorted(its["vcpu"] for its in runs(ran.stdout)) == [0, 1]
    assert all(its["cycles"] > 0 and its["mask"] == [0, 1] for its in runs(ran.stdout))
    (status,) = [its for its in lines(ran.stdout) if its.get("event") == "status"]
    assert (status["TracerPid"], status["Seccomp"], status["NoNewPrivs"]) == (0, 0, 0)


def test_kvmtool_chooses_the_pmu_of_its_cpu(lab: Lab) -> None:
    """Or dies with the real one's words."""
    there = lab.run(["taskset", "-c", "2-3", *standin("kvmtool", "--vcpus", "1")])
    assert ("SET_PMU", "OK") in calls(there.stdout)
    assert runs(there.stdout)[0]["cycles"] > 0
    refused = run(lab, *standin("kvmtool", "--pmu-type", "9999"))
    assert refused.status == 1
    assert refused.stderr == "PMU KVM_SET_DEVICE_ATTR: No such device or address\n"


def test_standins_make_a_second_vm(lab: Lab) -> None:
    """Where asked to, with the same calls, in the same process."""
    for kind, *options in (("cloud-hypervisor", "--reboot"), ("crosvm",)):
        ran = run(lab, *standin(kind, *options, "--vms", "2", "--vcpus", "1"))
        assert ran.status == 0, ran
        made = calls(ran.stdout)
        assert made[: len(made) // 2] == made[len(made) // 2 :]
        assert [its["vm"] for its in runs(ran.stdout)] == [0, 1]


def test_standins_have_the_habits_of_others(lab: Lab) -> None:
    """Signals all the time, a daemon, no PMU, no VM at all."""
    busy = run(lab, *standin("crosvm", "--signal-ms", "3"))
    assert (busy.status, len(runs(busy.stdout))) == (0, 2)
    without = run(lab, *standin("crosvm", "--no-pmu", "--nodump"))
    assert [its["pmuver"] for its in runs(without.stdout)] == [0, 0]
    assert calls(run(lab, *standin("kvmtool", "--never")).stdout) == []
    daemon = lab.start([*FIRST_CLUSTER, *standin("kvmtool", "--fork", "--after", "1")])
    assert daemon.wait().status == 0
    daemon_pid = lines(daemon.output())[0]["pid"]
    assert daemon_pid != daemon.pid
    assert lab.run(["test", "-d", f"/proc/{daemon_pid}"]).status == 0


def test_failed_entries_are_counted(lab: Lab) -> None:
    """A vCPU that leaves the PMU chosen for it; and the time from exec to the first run."""
    with trace(lab) as seen:
        job = lab.start([*FIRST_CLUSTER, *standin("kvmtool", "--rounds", "2", "--move", "1=3")])
        moved = job.wait()
        assert seen.lost() == 0
        (failure,) = seen.exits(pid=job.pid)
        start = seen.start_of(job.pid)
    assert 'KVM exit reason: 9 ("KVM_EXIT_FAIL_ENTRY")' in moved.stderr
    last = next(its for its in runs(moved.stdout) if its["exit"] == "KVM_EXIT_FAIL_ENTRY")
    assert (failure.comm, failure.tid) == ("kvm-vcpu-1", last["tid"])
    assert start.first_pmu_attr is not None
    assert start.first_run is not None
    assert 0 < start.first_pmu_attr < start.first_run < PATIENCE


def test_unknown_layer_is_refused() -> None:
    """Before anything is booted."""
    with pytest.raises(LabError, match="there are guest-linux, qemu"), boot(layers=["qemu-1"]):
        pass


def test_bare_metal_guest_is_small_and_refuses_nonsense() -> None:
    """A kind of end that there is not."""
    assert len(bare_metal()) < 1024
    with pytest.raises(ValueError, match="never"):
        bare_metal("never")
