# SPDX-License-Identifier: Apache-2.0
"""Watching a host: looking again and again, and at once when the kernel tells of something."""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from pmuctl.errors import PmuctlError
from pmuctl.host.udev import NoUevents
from pmuctl.manage.affinity.assess import assess, read_vm_affinity_record
from pmuctl.manage.affinity.host_state import HostState, read_host_state
from pmuctl.manage.affinity.set_and_align import align_vm
from pmuctl.manage.inventory.inventory import VmList
from pmuctl.manage.inventory.lookup import list_vms
from pmuctl.manage.inventory.poller import SocketPoller
from pmuctl.manage.inventory.session import Session
from pmuctl.model.host_diff import (
    ChangeKind,
    HostEvent,
    HostObservation,
    ObservedVm,
    find_changes,
    stray,
    with_silent,
)
from pmuctl.model.vm import Vm, VmState
from pmuctl.model.vm_ref import VmRef
from pmuctl.value import replace, value

SETTLE_SECONDS = 0.05
"""The least pause between two looks: what the kernel told of may not be to be seen at once."""

LEAST_PATIENCE, FIRST_PATIENCE = 0.25, 1.0
"""Seconds that a look, and the first one, wait for answers, however short the interval is."""

UNASKED = (VmState.SILENT, VmState.DENIED)


@value(kw_only=True)
class Event:
    """A change, and when it was seen, in seconds since the epoch."""

    when: float
    change: HostEvent

    @property
    def time(self) -> str:
        """When that was, by the local clock (ISO 8601)."""
        return datetime.fromtimestamp(self.when).astimezone().isoformat(timespec="milliseconds")


