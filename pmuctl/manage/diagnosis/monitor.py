# SPDX-License-Identifier: Apache-2.0
"""Monitor of a host: it looks at intervals, and at once when the kernel reports an event."""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import chain

from pmuctl.errors import NOTHING_CHANGED, PmuctlError
from pmuctl.host.udev import NoUevents
from pmuctl.manage.affinity.assess import assess, read_vm_affinity_record
from pmuctl.manage.affinity.host_state import HostState, read_host_state
from pmuctl.manage.affinity.set_and_align import align_vm
from pmuctl.manage.hints import describe_count
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
    find_misplaced,
    with_silent,
)
from pmuctl.model.vm import Vm, VmState
from pmuctl.model.vm_ref import VmRef
from pmuctl.value import replace, value

SETTLE_SECONDS = 0.05
"""The shortest pause between two looks (seconds): what the kernel reported may show up later."""

LEAST_PATIENCE, FIRST_PATIENCE = 0.25, 1.0
"""The least seconds that a look, and the first look, wait for answers at a short interval."""

UNANSWERED = (VmState.SILENT, VmState.DENIED)


@value(kw_only=True)
class Event:
    """A change, and the time when it was seen (seconds since the epoch)."""

    when: float
    change: HostEvent

    @property
    def time(self) -> str:
        """The time in the local time zone (ISO 8601)."""
        return datetime.fromtimestamp(self.when).astimezone().isoformat(timespec="milliseconds")


