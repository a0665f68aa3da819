# SPDX-License-Identifier: Apache-2.0
"""Change of a VM's PMU, counters and event filter: from a user's request to the VMM's answer."""

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
    command,
)
from pmuctl.host.host import Host
from pmuctl.host.signals import defer_signals
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.manage.affinity.host_state import HostState, read_host_state
from pmuctl.manage.affinity.vcpu_threads import unknown_threads
from pmuctl.manage.inventory.inventory import Inventory
from pmuctl.manage.inventory.lookup import lookup_vm, open_vm
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.resolve import (
    NONE,
    SettingsRequest,
)
from pmuctl.manage.settings.affinity_key import (
    change_affinity,
    make_unkept_warning,
    record_affinity,
    record_unmanaged,
)
from pmuctl.manage.settings.result import AFFINITY, KeyResult, SettingsResult
from pmuctl.manage.settings.target import (
    SettingsTarget,
    refuse_orphaned,
    resolve_target,
    set_at_next_start,
)
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm import Vm, VmState, Window
from pmuctl.model.vm_ref import VmRef
from pmuctl.value import replace


def change_settings(
    session: Session, ref: VmRef, request: SettingsRequest, *, dry_run: bool
) -> SettingsResult:
    """Apply a request to one VM, and record where its threads are kept.

    Settings go through the VM's control socket, and all are checked before one is applied; an
    affinity alone is set at once, whatever the state of the window. Raise NotFoundError,
    UsageError, SealedError, UnsupportedError, DeniedError and RefusedError, whose `now` says what
    was changed, if anything; UnknownOutcomeError if the VMM did not answer.
    """
    host_state, inventory = read_host_state(session.host), Inventory(session)
    if request.affinity is not None and request.is_affinity_only:
        vm = lookup_vm(inventory, ref, strictly=True)
        return change_affinity(vm, request.affinity, host_state, dry_run=dry_run)
    warnings: list[PmuctlError] = []
    # once the VMM has answered, a signal waits until the affinity is recorded
    with open_vm(inventory, ref, strictly=True) as (client, vm), defer_signals():
        result = _apply_request(client, vm, request, host_state, dry_run=dry_run)
        if not dry_run:
            session.host.changes.add(vm.name, result.steps)
            try:
                if result.is_placed:
                    record_affinity(vm, host_state.host)
                elif request.affinity == NONE:
                    record_unmanaged(vm, host_state.host)
            except RefusedError as error:  # a warning only, for the settings have been applied
                warnings.append(error)
    if request.affinity == NONE:
        warnings.append(make_unkept_warning(vm))
    return replace(result, warnings=(*result.warnings, *warnings))


def release_vm(session: Session, ref: VmRef, *, dry_run: bool) -> KeyResult:
    """Let a VM go on that waits with its window open; the result is `unchanged` if it does not.

    Raise what `open_vm` raises, and the error that the VM answers with.
    """
    with open_vm(Inventory(session), ref, strictly=True) as (client, vm):
        if client is None:  # orphaned
            outcome = "unchanged"
        elif dry_run:
            outcome = "planned" if vm.state is VmState.WAITING else "unchanged"
        else:
            with defer_signals():
                answer = _execute(client, "pmu-release", None, vm, session.host)
                outcome = answer["outcome"]
                if outcome == "released":
                    session.host.changes.add(vm.name, ["released"])
    return KeyResult(vm=vm.name, key="window", outcome=outcome, value="sealed")


