# SPDX-License-Identifier: Apache-2.0
"""Ordered steps from the current state of a VM to its target settings, or the refusal and why.

Order (vcpu.rst 1.3-1.5, and measured): thread affinity first, because it is the one step that can
be undone; then SET_PMU; then SET_NR_COUNTERS, which every SET_PMU resets; then FILTER.
"""

import errno
from collections.abc import Iterator, Mapping

from pmuctl.errors import (
    NotFoundError,
    PinnedError,
    PmuctlError,
    RefusedError,
    SealedError,
    UnsupportedError,
    UsageError,
)
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import EventSet
from pmuctl.model.event_filter import EventFilter, FilterRange, difference
from pmuctl.model.kvm_caps import ATTR_NAMES
from pmuctl.model.pmu import format_code
from pmuctl.model.vmm.identity import VmmIdentity
from pmuctl.model.vpmu import Vpmu, is_sealed, set_attr
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_FILTER,
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
    KVM_ARM_VCPU_PMU_V3_SET_PMU,
    pack_filter,
    pack_nr_counters,
    pack_pmu,
)
from pmuctl.value import value


@value
class SetAffinity:
    """sched_setaffinity(2) on one vCPU thread; `before` is the mask it replaces."""

    vcpu: int
    tid: int
    cpus: CpuSet
    before: CpuSet

    def describe(self) -> str:
        """Return the step in the kernel's terms."""
        was = self.before or "on offline CPUs"
        return f"sched_setaffinity({self.tid}, {self.cpus})  vCPU {self.vcpu}, was {was}"


@value
class SetAttr:
    """KVM_SET_DEVICE_ATTR of the group KVM_ARM_VCPU_PMU_V3_CTRL on the vCPU `vcpu`."""

    vcpu: int
    attr: int
    value: int | FilterRange
    note: str = ""

    @property
    def attribute(self) -> str:
        """The attribute's name without its common prefix."""
        return ATTR_NAMES[self.attr]

    def payload(self) -> bytes:
        """Return the bytes that `addr` of the kernel's struct kvm_device_attr points to."""
        if isinstance(self.value, FilterRange):
            events = self.value
            return pack_filter(events.base, events.nevents, events.action.kernel_value())
        if self.attr == KVM_ARM_VCPU_PMU_V3_SET_PMU:
            return pack_pmu(self.value)
        return pack_nr_counters(self.value)

    def describe(self) -> str:
        """Return the step in the kernel's terms."""
        argument, note = str(self.value), f"  {self.note}" if self.note else ""
        if isinstance(self.value, FilterRange):
            events = self.value
            argument = f"{{{format_code(events.base)}, {events.nevents}, {events.action.upper()}}}"
            if events.nevents == 0:
                note = f"  no event: the default becomes {events.action.opposite()}"
        call = f"KVM_SET_DEVICE_ATTR(vcpu {self.vcpu}, KVM_ARM_VCPU_PMU_V3_{self.attribute}, "
        return f"{call}{argument}){note}"


Step = SetAffinity | SetAttr


@value(kw_only=True)
class TargetSettings:
    """The settings that a VM is to get; None leaves a setting as it is.

    `type` and `name` are the perf type and the name of the PMU. `cpus` are the CPUs that vCPU
    threads are to stay on: a thread's mask is cut down to them.
    """

    type: int
    name: str
    counters: int | None = None
    filter: EventFilter | None = None
    cpus: CpuSet | None = None


@value(kw_only=True)
class VcpuThread:
    """A vCPU's thread: its mask `now`, and the CPUs on which it `may` run.

    They differ if pmuctl itself made the present mask: then `may` is the mask before that.
    """

    tid: int
    now: CpuSet
    may: CpuSet


@value(kw_only=True)
class CurrentState:
    """The state of a VM as its VMM knows it.

    `sealed_by` says what closed the window, even if KVM would still take settings; `threads` maps
    a vCPU to its thread.
    """

    vpmu: Vpmu
    sealed_by: str | None = None
    threads: Mapping[int, VcpuThread]


