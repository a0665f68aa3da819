# SPDX-License-Identifier: Apache-2.0
"""Comparison of the affinity of each VM's vCPU threads with the CPUs of its PMU."""

from collections.abc import Iterator, Mapping, Sequence

from pmuctl.control.runtime.affinity_record import read_affinity_record
from pmuctl.manage.affinity.blockers import Blocker, find_blocker
from pmuctl.manage.affinity.host_state import HostState, read_host_state
from pmuctl.manage.inventory.inventory import Inventory, VmList
from pmuctl.manage.inventory.lookup import list_vms, lookup_vm
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.inventory.unbacked_sockets import hide_unbacked
from pmuctl.model.alignment import VcpuAlignment, VmAffinityRecord, VmAlignment, aligned_mask
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import effective_pmu
from pmuctl.model.vm import Vm
from pmuctl.model.vm_ref import VmRef
from pmuctl.value import replace, value


@value(kw_only=True)
class VcpuRow:
    """One vCPU of a VM, and the CPU its thread last ran on (None if not known).

    `blocker` is what keeps `affinity align` from mending it; only `check_rows` fills it in.
    """

    alignment: VmAlignment
    vcpu: VcpuAlignment
    cpu: int | None
    blocker: str | None = None

    @property
    def is_unknown(self) -> bool:
        """True if it is not known whether the vCPU stays on the PMU that its VM may have."""
        pmu = self.alignment.effective_pmu
        return self.vcpu.alignment.aligned is None and (bool(pmu.cpus) or not pmu.is_known)


@value(kw_only=True)
class AssessedVms:
    """VMs, the alignment of each in the same order, and the host they were assessed on."""

    vm_list: VmList
    alignments: tuple[VmAlignment, ...]
    host_state: HostState


def assess_vms(
    session: Session, refs: Sequence[VmRef] = (), *, are_unbacked_hidden: bool = False
) -> AssessedVms:
    """Read the host once, then assess the VMs that are meant, by default all.

    With `are_unbacked_hidden` those are left out that `hide_unbacked` hides. Raise what
    `list_vms` raises.
    """
    host_state = read_host_state(session.host)
    vm_list = list_vms(session, refs)
    if are_unbacked_hidden:
        vm_list = hide_unbacked(vm_list, session)
    alignments = tuple(assess(vm, host_state) for vm in vm_list.vms)
    return AssessedVms(vm_list=vm_list, alignments=alignments, host_state=host_state)


def assess_named_vm(session: Session, ref: VmRef) -> VmAlignment:
    """Read the host, then assess one VM, with its affinity record.

    Raise what `lookup_vm` raises.
    """
    host_state = read_host_state(session.host)
    vm = lookup_vm(Inventory(session), ref)
    return with_affinity_record(assess(vm, host_state), host_state)


def assess(vm: Vm, host_state: HostState) -> VmAlignment:
    """Return the alignment of a VM with the PMU that it has or can have.

    The events of its filter get the names that its PMU has for them.
    """
    if vm.filter is not None and vm.pmu is not None:
        names = [pmu.events for pmu in host_state.pmus if pmu.name == vm.pmu.name]
        vm = replace(vm, event_names=names[0] if names else {})
    tids = (vcpu.tid for vcpu in vm.vcpus or () if vcpu.tid is not None)
    masks = {tid: mask for tid in tids if (mask := host_state.read_mask(vm.pid, tid)) is not None}
    return VmAlignment.of(vm, effective_pmu(vm, host_state.host_pmus), masks, host_state.online)


def vcpu_rows(alignment: VmAlignment, host_state: HostState) -> Iterator[VcpuRow]:
    """Yield a row for every vCPU of a VM, in order."""
    for vcpu in alignment.vcpus:
        cpu = _read_last_cpu(alignment.vm, vcpu, host_state)
        yield VcpuRow(alignment=alignment, vcpu=vcpu, cpu=cpu)


