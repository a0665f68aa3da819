# SPDX-License-Identifier: Apache-2.0
"""The PMU a VM has, even if nobody chose one, and what happens on other CPUs.

KVM does not tell which PMU it chose by itself for a VM (KVM_GET_DEVICE_ATTR answers for the
interrupt only). So the PMU is a fact if it is certain; otherwise there are candidates.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import DERIVED, DefaultPmu, KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.model.vm import Vm, VmPmu, VmState, Window
from pmuctl.model.vmm.identity import VmmKind
from pmuctl.value import field, value

_ON_FAIL_ENTRY = {
    VmmKind.QEMU: "QEMU spins at 100 %",
    VmmKind.KVMTOOL: "kvmtool ends that vCPU's thread, and with vCPU 0 the VM",
    VmmKind.CROSVM: "crosvm ends the VM",
    VmmKind.CLOUD_HYPERVISOR: "cloud-hypervisor ends the vCPU's thread",
}


class Consequence(StrEnum):
    """What happens on a CPU that is not of the VM's PMU (vcpu.rst 1.4, and measured)."""

    FAIL_ENTRY = "fail-entry"
    """a PMU was set: KVM_RUN returns KVM_EXIT_FAIL_ENTRY, reason CPU_UNSUPPORTED"""
    COUNTERS_STOP = "counters-stop"
    """KVM chose the PMU: the guest's counters stand still, without an exit or an error"""

    def explain(self, kind: VmmKind | None = None) -> str:
        """Return what that means, for a person; for a VMM of this `kind` if it is known."""
        if self is Consequence.COUNTERS_STOP:
            return "the guest's counters stop there silently"
        any_vmm = "most VMMs end the VM, and QEMU spins at 100 %"
        reaction = _ON_FAIL_ENTRY.get(kind, any_vmm) if kind else any_vmm
        return f"KVM_RUN fails there with KVM_EXIT_FAIL_ENTRY: {reaction}"


@value(kw_only=True)
class EffectivePmu:
    """The PMU of a VM; `pmu` is None if it has none (yet), or if it is not known which it has.

    `cpus` maps the name of that PMU, or of each it can be, to its CPUs: None if they could not be
    read. `is_explicit` is True if it was set, by SET_PMU: KVM then runs no vCPU elsewhere. If
    `is_known` is False, `cpus` is empty though it can have a PMU: the host's are not all known.
    """

    pmu: VmPmu | None = None
    cpus: Mapping[str, CpuSet | None] = field(default_factory=dict)
    is_explicit: bool = False
    is_known: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the PMU, or of each it can be."""
        return tuple(self.cpus)

    @property
    def candidates(self) -> tuple[str, ...]:
        """The names of the PMUs it can be; empty if it is known which it is."""
        return () if self.pmu else self.names

    @property
    def only(self) -> str | None:
        """The name of the one PMU that it has or can have; None if there are none or several."""
        return self.names[0] if len(self.cpus) == 1 else None

    @property
    def only_cpus(self) -> CpuSet | None:
        """The CPUs of that one PMU."""
        return self.cpus[self.only] if self.only else None

    @property
    def consequence(self) -> Consequence:
        """What happens if a vCPU leaves the PMU."""
        return Consequence.FAIL_ENTRY if self.is_explicit else Consequence.COUNTERS_STOP

    def __str__(self) -> str:
        return " or ".join(
            f"{name} ({'?' if cpus is None else cpus})" for name, cpus in self.cpus.items()
        )


@value(kw_only=True)
class HostPmus:
    """What is known of the host: its CPU PMUs, its online CPUs, and what probes of KVM found.

    `online` and `probed` are None if they are not known. `is_complete` is False if there may be
    other CPU PMUs, which could not be seen.
    """

    pmus: Sequence[Pmu]
    online: CpuSet | None = None
    probed: KvmCaps | None = None
    is_complete: bool = True

    def cpus_of(self, *names: str) -> dict[str, CpuSet | None]:
        """Map each of these PMUs to its CPUs; None if it does not exist or could not be read."""
        known = {pmu.name: pmu.cpus for pmu in self.pmus}
        return {name: known.get(name) for name in names}


def effective_pmu(vm: Vm, host_pmus: HostPmus) -> EffectivePmu:
    """Return the PMU that a VM has.

    A PMU that was set is a fact. KVM's own choice is a fact if the host has a single PMU, of all
    online CPUs, if KVM gives all VMs the same PMU (DefaultPmu.ONE), or if the VM's control socket
    says `derived`. A VMM that sets a PMU by itself, as kvmtool does, can have taken any.
    """
    if vm.pmu is not None:
        return EffectivePmu(
            pmu=vm.pmu,
            cpus=host_pmus.cpus_of(vm.pmu.name),
            is_explicit=vm.identity.sets_pmu or vm.pmu.is_explicit,
        )
    if _has_no_pmu(vm):
        return EffectivePmu()
    if not host_pmus.pmus:
        return EffectivePmu(is_known=host_pmus.is_complete)
    only = _find_only_pmu(host_pmus)
    if only is None and not vm.identity.sets_pmu:
        only = _find_default_pmu(host_pmus)
    if only is not None and only.type is not None:
        return EffectivePmu(
            pmu=VmPmu(name=only.name, type=only.type, origin=DERIVED),
            cpus=host_pmus.cpus_of(only.name),
            is_explicit=vm.identity.sets_pmu,
        )
    if not host_pmus.is_complete:
        return EffectivePmu(is_known=False, is_explicit=vm.identity.sets_pmu)
    names = (pmu.name for pmu in _find_kvm_pmus(host_pmus))
    return EffectivePmu(cpus=host_pmus.cpus_of(*names), is_explicit=vm.identity.sets_pmu)


def _has_no_pmu(vm: Vm) -> bool:
    """Return True if no PMU has been chosen yet, or none ever will be."""
    if vm.identity.has_vpmu is False or vm.window in (Window.NONE, Window.OPEN):
        return True
    # of these states only the name of a socket is known, or there is no VM yet
    if vm.state in (VmState.DEAD, VmState.DENIED, VmState.SILENT):
        return not vm.vcpus
    return vm.state in (VmState.WAITING, VmState.STARTING) and not vm.vcpus


def _find_only_pmu(host_pmus: HostPmus) -> Pmu | None:
    """Return the host's PMU if there is a single one that covers all online CPUs."""
    if len(host_pmus.pmus) != 1 or host_pmus.online is None:
        return None
    (pmu,) = host_pmus.pmus
    return pmu if pmu.cpus is not None and host_pmus.online <= pmu.cpus else None


def _find_default_pmu(host_pmus: HostPmus) -> Pmu | None:
    """Return the PMU that this KVM gives every VM; None if there is none, or it is not known."""
    probed = host_pmus.probed
    if probed is None or probed.default is not DefaultPmu.ONE or probed.default_pmu is None:
        return None
    return next((pmu for pmu in host_pmus.pmus if pmu.type == probed.default_pmu), None)


def _find_kvm_pmus(host_pmus: HostPmus) -> Sequence[Pmu]:
    """Return the PMUs that KVM registered; all PMUs of the host if that is not known."""
    counters = host_pmus.probed.counters if host_pmus.probed else {}
    return [pmu for pmu in host_pmus.pmus if pmu.type in counters] or host_pmus.pmus
