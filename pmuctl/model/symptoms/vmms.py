# SPDX-License-Identifier: Apache-2.0
"""The VMMs and managers that a message names, and how each of them is told what a fix needs."""

import re
from collections.abc import Sequence

from pmuctl.value import value


@value(kw_only=True)
class NamedVmm:
    """A VMM as a message names it, and its command lines.

    `pattern` finds its name in a text in lower case, `prints` finds words that only it prints.
    `with_pmu` starts a VM with a PMU, `without_pmu` without one, `with_gic` with an interrupt
    controller that the host has.
    """

    name: str
    pattern: str
    prints: str = r"(?!)"
    command: str
    with_pmu: str
    without_pmu: str
    with_gic: str


QEMU = NamedVmm(
    name="QEMU",
    pattern=r"qemu(?!-img|-nbd|-ga\b)|(?:^|[\s/:])kvm: ",
    prints=r"\bkvm_(?:arch_)?init_vcpu\b|\bput registers after\b|\bcpreg_vmstate"
    r"|\bset irq for pmu\b|\berror: kvm run failed|\bkvm_arch_handle_exit\b"
    r"|\bpmu: kvm_(?:has|set)_device_attr\b",
    command="qemu-system-aarch64 ARG...",
    with_pmu="qemu-system-aarch64 -cpu host,pmu=on ARG...",
    without_pmu="qemu-system-aarch64 -cpu host,pmu=off ARG...",
    with_gic="qemu-system-aarch64 -machine virt,gic-version=host ARG...",
)
KVMTOOL = NamedVmm(
    name="kvmtool",
    pattern=r"\b(?:lkvm|kvmtool)",
    prints=r"\bpmu kvm_(?:has|set)_device_attr\b|\bunsupported pmu on vcpu"
    r"|\bunable to initialise vcpu|\bunable to find matching target\b(?! for| resource)",
    command="lkvm run --pmu ARG...",
    with_pmu="lkvm run --pmu ARG...",
    without_pmu="lkvm run ARG... (without --pmu)",
    with_gic="lkvm run --irqchip gicv3 --pmu ARG...",
)
CROSVM = NamedVmm(
    name="crosvm",
    pattern=r"\bcrosvm",
    command="crosvm run ARG...",
    with_pmu="crosvm run ARG... (without --no-pmu)",
    without_pmu="crosvm run --no-pmu ARG...",
    with_gic="crosvm run ARG...",
)
CLOUD_HYPERVISOR = NamedVmm(
    name="cloud-hypervisor",
    pattern=r"\bcloud[\s_-]?hypervisor",
    command="cloud-hypervisor ARG...",
    with_pmu="cloud-hypervisor ARG...",
    without_pmu="VMM ARG... (with another VMM: this one gives every guest a PMU)",
    with_gic="cloud-hypervisor ARG...",
)

_NO_PMU = "VMM ARG... (with another VMM: this one gives guests no PMU)"


def _other(
    name: str, pattern: str, *, with_pmu: str = "VMM ARG... (with its option for a PMU)"
) -> NamedVmm:
    """Return a VMM whose command line is not known here."""
    return NamedVmm(
        name=name,
        pattern=pattern,
        command="VMM ARG...",
        with_pmu=with_pmu,
        without_pmu="VMM ARG... (without its option for a PMU)",
        with_gic="VMM ARG... (with the GIC version of the host)",
    )


ANY_VMM = _other("the VMM", r"(?!)")
"""What an answer names if the message names no VMM, or several."""

VMMS: Sequence[NamedVmm] = (
    *(QEMU, KVMTOOL, CROSVM, CLOUD_HYPERVISOR),
    _other("Firecracker", r"\bfirecracker", with_pmu=_NO_PMU),
    _other("Dragonball", r"\bdragonball"),
    _other("Kata's VMM", r"\bkata"),
    _other("StratoVirt", r"\bstrato[\s-]?virt"),
    _other("libkrun", r"\b(?:libkrun|krunvm|muvm|microsandbox)", with_pmu=_NO_PMU),
    _other("OpenVMM", r"\bopen(?:vmm|hcl)\b"),
    _other("gVisor", r"\b(?:gvisor|runsc)\b"),
    _other("uhyve", r"\buhyve\b"),
)


def find_vmms(text: str) -> list[NamedVmm]:
    """Return the VMMs that a text names; if it names none, those whose words it has."""
    text = text.lower()
    named = [vmm for vmm in VMMS if re.search(vmm.pattern, text, re.MULTILINE)]
    return named or [vmm for vmm in VMMS if re.search(vmm.prints, text)]


@value(kw_only=True)
class Manager:
    """A manager that starts VMs, in the systemd slice `slice`.

    The command `pin` confines one to CPUs, from its next start on.
    """

    name: str
    pattern: str
    pin: str
    slice: str = "machine.slice"


MANAGERS: Sequence[Manager] = (
    Manager(
        name="Proxmox",
        pattern=r"\b(?:proxmox|pxvirt|pimox|pve\w*|task error|qm start)\b",
        pin="qm set VMID --affinity {cpus}",
        slice="qemu.slice",
    ),
    Manager(
        name="Incus",
        pattern=r"\bincus(?:d)?\b",
        pin="incus config set VM limits.cpu={cpus}",
    ),
    Manager(
        name="LXD",
        pattern=r"\blxd\b|\blxc (?:start|launch)\b",
        pin="lxc config set VM limits.cpu={cpus}",
    ),
    Manager(
        name="libvirt",
        pattern=r"\b(?:libvirt\w*|virsh|virt-manager|virt-install|virtqemud|virdomain\w*)"
        r"|\bconnecting to monitor\b|\bstarting domain\b|\bunable to complete install\b",
        pin="virt-xml DOMAIN --edit --vcpus cpuset={cpus}",
    ),
)


def find_manager(text: str) -> Manager | None:
    """Return the first manager that a text shows, by its name or its own words."""
    text = text.lower()
    return next((manager for manager in MANAGERS if re.search(manager.pattern, text)), None)
