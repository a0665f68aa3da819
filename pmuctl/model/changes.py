# SPDX-License-Identifier: Apache-2.0
"""What differs between two looks at a host: its VMs, their vCPUs, its CPUs and PMUs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from pmuctl.model.align import Judgement
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.ref import VmId
from pmuctl.model.vm import Window


class ChangeKind(StrEnum):
    """What has happened: words that stay as they are from one version to the next."""

    VM_STARTED = "vm-started"
    VM_ENDED = "vm-ended"
    VCPU_LEFT = "vcpu-left"
    """a vCPU's thread may now be on CPUs that are not of the VM's PMU"""
    VCPU_RETURNED = "vcpu-returned"
    WINDOW = "window"
    CPU_OFFLINE = "cpu-offline"
    CPU_ONLINE = "cpu-online"
    PMU_OFFLINE = "pmu-offline"
    """the last CPU of a PMU went offline"""
    REPAIRED = "repaired"
    REPAIR_FAILED = "repair-failed"
    LOST = "lost"
    """something is not watched any more, or events of the kernel were missed"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenVcpu:
    """A vCPU at one look: its thread, and whether that can leave the VM's PMU."""

    index: int
    tid: int | None
    judgement: Judgement
    affinity: CpuSet | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenVm:
    """A VM at one look.

    Its `id` names it; one whose process is not known is named by its `socket`. `pmus` are the
    PMUs that it has or can have, `judgement` tells whether all its vCPUs stay on one of them.
    `is_silent` tells that it could not be asked this time.
    """

    name: str
    id: VmId | None
    socket: str | None = None
    state: str = ""
    window: Window | None = None
    pmus: tuple[str, ...] = ()
    vcpus: tuple[SeenVcpu, ...] = ()
    judgement: Judgement = field(default_factory=lambda: Judgement(aligned=None))
    is_silent: bool = False

    @property
    def is_torn(self) -> bool:
        """Whether its vCPUs are on CPUs of several PMUs, of which it can have any."""
        judged = (its.judgement.aligned for its in self.vcpus)
        return self.judgement.aligned is False and False not in judged

    @property
    def key(self) -> tuple[object, ...]:
        """What makes it the same VM at two looks."""
        return (self.id, self.socket)

    @property
    def pid(self) -> int | None:
        """The number of the process that has it, where that is known."""
        return self.id.process.pid if self.id else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One look at a host; `online` is None where that could not be read."""

    vms: Sequence[SeenVm] = ()
    online: CpuSet | None = None
    pmus: Mapping[str, CpuSet | None] = field(default_factory=dict)

    def pmu_of(self, cpu: int) -> str | None:
        """The PMU of a CPU."""
        return next((name for name, cpus in self.pmus.items() if cpus and cpu in cpus), None)

    def pmus_without_cpus(self) -> set[str]:
        """The PMUs that have CPUs, none of them online."""
        if self.online is None:
            return set()
        return {name for name, cpus in self.pmus.items() if cpus and not cpus & self.online}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that has changed, in words, and which VM, vCPU, PMU and CPUs it is about."""

    kind: ChangeKind
    what: str
    vm: str | None = None
    pid: int | None = None
    vcpu: int | None = None
    tid: int | None = None
    pmu: str | None = None
    cpus: CpuSet | None = None


def with_silent(before: Snapshot | None, after: Snapshot) -> Snapshot:
    """The second look, in which VMs that cannot be asked now are as they were at the first.

    That nobody answers is no change of what there is.
    """
    vms: list[SeenVm] = []
    for its, vm in _pair(before, after)[0]:
        vms.append(replace(its, is_silent=True) if vm.is_silent and its else vm)
    return replace(after, vms=vms)


def find_changes(before: Snapshot | None, after: Snapshot) -> list[Change]:
    """What has changed between two looks, in the order in which it is told.

    With no look before only what is wrong already counts: vCPUs that can leave their PMU, and
    PMUs without a CPU.
    """
    pairs, ended = _pair(before, after)
    found = [*_cpu_changes(before, after), *map(_ended, ended)]
    for old, vm in pairs:
        if before is not None and old is None:
            found.append(_started(vm))
        found += _vm_changes(old, vm, after)
    return found


def stray(snapshot: Snapshot) -> list[SeenVm]:
    """The VMs of which a vCPU can leave its PMU."""
    return [
        vm
        for vm in snapshot.vms
        if not vm.is_silent
        and (vm.is_torn or any(its.judgement.aligned is False for its in vm.vcpus))
    ]


Pairs = list[tuple[SeenVm | None, SeenVm]]


def _pair(before: Snapshot | None, after: Snapshot) -> tuple[Pairs, list[SeenVm]]:
    """Each VM of the second look with what it was at the first, and those that are gone.

    One that has got a control socket meanwhile, or of which it is known only now which VM of its
    process it is, is the same; so is one of which nothing but its socket is known now.
    """
    old = {vm.key: vm for vm in before.vms} if before else {}
    found: dict[int, SeenVm] = {}
    for number, vm in enumerate(after.vms):
        if its := old.pop(vm.key, None):
            found[number] = its
    places: dict[object, list[SeenVm]] = {}
    for vm in old.values():
        for place in _places(vm):
            places.setdefault(place, []).append(vm)
    for number, vm in enumerate(after.vms):
        like = (its for place in _places(vm) for its in places.get(place, ()))
        match = next((its for its in like if its.key in old and _may_be(vm, its)), None)
        if number not in found and match:
            found[number] = old.pop(match.key)
    pairs = [(found.get(number), vm) for number, vm in enumerate(after.vms)]
    return pairs, list(old.values())


