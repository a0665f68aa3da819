# SPDX-License-Identifier: Apache-2.0
"""What differs between two looks at a host: its VMs, their vCPUs, its CPUs and PMUs."""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

from pmuctl.model.alignment import VcpuAlignment, VmAlignment, explain_alignment
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm import Window
from pmuctl.model.vm_ref import VmId
from pmuctl.value import field, replace, value


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


@value(kw_only=True)
class ObservedVm:
    """A VM at one look, held against its PMU.

    The `id` of its VM names it; one whose process is not known is named by its socket. `is_silent`
    tells that it could not be asked this time, `is_denied` that this user may not.
    """

    held: VmAlignment
    is_silent: bool = False
    is_denied: bool = False
    is_kept: bool = False

    @property
    def name(self) -> str:
        """Its name, which may be another at the next look."""
        return self.held.vm.name

    @property
    def id(self) -> VmId | None:
        """What names it, where its process is known."""
        return self.held.vm.id

    @property
    def socket(self) -> str | None:
        """Its control socket."""
        return self.held.vm.socket

    @property
    def window(self) -> Window | None:
        """Whether KVM still takes settings."""
        return self.held.vm.window

    @property
    def key(self) -> tuple[object, ...]:
        """What makes it the same VM at two looks."""
        return (self.id, self.socket)

    @property
    def pid(self) -> int | None:
        """The number of the process that has it, where that is known."""
        return self.id.process.pid if self.id else None


@value(kw_only=True)
class HostObservation:
    """One look at a host; `online` is None where that could not be read."""

    vms: Sequence[ObservedVm] = ()
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


@value(kw_only=True)
class HostEvent:
    """One thing that has changed, in words, and which VM, vCPU, PMU and CPUs it is about."""

    kind: ChangeKind
    what: str
    vm: str | None = None
    pid: int | None = None
    vcpu: int | None = None
    tid: int | None = None
    pmu: str | None = None
    cpus: CpuSet | None = None


def with_silent(before: HostObservation | None, after: HostObservation) -> HostObservation:
    """The second look, in which VMs that cannot be asked now are as they were at the first.

    That nobody answers is no change of what there is. One whose threads are known all the same is
    as they are.
    """
    vms: list[ObservedVm] = []
    for its, vm in _pair(before, after)[0]:
        is_kept = vm.is_silent and its is not None and not vm.held.vcpus
        if is_kept and its:
            vm = replace(its, is_silent=True, is_denied=vm.is_denied, is_kept=True)
        vms.append(vm)
    return replace(after, vms=vms)


def find_changes(before: HostObservation | None, after: HostObservation) -> list[HostEvent]:
    """What has changed between two looks, in the order in which it is told.

    With no look before only what is wrong already counts: vCPUs that can leave their PMU, and
    PMUs without a CPU.
    """
    pairs, ended = _pair(before, after)
    found = [*_cpu_changes(before, after), *map(_ended, ended)]
    for old, vm in pairs:
        if before is not None and old is None:
            found.append(_started(vm))
        found += _vm_changes(old, vm)
    return found


def stray(snapshot: HostObservation) -> list[ObservedVm]:
    """The VMs of which a vCPU can leave its PMU."""
    return [vm for vm in snapshot.vms if not vm.is_kept and vm.held.is_misplaced]


Pairs = list[tuple[ObservedVm | None, ObservedVm]]


def _pair(
    before: HostObservation | None, after: HostObservation
) -> tuple[Pairs, list[ObservedVm]]:
    """Each VM of the second look with what it was at the first, and those that are gone.

    One that has got a control socket meanwhile, or of which it is known only now which VM of its
    process it is, is the same; so is one of which nothing but its socket is known now.
    """
    old = {vm.key: vm for vm in before.vms} if before else {}
    found: dict[int, ObservedVm] = {}
    for number, vm in enumerate(after.vms):
        if its := old.pop(vm.key, None):
            found[number] = its
    places: dict[object, list[ObservedVm]] = {}
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


def _places(vm: ObservedVm) -> list[object]:
    """Where a VM is looked for: its process, its socket."""
    return [its for its in (vm.id and vm.id.process, vm.socket) if its is not None]


def _may_be(vm: ObservedVm, other: ObservedVm) -> bool:
    return vm.id is None or other.id is None or vm.id.may_be(other.id)