def _apply_request(
    client: Client | None,
    vm: Vm,
    request: SettingsRequest,
    host_state: HostState,
    *,
    dry_run: bool,
) -> SettingsResult:
    """Have the VMM that `client` is connected to check the request, and apply it.

    Without a client the VM is orphaned, and so it is sealed. Raise as `change_settings` does.
    """
    if client is None:
        raise refuse_orphaned(request, vm)
    target = resolve_target(request, vm, host_state)
    pmu, cpus = target.pmu, target.cpus
    arguments: dict[str, object] = {"type": pmu.type, "name": pmu.name, "dry-run": dry_run}
    if request.counters is not None:
        arguments["counters"] = request.counters
    if target.filter is not None:
        arguments["filter"] = filter_message(target.filter)
    if cpus:
        arguments["cpus"] = list(cpus)
    kept = vm.confined_to
    try:
        answer = _execute(client, "pmu-apply", arguments, vm, host_state.host)
    except PmuctlError as error:
        if error.applied and cpus:
            with suppress(RefusedError):  # the error tells more
                record_affinity(vm, host_state.host)
        wanted = cpus or pmu.cpus or CpuSet()
        raise _explain_apply_error(error, vm, wanted, host_state.host.threads) from error
    is_kept_anew = bool(cpus) and bool(unknown_threads(vm)) and cpus != kept
    return _collect_results(
        vm, answer, request, target, is_kept_anew=is_kept_anew, dry_run=dry_run
    )


def _execute(
    client: Client, name: str, arguments: dict[str, object] | None, vm: Vm, host: Host
) -> Any:
    """Send a command that changes the VM, and return the answer; raise what Client.execute does.

    Until an answer or an error has come, the host's `changes` tells that it may have been sent.
    """
    is_dry = bool(arguments and arguments["dry-run"])
    pending = f"{name}, whose outcome is not known"
    if not is_dry:
        host.changes.add(vm.name, [pending])
    try:
        answer = client.execute(name, arguments)
    except PmuctlError:
        if not is_dry:
            host.changes.remove(vm.name, pending)
        raise
    if not is_dry:
        host.changes.remove(vm.name, pending)
    return answer


def _explain_apply_error(
    error: PmuctlError, vm: Vm, cpus: CpuSet, threads: ThreadAffinity
) -> PmuctlError:
    """Return the error of `pmu-apply` with a `now` and a `fix`, which the VMM cannot know."""
    if error.applied is None:
        if not isinstance(error, RefusedError):
            return error
        # the protocol has no error class for the way in which this VMM failed
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
        error.fix = set_at_next_start(vm)
    elif isinstance(error, PinnedError):
        # in a hold it may be any thread of the VMM, and the vCPUs have none yet
        whole_vmm = f"taskset -acp {cpus} {vm.pid}" if vm.supervised and vm.pid and cpus else None
        error.fix = "; ".join(_iter_unpin_commands(vm, cpus, threads)) or whole_vmm
    return error


def _iter_unpin_commands(vm: Vm, cpus: CpuSet, threads: ThreadAffinity) -> Iterator[str]:
    """Yield the commands that put vCPU threads pinned off the wanted CPUs onto them."""
    for vcpu in vm.vcpus or ():
        with suppress(OSError):
            if vcpu.tid is not None and cpus and not threads.get(vcpu.tid) & cpus:
                yield f"taskset -cp {cpus} {vcpu.tid}"


_KEYS = {"SET_PMU": "pmu", "SET_NR_COUNTERS": "counters", "FILTER": "filter"}


def _collect_results(
    vm: Vm,
    answer: Any,
    request: SettingsRequest,
    target: SettingsTarget,
    *,
    is_kept_anew: bool,
    dry_run: bool,
) -> SettingsResult:
    """Return the result of each key that was asked for, or was changed along with those.

    `is_kept_anew` is True if threads that are not known yet are to be kept on other CPUs.
    """
    pmu, event_filter, cpus = target.pmu, target.filter, target.cpus
    changed = {_KEYS.get(step["attribute"], AFFINITY) for step in answer["steps"]}
    outcome = "planned" if answer["outcome"] == "planned" or dry_run else "set"
    if is_kept_anew:
        changed.add(AFFINITY)
    values = {
        "pmu": pmu.name,
        # shown even if not asked for: a new PMU is given the number that the VM had before
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
    steps = tuple(step["words"] for step in answer["steps"])
    return SettingsResult(vm=vm.name, changes=changes, steps=steps, is_placed=bool(cpus))
