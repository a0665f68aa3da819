# SPDX-License-Identifier: Apache-2.0
"""Where the vCPU threads of VMs are and may be, held against the CPUs of their PMU."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from pmuctl.host.cpus import read_online
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.probe_cache import read_cached
from pmuctl.host.procs import Procfs
from pmuctl.host.sysfs import PATH_EVENT_SOURCE, Sysfs
from pmuctl.host.threads import Threads
from pmuctl.model.align import Judgement
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kernel import Probed
from pmuctl.model.pmu import Pmu
from pmuctl.model.truth import Chosen, Ground, chosen_pmu, judge_mask, judge_vm, meaning
from pmuctl.model.vm import Vm, VmVcpu


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedVcpu:
    """One vCPU of a VM: the CPU its thread was last on, and the CPUs it may be on.

    `pmu_cpus` are those of the VM's PMU, None where it has none, or it is not known which one;
    `candidates` then are the CPUs of those it can be. What could not be read is None.
    """

    vm: str
    vcpu: VmVcpu
    cpu: int | None
    affinity: CpuSet | None
    pmu_cpus: CpuSet | None
    candidates: tuple[CpuSet | None, ...] = ()
    judgement: Judgement

    @property
    def aligned(self) -> bool | None:
        """Whether it cannot leave its PMU; None where that is not known."""
        return self.judgement.aligned


def read_ground(
    sysfs: Sysfs, environ: Mapping[str, str], *, pmus: Sequence[Pmu] | None = None
) -> Ground:
    """What the truth about VMs rests on. No VM is made: what KVM does is known if it was probed,
    or captured with another machine's tree.
    """
    if pmus is None:
        pmus = scan_pmus(sysfs, sysfs.entries(PATH_EVENT_SOURCE))
    return Ground(pmus=pmus, online=read_online(sysfs), probed=read_cached(sysfs, pmus, environ))


def scan_vcpus(
    vms: Sequence[Vm],
    pmus: Sequence[Pmu],
    procs: Procfs,
    threads: Threads | None,
    *,
    online: CpuSet | None = None,
    probed: Probed | None = None,
) -> Iterator[PlacedVcpu]:
    """The vCPUs of these VMs, in order.

    Without `threads` masks are those that /proc tells, as in another machine's tree.
    """
    ground = Ground(pmus=pmus, online=online, probed=probed)
    for vm in vms:
        yield from _place(vm, chosen_pmu(vm, ground), ground, procs, threads)


def _place(
    vm: Vm, chosen: Chosen, ground: Ground, procs: Procfs, threads: Threads | None
) -> Iterator[PlacedVcpu]:
    choices = tuple(map(ground.cpus_of, chosen.names))
    for vcpu in vm.vcpus or ():
        affinity = _affinity(vm, vcpu.tid, procs, threads)
        cpu = None
        if vm.pid is not None and vcpu.tid is not None:
            cpu = procs.last_cpu(vm.pid, vcpu.tid)
        yield PlacedVcpu(
            vm=vm.name,
            vcpu=vcpu,
            cpu=cpu,
            affinity=affinity,
            pmu_cpus=choices[0] if chosen.pmu else None,
            candidates=choices if chosen.candidates else (),
            judgement=judge_mask(affinity, chosen, ground),
        )


def _affinity(vm: Vm, tid: int | None, procs: Procfs, threads: Threads | None) -> CpuSet | None:
    if tid is None:
        return None
    if threads is None:
        return None if vm.pid is None else procs.affinity(vm.pid, tid)
    with suppress(OSError):
        return threads.affinity(tid)
    return None


def with_truth(vm: Vm, ground: Ground, procs: Procfs, threads: Threads | None) -> Vm:
    """A VM with the PMU that it has or can have, and whether its vCPUs can leave that.

    `threads` as for `scan_vcpus`.
    """
    chosen = chosen_pmu(vm, ground)
    if not chosen.names:
        return vm
    masks = [_affinity(vm, its.tid, procs, threads) for its in vm.vcpus or ()]
    judged = judge_vm(masks, chosen, ground)
    return replace(
        vm,
        pmu=chosen.pmu,
        candidates=chosen.candidates,
        aligned=judged.aligned,
        means=meaning(judged, chosen, ground, vm.identity.kind),
    )
