# SPDX-License-Identifier: Apache-2.0
"""Differences between two observations of a host: its VMs, their vCPUs, its CPUs and PMUs."""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

from pmuctl.model.alignment import (
    VcpuAlignment,
    VmAlignment,
    explain_alignment,
    format_vcpus,
)
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm import Vm, VmState, Window
from pmuctl.value import field, replace, value

KEPT_VCPUS = 4096
"""The vCPUs of another user's silent VMs that are kept: as many as one VM can have."""


class ChangeKind(StrEnum):
    """The kind of an event; its text stays the same from one version to the next."""

    VM_STARTED = "vm-started"
    VM_ENDED = "vm-ended"
    VCPU_LEFT = "vcpu-left"
    """a vCPU's thread may now be on CPUs that are not of the VM's PMU"""
    VCPU_RETURNED = "vcpu-returned"
    WINDOW = "window"
    SETTINGS = "settings"
    """the PMU, the counters or the filter that was set changed"""
    RELEASED = "released"
    """a VM that waited runs on, and its window is closed"""
    CPU_OFFLINE = "cpu-offline"
    CPU_ONLINE = "cpu-online"
    PMU_OFFLINE = "pmu-offline"
    """the last CPU of a PMU went offline"""
    REPAIRED = "repaired"
    REPAIR_FAILED = "repair-failed"
    LOST = "lost"
    """something is not watched any more, or kernel events were missed"""


@value(kw_only=True)
class ObservedVm:
    """A VM at one observation, and its alignment with its PMU.

    The `id` of its VM identifies it; if its process is not known, its socket does. `is_silent`
    is True if it could not be queried this time, `is_denied` if this user may not query it.
    `is_kept` is True if it is as it was at the observation before (with_silent()).
    """

    alignment: VmAlignment
    is_silent: bool = False
    is_denied: bool = False
    is_kept: bool = False

    @property
    def name(self) -> str:
        """The name of the VM, which may differ at the next observation."""
        return self.alignment.vm.name

    @property
    def pid(self) -> int | None:
        """The process id of the VM, if it is known."""
        return self.alignment.vm.pid

    @property
    def key(self) -> tuple[object, ...]:
        """What identifies the VM across observations."""
        vm = self.alignment.vm
        return (vm.id, vm.socket)


@value(kw_only=True)
class HostObservation:
    """One observation of a host; `online` is None if it could not be read."""

    vms: Sequence[ObservedVm] = ()
    online: CpuSet | None = None
    pmus: Mapping[str, CpuSet | None] = field(default_factory=dict)

    def pmu_of(self, cpu: int) -> str | None:
        """Return the name of the PMU of a CPU; None if there is none."""
        return next((name for name, cpus in self.pmus.items() if cpus and cpu in cpus), None)

    def pmus_without_cpus(self) -> set[str]:
        """Return the names of the PMUs that have CPUs, none of which is online."""
        if self.online is None:
            return set()
        return {name for name, cpus in self.pmus.items() if cpus and not cpus & self.online}


@value(kw_only=True)
class HostEvent:
    """One change, as a text (`what`), and the VM, vCPU, PMU and CPUs it is about."""

    kind: ChangeKind
    what: str
    vm: str | None = None
    pid: int | None = None
    vcpu: int | None = None
    tid: int | None = None
    pmu: str | None = None
    cpus: CpuSet | None = None


def with_silent(before: HostObservation | None, after: HostObservation) -> HostObservation:
    """Return the second observation, but VMs that cannot be queried now are as at the first.

    A VM that does not answer has not changed by that. But if its threads are known all the same,
    it stays as it was observed. So does a VM of another user who has KEPT_VCPUS of such vCPUs.
    """
    vms: list[ObservedVm] = []
    kept_vcpus: dict[int | None, int] = {}
    for old, vm in _pair_vms(before, after)[0]:
        if vm.is_silent and old is not None and not vm.alignment.vcpus:
            of = old.alignment.vm
            count = kept_vcpus.get(of.owner, 0) + len(old.alignment.vcpus)
            if of.is_own or count <= KEPT_VCPUS:
                kept_vcpus[of.owner] = count
                vm = replace(old, is_silent=True, is_denied=vm.is_denied, is_kept=True)
        vms.append(vm)
    return replace(after, vms=vms)


def find_changes(before: HostObservation | None, after: HostObservation) -> list[HostEvent]:
    """Return what has changed between two observations, in the order in which it is reported.

    Without a first observation only what is already wrong counts: vCPUs that can leave their PMU,
    and PMUs without an online CPU.
    """
    pairs, ended = _pair_vms(before, after)
    events = [*_find_cpu_changes(before, after), *map(_make_ended_event, ended)]
    for old, vm in pairs:
        if before is not None and old is None:
            events.append(_make_started_event(vm))
        events += _find_vm_changes(old, vm)
    return events


