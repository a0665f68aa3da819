# SPDX-License-Identifier: Apache-2.0
"""Setting a VM's PMU, counters and event filter: from a user's request to the VMM's answer."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pmuctl.control.client.client import Client
from pmuctl.control.protocol.messages import filter_message
from pmuctl.errors import (
    NOTHING_CHANGED,
    PinnedError,
    PmuctlError,
    RefusedError,
    SealedError,
    UnknownOutcomeError,
    UnsupportedError,
    UsageError,
    command,
)
from pmuctl.host.pmus import scan_event_sources
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.manage.affinity.host_state import HostState
from pmuctl.manage.affinity.vcpu_threads import check_inside
from pmuctl.manage.inventory.inventory import Inventory
from pmuctl.manage.inventory.lookup import lookup_vm, open_vm
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.resolve import (
    AUTO,
    NONE,
    Request,
    choose_pmu,
    compile_filter,
    present_cpus,
)
from pmuctl.manage.settings.affinity_key import (
    change_affinity,
    make_unkept_warning,
    record_affinity,
    record_unmanaged,
)
from pmuctl.manage.settings.result import AFFINITY, KeyResult, SettingsResult
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import WIDEST_BITS
from pmuctl.model.event_filter import EventFilter
from pmuctl.model.plan import no_attribute, no_vcpu, no_vpmu, sealed
from pmuctl.model.pmu import Pmu
from pmuctl.model.vm import Vm, VmState, Window
from pmuctl.model.vm_ref import VmRef
from pmuctl.value import replace


def change_settings(
    session: Session, ref: VmRef, request: Request, host_state: HostState, *, dry_run: bool
) -> SettingsResult:
    """Bring one VM to what is asked, all of it or nothing, and record where its threads are kept.

    Settings go through the VM's control socket; an affinity alone is set at once, whatever the
    window. Raises NotFoundError, UsageError, SealedError, UnsupportedError, DeniedError and
    RefusedError with nothing changed, or with the state that is left in `now`;
    UnknownOutcomeError if the VMM did not answer.
    """
    inventory = Inventory(session)
    if request.affinity is not None and request.is_affinity_only:
        vm = lookup_vm(inventory, ref, strictly=True)
        return change_affinity(vm, request.affinity, host_state, dry_run=dry_run)
    with open_vm(inventory, ref, strictly=True) as (client, vm):
        result = _apply_request(client, vm, request, host_state, dry_run=dry_run)
    warnings: list[PmuctlError] = []
    if not dry_run:
        try:
            if result.is_placed:
                record_affinity(vm, host_state.host)
            elif request.affinity == NONE:
                record_unmanaged(vm, host_state.host)
        except RefusedError as error:  # all else is done
            warnings.append(error)
    if request.affinity == NONE:
        warnings.append(make_unkept_warning(vm))
    return replace(result, warnings=tuple(warnings))


def release_vm(session: Session, ref: VmRef, *, dry_run: bool) -> KeyResult:
    """Let a VM that waits with its window open go on; `unchanged` if it does not wait.

    Raises what `open_vm` and the VM's answer do.
    """
    with open_vm(Inventory(session), ref, strictly=True) as (client, vm):
        if client is None:  # orphaned
            outcome = "unchanged"
        elif dry_run:
            outcome = "planned" if vm.state is VmState.WAITING else "unchanged"
        else:
            answer: Any = client.execute("pmu-release")
            outcome = answer["outcome"]
    return KeyResult(vm=vm.name, key="window", outcome=outcome, value="sealed")


def _apply_request(
    client: Client | None, vm: Vm, request: Request, host_state: HostState, *, dry_run: bool
) -> SettingsResult:
    """Have the VMM at the other end do all of it; an orphaned VM, which has none, is sealed."""
    if client is None:
        by = f"{vm.by}, and only that could make the calls"
        error = sealed(_first_attribute(request), by)
        raise _unchanged(error, vm, _at_the_next_start(vm))
    _check_possible(request, vm)
    pmu = _choose_pmu(request, vm, host_state)
    bits = vm.event_bits or WIDEST_BITS
    words = request.filter
    event_filter = None if words is None else compile_filter(words, pmu, bits)
    arguments: dict[str, object] = {"type": pmu.type, "name": pmu.name, "dry-run": dry_run}
    if request.counters is not None:
        arguments["counters"] = request.counters
    if event_filter is not None:
        arguments["filter"] = filter_message(event_filter)
    cpus = _wanted_cpus(request, vm, pmu, host_state)
    if cpus:
        arguments["cpus"] = list(cpus)
    try:
        answer: Any = client.execute("pmu-apply", arguments)
    except PmuctlError as error:
        raise _explained(error, vm, pmu, host_state.host.threads) from error
    return _done(vm, answer, request, pmu, event_filter, cpus)


def _wanted_cpus(request: Request, vm: Vm, pmu: Pmu, host_state: HostState) -> CpuSet | None:
    """The CPUs that the vCPU threads are to stay on, None where their masks are left alone.

    To set a PMU implies `auto`: its CPUs, for KVM runs the VM nowhere else. With a setting that
    leaves the PMU as it is the affinity stays, too.
    """
    if request.affinity == NONE:
        return None
    if request.affinity not in (None, AUTO):
        cpus = present_cpus(
            request.affinity or "", host_state.pmus, host_state.host.sysfs, subject=vm.name
        )
        if pmu.cpus is not None:
            check_inside(cpus, pmu.cpus, vm, pmu.name)
        return cpus
    now = vm.explicit_pmu
    is_new = now is None or now.name != pmu.name
    return pmu.cpus if request.affinity or request.pmu or is_new else None


def _check_possible(request: Request, vm: Vm) -> None:
    """Refuse what no PMU could change, before one has to be named."""
    if vm.window is Window.NONE:
        raise _unchanged(no_vpmu(), vm)
    if request.counters is not None and "SET_NR_COUNTERS" not in vm.attributes:
        its = _no_lasting_counters() if vm.supervised else no_attribute("SET_NR_COUNTERS")
        raise _unchanged(its, vm)
    if vm.window is Window.SEALED and vm.explicit_pmu is None:
        raise _unchanged(sealed(_first_attribute(request), vm.by), vm, _at_the_next_start(vm))
    if vm.window is None:  # it is open once there is a vCPU to set it through
        error = no_vcpu()
        if vm.supervised:
            error.why = "pmuctl run holds its VMM at the first call for its PMU, not reached yet"
        raise _unchanged(error, vm, command("vm", "wait", vm.address, "--for", "open"))


def _unchanged(error: PmuctlError, vm: Vm, fix: str | None = None) -> PmuctlError:
    """A refusal before anything was touched, of this VM."""
    error.subject, error.now, error.fix = vm.name, NOTHING_CHANGED, fix or error.fix
    return error


def _first_attribute(request: Request) -> str:
    if request.pmu is not None:
        return "SET_PMU"
    return "FILTER" if request.filter is not None else "SET_NR_COUNTERS"


def _no_lasting_counters() -> UnsupportedError:
    return UnsupportedError(
        "the counters of a VM that pmuctl run supervises cannot be chosen",
        why="its VMM writes PMCR_EL0 back after its PMU's INIT, so a limit would not last",
        fix="use a VMM that serves the control socket itself: see pmuctl-protocol(7)",
    )


def _choose_pmu(request: Request, vm: Vm, host_state: HostState) -> Pmu:
    """The PMU asked for, else the one the VM was given, else the host's only one."""
    names = scan_event_sources(host_state.host.sysfs).names
    text = request.pmu
    if text is None and vm.explicit_pmu is not None:
        text = vm.explicit_pmu.name
    try:
        fix = f"{command('vm', 'set', vm.address, 'pmu', 'PMU')} …"
        return choose_pmu(text, host_state.pmus, names, host_state.host.sysfs, fix=fix)
    except UsageError as error:
        error.subject = error.subject or vm.name
        raise


