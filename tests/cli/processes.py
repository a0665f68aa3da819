# SPDX-License-Identifier: Apache-2.0
"""VMs without a control socket on the captured machine, and what is listed of them."""

import json
from typing import Any

from pmuctl.model.cpuset import CpuSet
from tests.cli.conftest import Machine
from tests.fakes.vmm import fake_vmm

QEMU = "qemu-system-aarch64"


def with_vmm(machine: Machine, pid: int, *argv: str, **how: Any) -> Machine:
    """One VMM more on a machine."""
    fake_vmm(machine.proc, pid, argv, **how)
    for status in (machine.proc / str(pid) / "task").glob("*/status"):
        mask = status.read_text().partition("list:\t")[2]
        machine.masks[int(status.parent.name)] = CpuSet.parse(mask)
    return machine


def listed(machine: Machine, *words: str) -> list[dict[str, Any]]:
    ran = machine.run("vm", "list", *words, "-O", "-J")
    assert ran.status == 0, ran
    found: list[dict[str, Any]] = json.loads(ran.stdout)["vms"]
    return found


def debugfs(machine: Machine, pid: int, fd: int, threads: dict[int, int]) -> None:
    for vcpu, tid in threads.items():
        folder = machine.root / f"sys/kernel/debug/kvm/{pid}-{fd}/vcpu{vcpu}"
        folder.mkdir(parents=True)
        (folder / "pid").write_text(f"{tid}\n")
