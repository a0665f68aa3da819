# SPDX-License-Identifier: Apache-2.0
"""VMs without a control socket on real kernels: found, and what the kernel tells of them."""

import json
import time
from pathlib import Path
from typing import Any

from tests.lab.channel import PATIENCE
from tests.lab.machine import Lab
from tests.lab.snapshots import here
from tests.lab.vms import pmuctl, reference_vm

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"


def found(lab: Lab, *words: str) -> list[dict[str, Any]]:
    """The VMs of the lab that have no control socket."""
    ran = pmuctl(lab, "vm", "list", "-O", "-J", *words)
    assert ran.status == 0, ran
    return [vm for vm in json.loads(ran.stdout)["vms"] if vm["socket"] is None]


def test_a_vm_without_a_socket_is_found_with_its_threads(lab: Lab, tmp_path: Path) -> None:
    with reference_vm(lab, "--no-socket", "--forever", "--run-cpus", "2-3") as vm:
        until = time.monotonic() + PATIENCE
        while not (its := found(lab, f"pid/{vm.pid}"))[0]["window"]:
            assert time.monotonic() < until, its
        assert [(row["name"], row["state"], row["window"]) for row in its] == [
            (f"pid/{vm.pid}", "running", "sealed")
        ]
        vcpus = its[0]["vcpu_list"]
        # a guest that never sleeps is not seen in KVM_RUN, and its threads have no names
        known = {row["vcpu"]: row["tid"] for row in vcpus if row["tid"] is not None}
        assert known.items() <= dict(enumerate(vm.tids)).items()
        assert {row["evidence"] for row in vcpus} <= {"kvm-run", None}
        assert its[0]["pmu"] in (None, A53, A72)
        assert (its[0]["pmu"] is None) == (its[0]["candidates"] == [A53, A72])
        refused = pmuctl(lab, "vm", "set", f"pid/{vm.pid}", "pmu", A72)
        assert (refused.status, refused.stdout) == (7, "")
        lab.run(["rm", "-rf", "/out/vms"], check=True)
        assert pmuctl(lab, "host", "snapshot", "/out/vms", "-q").status == 0
        lab.fetch("/out/vms", tmp_path / "tree")
    # the lab may have sockets that VMMs of other tests, which were killed, have left
    (row,) = here(tmp_path / "tree", "vm", "list", f"pid/{vm.pid}")["vms"]
    assert (row["name"], row["vcpus"]) == (f"pid/{vm.pid}", len(vm.tids))


def test_kvm_names_the_maker_of_a_vm_and_no_thread_of_a_vcpu(lab: Lab) -> None:
    """In debugfs: so on arm64 the threads are known from elsewhere."""
    with reference_vm(lab, "--no-socket", "--forever") as vm:
        names = lab.run(["ls", "/sys/kernel/debug/kvm"], check=True).stdout.split()
        assert [name for name in names if name.startswith(f"{vm.pid}-")], names
        assert lab.run(["sh", "-c", "ls -d /sys/kernel/debug/kvm/*-*/vcpu*"]).stdout == ""