def _explained(error: PmuctlError, vm: Vm, pmu: Pmu, threads: ThreadAffinity) -> PmuctlError:
    """The refusal with what a user can do about it, which the VMM cannot know."""
    if error.applied is None:
        if not isinstance(error, RefusedError):
            return error
        # the VMM failed in a way that the protocol has no word for
        return UnknownOutcomeError(
            "pmu-apply failed, its outcome is not known",
            subject=vm.name,
            why=error.message,
            fix=f"{command('vm', 'show', vm.address)} tells what holds now",
        )
    error.now = "; ".join(error.applied)
    error.now = f"applied before: {error.now}" if error.now else NOTHING_CHANGED
    if isinstance(error, SealedError) and vm.window is Window.OPEN:
        error.fix = f"choose the PMU of {vm.name} before its filter, at its next start"
    elif isinstance(error, SealedError):
        error.fix = _at_the_next_start(vm)
    elif isinstance(error, PinnedError):
        error.fix = "; ".join(_unpin(vm, pmu, threads)) or None
    return error


def _at_the_next_start(vm: Vm) -> str:
    if vm.supervised:
        return (
            f"choose it when {vm.name} is started again: pmuctl run has options for it, or --hold"
        )
    return f"set it at the next start of {vm.name}, while its window is open (before vm release)"


def _unpin(vm: Vm, pmu: Pmu, threads: ThreadAffinity) -> Iterator[str]:
    """The commands that put each thread in the way onto the PMU's CPUs."""
    for vcpu in vm.vcpus or ():
        with suppress(OSError):
            if vcpu.tid is not None and pmu.cpus and not threads.get(vcpu.tid) & pmu.cpus:
                yield f"taskset -cp {pmu.cpus} {vcpu.tid}"


_KEYS = {"SET_PMU": "pmu", "SET_NR_COUNTERS": "counters", "FILTER": "filter"}


def _done(
    vm: Vm,
    answer: Any,
    request: Request,
    pmu: Pmu,
    event_filter: EventFilter | None,
    cpus: CpuSet | None,
) -> SettingsResult:
    """What became of each key: of those asked for, and of what else was changed with them."""
    changed = {_KEYS.get(step["attribute"], AFFINITY) for step in answer["steps"]}
    outcome = "planned" if answer["outcome"] == "planned" else "set"
    values = {
        "pmu": pmu.name,
        # another PMU gets the counters again that had been asked for
        "counters": str(vm.counters if request.counters is None else request.counters),
        "filter": event_filter.words(pmu.events) if event_filter is not None else "",
        AFFINITY: f"within {cpus}" if cpus else "left alone",
    }
    asked = {
        "pmu": request.pmu,
        "counters": request.counters,
        "filter": request.filter,
        AFFINITY: request.affinity,
    }
    changes = tuple(
        KeyResult(
            vm=vm.name, key=key, outcome=outcome if key in changed else "unchanged", value=value
        )
        for key, value in values.items()
        if key in changed or asked.get(key) is not None
    )
    steps = tuple(its["words"] for its in answer["steps"])
    return SettingsResult(vm=vm.name, changes=changes, steps=steps, is_placed=bool(cpus))
