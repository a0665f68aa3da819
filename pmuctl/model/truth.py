# SPDX-License-Identifier: Apache-2.0
"""Which PMU a VM has, where nobody chose one, and what it means that a vCPU can leave it.

KVM tells of no VM which PMU it has chosen by itself (KVM_GET_DEVICE_ATTR answers for the interrupt
only). So that is said as a fact where it is certain, and else the PMUs it can be.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pmuctl.model.align import Consequence, Judgement, judge
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kernel import DefaultPmu, Probed
from pmuctl.model.pmu import Pmu
from pmuctl.model.vm import DERIVED, Vm, VmPmu, VmState, Window
from pmuctl.model.vmm import VmmKind

_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What is known of the host: its CPU PMUs, its online CPUs, and what probes of KVM found.

    The latter two are None where they are not known.
    """

    pmus: Sequence[Pmu]
    online: CpuSet | None = None
    probed: Probed | None = None

    def cpus_of(self, name: str) -> CpuSet | None:
        """The CPUs of a PMU; None where there is no such PMU, or they could not be read."""
        return next((pmu.cpus for pmu in self.pmus if pmu.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The PMU of a VM, or the names of those it can be; neither where it has none (yet).

    `is_explicit` tells that it was set, by SET_PMU: KVM then runs no vCPU elsewhere.
    """

    pmu: VmPmu | None = None
    candidates: tuple[str, ...] = ()
    is_explicit: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The PMU, or the candidates."""
        return (self.pmu.name,) if self.pmu else self.candidates


def chosen_pmu(vm: Vm, ground: Ground) -> Chosen:
    """The PMU that a VM has.

    What was set is a fact. KVM's own choice is one where the host has a single PMU, of all its
    CPUs, or KVM gives all VMs the same (DefaultPmu.ONE); or the VM's door says `derived`. A VMM
    that sets a PMU by itself, as kvmtool does, can have taken any.
    """
    if vm.pmu is not None:
        is_explicit = vm.identity.sets_pmu or vm.pmu.is_explicit
        return Chosen(pmu=vm.pmu, is_explicit=is_explicit)
    if _has_none(vm) or not ground.pmus:
        return Chosen()
    only = _only(ground)
    if only is None and not vm.identity.sets_pmu:
        only = _default(ground)
    if only is not None and only.type is not None:
        pmu = VmPmu(name=only.name, type=only.type, origin=DERIVED)
        return Chosen(pmu=pmu, is_explicit=vm.identity.sets_pmu)
    names = tuple(pmu.name for pmu in _known_to_kvm(ground))
    return Chosen(candidates=names, is_explicit=vm.identity.sets_pmu)


def default_by_cpu(masks: Collection[CpuSet | None], places: Mapping[_Key, CpuSet]) -> _Key | None:
    """Whose PMU KVM gave a VM that it gives the PMU of a CPU (DefaultPmu.AT_VCPU_INIT).

    `masks` are the online CPUs that threads could be on, before and after each call that may have
    decided it, None where that is not known; `places` are the CPUs of each PMU. Certain only where
    all of them are one PMU's; else None.
    """
    for key, cpus in places.items():
        if masks and all(mask and mask <= cpus for mask in masks):
            return key
    return None


def _has_none(vm: Vm) -> bool:
    """Whether no PMU has been chosen, or never will be."""
    if vm.identity.has_vpmu is False or vm.window in (Window.NONE, Window.OPEN):
        return True
    # of these nothing is known but the name of a socket; or there is no VM yet
    if vm.state in (VmState.DEAD, VmState.DENIED, VmState.SILENT):
        return not vm.vcpus
    return vm.state in (VmState.WAITING, VmState.STARTING) and not vm.vcpus


def _only(ground: Ground) -> Pmu | None:
    """The host's PMU, if there is one of all its CPUs."""
    if len(ground.pmus) != 1 or ground.online is None:
        return None
    (pmu,) = ground.pmus
    return pmu if pmu.cpus is not None and ground.online <= pmu.cpus else None


def _default(ground: Ground) -> Pmu | None:
    """The PMU that this KVM gives every VM."""
    probed = ground.probed
    if probed is None or probed.default is not DefaultPmu.ONE or probed.default_pmu is None:
        return None
    return next((pmu for pmu in ground.pmus if pmu.type == probed.default_pmu), None)


def _known_to_kvm(ground: Ground) -> Sequence[Pmu]:
    counters = ground.probed.counters if ground.probed else {}
    return [pmu for pmu in ground.pmus if pmu.type in counters] or ground.pmus


def judge_mask(mask: CpuSet | None, chosen: Chosen, ground: Ground) -> Judgement:
    """Whether a thread with this mask stays on the VM's PMU; offline CPUs do not count."""
    if mask is not None and ground.online is not None:
        mask &= ground.online
    choices = [ground.cpus_of(name) for name in chosen.names]
    return judge(mask, choices, is_explicit=chosen.is_explicit)


def judge_vm(masks: Sequence[CpuSet | None], chosen: Chosen, ground: Ground) -> Judgement:
    """Whether all of a VM's vCPUs, which have these masks, stay on its PMU.

    Of several PMUs that it can have it stays on each, or on none, or it is not known: a PMU is
    the whole VM's, so one vCPU that leaves the first and one that leaves the second are `no`.
    """
    known = [mask for mask in masks if mask is not None]
    if not known:
        return Judgement(aligned=None)
    judged = judge_mask(CpuSet.of(cpu for mask in known for cpu in mask.cpus), chosen, ground)
    if judged.aligned is not False:
        # one that has no CPU left can be anywhere once it wakes up
        online = ground.online
        stranded = [mask for mask in known if not (mask if online is None else mask & online)]
        judged = judge_mask(stranded[0], chosen, ground) if stranded else judged
    return judged if judged.aligned is False or None not in masks else Judgement(aligned=None)


_ON_FAIL_ENTRY = {
    VmmKind.QEMU: "QEMU goes on trying, and spins at 100 %",
    VmmKind.KVMTOOL: "kvmtool ends the VM",
    VmmKind.CROSVM: "crosvm ends the VM",
    VmmKind.CLOUD_HYPERVISOR: "cloud-hypervisor ends the vCPU's thread",
    VmmKind.FIRECRACKER: "firecracker ends the VM",
}


def meaning(judged: Judgement, chosen: Chosen, ground: Ground, kind: VmmKind | None) -> str | None:
    """What it means for the guest where its vCPUs may run; None of a VM without a PMU.

    `judged` is as `judge_vm` has it.
    """
    cpus = [ground.cpus_of(name) for name in chosen.names]
    if not cpus:
        return None
    if judged.aligned:
        return "no vCPU can leave its PMU"
    if judged.aligned is False and judged.outside is None:
        return _effect(chosen, kind, "off its PMU, for no CPU that a vCPU may be on is online")
    if judged.outside is None:
        if len(cpus) > 1 and None not in cpus:
            return (
                f"{_effect(chosen, kind, 'outside its PMU')}, unless it is kept to the right one"
            )
        return "it is not known where its vCPUs may run, or where its PMU is"
    if len(cpus) == 1:
        where = "CPUs" if len(judged.outside) > 1 else "CPU"
        return _effect(chosen, kind, f"on {where} {judged.outside}")
    places = [
        f"{judged.outside - (its or CpuSet())} ({name})"
        for name, its in zip(chosen.names, cpus, strict=True)
    ]
    return _effect(chosen, kind, f"on the CPUs outside its PMU: {' or '.join(places)}")


def _effect(chosen: Chosen, kind: VmmKind | None, where: str) -> str:
    consequence = Consequence.FAIL_ENTRY if chosen.is_explicit else Consequence.COUNTERS_STOP
    if consequence is Consequence.COUNTERS_STOP:
        return f"counters stop silently {where}"
    what = f"KVM_RUN fails {where} (KVM_EXIT_FAIL_ENTRY)"
    then = _ON_FAIL_ENTRY.get(kind) if kind else None
    return f"{what}; {then}" if then else what
