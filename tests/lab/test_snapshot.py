# SPDX-License-Identifier: Apache-2.0
"""Looking at a real host: a snapshot of it shows elsewhere what it shows itself."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pmuctl.host.cpuset_cgroup import Cpuset, Cpusets
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from tests.lab import runs
from tests.lab.cpusets import cpuset_v2
from tests.lab.machine import Lab
from tests.lab.runs import running
from tests.lab.snapshots import here
from tests.lab.vmms import standin
from tests.lab.vms import ReferenceVm, pmuctl, reference_vm, start_pmuctl

pytestmark = pytest.mark.one_kernel

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
MADE_ON_01 = ("--create-cpus", "0-1")
ONLY_CYCLES = ("filter", "default", "deny", "allow", "cpu_cycles")
OF_USER = {"kvm", "kvm_mode"}
"""Keys of `host info` that a captured tree cannot tell."""


def there(lab: Lab, *words: str, status: int = 0) -> Any:
    """What pmuctl says on the lab's host, as JSON."""
    ran = pmuctl(lab, *words, "-J", "-q")
    assert (ran.status, ran.stderr) == (status, ""), ran
    return json.loads(ran.stdout)


def test_a_snapshot_shows_elsewhere_what_the_host_shows(lab: Lab, tmp_path: Path) -> None:
    lab.run(["rm", "-rf", "/out/tree"], check=True)
    ran = pmuctl(lab, "host", "snapshot", "/out/tree")
    assert (ran.status, ran.stdout) == (0, ""), ran
    assert "--sysroot /out/tree" in ran.stderr
    lab.fetch("/out/tree", tmp_path / "tree")
    for words in (("pmu", "list", "-O"), ("pmu", "show", A72), ("pmu", "cpus")):
        assert here(tmp_path / "tree", *words) == there(lab, *words)
    shown = here(tmp_path / "tree", "host", "info")["host"]
    on_host = there(lab, "host", "info")["host"]
    assert (shown["kvm"], shown["kvm_mode"]) == (None, None)
    for key in on_host.keys() - OF_USER:
        assert shown[key] == on_host[key], key
    again = pmuctl(lab, "host", "snapshot", "/out/tree")
    assert again.status == 9
    assert "not empty" in again.stderr


