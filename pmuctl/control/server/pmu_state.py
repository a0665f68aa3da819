# SPDX-License-Identifier: Apache-2.0
"""The PMU settings of one VM: what was applied, and the transaction that applies.

KVM cannot be asked for the PMU or the filter of a VM, so this object is the one place that knows.
It is kept by the VMM, the only one that KVM takes them from, or by the VMM's supervisor.
"""

import errno
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from pmuctl.control.protocol.messages import filter_message
from pmuctl.control.protocol.qmp_codec import Message
from pmuctl.control.server.backend import VmmBackend
from pmuctl.errors import NotFoundError, PmuctlError, RefusedError
from pmuctl.host.kvm.device import pack_filter, pack_nr_counters, pack_pmu
from pmuctl.host.thread_affinity import ThreadAffinity
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
from pmuctl.model.vpmu import Vcpu, Vpmu, accepted, is_sealed
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_SET_PMU
from pmuctl.value import replace, value


@value
class Seal:
    """What closed the window, and when (seconds since the epoch)."""

    by: str
    since: int


class ApplyError(Exception):
    """A refusal, the step that met it, and what had been applied before and stays so.

    `dry_run` tells that nothing was to be applied anyway.
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
    """The settings of one VM; every method may be called from any thread."""

    def __init__(
        self, door: VmmBackend, pmus: Callable[[], Mapping[int, str]], threads: ThreadAffinity
    ) -> None:
        """`pmus` gives the host's CPU PMUs, perf type to name; asked anew each time."""
        self.closed = threading.Event()
        """Set once the window is closed, whoever closed it."""
        self.released = threading.Event()
        """Set where it was a client that did, with `release`."""
        self._door = door
        self._pmus = pmus
        self._threads = threads
        self._lock = threading.Lock()
        self._pmu: tuple[int, str] | None = None
        self._cpus: CpuSet | None = None
        self._counters: int | None = None
        self._filter: EventFilter | None = None
        self._allowed: EventSet | None = None
        self._default = Action.ALLOW
        """what the first range made of all other events, once there is a filter"""
        self._seal: Seal | None = None
        self._placed: dict[int, SetAffinity] = {}
        """by thread id: where a thread was put, and where it was before the first time"""

    def seal(self, by: str) -> None:
        """The VMM goes on: from here on no setting is taken. `by` completes "sealed: …"."""
        with self._lock:
            self._close(by)

    def release(self) -> bool:
        """Let a VMM that waits go on; False where it does so already."""
        with self._lock:
            if self._seal is not None:
                return False
            self.released.set()
            self._close("it was released")
            return True

    def _close(self, by: str) -> None:
        if self._seal is None:
            self._seal = Seal(by, int(time.time()))
            self.closed.set()

    def set_applied(self, wanted: TargetSettings) -> None:
        """Take these settings, which were applied by other means, as those that stand.

        What is None stays as it is; a filter takes the place of the one that stood.
        """
        with self._lock:
            self._pmu, self._cpus = (wanted.type, wanted.name), wanted.cpus
            if wanted.counters is not None:
                self._counters = wanted.counters
            if wanted.filter is not None:
                self._filter, self._default = wanted.filter, wanted.filter.default
                bits = self._door.event_bits() or WIDEST_BITS
                # to allow everything takes no call, so there is no filter then
                self._allowed = wanted.filter.allowed(bits) if wanted.filter.ranges() else None

    @property
    def pmu(self) -> tuple[int, str] | None:
        """The PMU that was set, by perf type and name."""
        return self._pmu

    @property
    def cpus(self) -> CpuSet | None:
        """The CPUs that the vCPU threads are to stay on; None where they are left alone."""
        return self._cpus

    @property
    def closed_by(self) -> str | None:
        """What closed the window; None while it is open."""
        return self._seal.by if self._seal else None

    def query(self) -> Message:
        """The result of `query-pmu`."""
        with self._lock:
            vpmu = self._vpmu()
            by = self._sealed_by(vpmu)
            standing = self._filter or self._standing()
            window = "none" if not self._door.has_vpmu() else "sealed" if by else "open"
            return {
                "name": self._door.name,
                "uuid": self._door.uuid,
                "vmm": self._door.vmm,
                "pid": self._door.pid,
                "window": window,
                "waiting": self._seal is None and bool(self._door.vcpus()),
                "since": self._seal.since if self._seal else None,
                "by": by,
                "attributes": [ATTR_NAMES[attr] for attr in sorted(vpmu.caps.attributes)],
                "event-bits": self._door.event_bits(),
                "pmu": self._told_pmu(is_closed=window == "sealed"),
                "counters": None
                if self._counters is None
                else {"value": self._counters, "origin": "applied"},
                "filter": standing and filter_message(standing) | {"origin": "applied"},
                "vcpus": [
                    {
                        "index": vcpu.index,
                        "tid": vcpu.tid,
                        "initialised": vcpu.initialised,
                        "has-run": vcpu.has_run,
                    }
                    for vcpu in self._door.vcpus()
                ],
            }

    def _told_pmu(self, *, is_closed: bool) -> Message | None:
        # while the window is open KVM's choice is not the last word
        default = self._door.default_pmu() if is_closed and self._pmu is None else None
        its = self._pmu or default
        origin = "applied" if default is None else DERIVED
        return its and {"name": its[1], "type": its[0], "origin": origin}

    def apply(self, wanted: TargetSettings, *, dry_run: bool) -> tuple[Step, ...]:
        """Bring the VM to what is wanted, or plan to; the steps done or planned, in order.

        Raises ApplyError where anything is refused.
        """
        with self._lock:
            current = self._current(wanted)
            try:
                self._check_name(wanted)
                steps = plan(current, wanted)
                if steps and not self._door.vcpus():
                    raise no_vcpu()
            except PmuctlError as error:
                raise ApplyError(error, None, (), dry_run=dry_run) from error
            if not dry_run:
                is_kept = self._pmu is not None and self._pmu[0] == wanted.type
                self._carry_out(steps, current)
                if wanted.cpus is not None or not is_kept:
                    self._cpus = wanted.cpus
                self._pmu = (wanted.type, wanted.name)
                if wanted.filter is not None:
                    self._filter = wanted.filter
            return steps

    def _check_name(self, wanted: TargetSettings) -> None:
        """Type and name say the same of a PMU, or the client sees other PMUs than this process."""
        name = self._pmus().get(wanted.type, wanted.name)
        if name != wanted.name:
            raise NotFoundError(
                f"{wanted.name}: not the PMU with the perf type {wanted.type}",
                why=f"to the VMM that is {name}",
                errno="ENXIO",
            )

    def _vpmu(self, wanted: TargetSettings | None = None) -> Vpmu:
        """KVM's state, put together from what the VMM says and what was applied."""
        door, vcpus = self._door, self._door.vcpus()
        has_pmu = door.has_vpmu()
        limits: dict[int, int | None] = dict.fromkeys(self._pmus() if wanted else ())
        if wanted and wanted.counters is not None and wanted.type in limits:
            limits[wanted.type] = door.counters_limit(wanted.type)
        kernel = KvmCaps(
            has_vpmu=True,
            counters=limits,
            attributes=frozenset(attr for attr in ATTR_NAMES if has_pmu and door.has_attr(attr)),
            event_bits=door.event_bits(),
        )
        its = [Vcpu(has_pmu=has_pmu, initialised=vcpu.initialised) for vcpu in vcpus]
        return Vpmu(
            caps=kernel,
            # before there is one, what would hold for the first
            vcpus=tuple(its or [Vcpu(has_pmu=has_pmu)]),
            pmu=self._pmu[0] if self._pmu else None,
            pmu_is_set=self._pmu is not None,
            counters=self._counters,
            allowed=self._allowed,
            has_run=any(vcpu.has_run for vcpu in vcpus),
        )

    def _sealed_by(self, vpmu: Vpmu) -> str | None:
        if self._seal is not None:
            return self._seal.by
        return "its vCPUs have run or are initialised" if is_sealed(vpmu) else None

    def _current(self, wanted: TargetSettings) -> CurrentState:
        vpmu = self._vpmu(wanted)
        threads: dict[int, VcpuThread] = {}
        for vcpu in self._door.vcpus() if wanted.cpus else ():
            if vcpu.tid is None:
                continue
            with suppress(OSError):  # a vCPU whose thread has ended stays on no CPU
                threads[vcpu.index] = self._thread(vcpu.tid)
        return CurrentState(
            vpmu=vpmu,
            sealed_by=self._sealed_by(vpmu),
            threads=threads,
        )

    def _thread(self, tid: int) -> VcpuThread:
        now = self._threads.get(tid)
        placed = self._placed.get(tid)
        # a mask that is still as pmuctl left it is no pin of the admin's
        may = placed.before if placed and placed.cpus == now else now
        return VcpuThread(tid=tid, now=now, may=may)

    def _carry_out(self, steps: Sequence[Step], current: CurrentState) -> None:
        done: list[Step] = []
        state = current.vpmu
        for step in steps:
            try:
                if isinstance(step, SetAffinity):
                    self._threads.set(step.tid, step.cpus)
                    may = current.threads[step.vcpu].may
                    self._placed[step.tid] = replace(step, before=may)
                else:
                    self._door.set_attr(step.vcpu, step.attr, payload(step))
                    state = accepted(state, step.attr, step.value)
                    self._remember(step, state)
            except Exception as error:
                if not any(isinstance(its, SetAttr) for its in done):
                    done = [its for its in reversed(done) if not self._undo(its)][::-1]
                raise ApplyError(refused(step, error, state, current), step, done) from error
            done.append(step)

    def _remember(self, step: SetAttr, state: Vpmu) -> None:
        if step.attr == KVM_ARM_VCPU_PMU_V3_SET_PMU and isinstance(step.value, int):
            self._pmu = (step.value, step.note)
        self._counters = state.counters
        if isinstance(step.value, FilterRange):
            if self._allowed is None:
                self._default = step.value.action.opposite()
            # holds even if the rest of the ranges never follows
            self._allowed, self._filter = state.allowed, None

    def _standing(self) -> EventFilter | None:
        """The filter of which only a part was applied, as KVM has it now."""
        if self._allowed is None:
            return None
        if self._default is Action.DENY:
            return EventFilter(Action.DENY, self._allowed)
        space = EventSet.space(self._door.event_bits() or WIDEST_BITS)
        return EventFilter(Action.ALLOW, space - self._allowed)

    def _undo(self, step: Step) -> bool:
        if isinstance(step, SetAffinity):
            with suppress(OSError):
                self._threads.set(step.tid, step.before)
                return True
        return False


def payload(step: SetAttr) -> bytes:
    """What the kernel's pointer of this call points to."""
    if isinstance(step.value, FilterRange):
        its = step.value
        return pack_filter(its.base, its.nevents, its.action.kernel_value())
    if step.attr == KVM_ARM_VCPU_PMU_V3_SET_PMU:
        return pack_pmu(step.value)
    return pack_nr_counters(step.value)


def refused(step: Step, error: Exception, state: Vpmu, current: CurrentState) -> PmuctlError:
    """What it means that a step failed with this error when KVM was in this state."""
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
        why = "none of these CPUs is online and in the thread's cpuset cgroup (EINVAL)"
    return RefusedError(
        f"vCPU {step.vcpu} could not be put on {step.cpus}",
        why=why,
        errno=errno.errorcode.get(number),
    )