def check_rows(alignment: VmAlignment, host_state: HostState) -> Iterator[VcpuRow]:
    """Yield the same rows; those of misplaced vCPUs with what keeps `affinity align` from it."""
    is_misplaced = alignment.is_misplaced
    masks = read_vm_affinity_record(alignment.vm, host_state).cpus if is_misplaced else {}
    misplaced = (*alignment.misplaced, *alignment.offenders)
    for row in vcpu_rows(alignment, host_state):
        if row.vcpu in misplaced:
            blocker = _explain_blocker(alignment, row.vcpu, masks, host_state)
            yield replace(row, blocker=blocker)
        else:
            yield row


def read_vm_affinity_record(vm: Vm, host_state: HostState) -> VmAffinityRecord:
    """Return what pmuctl did with the vCPUs last: by its own record, or else its supervisor's.

    Return an empty record for the VMs of a captured tree.
    """
    if vm.id is None or not host_state.host.is_live:
        return VmAffinityRecord()
    record = read_affinity_record(
        host_state.host.environ, host_state.host.uid, vm.id.process, owner=vm.owner
    )
    is_left_alone = record.leaves(vm.id)
    confined_to = None if is_left_alone else vm.confined_to
    found = {vcpu.index: record.cpus.get(vcpu.tid or 0, confined_to) for vcpu in vm.vcpus or ()}
    masks = {index: cpus for index, cpus in found.items() if cpus is not None}
    return VmAffinityRecord(cpus=masks, is_left_alone=is_left_alone)


def with_affinity_record(alignment: VmAlignment, host_state: HostState) -> VmAlignment:
    """Return the alignment of a VM with what pmuctl did with its vCPUs last, if that is known."""
    if not host_state.host.is_live:
        return alignment
    record = read_vm_affinity_record(alignment.vm, host_state)
    return replace(alignment, affinity_record=record)


def has_settings(vm: Vm, host_state: HostState) -> bool:
    """Return whether a VM was given a PMU, counters, a filter or CPUs, as far as pmuctl can know.

    Return True if it has a control socket that cannot be queried: it may have been given some.
    """
    if vm.is_managed and vm.problem is not None:
        return True
    if vm.explicit_pmu or vm.counters is not None or vm.filter is not None:
        return True
    return bool(read_vm_affinity_record(vm, host_state).cpus)


def _read_last_cpu(vm: Vm, vcpu: VcpuAlignment, host_state: HostState) -> int | None:
    if vm.pid is None or vcpu.tid is None:
        return None
    return host_state.host.procs.last_cpu(vm.pid, vcpu.tid)


def find_vm_obstacle(
    alignment: VmAlignment,
    vcpu: VcpuAlignment,
    masks: Mapping[int, CpuSet],
    host_state: HostState,
) -> Blocker | None:
    """Return what keeps a misplaced vCPU off the CPUs that `affinity align` would put it on.

    `masks` are the CPUs that pmuctl put vCPUs on, by number.
    """
    pid, cpus = alignment.vm.pid, alignment.effective_pmu.only_cpus
    if cpus is None or vcpu.tid is None or vcpu.affinity is None or pid is None:
        return None
    mask = aligned_mask(vcpu.affinity, cpus, masks.get(vcpu.index), online=host_state.online)
    # without a mask it is a pin of somebody else's; what blocks the whole PMU says more than that
    return find_blocker(pid, vcpu.tid, mask or cpus, host_state)


def _explain_blocker(
    alignment: VmAlignment,
    vcpu: VcpuAlignment,
    masks: Mapping[int, CpuSet],
    host_state: HostState,
) -> str | None:
    """Return why `affinity align` would fail; None if nothing is known to be in its way."""
    vm, cpus = alignment.vm, alignment.effective_pmu.only_cpus
    if cpus is None:
        return "which PMU KVM chose is not known"
    if vcpu.tid is None or vcpu.affinity is None or vm.pid is None:
        return None
    if blocker := find_vm_obstacle(alignment, vcpu, masks, host_state):
        return blocker.why
    mask = aligned_mask(vcpu.affinity, cpus, masks.get(vcpu.index), online=host_state.online)
    if mask is None:
        return f"a pin to {vcpu.affinity or 'offline CPUs'} that pmuctl did not make"
    host = host_state.host
    if host.is_live and host.uid != 0 and vm.owner not in (None, host.uid):
        return f"not permitted: it is uid {vm.owner}'s, that takes CAP_SYS_NICE"
    return None