class HostMonitor:
    """A monitor of one host, whose VMs it reaches through `session`.

    With `repairs`, vCPU threads that can leave their PMU are brought back onto it, by the rule of
    `affinity align`. With `refs`, only the VMs that these name are monitored, now or later.
    `interval` is in seconds, `clock` gives seconds since the epoch.
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
        self.vm_list = VmList(vms=[])
        """The VMs that the last look found."""
        self.host_state: HostState | None = None
        """The host as it was at the last look; None before the first."""
        self._poller = SocketPoller(session.deadline)
        self._before: HostObservation | None = None
        self._vms: dict[tuple[object, ...], Vm] = {}
        self._failed: dict[tuple[object, ...], str] = {}

    def close(self) -> None:
        """Close the connections to VMs and the monitor of uevents."""
        self._poller.close()
        self.uevents.close()

    def watch(self, until: float | None = None) -> Iterator[Event]:
        """Yield what changes after a first `look`, until a time (time.monotonic()) if given.

        It looks once more at that time, so that no change before it goes unreported.
        """
        took = 0.0
        is_over = False
        while not is_over:
            # a look at very many processes is slow: spend at most half of the time on it
            pause = max(SETTLE_SECONDS, took)
            end = time.monotonic() + max(self.interval - took, pause)
            if until is not None and until <= end:
                end, is_over = until, True
            yield from self._wait_for_uevents(end, pause)
            is_over = is_over and time.monotonic() >= end
            began = time.monotonic()
            yield from self.look()
            took = time.monotonic() - began

    def look(self) -> Iterator[Event]:
        """Look, and return an iterator of what has changed since the last look.

        With `repairs`, it repairs as it goes on. An event counts as told once the next one is
        asked for: the host's `changes` has the repairs that nobody was told of.
        """
        self.vm_list, self.host_state, after = self._observe_host()
        after = with_silent(self._before, after)
        changes = find_changes(self._before, after)
        self._before = after
        repairs = self._repair_vms(after, self.host_state) if self.repairs else ()
        return map(self._make_event, chain(changes, repairs))

    @property
    def count(self) -> int:
        """The number of VMs that are monitored; those that cannot be asked are not."""
        pending = self._poller.pending
        return sum(vm.query_error is None or vm.socket in pending for vm in self.vm_list.vms)

    def problems(self) -> Iterator[PmuctlError]:
        """Yield why VMs of the last look cannot be asked, except those that may still answer."""
        for vm in self.vm_list.vms:
            if vm.problem is not None and vm.socket not in self._poller.pending:
                yield vm.problem

    def unassessed(self) -> Iterator[tuple[str, str]]:
        """Yield the VMs of the last look whose alignment is not known, each with the reason."""
        for vm in self._before.vms if self._before else ():
            alignment, names = vm.alignment, vm.alignment.effective_pmu.names
            if vm.is_silent or not names or alignment.aligned is not None:
                continue
            if not alignment.vcpus or any(vcpu.affinity is None for vcpu in alignment.vcpus):
                yield vm.name, "which threads run its vCPUs is not known"
            else:
                yield vm.name, f"it has {' or '.join(names)}, and which is not known"

    def _wait_for_uevents(self, end: float, pause: float) -> Iterator[Event]:
        """Wait until `end` (time.monotonic()), or for uevents and then `pause` seconds longer.

        Yield an event if uevents were lost.
        """
        batch = self.uevents.wait(max(end - time.monotonic(), 0))
        for event in batch.events:
            self._write_trace(
                f"the kernel: {event.device} {event.action}{self._describe_thread(event.tid)}"
            )
        if batch.is_lossy:
            what = _explain_lost_uevents(self.uevents)
            yield self._make_event(HostEvent(kind=ChangeKind.LOST, what=what))
        if batch.events or batch.is_lossy:
            time.sleep(max(min(pause, end - time.monotonic()), 0))

    def _describe_thread(self, tid: int | None) -> str:
        """Return ", thread 7 of process 5" for the trace, as far as that is known."""
        if tid is None:
            return ""
        pid = self.session.host.procs.tgid(tid)
        return f", thread {tid}" + (f" of process {pid}" if pid else "")

    def _write_trace(self, text: str) -> None:
        if self.session.trace is not None:
            self.session.trace(text)

    def _make_event(self, change: HostEvent) -> Event:
        return Event(when=self.clock(), change=change)

    def _observe_host(self) -> tuple[VmList, HostState, HostObservation]:
        """Look at the VMs and at the host."""
        # a VM that does not answer may take half of an interval, so that the next look is in time
        least = FIRST_PATIENCE if self._before is None else LEAST_PATIENCE
        patience = min(self.session.deadline, max(self.interval / 2, least))
        host_state = read_host_state(self.session.host)
        vm_list = list_vms(replace(self.session, deadline=patience), ask=self._poller.ask)
        if self.refs:
            vms = [vm for vm in vm_list.vms if any(vm.is_meant(ref) for ref in self.refs)]
            vm_list = replace(vm_list, vms=vms)
        pairs = [
            (self._observe_vm(vm, host_state), vm)
            for vm in vm_list.vms
            if vm.state is not VmState.DEAD
        ]
        # by key, because anybody can take the name of another VM
        self._vms = {observed.key: vm for observed, vm in pairs}
        observation = HostObservation(
            vms=[observed for observed, _ in pairs],
            online=host_state.online,
            pmus={pmu.name: pmu.cpus for pmu in host_state.pmus},
        )
        return vm_list, host_state, observation

    def _observe_vm(self, vm: Vm, host_state: HostState) -> ObservedVm:
        return ObservedVm(
            alignment=assess(vm, host_state),
            is_silent=vm.state in UNANSWERED and vm.socket not in self._poller.pending,
            is_denied=vm.state is VmState.DENIED,
        )

    def _repair_vms(self, after: HostObservation, host_state: HostState) -> Iterator[HostEvent]:
        """Align misplaced VMs; what fails is tried again at each look, and reported once."""
        misplaced = {
            vm.key: vm
            for vm in find_misplaced(after)
            if not read_vm_affinity_record(self._vms[vm.key], host_state).is_left_alone
        }
        self._failed = {key: text for key, text in self._failed.items() if key in misplaced}
        untold = host_state.host.changes
        for key, vm in misplaced.items():
            try:
                result = align_vm(self._vms[key], host_state, dry_run=False)
            except PmuctlError as error:
                text = _format_error(error)
                if self._failed.get(key) != text:
                    self._failed[key] = text
                    yield _make_vm_event(vm, ChangeKind.REPAIR_FAILED, text)
                untold.clear()
                continue
            self._failed.pop(key, None)
            for warning in result.warnings:
                self._write_trace(f"{vm.name}: {_format_error(warning)}")
            for thread in result.results:
                if thread.outcome == "set":
                    what = f"vCPU {thread.vcpu} (thread {thread.tid}) put on CPUs {thread.cpus}"
                    yield HostEvent(
                        kind=ChangeKind.REPAIRED,
                        what=f"{what}, was {thread.before}",
                        vm=vm.name,
                        pid=vm.pid,
                        vcpu=thread.vcpu,
                        tid=thread.tid,
                        pmu=vm.alignment.effective_pmu.only,
                        cpus=thread.cpus,
                    )
                    untold.remove(result.vm.name, thread.describe())
            untold.clear()  # steps that made no difference


def describe_scope(monitor: HostMonitor) -> str:
    """Return what is monitored, and how; call it after the first look."""
    pmus = len(monitor.host_state.pmus) if monitor.host_state else 0
    ways = f"looking every {monitor.interval:g} s"
    if monitor.uevents.is_open:
        ways += ", and when the kernel tells of a VM or a CPU"
    else:
        ways += "; the kernel's own events cannot be heard here"
    vms = describe_count(monitor.count, "VM")
    return f"watching {vms} and {describe_count(pmus, 'PMU')}: {ways}"


def find_absent(monitor: HostMonitor) -> list[str]:
    """Return the names that no VM has yet; call it after the first look."""
    vms = monitor.vm_list.vms
    refs = dict.fromkeys(monitor.refs)
    return [str(ref) for ref in refs if not any(vm.is_meant(ref) for vm in vms)]


def _explain_lost_uevents(uevents: NoUevents) -> str:
    if not uevents.is_open:
        return "the kernel's events cannot be heard any more: looking at each interval only"
    return "the kernel dropped events (ENOBUFS): everything is looked at anew"


def _make_vm_event(vm: ObservedVm, kind: ChangeKind, what: str) -> HostEvent:
    return HostEvent(
        kind=kind, what=what, vm=vm.name, pid=vm.pid, pmu=vm.alignment.effective_pmu.only
    )


def _format_error(error: PmuctlError) -> str:
    """Return an error in one line, with what stands if anything was changed."""
    now = error.now if error.now != NOTHING_CHANGED else None
    labelled = (("now", now), ("fix", error.fix))
    parts = (error.message, error.why, *(text and f"{label}: {text}" for label, text in labelled))
    return "; ".join(part for part in parts if part)
