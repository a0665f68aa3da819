# SPDX-License-Identifier: Apache-2.0
"""What was not seen of a host, live or captured, is not known: nothing is said to be so or not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pmuctl.model.cpuset import CpuSet
from tests.cli.conftest import Machine
from tests.fakes.tree import make_tree, write_file
from tests.fakes.vmm import fake_vmm

CORES = {"0-3": 0x411FD461, "4-7": 0x411FD4D0}
LITTLE, BIG = "armv9_cortex_a510", "armv9_cortex_a715"
QEMU = ("qemu-system-aarch64", "-name", "db1", "-cpu", "host")
SOURCES = "sys/bus/event_source/devices"


def make_host(tmp_path: Path, pmus: dict[str, str], **how: Any) -> Path:
    """The tree of a host with a VM on CPUs 0-7, as another program than pmuctl captures it."""
    root = make_tree(tmp_path / "tree", CORES, pmus, **how)
    fake_vmm(root / "proc", 5120, QEMU, vcpus={0: "0-7", 1: "4-7"})
    return root


def read_json(machine: Machine, root: Path, *words: str) -> Any:
    return json.loads(machine.run(*words, "-J", "--sysroot", str(root)).stdout)


def results(machine: Machine, root: Path) -> dict[str, str]:
    found = read_json(machine, root, "doctor")["findings"]
    return {f"{its['id']} {its['subject']}": its["result"] for its in found}


@pytest.fixture
def unseen(tmp_path: Path) -> Path:
    """A tree without sys/bus/event_source."""
    return make_host(tmp_path, {})


def test_doctor_neither_passes_nor_fails_on_pmus_that_were_not_captured(
    machine: Machine, unseen: Path
) -> None:
    assert results(machine, unseen) == {
        "host.pmus host": "WARN",
        "host.processes host": "WARN",
        "vm.aligned db1": "WARN",
    }
    assert machine.run("doctor", "--sysroot", str(unseen)).status == 0


def test_doctor_does_not_say_that_a_vm_has_no_pmu_where_none_was_captured(
    machine: Machine, unseen: Path
) -> None:
    ran = machine.run("doctor", "db1", "--sysroot", str(unseen))
    assert "no PMU" not in ran.stdout + ran.stderr
    assert "not known whether its vCPUs stay on its PMU" in ran.stdout


def test_no_pmu_is_known_is_not_there_is_no_pmu(machine: Machine, unseen: Path) -> None:
    ran = machine.run("pmu", "list", "--sysroot", str(unseen))
    assert (ran.status, ran.stdout) == (0, "")
    assert ran.stderr == (f"no CPU PMU is known: /{SOURCES} cannot be read, or was not captured\n")
    document = read_json(machine, unseen, "pmu", "list")
    assert (document["pmus"], document["partial"]) == ([], True)
    ran = machine.run("pmu", "show", BIG, "--sysroot", str(unseen))
    assert "the CPU PMUs of this host: not known" in ran.stderr
    assert machine.run("pmu", "cpus", "0", "-n", "-o", "pmu", "--sysroot", str(unseen)).lines == [
        "?"
    ]
    assert "PMUS         ?\n" in machine.run("host", "info", "--sysroot", str(unseen)).stdout
    assert read_json(machine, unseen, "host", "info")["host"]["pmus"] is None


def test_whether_a_vm_has_a_pmu_is_not_known_where_none_was_captured(
    machine: Machine, unseen: Path
) -> None:
    columns = "pmu,aligned,candidates,pmu-type,pmu-origin"
    ran = machine.run("vm", "list", "-n", "-o", columns, "--sysroot", str(unseen))
    assert [line.split() for line in ran.lines] == [["?"] * 5]
    ran = machine.run("vm", "vcpus", "-n", "-o", "pmu-cpus,aligned", "--sysroot", str(unseen))
    assert [line.split() for line in ran.lines] == [["?"] * 2] * 2
    ran = machine.run("affinity", "check", "--sysroot", str(unseen), "-n", "-o", "consequence")
    assert (ran.status, [line.strip() for line in ran.lines]) == (0, ["?", "?"])
    assert "it is not known whether 2 vCPUs can leave their PMU" in ran.stderr


def test_a_host_that_hides_its_pmus_is_no_host_without(machine: Machine) -> None:
    """As in a sandbox, on the live host."""
    shutil.rmtree(machine.root / SOURCES)
    fake_vmm(machine.proc, 5120, QEMU)
    machine.masks = dict.fromkeys(range(5120, 5124), CpuSet.parse("0-3"))
    ran = machine.run("affinity", "align", "db1")
    assert ran.status == 7
    assert "not known which PMU it has" in ran.stderr
    ran = machine.run("doctor", "-o", "id,result", "-n")
    assert ["host.pmus", "WARN"] in [line.split() for line in ran.lines]


def test_a_host_whose_event_sources_are_all_of_the_kernel_has_no_pmu(
    machine: Machine, tmp_path: Path
) -> None:
    root = make_host(tmp_path, {})
    write_file(root, f"{SOURCES}/software/type", "1\n")
    (root / SOURCES / "breakpoint").symlink_to("../../../devices/breakpoint")
    assert results(machine, root)["host.pmus host"] == "FAIL"
    listed = machine.run("pmu", "list", "--sysroot", str(root))
    assert listed.stderr == "no CPU PMU: the kernel has no arm_pmu device\n"
    assert read_json(machine, root, "host", "info")["host"]["pmus"] == []
    assert machine.run("vm", "list", "-n", "-o", "pmu", "--sysroot", str(root)).lines == ["-"]


def test_a_pmu_that_is_a_dangling_link_may_be_that_of_the_vm(
    machine: Machine, tmp_path: Path
) -> None:
    root = make_host(tmp_path, {LITTLE: "0-3", BIG: "4-7"})
    shutil.rmtree(root / "sys/devices" / BIG)
    found = results(machine, root)
    assert (found["host.pmus host"], found["vm.aligned db1"]) == ("WARN", "WARN")
    assert machine.run("affinity", "check", "--sysroot", str(root)).status == 0
    assert machine.run("pmu", "cpus", "4", "-n", "-o", "pmu", "--sysroot", str(root)).lines == [
        "?"
    ]
    listed = machine.run("pmu", "list", "--sysroot", str(root))
    assert listed.stderr == "not all event sources can be read: there may be other CPU PMUs\n"


def test_a_dangling_link_is_no_cpu_pmu_where_all_cpus_have_one(
    machine: Machine, tmp_path: Path
) -> None:
    root = make_host(tmp_path, {LITTLE: "0-3", BIG: "4-7"})
    (root / SOURCES / "arm_cmn_0").symlink_to("../../../devices/arm_cmn_0")
    assert results(machine, root)["host.pmus host"] == "PASS"
    assert read_json(machine, root, "pmu", "list")["partial"] is False
    candidates = read_json(machine, root, "vm", "list")["vms"][0]["candidates"]
    assert candidates == [LITTLE, BIG]


def test_cpus_of_no_pmu_do_not_pass(machine: Machine, tmp_path: Path) -> None:
    root = make_host(tmp_path, {LITTLE: "0-3"})
    write_file(root, f"{SOURCES}/software/type", "1\n")
    assert results(machine, root)["host.pmus host"] == "WARN"
    (root / "sys/devices/system/cpu/online").unlink()
    assert results(machine, root)["host.pmus host"] == "WARN"


@pytest.mark.parametrize("source", ["none", "cs_etm"])
def test_cpus_of_no_pmu_that_was_captured_may_have_one_that_was_not(
    machine: Machine, tmp_path: Path, source: str
) -> None:
    """Where the kernel's own event sources are not there, or one is there without `cpus`."""
    root = make_host(tmp_path, {LITTLE: "0-3"})
    if source != "none":
        write_file(root, f"{SOURCES}/software/type", "1\n")
        write_file(root, f"{SOURCES}/{source}/type", "9\n")
    found = read_json(machine, root, "doctor")["findings"]
    assert [its["why"].partition(":")[0] for its in found if its["id"] == "host.pmus"] == [
        f"not known which PMUs there are besides {LITTLE}"
    ]
    words = ("pmu", "cpus", "0,4", "-n", "-o", "pmu", "--sysroot", str(root))
    assert machine.run(*words).lines == [LITTLE, "?"]
    checked = machine.run("affinity", "check", "--sysroot", str(root))
    assert checked.status == 0
    assert "not known whether 2 vCPUs can leave their PMU" in checked.stderr
    assert machine.run("vm", "list", "-n", "-o", "pmu,aligned", "--sysroot", str(root)).lines == [
        "?    ?"
    ]


