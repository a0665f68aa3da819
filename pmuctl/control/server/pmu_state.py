# SPDX-License-Identifier: Apache-2.0
"""The PMU settings of one VM: those that were applied, and the transaction that applies them.

KVM has no call that reads the PMU or the filter of a VM, so only this object knows them. It lives
in the VMM, the only process from which KVM accepts them, or in the VMM's supervisor.
"""

import errno
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from pmuctl.control.protocol.messages import filter_message
from pmuctl.control.protocol.qmp_codec import Message
from pmuctl.control.server.backend import VmmBackend
from pmuctl.errors import NotFoundError, PmuctlError, RefusedError
from pmuctl.host.thread_affinity import NO_USABLE_CPU, ThreadAffinity
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import WIDEST_BITS, EventSet
from pmuctl.model.event_filter import Action, EventFilter, FilterRange
from pmuctl.model.kvm_caps import ATTR_NAMES, DERIVED, KvmCaps
from pmuctl.model.plan import (
    CurrentState,
    SetAffinity,
    SetAttr,
    Step,
    TargetSettings,
    VcpuThread,
    no_vcpu,
    plan,
    refusal,
)
from pmuctl.model.vpmu import Vcpu, Vpmu, apply_accepted, is_sealed
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_SET_PMU
from pmuctl.value import replace, value


@value
class Seal:
    """The reason why the window was closed, and the time (seconds since the epoch)."""

    by: str
    since: int


class ApplyError(Exception):
    """A refusal, the step that was refused, and the steps applied before it, which stay applied.

    `dry_run` is True if nothing was to be applied.
    """

    def __init__(
        self,
        cause: PmuctlError,
        step: Step | None,
        applied: Sequence[Step],
        *,
        dry_run: bool = False,
    ) -> None:
        super().__init__(cause.message)
        self.dry_run = dry_run
        self.cause = cause
        self.step = step
        self.applied = tuple(applied)


