# SPDX-License-Identifier: Apache-2.0
"""Looking at a real host: a snapshot of it shows elsewhere what it shows itself."""

import io
import json
from pathlib import Path
from typing import Any

from pmuctl.cli.env import Env
from pmuctl.cli.main import main
from pmuctl.cli.streams import guarded
from pmuctl.host.procs import Procfs
from tests.lab.machine import Lab
from tests.lab.vms import pmuctl, reference_vm

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
MADE_ON_01 = ("--create-cpus", "0-1")
ALWAYS = {"kernel", "cpus", "online", "pmus", "core_list"}
"""Keys of `host info` that a captured tree can tell, too; the others are KVM's."""


def there(lab: Lab, *words: str) -> Any:
    """What pmuctl says on the lab's host, as JSON."""
    ran = pmuctl(lab, *words, "-J")
    assert (ran.status, ran.stderr) == (0, ""), ran
    return json.loads(ran.stdout)


def here(root: Path, *words: str) -> Any:
    """What pmuctl says on this machine of a captured tree, as JSON."""
    out, err = io.StringIO(), io.StringIO()
    env = Env(stdout=guarded(out), stderr=err, environ={}, uid=0, processes=Procfs(root))
    assert main([*words, "-J", "--sysroot", str(root)], env) == 0, err.getvalue()
    return json.loads(out.getvalue())


def without_probes(document: dict[str, Any]) -> dict[str, Any]:
    """All but what only the live machine knows: what its KVM was found to do."""
    for row in [*document.get("pmus", []), document.get("pmu", {})]:
        for key in ("counters", "event_bits"):
            row.pop(key, None)
    return document


def test_a_snapshot_shows_elsewhere_what_the_host_shows(lab: Lab, tmp_path: Path) -> None:
    lab.run(["rm", "-rf", "/out/tree"], check=True)
    ran = pmuctl(lab, "host", "snapshot", "/out/tree")
    assert (ran.status, ran.stdout) == (0, ""), ran
    assert "--sysroot /out/tree" in ran.stderr
    lab.fetch("/out/tree", tmp_path / "tree")
    for words in (("pmu", "list", "-O"), ("pmu", "show", A72), ("pmu", "cpus")):
        assert without_probes(here(tmp_path / "tree", *words)) == without_probes(
            there(lab, *words)
        )
    shown = here(tmp_path / "tree", "host", "info")["host"]
    on_host = there(lab, "host", "info")["host"]
    assert {key: shown[key] for key in ALWAYS} == {key: on_host[key] for key in ALWAYS}
    assert {shown[key] for key in shown.keys() - ALWAYS} == {None}
    again = pmuctl(lab, "host", "snapshot", "/out/tree")
    assert again.status == 9
    assert "not empty" in again.stderr


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
        "from pmuctl.host.kvm import has_pmu_attr, scratch_vcpu\n"
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
        waiter = lab.start(["pmuctl", "vm", *wait, "running", vm.name, "--timeout", "120"])
        late = vm.pmuctl(*wait, "running", "--timeout", "0.5")
        assert (late.status, late.stdout) == (1, "")
        assert late.stderr.startswith(f"{vm.name}: not running after 0.5 s: waiting, ")
        assert vm.pmuctl(*wait, "open", "--timeout", "30").status == 0
        vm.set("pmu", A72)
        assert vm.pmuctl("release").status == 0
        assert vm.pmuctl(*wait, "sealed", "--timeout", "30").status == 0
        assert waiter.wait(120).status == 0
        assert vm.pmuctl(*wait, "aligned", "--timeout", "30").status == 0
        for row, tid in zip(there(lab, "vm", "vcpus", vm.name)["vcpus"], vm.tids, strict=True):
            assert (row["vm"], row["tid"]) == (vm.name, tid)
            assert row["cpu"] in (2, 3)
            assert (row["affinity"], row["pmu_cpus"], row["aligned"]) == ([2, 3], [2, 3], True)
        lab.run(["taskset", "-p", "f", str(vm.tids[0])], check=True)
        rows = there(lab, "vm", "vcpus", vm.name)["vcpus"]
        assert [row["aligned"] for row in rows] == [False, True]
        stopped = lab.start(["pmuctl", "vm", *wait, "stopped", vm.name, "--timeout", "120"])
        vm.job.kill(9)
        assert stopped.wait(120).status == 0