def _places(vm: SeenVm) -> list[object]:
    """Where a VM is looked for: its process, its socket."""
    return [its for its in (vm.id and vm.id.process, vm.socket) if its is not None]


def _may_be(vm: SeenVm, other: SeenVm) -> bool:
    return vm.id is None or other.id is None or vm.id.may_be(other.id)


def _cpu_changes(before: Snapshot | None, after: Snapshot) -> Iterator[Change]:
    if after.online is None:
        return
    was = after.online if before is None or before.online is None else before.online
    for kind, cpus in (
        (ChangeKind.CPU_OFFLINE, was - after.online),
        (ChangeKind.CPU_ONLINE, after.online - was),
    ):
        for cpu in cpus:
            pmu = after.pmu_of(cpu)
            what = f"CPU {cpu} {'is' if pmu is None else f'of {pmu} is'} {kind[4:]}"
            yield Change(kind=kind, what=what, pmu=pmu, cpus=CpuSet.of([cpu]))
    gone = before.pmus_without_cpus() if before else set()
    for name in sorted(after.pmus_without_cpus() - gone):
        users = [vm.name for vm in after.vms if name in vm.pmus]
        whose = f"; VMs that have it, or can: {', '.join(users)}" if users else ""
        yield Change(
            kind=ChangeKind.PMU_OFFLINE,
            what=f"no CPU of {name} is online{whose}",
            pmu=name,
            cpus=after.pmus[name],
        )


def _vm_changes(before: SeenVm | None, vm: SeenVm, host: Snapshot) -> Iterator[Change]:
    was_silent = before is not None and before.is_silent
    if vm.is_silent:
        if not was_silent:
            what = "its control socket does not answer: it is not watched until it does"
            yield _of(vm, ChangeKind.LOST, what)
        return
    if before and vm.window is not None and vm.window is not before.window:
        was = f", was {before.window}" if before.window else ""
        yield _of(vm, ChangeKind.WINDOW, f"{vm.window}{was}")
    then = {its.index: its.judgement.aligned for its in before.vcpus} if before else {}
    unknown: list[int] = []
    for vcpu in vm.vcpus:
        was_aligned, aligned = then.get(vcpu.index), vcpu.judgement.aligned
        if aligned is False and was_aligned is not False:
            yield _left(vm, vcpu, host)
        elif aligned and was_aligned is False:
            what = f"{_thread(vcpu)} stays on CPUs {vcpu.affinity}, of {vm.pmus[0]}"
            yield _of(vm, ChangeKind.VCPU_RETURNED, what, vcpu)
        elif aligned is None and was_aligned is not None and vm.pmus:
            unknown.append(vcpu.index)
    if vm.is_torn and not (before and before.is_torn):
        its = vm.judgement
        then_words = f": {its.consequence.words()}" if its.consequence else ""
        what = f"its vCPUs may run on CPUs {its.outside}, of several PMUs{then_words}"
        yield replace(_of(vm, ChangeKind.VCPU_LEFT, what), cpus=its.outside)
    if unknown:
        what = f"not known any more of vCPU {CpuSet.of(unknown)}: whether it can leave its PMU"
        yield _of(vm, ChangeKind.LOST, what)


def _started(vm: SeenVm) -> Change:
    words = [vm.state, f"window {vm.window or '?'}"]
    if vm.pmus:
        words.append(f"PMU {' or '.join(vm.pmus)}")
    words.append(f"{len(vm.vcpus)} vCPUs" if len(vm.vcpus) != 1 else "1 vCPU")
    if vm.pid is not None:
        words.append(f"process {vm.pid}")
    return _of(vm, ChangeKind.VM_STARTED, ", ".join(filter(None, words)))


def _ended(vm: SeenVm) -> Change:
    what = "it does not answer any more" if vm.pid is None else f"process {vm.pid} has it no more"
    return _of(vm, ChangeKind.VM_ENDED, what)


def _left(vm: SeenVm, vcpu: SeenVcpu, host: Snapshot) -> Change:
    its = vcpu.judgement
    where = " or ".join(f"{name} ({host.pmus.get(name)})" for name in vm.pmus)
    then = f": {its.consequence.words()}" if its.consequence else ""
    on = f"on CPUs {its.outside}" if its.outside else "anywhere, for all its CPUs are offline"
    what = f"{_thread(vcpu)} may run {on}, outside {where}{then}"
    return replace(_of(vm, ChangeKind.VCPU_LEFT, what, vcpu), cpus=its.outside)


def _thread(vcpu: SeenVcpu) -> str:
    return f"vCPU {vcpu.index} (thread {vcpu.tid})"


def _of(vm: SeenVm, kind: ChangeKind, what: str, vcpu: SeenVcpu | None = None) -> Change:
    return Change(
        kind=kind,
        what=what,
        vm=vm.name,
        pid=vm.pid,
        vcpu=vcpu.index if vcpu else None,
        tid=vcpu.tid if vcpu else None,
        pmu=vm.pmus[0] if len(vm.pmus) == 1 else None,
        cpus=vcpu.affinity if vcpu else None,
    )