def plan(current: CurrentState, wanted: TargetSettings) -> tuple[Step, ...]:
    """Return the steps from the current state to the wanted settings; empty if none is needed.

    Raise UnsupportedError, NotFoundError, UsageError, SealedError or RefusedError, each with the
    errno KVM would give, if the kernel's rules or the threads' masks do not allow all of them.
    """
    _check_settings(current.vpmu, wanted)
    calls = tuple(_iter_attr_calls(current, wanted))
    for call in calls:
        if call.attr not in current.vpmu.caps.attributes:
            raise refusal(call, errno.ENXIO, current.vpmu)
    if calls and (current.sealed_by or is_sealed(current.vpmu)):
        raise sealed(calls[0].attribute, current.sealed_by)
    state = current.vpmu
    for call in calls:
        error, state = set_attr(state, call.vcpu, call.attr, call.value)
        if error:
            raise refusal(call, error, state, current.sealed_by)
    return (*_iter_affinity_calls(current, wanted), *calls)


def _check_settings(vpmu: Vpmu, wanted: TargetSettings) -> None:
    """Raise an error if the VM has no vPMU, KVM lacks the PMU, or an event is past its space."""
    if not vpmu.vcpus or not vpmu.vcpus[0].has_pmu:
        raise no_vpmu()
    if wanted.type not in vpmu.caps.counters:
        raise NotFoundError(
            f"{wanted.name}: KVM knows no PMU with the perf type {wanted.type}",
            why="SET_PMU takes the type of a CPU PMU of this host (ENXIO)",
            errno="ENXIO",
        )
    bits = vpmu.caps.event_bits_for(wanted.type)
    if wanted.filter and wanted.filter.exceptions - EventSet.space(bits):
        past = (wanted.filter.exceptions - EventSet.space(bits)).runs()[0][0]
        raise UsageError(
            f"{format_code(past)}: past the event space of this VM",
            why=f"its event numbers have {bits} bits, 0x0000-{format_code((1 << bits) - 1)} "
            "(FILTER would give EINVAL)",
            errno="EINVAL",
        )


def _iter_affinity_calls(current: CurrentState, wanted: TargetSettings) -> Iterator[SetAffinity]:
    if wanted.cpus is None:
        return
    for vcpu, thread in sorted(current.threads.items()):
        cpus = thread.may & wanted.cpus
        if not cpus:
            cause = f"its thread {thread.tid} is pinned to {thread.may}"
            raise make_pinned_error(f"vCPU {vcpu}", cause, wanted.cpus, wanted.name)
        if cpus != thread.now:
            yield SetAffinity(vcpu, thread.tid, cpus, thread.now)


def _iter_attr_calls(current: CurrentState, wanted: TargetSettings) -> Iterator[SetAttr]:
    vpmu = current.vpmu
    # any vCPU takes settings for the VM, but an INITed one gives EBUSY for everything
    index = next((index for index, vcpu in enumerate(vpmu.vcpus) if not vcpu.initialised), 0)
    pmu_changes = not vpmu.pmu_is_set or wanted.type != vpmu.pmu
    counters = wanted.counters
    if pmu_changes:
        yield SetAttr(index, KVM_ARM_VCPU_PMU_V3_SET_PMU, wanted.type, wanted.name)
        if counters is None:
            counters = vpmu.counters
    if counters is not None and (pmu_changes or counters != vpmu.counters):
        yield SetAttr(index, KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS, counters)
    if wanted.filter is not None:
        for call in _plan_filter_calls(vpmu, wanted.filter, wanted.type):
            yield SetAttr(index, KVM_ARM_VCPU_PMU_V3_FILTER, call)


def _plan_filter_calls(vpmu: Vpmu, wanted: EventFilter, pmu_type: int) -> tuple[FilterRange, ...]:
    if vpmu.allowed is None:
        return wanted.ranges()
    return difference(vpmu.allowed, wanted.allowed(vpmu.caps.event_bits_for(pmu_type)))


