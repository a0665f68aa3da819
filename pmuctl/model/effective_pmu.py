# SPDX-License-Identifier: Apache-2.0
"""Which PMU a VM has, also where nobody chose one, and what happens on other CPUs.

KVM tells of no VM which PMU it has chosen by itself (KVM_GET_DEVICE_ATTR answers for the interrupt
only). So that is said as a fact where it is certain, and else the PMUs it can be.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import DERIVED, DefaultPmu, KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.model.vm import Vm, VmPmu, VmState, Window
from pmuctl.model.vmm_identity import VmmKind
from pmuctl.value import field, value

_ON_FAIL_ENTRY = {
    VmmKind.QEMU: "QEMU spins at 100 %",
    VmmKind.KVMTOOL: "kvmtool ends the VM",
    VmmKind.CROSVM: "crosvm ends the VM",
    VmmKind.CLOUD_HYPERVISOR: "cloud-hypervisor ends the vCPU's thread",
}


class Consequence(StrEnum):
    """What happens on a CPU that is not of the VM's PMU (vcpu.rst 1.4, and measured)."""

    FAIL_ENTRY = "fail-entry"
    """a PMU was set: KVM_RUN returns KVM_EXIT_FAIL_ENTRY, reason CPU_UNSUPPORTED"""
    COUNTERS_STOP = "counters-stop"
    """KVM chose the PMU: the guest's counters stand still, without an exit or an error"""

    def words(self, kind: VmmKind | None = None) -> str:
        """What that means, for a person; of a VMM of this kind, where that is known."""
        if self is Consequence.COUNTERS_STOP:
            return "the guest's counters stop there silently"
        any_vmm = "most VMMs end the VM, and QEMU spins at 100 %"
        then = _ON_FAIL_ENTRY.get(kind, any_vmm) if kind else any_vmm
        return f"KVM_RUN fails there with KVM_EXIT_FAIL_ENTRY: {then}"


@value(kw_only=True)
class EffectivePmu:
    """The PMU of a VM, None where it has none (yet), or where it is not known which it has.

    `cpus` are those of that PMU, or of each it can be, by name: None where they could not be read.
    `is_explicit` tells that it was set, by SET_PMU: KVM then runs no vCPU elsewhere.
    """

    pmu: VmPmu | None = None
    cpus: Mapping[str, CpuSet | None] = field(default_factory=dict)
    is_explicit: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The PMU, or those it can be."""
        return tuple(self.cpus)

    @property
    def candidates(self) -> tuple[str, ...]:
        """Those it can be, where it is not known which it is."""
        return () if self.pmu else self.names

    @property
    def only(self) -> str | None:
        """The one that it has or can only be."""
        return self.names[0] if len(self.cpus) == 1 else None

    @property
    def only_cpus(self) -> CpuSet | None:
        """The CPUs of that one."""
        return self.cpus[self.only] if self.only else None

    @property
    def consequence(self) -> Consequence:
        """What happens where a vCPU leaves it."""
        return Consequence.FAIL_ENTRY if self.is_explicit else Consequence.COUNTERS_STOP

    def __str__(self) -> str:
        return " or ".join(
            f"{name} ({'?' if its is None else its})" for name, its in self.cpus.items()
        )


@value(kw_only=True)
class HostPmus:
    """What is known of the host: its CPU PMUs, its online CPUs, and what probes of KVM found.

    The latter two are None where they are not known.
    """

    pmus: Sequence[Pmu]
    online: CpuSet | None = None
    probed: KvmCaps | None = None

    def cpus_of(self, *names: str) -> dict[str, CpuSet | None]:
        """The CPUs of these PMUs; None where there is no such PMU, or they could not be read."""
        known = {pmu.name: pmu.cpus for pmu in self.pmus}
        return {name: known.get(name) for name in names}


def effective_pmu(vm: Vm, ground: HostPmus) -> EffectivePmu:
    """The PMU that a VM has.

    What was set is a fact. KVM's own choice is one where the host has a single PMU, of all its
    CPUs, or KVM gives all VMs the same (DefaultPmu.ONE); or the VM's door says `derived`. A VMM
    that sets a PMU by itself, as kvmtool does, can have taken any.
    """
    if vm.pmu is not None:
        is_explicit = vm.identity.sets_pmu or vm.pmu.is_explicit
        return EffectivePmu(pmu=vm.pmu, cpus=ground.cpus_of(vm.pmu.name), is_explicit=is_explicit)
    if _has_none(vm) or not ground.pmus:
        return EffectivePmu()
    only = _only(ground)
    if only is None and not vm.identity.sets_pmu:
        only = _default(ground)
    if only is not None and only.type is not None:
        pmu = VmPmu(name=only.name, type=only.type, origin=DERIVED)
        return EffectivePmu(
            pmu=pmu, cpus=ground.cpus_of(only.name), is_explicit=vm.identity.sets_pmu
        )
    names = (pmu.name for pmu in _known_to_kvm(ground))
    return EffectivePmu(cpus=ground.cpus_of(*names), is_explicit=vm.identity.sets_pmu)


def _has_none(vm: Vm) -> bool:
    """Whether no PMU has been chosen, or never will be."""
    if vm.identity.has_vpmu is False or vm.window in (Window.NONE, Window.OPEN):
        return True
    # of these nothing is known but the name of a socket; or there is no VM yet
    if vm.state in (VmState.DEAD, VmState.DENIED, VmState.SILENT):
        return not vm.vcpus
    return vm.state in (VmState.WAITING, VmState.STARTING) and not vm.vcpus


def _only(ground: HostPmus) -> Pmu | None:
    """The host's PMU, if there is one of all its CPUs."""
    if len(ground.pmus) != 1 or ground.online is None:
        return None
    (pmu,) = ground.pmus
    return pmu if pmu.cpus is not None and ground.online <= pmu.cpus else None


def _default(ground: HostPmus) -> Pmu | None:
    """The PMU that this KVM gives every VM."""
    probed = ground.probed
    if probed is None or probed.default is not DefaultPmu.ONE or probed.default_pmu is None:
        return None
    return next((pmu for pmu in ground.pmus if pmu.type == probed.default_pmu), None)


def _known_to_kvm(ground: HostPmus) -> Sequence[Pmu]:
    counters = ground.probed.counters if ground.probed else {}
    return [pmu for pmu in ground.pmus if pmu.type in counters] or ground.pmus