def find_misplaced(observation: HostObservation) -> list[ObservedVm]:
    """Return the VMs of which a vCPU can leave its PMU."""
    return [vm for vm in observation.vms if not vm.is_kept and vm.alignment.is_misplaced]


VmPairs = list[tuple[ObservedVm | None, ObservedVm]]


def _pair_vms(
    before: HostObservation | None, after: HostObservation
) -> tuple[VmPairs, list[ObservedVm]]:
    """Pair each VM of the second observation with itself at the first; also return the VMs gone.

    A VM that has got a control socket meanwhile is the same VM. So is one of which it is known
    only now which VM of its process it is, and one of which only its socket is known now.
    """
    old = {vm.key: vm for vm in before.vms} if before else {}
    matches: dict[int, ObservedVm] = {}
    for number, vm in enumerate(after.vms):
        if match := old.pop(vm.key, None):
            matches[number] = match
    by_place: dict[object, list[ObservedVm]] = {}
    for vm in old.values():
        for place in _find_places(vm):
            by_place.setdefault(place, []).append(vm)
    for number, vm in enumerate(after.vms):
        if number in matches:
            continue
        nearby = (other for place in _find_places(vm) for other in by_place.get(place, ()))
        unmatched = (other for other in nearby if other.key in old and _may_be_same(vm, other))
        if match := next(unmatched, None):
            matches[number] = old.pop(match.key)
    pairs = [(matches.get(number), vm) for number, vm in enumerate(after.vms)]
    return pairs, list(old.values())


def _find_places(observed: ObservedVm) -> list[object]:
    """Return where to look for a VM: its process and its socket, as far as they are known."""
    vm = observed.alignment.vm
    return [place for place in (vm.process, vm.socket) if place is not None]


def _may_be_same(observed: ObservedVm, other: ObservedVm) -> bool:
    id, other_id = observed.alignment.vm.id, other.alignment.vm.id
    return id is None or other_id is None or id.may_be(other_id)


def _find_cpu_changes(
    before: HostObservation | None, after: HostObservation
) -> Iterator[HostEvent]:
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
    known = before.pmus_without_cpus() if before else set()
    for name in sorted(after.pmus_without_cpus() - known):
        users = [vm.name for vm in after.vms if name in vm.alignment.effective_pmu.names]
        of_whom = f"; VMs that have it, or can: {', '.join(users)}" if users else ""
        yield HostEvent(
            kind=ChangeKind.PMU_OFFLINE,
            what=f"no CPU of {name} is online{of_whom}",
            pmu=name,
            cpus=after.pmus[name],
        )


def _find_vm_changes(before: ObservedVm | None, vm: ObservedVm) -> Iterator[HostEvent]:
    was_silent = before is not None and before.is_silent
    if vm.is_silent and not was_silent:
        yield _make_vm_event(vm, ChangeKind.LOST, _explain_silence(vm))
    if vm.is_kept:
        return
    yield from _find_settings_change(before, vm)
    yield from _find_window_change(before, vm)
    yield from _find_vcpu_changes(before, vm)


def _find_window_change(before: ObservedVm | None, vm: ObservedVm) -> Iterator[HostEvent]:
    window = vm.alignment.vm.window
    old_window = before.alignment.vm.window if before else None
    if before and window is not None and window is not old_window:
        was = f", was {old_window}" if old_window else ""
        yield _make_vm_event(vm, ChangeKind.WINDOW, f"{window}{was}")

    if before and before.alignment.vm.state is VmState.WAITING and window is Window.SEALED:
        yield _make_vm_event(vm, ChangeKind.RELEASED, _describe_settings(vm.alignment.vm))


def _find_settings_change(before: ObservedVm | None, vm: ObservedVm) -> Iterator[HostEvent]:
    """Yield the event of settings that were made; a VM that cannot be asked has changed none."""
    if before is None or before.alignment.vm.problem or vm.alignment.vm.problem:
        return
    was, is_now = _get_settings(before.alignment.vm), _get_settings(vm.alignment.vm)
    if is_now and was != is_now:
        yield _make_vm_event(vm, ChangeKind.SETTINGS, _describe_settings(vm.alignment.vm))