def _cpu_changes(before: HostObservation | None, after: HostObservation) -> Iterator[HostEvent]:
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
            yield HostEvent(kind=kind, what=what, pmu=pmu, cpus=CpuSet.of([cpu]))
    gone = before.pmus_without_cpus() if before else set()
    for name in sorted(after.pmus_without_cpus() - gone):
        users = [vm.name for vm in after.vms if name in vm.held.effective_pmu.names]
        whose = f"; VMs that have it, or can: {', '.join(users)}" if users else ""
        yield HostEvent(
            kind=ChangeKind.PMU_OFFLINE,
            what=f"no CPU of {name} is online{whose}",
            pmu=name,
            cpus=after.pmus[name],
        )


def _vm_changes(before: ObservedVm | None, vm: ObservedVm) -> Iterator[HostEvent]:
    was_silent = before is not None and before.is_silent
    if vm.is_silent and not was_silent:
        yield _of(vm, ChangeKind.LOST, _lost(vm))
    if vm.is_kept:
        return
    if before and vm.window is not None and vm.window is not before.window:
        was = f", was {before.window}" if before.window else ""
        yield _of(vm, ChangeKind.WINDOW, f"{vm.window}{was}")
    then = {its.index: its.alignment.aligned for its in before.held.vcpus} if before else {}
    unknown: list[int] = []
    for vcpu in vm.held.vcpus:
        was_aligned, aligned = then.get(vcpu.index), vcpu.alignment.aligned
        if aligned is False and was_aligned is not False:
            yield _left(vm, vcpu)
        elif aligned and was_aligned is False:
            whose = " or ".join(vm.held.effective_pmu.names)
            what = f"{_thread(vcpu)} stays on CPUs {vcpu.affinity}, of {whose}"
            yield _of(vm, ChangeKind.VCPU_RETURNED, what, vcpu)
        elif aligned is None and was_aligned is not None and vm.held.effective_pmu.names:
            unknown.append(vcpu.index)
    if vm.held.is_split and not (before and before.held.is_split):
        yield _of(vm, ChangeKind.VCPU_LEFT, vm.held.explanation or "")
    if unknown:
        what = f"not known any more of vCPU {CpuSet.of(unknown)}: whether it can leave its PMU"
        yield _of(vm, ChangeKind.LOST, what)


def _lost(vm: ObservedVm) -> str:
    has_threads = not vm.is_kept and bool(vm.held.vcpus)
    if vm.is_denied:
        what = "no more than its threads is watched" if has_threads else "it is not watched"
        return f"this user may not ask it: {what}; run pmuctl monitor as root or as its user"
    what = "it is not watched until it does"
    if has_threads:
        what = "until it does no more than its threads is watched"
    return f"its control socket does not answer: {what}"


def _started(vm: ObservedVm) -> HostEvent:
    pmus, count = vm.held.effective_pmu.names, len(vm.held.vcpus)
    told = [vm.held.vm.state, f"window {vm.window or '?'}"]
    if pmus:
        told.append(f"PMU {' or '.join(pmus)}")
    told.append(f"{count} vCPUs" if count != 1 else "1 vCPU")
    if vm.pid is not None:
        told.append(f"process {vm.pid}")
    return _of(vm, ChangeKind.VM_STARTED, ", ".join(told))


def _ended(vm: ObservedVm) -> HostEvent:
    what = "it does not answer any more" if vm.pid is None else f"process {vm.pid} has it no more"
    return _of(vm, ChangeKind.VM_ENDED, what)


def _left(vm: ObservedVm, vcpu: VcpuAlignment) -> HostEvent:
    """Which CPUs those are is certain only where it is known which PMU it has."""
    what = explain_alignment(
        vcpu.alignment, vm.held.effective_pmu, _thread(vcpu), vm.held.vm.identity.kind
    )
    change = _of(vm, ChangeKind.VCPU_LEFT, what or "", vcpu)
    return replace(change, cpus=vcpu.alignment.only_outside)


def _thread(vcpu: VcpuAlignment) -> str:
    return f"vCPU {vcpu.index} (thread {vcpu.tid})"


def _of(
    vm: ObservedVm, kind: ChangeKind, what: str, vcpu: VcpuAlignment | None = None
) -> HostEvent:
    return HostEvent(
        kind=kind,
        what=what,
        vm=vm.name,
        pid=vm.pid,
        vcpu=vcpu.index if vcpu else None,
        tid=vcpu.tid if vcpu else None,
        pmu=vm.held.effective_pmu.only,
        cpus=vcpu.affinity if vcpu else None,
    )