def make_pinned_error(who: str, cause: str, cpus: CpuSet, pmu: str | None = None) -> PinnedError:
    """Return the refusal for threads whose mask has none of the wanted CPUs, those of `pmu`.

    `cause` says what the mask is, and whose.
    """
    return PinnedError(
        f"{who} may not run on any CPU" + (f" of {pmu}" if pmu else ""),
        why=f"{cause}, wanted are {cpus}; a pin is never widened",
    )


def no_vpmu(vmm: VmmIdentity | None = None) -> UnsupportedError:
    """Return the refusal for a VM whose vCPUs have no PMU; `vmm` is its VMM if that is known."""
    fix = "start it with its VMM's option for a PMU"
    if vmm is not None and vmm.gives_no_vpmu:
        fix = f"{vmm.kind} has no option for a PMU: start it with another VMM, such as QEMU"
    return UnsupportedError(
        "this VM has no vPMU",
        why="its vCPUs were made without the feature KVM_ARM_VCPU_PMU_V3 (ENODEV)",
        fix=fix,
        errno="ENODEV",
    )


def no_attribute(attribute: str) -> UnsupportedError:
    """Return the refusal for an attribute that this kernel's KVM does not have."""
    return UnsupportedError(
        f"this kernel's KVM has no {attribute}",
        why=f"KVM_ARM_VCPU_PMU_V3_{attribute} gives ENXIO: the attribute does not exist here",
        fix="SET_PMU came with Linux 5.18, SET_NR_COUNTERS with 6.16",
        errno="ENXIO",
    )


def sealed(attribute: str, by: str | None) -> SealedError:
    """Return the refusal for a VM whose window has closed; `by` says what closed it."""
    what = {"SET_PMU": "the PMU", "FILTER": "the event filter"}.get(attribute, "the counters")
    return SealedError(
        f"{what} can no longer be changed (sealed)",
        why="KVM takes PMU settings only before a VM first runs, through a vCPU whose PMU is not "
        f"yet initialised (EBUSY); {by or 'its vCPUs have run or are initialised'}",
        errno="EBUSY",
    )


def refusal(call: SetAttr, error: int, vpmu: Vpmu, sealed_by: str | None = None) -> PmuctlError:
    """Return the error for a call that KVM refuses in this state, planned or made."""
    name = errno.errorcode.get(error, str(error))
    answer = f"KVM_ARM_VCPU_PMU_V3_{call.attribute} gives {name}"
    if error == errno.ENXIO and call.attr not in vpmu.caps.attributes:
        return no_attribute(call.attribute)
    if error == errno.EBUSY and call.attr == KVM_ARM_VCPU_PMU_V3_SET_PMU:
        if vpmu.allowed is not None and not vpmu.has_run:
            return SealedError(
                "another PMU cannot be chosen while an event filter stands",
                why=f"{answer}: an event number means something else on another PMU, "
                "and KVM cannot remove a filter",
                errno=name,
            )
    if error == errno.EBUSY:
        return sealed(call.attribute, sealed_by)
    if error in (errno.EPERM, errno.EACCES):
        return RefusedError(f"{call.attribute} was not permitted", why=answer, errno=name)
    if error == errno.ENODEV:
        return no_vpmu()
    if error == errno.EINVAL and call.attr == KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS:
        limit = vpmu.caps.counters.get(vpmu.pmu) if vpmu.pmu is not None else None
        return UsageError(
            f"{call.value} counters: more than the PMU has",
            why=answer + (f": the PMU has {limit}" if limit is not None else ""),
            errno=name,
        )
    if error == errno.EINVAL:
        return UsageError(
            f"{call.describe()} was refused", why=f"{answer}: out of range", errno=name
        )
    return RefusedError(f"{call.describe()} was refused", why=answer, errno=name)


def no_vcpu() -> PmuctlError:
    """Return the refusal for settings while there is no vCPU to make the calls on."""
    return RefusedError(
        "the VM has no vCPU yet",
        why="KVM takes PMU settings through a vCPU, and the VMM has not made one",
    )