def _get_settings(vm: Vm) -> dict[str, str]:
    """Map each key of `vm set` that was set to its value."""
    found: dict[str, str] = {}
    if vm.explicit_pmu is not None:
        found["pmu"] = vm.explicit_pmu.name
    if vm.counters is not None:
        found["counters"] = str(vm.counters)
    if vm.filter is not None:
        found["filter"] = vm.filter.describe(vm.event_names)
    return found


def _describe_settings(vm: Vm) -> str:
    found = _get_settings(vm)
    return ", ".join(f"{key} {value}" for key, value in found.items()) or "nothing was set"


def _find_vcpu_changes(before: ObservedVm | None, vm: ObservedVm) -> Iterator[HostEvent]:
    old_vcpus = before.alignment.vcpus if before else ()
    known = {vcpu.index: vcpu.alignment.aligned for vcpu in old_vcpus}
    pmus = vm.alignment.effective_pmu.names
    unknown: list[int] = []
    was_dead = before.alignment.vm.dead_vcpus if before else ()
    if vm.alignment.vm.dead_vcpus != was_dead and (what := vm.alignment.explain_dead()):
        yield _make_vm_event(vm, ChangeKind.LOST, what)
    for vcpu in vm.alignment.vcpus:
        was_aligned, aligned = known.get(vcpu.index), vcpu.alignment.aligned
        if vcpu.vcpu.is_dead:
            continue
        if aligned is False and was_aligned is not False:
            yield _make_left_event(vm, vcpu)
        elif aligned and was_aligned is False:
            what = f"{_name_thread(vcpu)} stays on CPUs {vcpu.affinity}, of {' or '.join(pmus)}"
            yield _make_vm_event(vm, ChangeKind.VCPU_RETURNED, what, vcpu)
        elif aligned is None and was_aligned is not None and pmus:
            unknown.append(vcpu.index)
    if vm.alignment.is_split and not (before and before.alignment.is_split):
        yield _make_vm_event(vm, ChangeKind.VCPU_LEFT, vm.alignment.explanation or "")
    if unknown:
        what = f"not known any more of {format_vcpus(unknown)}: whether it can leave its PMU"
        yield _make_vm_event(vm, ChangeKind.LOST, what)


def _explain_silence(vm: ObservedVm) -> str:
    has_threads = not vm.is_kept and bool(vm.alignment.vcpus)
    if vm.is_denied:
        what = "no more than its threads is watched" if has_threads else "it is not watched"
        return f"this user may not ask it: {what}; run pmuctl monitor as root or as its user"
    what = "it is not watched until it does"
    if has_threads:
        what = "until it does no more than its threads is watched"
    return f"its control socket does not answer: {what}"


def _make_started_event(vm: ObservedVm) -> HostEvent:
    alignment = vm.alignment
    pmus, count = alignment.effective_pmu.names, len(alignment.vcpus)
    facts = [alignment.vm.state, f"window {alignment.vm.window or '?'}"]
    if pmus:
        facts.append(f"PMU {' or '.join(pmus)}")
    if alignment.vm.vcpus is None:
        facts.append("vCPUs not known")
    else:
        facts.append(f"{count} vCPUs" if count != 1 else "1 vCPU")
    if vm.pid is not None:
        facts.append(f"process {vm.pid}")
    return _make_vm_event(vm, ChangeKind.VM_STARTED, ", ".join(facts))


def _make_ended_event(vm: ObservedVm) -> HostEvent:
    what = "it does not answer any more" if vm.pid is None else f"process {vm.pid} has it no more"
    return _make_vm_event(vm, ChangeKind.VM_ENDED, what)


def _make_left_event(vm: ObservedVm, vcpu: VcpuAlignment) -> HostEvent:
    """Return the event; it has CPUs only if it is known which PMU the VM has."""
    alignment = vm.alignment
    what = explain_alignment(
        vcpu.alignment, alignment.effective_pmu, _name_thread(vcpu), alignment.vm.identity.kind
    )
    event = _make_vm_event(vm, ChangeKind.VCPU_LEFT, what or "", vcpu)
    return replace(event, cpus=vcpu.alignment.only_outside)


def _name_thread(vcpu: VcpuAlignment) -> str:
    return f"vCPU {vcpu.index} (thread {vcpu.tid})"


def _make_vm_event(
    vm: ObservedVm, kind: ChangeKind, what: str, vcpu: VcpuAlignment | None = None
) -> HostEvent:
    return HostEvent(
        kind=kind,
        what=what,
        vm=vm.name,
        pid=vm.pid,
        vcpu=vcpu.index if vcpu else None,
        tid=vcpu.tid if vcpu else None,
        pmu=vm.alignment.effective_pmu.only,
        cpus=vcpu.affinity if vcpu else None,
    )