def test_a_tree_without_cpus_has_no_pmu_of_all_cpus(machine: Machine, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", {}, {LITTLE: "0-3"})
    assert results(machine, root)["host.pmus host"] == "WARN"
    assert read_json(machine, root, "pmu", "list")["partial"] is True
    write_file(root, f"{SOURCES}/software/type", "1\n")
    assert results(machine, root)["host.pmus host"] == "WARN"
    assert read_json(machine, root, "pmu", "list")["partial"] is False
    shown = machine.run("host", "info", "--sysroot", str(root)).stdout
    assert "CPUS         ?\n" in shown
    assert "CORE-LIST    ?\n" in shown


def test_processes_pass_only_in_a_tree_that_tells_of_all(machine: Machine, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", CORES, {LITTLE: "0-3", BIG: "4-7"})
    assert results(machine, root)["host.processes host"] == "WARN"
    fake_vmm(root / "proc", 5120, QEMU)
    assert results(machine, root)["host.processes host"] == "WARN"
    assert machine.run("host", "snapshot", str(tmp_path / "own")).status == 0
    assert results(machine, tmp_path / "own")["host.processes host"] == "PASS"
    ran = machine.run("vm", "show", "nothing", "--sysroot", str(root))
    assert "not all processes of that host may be captured" in ran.stderr


def test_a_pmu_without_events_is_one_whose_events_were_not_captured(
    machine: Machine, tmp_path: Path
) -> None:
    root = make_tree(tmp_path / "tree", CORES, {LITTLE: "0-7"})
    shutil.rmtree(root / "sys/devices" / LITTLE / "events")
    ran = machine.run("pmu", "list", "-n", "-o", "events", "--sysroot", str(root))
    assert ran.stdout.strip() == "?"
    assert read_json(machine, root, "pmu", "list")["pmus"][0]["events"] is None