class Watch:
    """One host that is watched: how its VMs are reached, and what hears of changes.

    With `repairs` vCPU threads that can leave their PMU are brought back onto it, by the rule of
    `affinity align`. With `refs` there are no other VMs than those that are meant, now or later.
    """

    def __init__(
        self,
        *,
        session: Session,
        refs: Sequence[VmRef] = (),
        uevents: NoUevents,
        interval: float = 1.0,
        repairs: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.session = session
        self.refs = refs
        self.uevents = uevents
        self.interval = interval
        self.repairs = repairs
        self.clock = clock
        self.seen = VmList(vms=[])
        """What the last look has found."""
        self.host_state: HostState | None = None
        """The machine, as it was then."""
        self._asker = SocketPoller(session.deadline)
        self._before: HostObservation | None = None
        self._vms: dict[tuple[object, ...], Vm] = {}
        self._failed: dict[tuple[object, ...], str] = {}

    def close(self) -> None:
        """Look no more."""
        self._asker.close()
        self.uevents.close()

    def watch(self, until: float | None = None) -> Iterator[Event]:
        """What changes after a first `lookup_vm`, until that moment of the monotonic clock.

        At its end it looks once more: what was there to be seen is told.
        """
        took = 0.0
        is_over = False
        while not is_over:
            # on a host of very many processes looking takes time: no more than half of it all
            pause = max(SETTLE_SECONDS, took)
            end = time.monotonic() + max(self.interval - took, pause)
            if until is not None and until <= end:
                end, is_over = until, True
            yield from self._wait(end, pause)
            is_over = is_over and time.monotonic() >= end
            began = time.monotonic()
            yield from self.look()
            took = time.monotonic() - began

    def look(self) -> Iterator[Event]:
        """What has changed since the last look, and what is done about it."""
        self.seen, self.host_state, after = self._read()
        after = with_silent(self._before, after)
        changes = find_changes(self._before, after)
        self._before = after
        yield from map(self._event, changes)
        if self.repairs:
            yield from map(self._event, self._repair(after, self.host_state))

    @property
    def count(self) -> int:
        """How many VMs are watched: nothing is seen of one that cannot be asked."""
        pending = self._asker.pending
        return sum(vm.query_error is None or vm.socket in pending for vm in self.seen.vms)

    def problems(self) -> Iterator[PmuctlError]:
        """Why VMs of the last look cannot be asked, but for those that may answer yet."""
        for vm in self.seen.vms:
            if vm.problem is not None and vm.socket not in self._asker.pending:
                yield vm.problem

    def unjudged(self) -> Iterator[tuple[str, str]]:
        """The VMs of the last look of which it cannot be told whether a vCPU leaves its PMU, and
        why not."""
        for vm in self._before.vms if self._before else ():
            held, names = vm.held, vm.held.effective_pmu.names
            if vm.is_silent or not names or held.alignment.aligned is not None:
                continue
            if any(its.affinity is None for its in held.vcpus) or not held.vcpus:
                yield vm.name, "which threads run its vCPUs is not known"
            else:
                yield vm.name, f"it has {' or '.join(names)}, and which is not known"

    def _wait(self, end: float, pause: float) -> Iterator[Event]:
        heard = self.uevents.wait(max(end - time.monotonic(), 0))
        for event in heard.events:
            self.session.trace(
                f"the kernel: {event.device} {event.action}{self._whose(event.tid)}"
            )
        if heard.is_lossy:
            yield self._event(HostEvent(kind=ChangeKind.LOST, what=_lost(self.uevents)))
        if heard.events or heard.is_lossy:
            time.sleep(max(min(pause, end - time.monotonic()), 0))

    def _whose(self, tid: int | None) -> str:
        if tid is None:
            return ""
        pid = self.session.host.procs.tgid(tid)
        return f", thread {tid}" + (f" of process {pid}" if pid else "")

    def _event(self, change: HostEvent) -> Event:
        return Event(when=self.clock(), change=change)

    def _read(self) -> tuple[VmList, HostState, HostObservation]:
        # whoever does not answer holds up no look: half of the time is for the others
        least = FIRST_PATIENCE if self._before is None else LEAST_PATIENCE
        patience = min(self.session.deadline, max(self.interval / 2, least))
        seen = list_vms(replace(self.session, deadline=patience), ask=self._asker.ask)
        if self.refs:
            vms = [vm for vm in seen.vms if any(vm.is_meant(ref) for ref in self.refs)]
            seen = replace(seen, vms=vms)
        host_state = read_host_state(self.session.host)
        pairs = [
            (self._seen(vm, host_state), vm) for vm in seen.vms if vm.state is not VmState.DEAD
        ]
        # by their keys, for anybody can take the name of another VM
        self._vms = {its.key: vm for its, vm in pairs}
        pmus = {pmu.name: pmu.cpus for pmu in host_state.pmus}
        return (
            seen,
            host_state,
            HostObservation(vms=[its for its, _ in pairs], online=host_state.online, pmus=pmus),
        )

    def _seen(self, vm: Vm, host_state: HostState) -> ObservedVm:
        return ObservedVm(
            held=assess(vm, host_state),
            is_silent=vm.state in UNASKED and vm.socket not in self._asker.pending,
            is_denied=vm.state is VmState.DENIED,
        )

    def _repair(self, after: HostObservation, host_state: HostState) -> Iterator[HostEvent]:
        """Align what strays; what fails is tried again at each look, and told once."""
        strays = {
            vm.key: vm
            for vm in stray(after)
            if not read_vm_affinity_record(self._vms[vm.key], host_state).is_left_alone
        }
        self._failed = {key: words for key, words in self._failed.items() if key in strays}
        for key, its in strays.items():
            try:
                done = align_vm(self._vms[key], host_state, dry_run=False)
            except PmuctlError as error:
                words = _problem(error)
                if self._failed.get(key) != words:
                    self._failed[key] = words
                    yield _about(its, ChangeKind.REPAIR_FAILED, words)
                continue
            self._failed.pop(key, None)
            for problem in done.warnings:
                self.session.trace(f"{its.name}: {_problem(problem)}")
            for thread in done.placed:
                if thread.outcome == "set":
                    what = f"vCPU {thread.vcpu} (thread {thread.tid}) put on CPUs {thread.cpus}"
                    yield HostEvent(
                        kind=ChangeKind.REPAIRED,
                        what=f"{what}, was {thread.before}",
                        vm=its.name,
                        pid=its.pid,
                        vcpu=thread.vcpu,
                        tid=thread.tid,
                        pmu=its.held.effective_pmu.only,
                        cpus=thread.cpus,
                    )


def scope(watch: Watch) -> str:
    """What is watched, in words, after the first look."""
    pmus = len(watch.host_state.pmus) if watch.host_state else 0
    ways = f"looking every {watch.interval:g} s"
    if watch.uevents.is_open:
        ways += ", and when the kernel tells of a VM or a CPU"
    else:
        ways += "; the kernel's own events cannot be heard here"
    return f"watching {_counted(watch.count, 'VM')} and {_counted(pmus, 'PMU')}: {ways}"


def absent(watch: Watch) -> list[str]:
    """The names that stand for no VM yet, after the first look."""
    return [str(its) for its in watch.refs if not any(vm.is_meant(its) for vm in watch.seen.vms)]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _lost(uevents: NoUevents) -> str:
    if not uevents.is_open:
        return "the kernel's events cannot be heard any more: looking at each interval only"
    return "the kernel dropped events (ENOBUFS): everything is looked at anew"


def _about(vm: ObservedVm, kind: ChangeKind, what: str) -> HostEvent:
    return HostEvent(kind=kind, what=what, vm=vm.name, pid=vm.pid, pmu=vm.held.effective_pmu.only)


def _problem(error: PmuctlError) -> str:
    parts: Sequence[str | None] = (error.message, error.why, error.fix and f"fix: {error.fix}")
    return "; ".join(part for part in parts if part)
