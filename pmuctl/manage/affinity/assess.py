# SPDX-License-Identifier: Apache-2.0
"""VMs held against their PMUs: read once, and the same to each command that tells of them."""

from collections.abc import Iterator, Mapping

from pmuctl.control.runtime.affinity_record import read_affinity_record
from pmuctl.manage.affinity.blockers import Blocker, find_blocker
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.inventory.start_records import recorded_cpus
from pmuctl.model.alignment import VcpuAlignment, VmAlignment, aligned_mask
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import effective_pmu
from pmuctl.model.vm import Vm
from pmuctl.value import field, value


@value(kw_only=True)
class VcpuRow:
    """One vCPU of a VM, and the CPU its thread was last on; None where that is not known.

    `blocker` says what is in the way of `affinity align`, where that was asked.
    """

    alignment: VmAlignment
    vcpu: VcpuAlignment
    cpu: int | None
    blocker: str | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether it has a PMU, and nobody knows whether it stays there."""
        return self.vcpu.alignment.aligned is None and bool(self.alignment.effective_pmu.cpus)


@value(kw_only=True)
class Recorded:
    """The CPUs that pmuctl put vCPUs on, by number; or that it leaves them alone."""

    cpus: Mapping[int, CpuSet] = field(default_factory=dict)
    is_left_alone: bool = False


def assess(vm: Vm, host_state: HostState) -> VmAlignment:
    """A VM held against the PMU that it has or can have."""
    tids = (its.tid for its in vm.vcpus or () if its.tid is not None)
    masks = {tid: mask for tid in tids if (mask := host_state.read_mask(vm.pid, tid)) is not None}
    return VmAlignment.of(vm, effective_pmu(vm, host_state.host_pmus), masks, host_state.online)


def vcpu_rows(held: VmAlignment, host_state: HostState) -> Iterator[VcpuRow]:
    """Every vCPU of a VM, in order."""
    for its in held.vcpus:
        yield VcpuRow(alignment=held, vcpu=its, cpu=_last_cpu(held.vm, its, host_state))


def check_rows(held: VmAlignment, host_state: HostState) -> Iterator[VcpuRow]:
    """Every vCPU of a VM, in order; of those that leave, what keeps `affinity align` from it."""
    masks = read_vm_affinity_record(held.vm, host_state).cpus if held.is_misplaced else {}
    leavers = (*held.misplaced, *held.offenders)
    for its in held.vcpus:
        blocker = _blocker(held, its, masks, host_state) if its in leavers else None
        yield VcpuRow(
            alignment=held, vcpu=its, cpu=_last_cpu(held.vm, its, host_state), blocker=blocker
        )


def read_vm_affinity_record(vm: Vm, host_state: HostState) -> Recorded:
    """What pmuctl did with the vCPUs last: by its own record, or else its supervisor's.

    Nothing is known of those of another machine.
    """
    if vm.id is None or not host_state.host.is_live:
        return Recorded()
    placed = read_affinity_record(
        host_state.host.environ, host_state.host.uid, vm.id.process, owner=vm.owner
    )
    is_left_alone = placed.leaves(vm.id)
    by_all = None if is_left_alone else recorded_cpus(vm)
    found = {its.index: placed.cpus.get(its.tid or 0, by_all) for its in vm.vcpus or ()}
    masks = {index: cpus for index, cpus in found.items() if cpus is not None}
    return Recorded(cpus=masks, is_left_alone=is_left_alone)


def _last_cpu(vm: Vm, its: VcpuAlignment, host_state: HostState) -> int | None:
    if vm.pid is None or its.tid is None:
        return None
    return host_state.host.procs.last_cpu(vm.pid, its.tid)


def find_vm_obstacle(
    held: VmAlignment, its: VcpuAlignment, masks: Mapping[int, CpuSet], host_state: HostState
) -> Blocker | None:
    """What on this machine keeps a vCPU that leaves off the CPUs that align would put it on.

    `masks` are those that pmuctl put vCPUs on, by number.
    """
    pid, cpus = held.vm.pid, held.effective_pmu.only_cpus
    if cpus is None or its.tid is None or its.affinity is None or pid is None:
        return None
    mask = aligned_mask(its.affinity, cpus, masks.get(its.index), online=host_state.online)
    # what is in the way of the whole PMU is worth more than that a pin is not known
    return find_blocker(pid, its.tid, mask or cpus, host_state)


def _blocker(
    held: VmAlignment, its: VcpuAlignment, masks: Mapping[int, CpuSet], host_state: HostState
) -> str | None:
    """What `affinity align` would fail for, None where nothing is known to be in its way."""
    vm, cpus = held.vm, held.effective_pmu.only_cpus
    if cpus is None:
        return "which PMU KVM chose is not known"
    if its.tid is None or its.affinity is None or vm.pid is None:
        return None
    if found := find_vm_obstacle(held, its, masks, host_state):
        return found.words
    if aligned_mask(its.affinity, cpus, masks.get(its.index), online=host_state.online) is None:
        return f"a pin to {its.affinity or 'offline CPUs'} that pmuctl did not make"
    if (
        host_state.host.is_live
        and host_state.host.uid != 0
        and vm.owner not in (None, host_state.host.uid)
    ):
        return f"not permitted: it is uid {vm.owner}'s, that takes CAP_SYS_NICE"
    return None
