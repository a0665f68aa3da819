# SPDX-License-Identifier: Apache-2.0
"""What a request of `vm set` asks of one VM, refused if no VMM could do it."""

from pmuctl.errors import (
    NOTHING_CHANGED,
    PmuctlError,
    RefusedError,
    UnsupportedError,
    UsageError,
    command,
)
from pmuctl.host.pmus import scan_event_sources
from pmuctl.manage.affinity.blockers import check_inside
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.affinity.vcpu_threads import unknown_threads
from pmuctl.manage.resolve import (
    AUTO,
    NONE,
    SettingsRequest,
    choose_pmu,
    compile_filter,
    format_settings,
    resolve_cpus,
)
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import WIDEST_BITS
from pmuctl.model.event_filter import EventFilter
from pmuctl.model.plan import no_attribute, no_vcpu, no_vpmu, sealed
from pmuctl.model.pmu import Pmu
from pmuctl.model.vm import Vm, Window
from pmuctl.value import replace, value


@value(kw_only=True)
class SettingsTarget:
    """The PMU that a VM is to have, its filter, and the CPUs of its vCPU threads.

    `filter` is None if it is not to change, `cpus` if the masks are left alone.
    """

    pmu: Pmu
    filter: EventFilter | None
    cpus: CpuSet | None


def resolve_target(request: SettingsRequest, vm: Vm, host_state: HostState) -> SettingsTarget:
    """Return what the words of a request stand for.

    Raise SealedError or UnsupportedError if it would be refused with any PMU; and what
    `choose_pmu`, `compile_filter`, `resolve_cpus` and `check_inside` raise.
    """
    _check_possible(request, vm)
    pmu = _resolve_pmu(request, vm, host_state)
    event_filter = None
    if request.filter is not None:
        event_filter = compile_filter(request.filter, pmu, _find_event_bits(vm, pmu, host_state))
    cpus = _resolve_wanted_cpus(request, vm, pmu, host_state)
    return SettingsTarget(pmu=pmu, filter=event_filter, cpus=cpus)


def _find_event_bits(vm: Vm, pmu: Pmu, host_state: HostState) -> int:
    """Return the width of a VM's event space once it has this PMU.

    Return the widest there is if that is not known here; its VMM checks the filter, too.
    """
    if vm.pmu is not None and vm.pmu.type == pmu.type and vm.event_bits is not None:
        return vm.event_bits
    probed = host_state.host_pmus.probed
    return WIDEST_BITS if probed is None else probed.event_bits_for(pmu.type)


def _resolve_wanted_cpus(
    request: SettingsRequest, vm: Vm, pmu: Pmu, host_state: HostState
) -> CpuSet | None:
    """Return the CPUs that the vCPU threads are to stay on; None if their masks are left alone.

    Setting a PMU implies `auto`, which is its CPUs, for KVM runs the VM nowhere else. A setting
    that leaves the PMU as it is leaves the affinity, too. Raise what `resolve_cpus` and
    `check_inside` raise.
    """
    if request.affinity == NONE:
        return None
    if request.affinity not in (None, AUTO):
        cpus = resolve_cpus(
            request.affinity or "", host_state.pmus, host_state.host.sysfs, subject=vm.name
        )
        if pmu.cpus is not None:
            try:
                check_inside(cpus, pmu.cpus, vm, pmu.name)
            except RefusedError as error:
                is_same = vm.explicit_pmu is not None and vm.explicit_pmu.name == pmu.name
                if vm.window is Window.SEALED and not is_same:
                    refusal = sealed("SET_PMU", vm.by)
                    raise _refuse_unchanged(refusal, vm, set_at_next_start(vm)) from None
                if not is_same or unknown_threads(vm):
                    inside = str(cpus & pmu.cpus or pmu.cpus)
                    right = replace(request, pmu=pmu.name, affinity=inside)
                    error.fix = command("vm", "set", vm.address, *format_settings(right))
                raise
        return cpus
    now = vm.explicit_pmu
    is_new = now is None or now.name != pmu.name
    return pmu.cpus if request.affinity or request.pmu or is_new else None


def _check_possible(request: SettingsRequest, vm: Vm) -> None:
    """Refuse what would be refused with any PMU, before one has to be named."""
    if vm.window is Window.NONE:
        raise _refuse_unchanged(no_vpmu(vm.identity), vm)
    if request.counters is not None and "SET_NR_COUNTERS" not in vm.attributes:
        if vm.supervised:
            raise _refuse_unchanged(_make_counters_error(), vm)
        raise _refuse_unchanged(no_attribute("SET_NR_COUNTERS"), vm)
    if vm.window is Window.SEALED and vm.explicit_pmu is None:
        error = sealed(_first_attribute(request), vm.by)
        raise _refuse_unchanged(error, vm, set_at_next_start(vm))
    if vm.window is None:  # it opens with the first vCPU, through which KVM takes settings
        refusal = no_vcpu()
        if vm.supervised:
            refusal.why = "pmuctl run holds its VMM at the first call for its PMU, not reached yet"
        raise _refuse_unchanged(refusal, vm, command("vm", "wait", vm.address, "--for", "open"))


def _refuse_unchanged(error: PmuctlError, vm: Vm, fix: str | None = None) -> PmuctlError:
    """Return the error as a refusal of this VM that was made before anything was changed."""
    error.subject, error.now, error.fix = vm.name, NOTHING_CHANGED, fix or error.fix
    return error


def refuse_orphaned(request: SettingsRequest, vm: Vm) -> PmuctlError:
    """Return the refusal of a VM whose supervisor has ended, which seals it."""
    error = sealed(_first_attribute(request), f"{vm.by}, and only that could make the calls")
    return _refuse_unchanged(error, vm, set_at_next_start(vm))


def _first_attribute(request: SettingsRequest) -> str:
    """Return the attribute that the request would set first."""
    if request.pmu is not None:
        return "SET_PMU"
    return "FILTER" if request.filter is not None else "SET_NR_COUNTERS"


def _make_counters_error() -> UnsupportedError:
    """Return the refusal of counters for a supervised VM, where they would not last."""
    return UnsupportedError(
        "the counters of a VM that pmuctl run supervises cannot be chosen",
        why="its VMM writes PMCR_EL0 back after its PMU's INIT, so a limit would not last",
        fix="use a VMM that serves the control socket itself: see pmuctl-protocol(7)",
    )


def _resolve_pmu(request: SettingsRequest, vm: Vm, host_state: HostState) -> Pmu:
    """Return the PMU asked for, else the one the VM was given, else the host's only one.

    Raise what `choose_pmu` raises.
    """
    names = scan_event_sources(host_state.host.sysfs).names
    text = request.pmu
    if text is None and vm.explicit_pmu is not None:
        text = vm.explicit_pmu.name
    try:
        ranked = host_state.rank_pmus()
        fix = "pmuctl pmu list"
        if ranked:
            settings = format_settings(replace(request, pmu=ranked[0].name))
            fix = command("vm", "set", vm.address, *settings)
        return choose_pmu(text, host_state.pmus, names, host_state.host.sysfs, fix=fix)
    except UsageError as error:
        error.subject = error.subject or vm.name
        raise


def set_at_next_start(vm: Vm) -> str:
    """Return the `fix` for a VM that takes no more settings until it is started again."""
    if vm.supervised:
        return (
            f"choose it when {vm.name} is started again: pmuctl run has options for it, or --hold"
        )
    return f"set it at the next start of {vm.name}, while its window is open (before vm release)"