class PmuState:
    """The PMU settings of one VM; any thread may call any method."""

    def __init__(
        self, backend: VmmBackend, pmus: Callable[[], Mapping[int, str]], threads: ThreadAffinity
    ) -> None:
        """`pmus` returns the host's CPU PMUs, perf type to name; it is called for each use."""
        self.closed = threading.Event()
        """Set when the window is closed, whoever closed it."""
        self.released = threading.Event()
        """Set if a client closed it, with `release`."""
        self._backend = backend
        self._pmus = pmus
        self._threads = threads
        self._lock = threading.Lock()
        self._pmu: tuple[int, str] | None = None
        self._cpus: CpuSet | None = None
        self._counters: int | None = None
        self._filter: EventFilter | None = None
        self._allowed: EventSet | None = None
        self._default = Action.ALLOW
        """What holds for events outside all ranges: KVM derives that from the first range."""
        self._seal: Seal | None = None
        self._affinities: dict[int, SetAffinity] = {}
        """By thread id: the CPUs that were set, and those from before the first time."""

    def seal(self, by: str) -> None:
        """Close the window: no settings are accepted from now on. `by` completes "sealed: …"."""
        with self._lock:
            self._close_window(by)

    def release(self) -> bool:
        """Let the waiting VMM continue. Return False if the window is already closed."""
        with self._lock:
            if self._seal is not None:
                return False
            self.released.set()
            self._close_window("it was released")
            return True

    def _close_window(self, by: str) -> None:
        if self._seal is None:
            self._seal = Seal(by, int(time.time()))
            self.closed.set()

    def set_applied(self, wanted: TargetSettings) -> None:
        """Record settings that were applied by other means.

        Counters or a filter that are None stay as they are; a filter replaces the old one.
        """
        with self._lock:
            self._pmu, self._cpus = (wanted.type, wanted.name), wanted.cpus
            if wanted.counters is not None:
                self._counters = wanted.counters
            if wanted.filter is not None:
                self._filter, self._default = wanted.filter, wanted.filter.default
                bits = self._backend.event_bits(wanted.type) or WIDEST_BITS
                # a filter that allows everything needs no call, so KVM has none then
                self._allowed = wanted.filter.allowed(bits) if wanted.filter.ranges() else None

    @property
    def pmu(self) -> tuple[int, str] | None:
        """The perf type and name of the PMU that was set, if any."""
        return self._pmu

    @property
    def cpus(self) -> CpuSet | None:
        """The CPUs that the vCPU threads shall stay on; None if they are left alone."""
        return self._cpus

    @property
    def closed_by(self) -> str | None:
        """The reason why the window is closed; None while it is open."""
        return self._seal.by if self._seal else None

    def query(self) -> Message:
        """Return the result of `query-pmu`."""
        with self._lock:
            vpmu = self._build_vpmu()
            by = self._find_seal_reason(vpmu)
            window = "none" if not self._backend.has_vpmu() else "sealed" if by else "open"
            event_filter = self._filter or self._derive_filter() if window != "none" else None
            pmu = None if window == "none" else self._find_pmu(is_closed=window == "sealed")
            return {
                "name": self._backend.name,
                "uuid": self._backend.uuid,
                "vmm": self._backend.vmm,
                "pid": self._backend.pid,
                "window": window,
                "waiting": self._seal is None and bool(self._backend.vcpus()),
                "since": self._seal.since if self._seal else None,
                "by": by,
                "attributes": [ATTR_NAMES[attr] for attr in sorted(vpmu.caps.attributes)],
                "event-bits": self._backend.event_bits(None if pmu is None else pmu[0]),
                "pmu": pmu and self._describe_pmu(pmu),
                "counters": None
                if self._counters is None or window == "none"
                else {"value": self._counters, "origin": "applied"},
                "filter": event_filter and filter_message(event_filter) | {"origin": "applied"},
                "vcpus": [
                    {
                        "index": vcpu.index,
                        "tid": vcpu.tid,
                        "initialised": vcpu.initialised,
                        "has-run": vcpu.has_run,
                    }
                    for vcpu in self._backend.vcpus()
                ],
            }

    def _find_pmu(self, *, is_closed: bool) -> tuple[int, str] | None:
        # while the window is open a client can still replace KVM's choice
        return self._backend.default_pmu() if is_closed and self._pmu is None else self._pmu

    def _describe_pmu(self, pmu: tuple[int, str]) -> Message:
        origin = DERIVED if self._pmu is None else "applied"
        return {"name": pmu[1], "type": pmu[0], "origin": origin}

    def apply(self, wanted: TargetSettings, *, dry_run: bool) -> tuple[Step, ...]:
        """Apply the wanted settings, or plan that. Return the steps done or planned, in order.

        Raise ApplyError if anything is refused.
        """
        with self._lock:
            current = self._read_current_state(wanted)
            try:
                self._check_name(wanted)
                steps = plan(current, wanted)
                if steps and not self._backend.vcpus():
                    raise no_vcpu()
            except PmuctlError as error:
                raise ApplyError(error, None, (), dry_run=dry_run) from error
            if not dry_run:
                is_kept = self._pmu is not None and self._pmu[0] == wanted.type
                self._apply_steps(steps, current)
                if wanted.cpus is not None or not is_kept:
                    self._cpus = wanted.cpus
                self._pmu = (wanted.type, wanted.name)
                if wanted.filter is not None:
                    self._filter = wanted.filter
            return steps

    def _check_name(self, wanted: TargetSettings) -> None:
        """Raise NotFoundError if type and name differ: the client sees other PMUs than the VMM."""
        name = self._pmus().get(wanted.type, wanted.name)
        if name != wanted.name:
            raise NotFoundError(
                f"{wanted.name}: not the PMU with the perf type {wanted.type}",
                why=f"to the VMM that is {name}",
                errno="ENXIO",
            )

    def _build_vpmu(self, wanted: TargetSettings | None = None) -> Vpmu:
        """Return KVM's state, composed of what the VMM reports and what was applied."""
        backend, vcpus = self._backend, self._backend.vcpus()
        has_pmu = backend.has_vpmu()
        limits: dict[int, int | None] = dict.fromkeys(self._pmus() if wanted else ())
        if wanted and wanted.counters is not None and wanted.type in limits:
            limits[wanted.type] = backend.counters_limit(wanted.type)
        bits = {pmu: backend.event_bits(pmu) for pmu in self._iter_pmu_types(wanted)}
        caps = KvmCaps(
            has_vpmu=True,
            counters=limits,
            attributes=frozenset(
                attr for attr in ATTR_NAMES if has_pmu and backend.has_attr(attr)
            ),
            event_bits_of={pmu: width for pmu, width in bits.items() if width is not None},
        )
        kvm_vcpus = [Vcpu(has_pmu=has_pmu, initialised=vcpu.initialised) for vcpu in vcpus]
        return Vpmu(
            caps=caps,
            # before the first vCPU exists, plan for one that the VMM will create
            vcpus=tuple(kvm_vcpus or [Vcpu(has_pmu=has_pmu)]),
            pmu=self._pmu[0] if self._pmu else None,
            pmu_is_set=self._pmu is not None,
            counters=self._counters,
            allowed=self._allowed,
            has_run=any(vcpu.has_run for vcpu in vcpus),
        )

    def _iter_pmu_types(self, wanted: TargetSettings | None) -> Iterator[int]:
        """Yield the perf types of the PMU that was set, and of the one that is wanted."""
        if self._pmu is not None:
            yield self._pmu[0]
        if wanted is not None:
            yield wanted.type

    def _find_seal_reason(self, vpmu: Vpmu) -> str | None:
        if self._seal is not None:
            return self._seal.by
        return "its vCPUs have run or are initialised" if is_sealed(vpmu) else None

    def _read_current_state(self, wanted: TargetSettings) -> CurrentState:
        vpmu = self._build_vpmu(wanted)
        threads: dict[int, VcpuThread] = {}
        for vcpu in self._backend.vcpus() if wanted.cpus else ():
            if vcpu.tid is None:
                continue
            with suppress(OSError):  # the thread of the vCPU has ended
                threads[vcpu.index] = self._read_thread(vcpu.tid)
        return CurrentState(
            vpmu=vpmu,
            sealed_by=self._find_seal_reason(vpmu),
            threads=threads,
        )

    def _read_thread(self, tid: int) -> VcpuThread:
        now = self._threads.get(tid)
        affinity = self._affinities.get(tid)
        # a mask that is still the one pmuctl set is not a pin of the admin's
        may = affinity.before if affinity and affinity.cpus == now else now
        return VcpuThread(tid=tid, now=now, may=may)

    def _apply_steps(self, steps: Sequence[Step], current: CurrentState) -> None:
        done: list[Step] = []
        state = current.vpmu
        for step in steps:
            try:
                if isinstance(step, SetAffinity):
                    self._threads.set(step.tid, step.cpus)
                    may = current.threads[step.vcpu].may
                    self._affinities[step.tid] = replace(step, before=may)
                else:
                    self._backend.set_attr(step.vcpu, step.attr, step.payload())
                    state = apply_accepted(state, step.attr, step.value)
                    self._record_step(step, state)
            except Exception as error:
                if not any(isinstance(earlier, SetAttr) for earlier in done):
                    done = [past for past in reversed(done) if not self._undo_step(past)][::-1]
                raise ApplyError(refused(step, error, state, current), step, done) from error
            done.append(step)

    def _record_step(self, step: SetAttr, state: Vpmu) -> None:
        if step.attr == KVM_ARM_VCPU_PMU_V3_SET_PMU and isinstance(step.value, int):
            self._pmu = (step.value, step.note)
        self._counters = state.counters
        if isinstance(step.value, FilterRange):
            if self._allowed is None:
                self._default = step.value.action.opposite()
            # KVM keeps this range even if the rest of the ranges never follows
            self._allowed, self._filter = state.allowed, None

    def _derive_filter(self) -> EventFilter | None:
        """Return the filter that KVM has now, if only a part of the wanted one was applied."""
        if self._allowed is None:
            return None
        if self._default is Action.DENY:
            return EventFilter(Action.DENY, self._allowed)
        pmu_type = None if self._pmu is None else self._pmu[0]
        space = EventSet.space(self._backend.event_bits(pmu_type) or WIDEST_BITS)
        return EventFilter(Action.ALLOW, space - self._allowed)

    def _undo_step(self, step: Step) -> bool:
        if isinstance(step, SetAffinity):
            with suppress(OSError):
                self._threads.set(step.tid, step.before)
                return True
        return False


def refused(step: Step, error: Exception, state: Vpmu, current: CurrentState) -> PmuctlError:
    """Return the error for a step that failed with `error` while KVM was in this state.

    A PmuctlError is the backend's own refusal: it says all there is to say.
    """
    if isinstance(error, PmuctlError):
        return error
    if not isinstance(error, OSError):
        return RefusedError(
            "the VMM failed at a step, which may have been done or not",
            why=f"{type(error).__name__}; the step: {step.describe()}",
        )
    number = error.errno or errno.EIO
    if isinstance(step, SetAttr):
        return refusal(step, number, state, current.sealed_by)
    why = error.strerror or str(error)
    if number == errno.EINVAL:
        why = f"{NO_USABLE_CPU} (EINVAL)"
    return RefusedError(
        f"vCPU {step.vcpu} could not be put on {step.cpus}",
        why=why,
        errno=errno.errorcode.get(number),
    )
