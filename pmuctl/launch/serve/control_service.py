# SPDX-License-Identifier: Apache-2.0
"""What the outside sees of a supervised VM: its control socket and its record."""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from pmuctl.control.protocol.messages import filter_from
from pmuctl.control.runtime.sockets import record_path
from pmuctl.control.runtime.start_record import Problem, Record, remove_record, write_record
from pmuctl.control.server.backend import VcpuStatus
from pmuctl.control.server.server import Server
from pmuctl.errors import ExitStatus, PmuctlError
from pmuctl.host.pmus import scan_pmu_types, scan_pmus
from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import shortage_of
from pmuctl.host.sysfs import Sysfs
from pmuctl.launch.serve.vmm_backend import MakeCall, SupervisedDoor
from pmuctl.launch.spec import LaunchSpec
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.plan import TargetSettings
from pmuctl.model.settings_change import SettingsChange
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_SET_PMU
from pmuctl.value import replace

BY_RUN = "pmuctl run"


class Service:
    """A Story told over the control socket, and kept in the record beside it."""

    def __init__(
        self, orders: LaunchSpec, pid: int, *, procs: Procfs, wake: Callable[[], None]
    ) -> None:
        self._orders = orders
        self._procs = procs
        self._door = SupervisedDoor(orders, pid, wake)
        self._stack: ExitStack | None = None
        self._known: tuple[VcpuStatus, ...] = ()
        self._is_behind = False
        self._is_reached = False
        self._path = record_path(orders.socket)
        self._lock = threading.Lock()
        self._record = Record(
            name=orders.name,
            pid=pid,
            start=procs.start_time(pid) or 0,
            supervisor=os.getpid(),
            command=orders.command,
            began=int(time.time()),
        )

    @property
    def pid(self) -> int:
        """The process that makes VMs, or is expected to."""
        return self._door.pid

    def open(
        self, make: MakeCall, check: Callable[[CpuSet], None], stops: Callable[[], int]
    ) -> None:
        """Begin to serve; raises what Server does where the socket cannot be had.

        `make` makes a call in the held thread of the VM, `check` raises PinnedError for CPUs its
        threads may not be put on, `stops` counts the stops so far.
        """
        self._make = make
        self._check = check
        self._door.make = self._checked
        self._stops = stops
        self._serve()
        self._note()
        self.rest()

    def _serve(self) -> None:
        with ExitStack() as stack:
            self._server = Server(self._door, self._orders.socket, on_change=self._changed_by)
            stack.enter_context(self._server)
            if not self._orders.hold:
                self._server.seal("it was started without --hold")
            self._stack = stack.pop_all()

    def on_process(self, pid: int) -> None:
        """This process makes VMs."""
        self._door.pid, self._door.known, self._known = pid, (), ()
        self._door.default = None
        self._door.is_gone = False
        if self._stack is None:  # the one before has ended; its name may be another's by now
            with suppress(PmuctlError, OSError):
                self._serve()
        start = self._procs.start_time(pid) or 0
        self._note(pid=pid, start=start, derived=None, applied=(), problem=None, stops=None)

    def ended(self) -> None:
        """The process is gone. Of a VM that did not start the record stays, to say why."""
        if self._stack is None:
            return
        if self._record.problem is not None:
            self.rest()
        else:
            with suppress(OSError):
                remove_record(self._path)
        self._door.is_gone = True
        self._stack.close()
        if self._record.problem is not None:
            self.rest()  # there may be a descriptor for it now
        self._stack = None

    def on_vcpus(self, vcpus: Sequence[VcpuStatus]) -> None:
        """These are the vCPUs of the VM made last."""
        self._known = tuple(vcpus)
        if not self._orders.hold or self._is_reached:
            self._door.known = self._known
        if self._record.stops is None and all(vcpu.has_run for vcpu in vcpus):
            self._note(stops=self._stops())

    def on_default_pmu(self, pmu: tuple[int, str] | None) -> None:
        """The PMU that KVM chose for them by itself; None where that is not certain."""
        self._door.default = pmu
        if self._record.derived != pmu:
            self._note(derived=pmu)

    def on_applied(self, words: Sequence[str]) -> None:
        """The settings were applied to a VM, by these calls."""
        if self._orders.hold:
            return
        if self._orders.pmu is None and self._record.cpus is None:
            self._note(cpus=self._orders.affinity)
        elif not self._record.applied:
            self._adopt(words)

    def _adopt(self, words: Sequence[str]) -> None:
        if self._orders.pmu is not None:
            number, name = self._orders.pmu
            cpus = self._cpus_of(name) if self._orders.hold else self._orders.affinity
            wanted = TargetSettings(type=number, name=name, filter=self._orders.filter, cpus=cpus)
            self._server.settings.set_applied(wanted)
            self._changed(BY_RUN, tuple(words))

    def on_refused(self, error: PmuctlError) -> None:
        """The VM does not start."""
        its = Problem(
            message=error.message, why=error.why, fix=error.fix, status=int(ExitStatus.ENDED)
        )
        self._note(problem=its)

    def on_held(self, words: Sequence[str]) -> None:
        """The window is open, and stays so; what was ordered was applied by these calls."""
        self._adopt(words)
        self._is_reached = True
        self._door.known = self._known  # from here on clients find somebody to ask

    def carry_out(self) -> None:
        """Have the calls made that wait for it."""
        self._door.carry_out()

    def _checked(self, vcpu: int, attr: int, payload: bytes) -> None:
        """Make a call of the held VM; first see that its threads can follow the PMU."""
        if attr == KVM_ARM_VCPU_PMU_V3_SET_PMU:
            number = int.from_bytes(payload, sys.byteorder)
            name = scan_pmu_types(Sysfs()).get(number)
            if name is not None and (cpus := self._cpus_of(name)) is not None:
                self._check(cpus)
        self._make(vcpu, attr, payload)

    def released(self) -> LaunchSpec | None:
        """Once somebody has released the VM, the orders as they are to go on; None until then."""
        return self._given() if self._server.settings.closed.is_set() else None

    def _given(self) -> LaunchSpec:
        """The orders as they would have been with what the VM was given while it was held."""
        its = self._server.settings.query()
        pmu, event_filter = self._server.settings.pmu, its["filter"]
        if pmu is None:
            return replace(self._orders, pmu=None, filter=None)
        cpus = self._server.settings.cpus
        if cpus is not None and self._orders.affinity is not None:
            cpus &= self._orders.affinity
        return replace(
            self._orders,
            pmu=pmu,
            filter=filter_from(event_filter) if isinstance(event_filter, dict) else None,
            affinity=cpus,
        )

    def _cpus_of(self, name: str) -> CpuSet | None:
        """Where the threads of a VM with this PMU are kept: its CPUs, of those that were named."""
        found = scan_pmus(Sysfs(), [name])
        cpus, named = found[0].cpus if found else None, self._orders.affinity
        return named if cpus is None else cpus if named is None else cpus & named

    def _changed_by(self, client: str, words: tuple[str, ...]) -> None:
        """A client's change is in the record before the client hears of it."""
        self._changed(client, words)
        self.rest()

    def _changed(self, by: str, words: tuple[str, ...]) -> None:
        """What stands after a change, by whom; called from any thread."""
        given = self._given()
        change = SettingsChange(when=int(time.time()), by=by, steps=words)
        with self._lock:
            applied = (*self._record.applied, change)
        self._note(pmu=given.pmu, filter=given.filter, cpus=given.affinity, applied=applied)

    def _note(self, **changes: object) -> None:
        """For the record, once nobody waits for the supervisor."""
        with self._lock:
            self._record = replace(self._record, **changes)  # type: ignore[arg-type]
            self._is_behind = True

    def rest(self) -> None:
        """Nobody is stopped: there is time to write down what became of the VM."""
        with self._lock:
            if self._is_behind and self._stack is not None:
                self._is_behind = False
                try:
                    write_record(self._path, self._record)
                except OSError as error:  # it is for those who ask later
                    self._is_behind = shortage_of(error) is not None
