# SPDX-License-Identifier: Apache-2.0
"""Setting a VM's PMU, counters and event filter: from a user's request to the VMM's answer."""

from dataclasses import dataclass
from typing import Any

from pmuctl.control.client import Client
from pmuctl.control.door import filter_message
from pmuctl.errors import (
    NotFoundError,
    PinnedError,
    PmuctlError,
    SealedError,
    UnknownOutcomeError,
    UsageError,
)
from pmuctl.host.cpus import read_online
from pmuctl.host.pmus import scan_event_sources, scan_other, scan_pmus
from pmuctl.host.sysfs import Sysfs
from pmuctl.manage.vms import read_vm
from pmuctl.model.event import WIDEST_BITS, parse_events
from pmuctl.model.filter import Action, EventFilter
from pmuctl.model.pmu import Pmu
from pmuctl.model.selector import select_pmu
from pmuctl.model.vm import Vm

AFFINITY = "affinity"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterWords:
    """An inline filter as it was written: its default, and (action, events) rules in order."""

    default: Action
    rules: tuple[tuple[Action, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `vm set` was asked for; None is what was not mentioned."""

    pmu: str | None = None
    counters: int | None = None
    filter: FilterWords | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of one key of one VM: `set`, `unchanged` or `planned`."""

    vm: str
    key: str
    outcome: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of a request: a change for each key, and the steps in the kernel's words."""

    vm: str
    changes: tuple[Change, ...]
    steps: tuple[str, ...]


def set_vm(client: Client, request: Request, sysfs: Sysfs, *, dry_run: bool) -> Done:
    """Bring one VM to what is asked, all of it or nothing.

    Raises NotFoundError, UsageError, SealedError, UnsupportedError, DeniedError, RefusedError
    with nothing changed, or with the state it left in `now`; UnknownOutcomeError where the VMM
    did not answer.
    """
    vm = read_vm(client, strictly=True)
    pmu = _choose_pmu(request, vm, sysfs)
    event_filter = _compile(request.filter, pmu, vm.event_bits or WIDEST_BITS)
    arguments: dict[str, object] = {"type": pmu.type, "name": pmu.name, "dry-run": dry_run}
    if request.counters is not None:
        arguments["counters"] = request.counters
    if event_filter is not None:
        arguments["filter"] = filter_message(event_filter)
    if pmu.cpus:
        arguments["cpus"] = list(pmu.cpus)
    try:
        answer: Any = client.execute("pmu-apply", arguments)
    except PmuctlError as error:
        raise _explained(error, vm, pmu) from error
    return _done(vm, answer, request, pmu, event_filter)


def release_vm(client: Client) -> bool:
    """Let a VM that waits with its window open go on; False where it does not wait."""
    read_vm(client, strictly=True)
    answer: Any = client.execute("pmu-release")
    return bool(answer["outcome"] == "released")


def _choose_pmu(request: Request, vm: Vm, sysfs: Sysfs) -> Pmu:
    """The PMU asked for; else the one the VM was given; else the host's, if it has only one.

    To name a PMU turns KVM's silent default into the strict mode, so where there are several
    nobody gets one by accident.
    """
    names = scan_event_sources(sysfs).names
    pmus = scan_pmus(sysfs, names)
    if request.pmu is not None:
        pmu = select_pmu(request.pmu, pmus, scan_other(sysfs, names))
    elif vm.pmu is not None:
        pmu = select_pmu(vm.pmu.name, pmus)
    elif len(pmus) == 1 and _covers_all(pmus[0], sysfs):
        pmu = pmus[0]
    else:
        raise UsageError(
            "a PMU must be named, too",
            subject=vm.name,
            why=f"this host has {', '.join(pmu.name for pmu in pmus) or 'no CPU PMU'}, "
            "and counters and events belong to one",
            fix=f"pmuctl vm set {vm.name} pmu PMU …",
        )
    if pmu.type is None:
        raise NotFoundError(f"{pmu.name}: its perf type cannot be read", fix="pmuctl pmu list")
    return pmu


def _covers_all(pmu: Pmu, sysfs: Sysfs) -> bool:
    online = read_online(sysfs)
    return pmu.cpus is not None and online is not None and online <= pmu.cpus


def _compile(words: FilterWords | None, pmu: Pmu, bits: int) -> EventFilter | None:
    if words is None:
        return None
    rules = [(action, parse_events(text, pmu.events, bits=bits)) for action, text in words.rules]
    return EventFilter.compile(words.default, rules)


def _explained(error: PmuctlError, vm: Vm, pmu: Pmu) -> PmuctlError:
    """The refusal with what a user can do about it, which the VMM cannot know."""
    error.subject = vm.name
    if not isinstance(error, UnknownOutcomeError):
        error.now = "; ".join(error.applied)
        error.now = f"applied before: {error.now}" if error.now else "nothing was changed"
    if isinstance(error, SealedError):
        error.fix = (
            f"set it at the next start of {vm.name}, while its window is open (before vm release)"
        )
    elif isinstance(error, PinnedError):
        tids = [str(vcpu.tid) for vcpu in vm.vcpus or () if vcpu.tid is not None]
        error.fix = "; ".join(f"taskset -cp {pmu.cpus} {tid}" for tid in tids) or None
    return error


def _done(
    vm: Vm, answer: Any, request: Request, pmu: Pmu, event_filter: EventFilter | None
) -> Done:
    changed = {_KEYS.get(step["attribute"], AFFINITY) for step in answer["steps"]}
    asked = {"pmu": pmu.name}
    if request.counters is not None:
        asked["counters"] = str(request.counters)
    if event_filter is not None:
        asked["filter"] = event_filter.words(pmu.events)
    if pmu.cpus:
        asked[AFFINITY] = f"{pmu.cpus} (vCPU threads stay on the PMU's CPUs)"
    outcome = {"planned": "planned"}.get(answer["outcome"], "set")
    changes = tuple(
        Change(
            vm=vm.name, key=key, outcome=outcome if key in changed else "unchanged", value=value
        )
        for key, value in asked.items()
    )
    return Done(vm=vm.name, changes=changes, steps=tuple(its["words"] for its in answer["steps"]))


_KEYS = {"SET_PMU": "pmu", "SET_NR_COUNTERS": "counters", "FILTER": "filter"}
