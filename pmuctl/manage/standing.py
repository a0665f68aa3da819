# SPDX-License-Identifier: Apache-2.0
"""The PMU a VM stands on, which of its vCPU threads can leave it, and what keeps them away."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pmuctl.control.placings import read_placings
from pmuctl.manage.blocker import Host, find_blocker
from pmuctl.manage.supervised import recorded_cpus
from pmuctl.manage.vcpus import PlacedVcpu, scan_vcpus
from pmuctl.model.align import Judgement, aligned_mask
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.truth import Ground, chosen_pmu
from pmuctl.model.vm import Vm


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The PMUs that a VM may count with: one, several where KVM chose, none where it has none.

    `cpus` are those of each of `names`, None where they are not known.
    """

    names: tuple[str, ...] = ()
    cpus: tuple[CpuSet | None, ...] = ()
    is_explicit: bool = False

    @property
    def name(self) -> str | None:
        """Its PMU, where it is known which that is."""
        return self.names[0] if len(self.names) == 1 else None

    @property
    def only(self) -> CpuSet | None:
        """The CPUs of its PMU, where it is known which that is."""
        return self.cpus[0] if len(self.cpus) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One vCPU, held against its PMU; `blocker` says what is in the way of `affinity align`."""

    placed: PlacedVcpu
    standing: Standing
    blocker: str | None = None

    @property
    def judgement(self) -> Judgement:
        """Whether it can leave its PMU, where to, and what then."""
        return self.placed.judgement

    @property
    def is_unknown(self) -> bool:
        """Whether it has a PMU, and nobody knows whether it stays there."""
        return self.judgement.aligned is None and bool(self.standing.cpus)


def pmu_of(vm: Vm, host: Host) -> Standing:
    """The PMU of a VM, or those it may have: see `chosen_pmu`."""
    ground = Ground(pmus=host.pmus, online=host.online, probed=host.probed)
    chosen = chosen_pmu(vm, ground)
    return Standing(
        names=chosen.names,
        cpus=tuple(map(ground.cpus_of, chosen.names)),
        is_explicit=chosen.is_explicit,
    )


def recorded_masks(vm: Vm, host: Host) -> dict[int, CpuSet]:
    """The CPUs that pmuctl put the vCPUs on: by its own record, or its supervisor's."""
    if vm.process is None:
        return {}
    placed = read_placings(host.environ, host.uid, vm.process)
    by_all = recorded_cpus(vm)
    found = {its.index: placed.get(its.tid or 0, by_all) for its in vm.vcpus or ()}
    return {index: cpus for index, cpus in found.items() if cpus is not None}


def check_vms(vms: Sequence[Vm], host: Host, *, is_live: bool = True) -> Iterator[Checked]:
    """Every vCPU of these VMs, in order: whether it can leave its PMU, and what then.

    Of another machine's tree masks are those that /proc tells, and no record says what pmuctl did.
    """
    for vm in vms:
        standing = pmu_of(vm, host)
        recorded: dict[int, CpuSet] | None = None
        for placed in scan_vcpus(
            [vm],
            host.pmus,
            host.procs,
            host.threads if is_live else None,
            online=host.online,
            probed=host.probed,
        ):
            its = placed.judgement
            blocker = None
            if its.aligned is False:
                if recorded is None:
                    recorded = recorded_masks(vm, host) if is_live else {}
                blocker = _blocker(vm, placed, standing, recorded, host)
            yield Checked(placed=placed, standing=standing, blocker=blocker)


def _blocker(
    vm: Vm, placed: PlacedVcpu, standing: Standing, recorded: dict[int, CpuSet], host: Host
) -> str | None:
    """What `affinity align` would fail for, None where nothing is known to be in its way."""
    tid, now = placed.vcpu.tid, placed.affinity
    if standing.only is None:
        return "which PMU KVM chose is not known"
    if tid is None or now is None or vm.pid is None:
        return None
    mask = aligned_mask(now, standing.only, recorded.get(placed.vcpu.index))
    # what is in the way of the whole PMU is worth more than that a pin is not known
    if found := find_blocker(vm.pid, tid, mask or standing.only, host):
        return found.words
    if mask is None:
        return f"a pin to {now or 'offline CPUs'} that pmuctl did not make"
    if host.uid != 0 and vm.owner not in (None, host.uid):
        return f"not permitted: it is uid {vm.owner}'s, that takes CAP_SYS_NICE"
    return None
