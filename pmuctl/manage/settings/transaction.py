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
from pmuctl.manage.resolve import (
    AUTO,
    NONE,
    Request,
    choose_pmu,
    compile_filter,
    present_cpus,
)
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import WIDEST_BITS
from pmuctl.model.event_filter import EventFilter
from pmuctl.model.plan import no_attribute, no_vcpu, no_vpmu, sealed
from pmuctl.model.pmu import Pmu
from pmuctl.model.vm import Vm, VmState, Window
from pmuctl.value import value

AFFINITY = "affinity"


@value(kw_only=True)
class KeyResult:
    """What became of one key of one VM: `set`, `released`, `unchanged` or `planned`.

    `value` is what it is now, or would be.
    """

    vm: str
    key: str
    outcome: str
    value: str


@value(kw_only=True)
class SettingsResult:
    """What became of a request: a change for each key, and the steps in the kernel's words.

    `is_placed` tells that the VM's vCPU threads are to stay on CPUs that were chosen with it.
    """

    vm: str
    changes: tuple[KeyResult, ...]
    steps: tuple[str, ...]
    is_placed: bool = False
    warnings: tuple[PmuctlError, ...] = ()


def set_vm(
    client: Client | None, vm: Vm, request: Request, site: HostState, *, dry_run: bool
) -> SettingsResult:
    """Bring the VM at the other end to what is asked, all of it or nothing.

    An orphaned VM, which has no other end, is sealed. Raises NotFoundError, UsageError,
    SealedError, UnsupportedError, DeniedError, RefusedError with nothing changed, or with the
    state it left in `now`; UnknownOutcomeError where the VMM did not answer.
    """
    if client is None:
        by = f"{vm.by}, and only that could make the calls"
        error = sealed(_first_attribute(request), by)
        raise _unchanged(error, vm, _at_the_next_start(vm))
    _check_possible(request, vm)
    pmu = _choose_pmu(request, vm, site)
    bits = vm.event_bits or WIDEST_BITS
    words = request.filter
    event_filter = None if words is None else compile_filter(words, pmu, bits)
    arguments: dict[str, object] = {"type": pmu.type, "name": pmu.name, "dry-run": dry_run}
    if request.counters is not None:
        arguments["counters"] = request.counters
    if event_filter is not None:
        arguments["filter"] = filter_message(event_filter)
    cpus = _wanted_cpus(request, vm, pmu, site)
    if cpus:
        arguments["cpus"] = list(cpus)
    try:
        answer: Any = client.execute("pmu-apply", arguments)
    except PmuctlError as error:
        raise _explained(error, vm, pmu, site.threads) from error
    return _done(vm, answer, request, pmu, event_filter, cpus)


def _wanted_cpus(request: Request, vm: Vm, pmu: Pmu, site: HostState) -> CpuSet | None:
    """The CPUs that the vCPU threads are to stay on, None where their masks are left alone.

    To set a PMU implies `auto`: its CPUs, for KVM runs the VM nowhere else. With a setting that
    leaves the PMU as it is the affinity stays, too.
    """
    if request.affinity == NONE:
        return None
    if request.affinity not in (None, AUTO):
        cpus = present_cpus(request.affinity or "", site.pmus, site.sysfs, subject=vm.name)
        if pmu.cpus is not None:
            check_inside(cpus, pmu.cpus, vm, pmu.name)
        return cpus
    now = vm.explicit_pmu
    is_new = now is None or now.name != pmu.name
    return pmu.cpus if request.affinity or request.pmu or is_new else None


def release_vm(client: Client | None, vm: Vm, *, dry_run: bool) -> KeyResult:
    """Let a VM that waits with its window open go on; `unchanged` where it does not wait."""
    if client is None:  # orphaned
        outcome = "unchanged"
    elif dry_run:
        outcome = "planned" if vm.state is VmState.WAITING else "unchanged"
    else:
        answer: Any = client.execute("pmu-release")
        outcome = answer["outcome"]
    return KeyResult(vm=vm.name, key="window", outcome=outcome, value="sealed")


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


def _choose_pmu(request: Request, vm: Vm, site: HostState) -> Pmu:
    """The PMU asked for, else the one the VM was given, else the host's only one."""
    names = scan_event_sources(site.sysfs).names
    text = request.pmu
    if text is None and vm.explicit_pmu is not None:
        text = vm.explicit_pmu.name
    try:
        fix = f"{command('vm', 'set', vm.address, 'pmu', 'PMU')} …"
        return choose_pmu(text, site.pmus, names, site.sysfs, fix=fix)
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
        "filter": event_filter.describe(pmu.events) if event_filter is not None else "",
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