@contextmanager
def stopped(vm: ReferenceVm) -> Iterator[None]:
    """No thread of it gets to another CPU, or runs longer, between two looks."""
    vm.lab.kill(vm.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        vm.lab.kill(vm.pid, signal.SIGCONT)


def test_a_snapshot_tells_of_a_confined_vm_what_the_host_tells(lab: Lab, tmp_path: Path) -> None:
    with reference_vm(lab, "--no-socket", "--forever", "--run-cpus", "2-3") as vm:
        name = f"pid/{vm.pid}"
        assert pmuctl(lab, "vm", "wait", name, "--for", "running", "--timeout", "60").status == 0
        with cpuset_v2(lab, "2-3") as path:
            lab.run(["sh", "-c", f"echo {vm.pid} >{path}/cgroup.procs"], check=True)
            lab.run(["rm", "-rf", "/out/confined"], check=True)
            with stopped(vm):
                assert pmuctl(lab, "host", "snapshot", "/out/confined", "-q").status == 0
                lab.fetch("/out/confined", tmp_path / "tree")
                for words in (
                    *(("vm", "list", "-O"), ("vm", "show", name, "-O"), ("vm", "vcpus", "-O")),
                    *(("affinity", "check", "-O"), ("doctor", name)),
                ):
                    status = pmuctl(lab, *words).status
                    on_host = there(lab, *words, status=status)
                    assert here(tmp_path / "tree", *words, status=status) == on_host, words
    for tid in vm.tids:
        its = Cpusets(Sysfs(tmp_path / "tree")).read(vm.pid, tid)
        assert its == Cpuset(version=2, path=path, cpus=CpuSet.parse("2-3"))


def settled(document: Any) -> Any:
    """All but the CPU on which a thread ran last, which it may have left by the next look, and
    where pmuctl put the vCPUs, which is not captured."""
    for row in document.get("vcpus", ()):
        del row["cpu"]
    for vm in (*document.get("vms", ()), document.get("vm", {})):
        vm.pop("affinity", None)
    return document


def compare(lab: Lab, tree: Path, local: Path, *commands: tuple[str, ...]) -> dict[str, Any]:
    """Take a snapshot, and hold commands on the host against those on it; what `vm list` says."""
    lab.run(["rm", "-rf", str(tree)], check=True)
    assert pmuctl(lab, "host", "snapshot", str(tree), "-q").status == 0
    lab.fetch(str(tree), local)
    for words in commands:
        status = pmuctl(lab, *words).status
        told = settled(here(local, *words, status=status))
        assert told == settled(there(lab, *words, status=status)), words
    return {its["name"]: its for its in here(local, "vm", "list", "-O")["vms"]}


def test_a_snapshot_tells_of_a_vm_with_a_socket_what_the_host_tells(
    lab: Lab, tmp_path: Path
) -> None:
    """With its PMU and filter, while it waits and while it runs."""
    with reference_vm(lab, *MADE_ON_01, "--forever") as vm:
        commands = (
            *(("vm", "list"), ("vm", "list", "-O"), ("vm", "show", vm.name)),
            *(("vm", "vcpus", "-O"), ("affinity", "check", "-O")),
        )
        vm.set("pmu", A72, *ONLY_CYCLES)
        for tid in vm.tids:
            lab.run(["taskset", "-p", "f", str(tid)], check=True)
        its = compare(lab, Path("/out/waits"), tmp_path / "waits", *commands)[vm.name]
        assert (its["state"], its["pmu"], its["window"]) == ("waiting", A72, "open")
        assert its["filter"]["except"] == [{"code": 0x11, "code_hex": "0x0011", "nevents": 1}]
        assert (its["aligned"], "KVM_RUN fails" in its["means"]) == (False, True)
        for tid in vm.tids:
            lab.run(["taskset", "-pc", "2-3", str(tid)], check=True)
        assert vm.pmuctl("release").status == 0
        assert vm.pmuctl("wait", "--for", "running", "--timeout", "60").status == 0
        its = compare(lab, Path("/out/runs"), tmp_path / "runs", *commands)[vm.name]
        assert (its["state"], its["pmu_origin"], its["aligned"]) == ("running", "applied", True)


def test_a_snapshot_tells_of_a_vm_under_pmuctl_run_what_the_host_tells(
    lab: Lab, tmp_path: Path
) -> None:
    """With its supervisor and, as its record tells, without it."""
    vmm = standin("crosvm", "--rounds", "100000")
    options = ("--pmu", A72, "--filter", runs.ONLY_CYCLES)
    with running(lab, *options, vmm=vmm, preloaded=True) as run:
        run.wait_given_back()
        run.done("wait", "--for", "running", "--timeout", "60")
        lab.kill(run.pid, signal.SIGSTOP)
        commands = (
            *(("vm", "list"), ("vm", "list", "-O"), ("vm", "show", run.name)),
            *(("vm", "vcpus", "-O"), ("affinity", "check", "-O"), ("doctor", run.name)),
        )
        its = compare(lab, Path("/out/run"), tmp_path / "run", *commands)[run.name]
        assert (its["state"], its["pmu"], its["pmu_origin"]) == ("running", A72, "applied")
        assert (its["command"], its["applied_by"]) == (vmm, "pmuctl run")
        run.kill_supervisor()
        its = compare(lab, Path("/out/alone"), tmp_path / "alone", *commands)[run.name]
        assert (its["state"], its["pmu"], its["pmu_origin"]) == ("orphaned", A72, "recorded")
        assert its["command"] == vmm
    lab.run(["sh", "-c", f"rm {runs.RUNTIME_DIR}/{run.name}.*"], check=True)


def test_an_offline_cpu_is_in_the_snapshot(lab: Lab, tmp_path: Path) -> None:
    online = "/sys/devices/system/cpu/cpu3/online"
    lab.run(["sh", "-c", f"rm -rf /out/off; echo 0 > {online}"], check=True)
    try:
        assert pmuctl(lab, "host", "snapshot", "/out/off", "-q").stderr == ""
        cpus = there(lab, "pmu", "cpus")
    finally:
        lab.run(["sh", "-c", f"echo 1 > {online}"], check=True)
    assert [cpu["online"] for cpu in cpus["cpus"]] == [True, True, True, False]
    assert [cpu["pmu"] for cpu in cpus["cpus"]] == [A53, A53, A72, A72]
    lab.fetch("/out/off", tmp_path / "tree")
    assert here(tmp_path / "tree", "pmu", "cpus") == cpus


def test_host_info_on_a_real_host(lab: Lab) -> None:
    host = there(lab, "host", "info")["host"]
    assert host["kernel"] == lab.run(["uname", "-r"]).stdout.strip()
    assert (host["kvm"], host["vpmu"]) == ("usable", True)
    assert host["kvm_mode"] in (None, "VHE", "nVHE", "Hyp nVHE")
    assert {"SET_PMU", "FILTER", "INIT", "IRQ"} <= set(host["attributes"])
    assert host["event_bits"] == 16
    assert host["pmus"] == [A53, A72]
    assert (host["cpus"], host["online"]) == ([0, 1, 2, 3], [0, 1, 2, 3])


def test_capabilities_are_what_has_device_attr_says(lab: Lab) -> None:
    code = (
        "from pmuctl.host.kvm.device import has_pmu_attr, scratch_vcpu\n"
        "with scratch_vcpu() as vcpu: print(int(has_pmu_attr(vcpu, 4)))"
    )
    has_nr_counters = lab.run(["python3", "-c", code], check=True).stdout == "1\n"
    assert pmuctl(lab, "host", "capabilities", "SET_PMU").status == 0
    ran = pmuctl(lab, "host", "capabilities", "SET_NR_COUNTERS")
    assert ran.status == (0 if has_nr_counters else 1)
    assert ran.stdout.splitlines()[1].split()[::2] == [
        "SET_NR_COUNTERS",
        "yes" if has_nr_counters else "no",
    ]
    denied = pmuctl(lab, "host", "capabilities", user="1001:1001")
    assert denied.status == 6
    assert "/dev/kvm" in denied.stderr


def test_vcpus_and_waiting_through_a_vms_life(lab: Lab) -> None:
    wait = ("wait", "--for")
    with reference_vm(lab, *MADE_ON_01, "--forever") as vm:
        waiter = start_pmuctl(lab, "vm", *wait, "running", vm.name, "--timeout", "120")
        late = vm.pmuctl(*wait, "running", "--timeout", "0.5")
        assert (late.status, late.stdout) == (1, "")
        assert late.stderr.startswith(f"{vm.name}: not running after 0.5 s: waiting, ")
        assert vm.pmuctl(*wait, "open", "--timeout", "60").status == 0
        vm.set("pmu", A72)
        assert vm.pmuctl("release").status == 0
        assert vm.pmuctl(*wait, "sealed", "--timeout", "60").status == 0
        assert waiter.wait(120).status == 0
        assert vm.pmuctl(*wait, "aligned", "--timeout", "60").status == 0
        for row, tid in zip(there(lab, "vm", "vcpus", vm.name)["vcpus"], vm.tids, strict=True):
            assert (row["vm"], row["tid"]) == (vm.name, tid)
            assert row["cpu"] in (2, 3)
            assert (row["affinity"], row["pmu_cpus"], row["aligned"]) == ([2, 3], [2, 3], True)
        lab.run(["taskset", "-p", "f", str(vm.tids[0])], check=True)
        rows = there(lab, "vm", "vcpus", vm.name)["vcpus"]
        assert [row["aligned"] for row in rows] == [False, True]
        stopped = start_pmuctl(lab, "vm", *wait, "stopped", vm.name, "--timeout", "120")
        vm.job.kill(9)
        assert stopped.wait(120).status == 0
