# SPDX-License-Identifier: Apache-2.0
"""What to change in a VMM's command line, in the words of that VMM."""

from collections.abc import Mapping, Sequence

from pmuctl.model.vmm.identity import VmmIdentity, VmmKind

_ASK_FOR_VPMU: Mapping[VmmKind, str] = {
    VmmKind.QEMU: "give QEMU -cpu host,pmu=on",
    VmmKind.STRATOVIRT: "give StratoVirt -cpu host,pmu=on",
    VmmKind.KVMTOOL: "give kvmtool --pmu",
    VmmKind.CROSVM: "start crosvm without --no-pmu",
}
_QEMU_ACCELERATORS = ("-accel", "--accel")
_QEMU_KVM_OPTIONS = ("-enable-kvm", "--enable-kvm")
_QEMU_MACHINES = ("-M", "-machine", "--machine")


def ask_for_vpmu(vmm: VmmIdentity) -> str:
    """Return how a VM of this VMM gets a vPMU."""
    if vmm.gives_no_vpmu:
        return f"use QEMU, kvmtool or crosvm: {vmm.kind} gives no VM a PMU"
    default = "give the VM a PMU by the VMM's own option (QEMU: -cpu host,pmu=on)"
    return _ASK_FOR_VPMU.get(vmm.kind, default) if vmm.kind else default


def ask_for_kvm(vmm: VmmIdentity, command: Sequence[str]) -> str:
    """Return how to have this command make a KVM VM, which it has not."""
    match vmm.kind:
        case None:
            return (
                "give the command line of the VMM itself after --: a VM that a service starts, "
                "such as libvirt's, is out of reach"
            )
        case VmmKind.QEMU if not _asks_for_kvm(command):
            return "give QEMU -accel kvm, and no other accelerator: tcg emulates all CPUs"
        case _:
            return f"see what {vmm.kind} itself says: it makes its KVM VM when it starts the guest"


def _asks_for_kvm(command: Sequence[str]) -> bool:
    """Return whether QEMU has KVM as its only accelerator: it tries them in their order."""
    found: list[str] = []
    for option, word in zip(command[1:], [*command[2:], ""], strict=False):
        if option in _QEMU_KVM_OPTIONS:
            found.append("kvm")
        elif option in _QEMU_ACCELERATORS:
            found.append(word.partition(",")[0].removeprefix("accel="))
        elif option in _QEMU_MACHINES:
            found += (
                part.removeprefix("accel=")
                for part in word.split(",")
                if part.startswith("accel=")
            )
    return bool(found) and all(name == "kvm" for name in found)
