# SPDX-License-Identifier: Apache-2.0
"""The outside view of a supervised VM: its control socket and its start record."""

import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from pmuctl.control.protocol.messages import filter_from
from pmuctl.control.runtime.affinity_record import last_affinity_record
from pmuctl.control.runtime.sockets import record_path
from pmuctl.control.runtime.start_record import Problem, Record, remove_record, write_record
from pmuctl.control.server.backend import VcpuStatus
from pmuctl.control.server.server import Server
from pmuctl.errors import ExitStatus, PmuctlError, RefusedError
from pmuctl.host.pmus import scan_pmu_types, scan_pmus
from pmuctl.host.procfs import Procfs
from pmuctl.host.runtime_dirs import PATH_RUN
from pmuctl.host.sysfs import Sysfs
from pmuctl.launch.serve.vmm_backend import MakeCall, SupervisedBackend
from pmuctl.launch.spec import LaunchSpec
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.plan import TargetSettings
from pmuctl.model.settings_change import SettingsChange
from pmuctl.model.vm_ref import ProcessId
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_SET_PMU
from pmuctl.value import replace

BY_RUN = "pmuctl run"
RETRY_SECONDS = 1.0
"""Seconds between two attempts to write the record."""


class ControlService:
    """A VmObserver that serves the control socket and keeps the start record beside it."""

    def __init__(
        self,
        spec: LaunchSpec,
        pid: int,
        *,
        procs: Procfs,
        wake: Callable[[], None],
        warn: Callable[[PmuctlError], None],
    ) -> None:
        """Prepare for process `pid`; `warn` tells its user of what does not end the VMM."""
        self._spec = spec
        self._warn = warn
        self._procs = procs
        self._backend = SupervisedBackend(spec, pid, wake)
        self._stack: ExitStack | None = None
        self._vcpus: tuple[VcpuStatus, ...] = ()
        self._is_record_stale = False
        self._next_try = 0.0
        self._has_warned = False
        self._has_been_held = False
        self._record_path = record_path(spec.socket)
        self._lock = threading.Lock()
        self._record = Record(
            name=spec.name,
            pid=pid,
            start=procs.start_time(pid) or 0,
            supervisor=os.getpid(),
            command=spec.command,
            began=int(time.time()),
        )

    @property
    def pid(self) -> int:
        """The process that makes VMs, or is expected to."""
        return self._backend.pid

    def open(
        self, make_call: MakeCall, check_cpus: Callable[[CpuSet], None], stops: Callable[[], int]
    ) -> None:
        """Start serving; raise what Server raises if it cannot have the socket.

        `make_call` makes a call in the held thread of the VM, `check_cpus` raises PinnedError for
        CPUs that its threads may not be put on, `stops` counts the stops so far.
        """
        self._make_call = make_call
        self._check_cpus = check_cpus
        self._backend.make_call = self._make_checked_call
        self._count_stops = stops
        self._start_server()
        self._update_record()
        self.flush()

    def _start_server(self) -> None:
        """Start the control server, sealed unless the VM is to be held."""
        with ExitStack() as stack:
            self._server = Server(
                self._backend, self._spec.socket, on_change=self._record_client_change
            )
            stack.enter_context(self._server)
            if not self._spec.hold:
                self._server.seal("it was started without --hold")
            self._stack = stack.pop_all()

    def on_process(self, pid: int) -> None:
        """Serve, and record, the process that makes VMs now."""
        self._backend.pid, self._backend.known_vcpus, self._vcpus = pid, (), ()
        self._backend.known_default_pmu = None
        self._backend.is_gone = False
        if self._stack is None:  # the VMM before has ended, and its name may be taken by now
            with suppress(PmuctlError, OSError):
                self._start_server()
        start = self._procs.start_time(pid) or 0
        self._update_record(
            pid=pid, start=start, derived=None, applied=(), problem=None, stops=None
        )

    def on_vmm_exit(self) -> None:
        """Stop serving and remove the record, which stays only to say why a VM did not start."""
        if self._stack is None:
            return
        self._next_try = 0.0
        if self._record.problem is not None:
            self.flush()
        else:
            with suppress(OSError):
                remove_record(self._record_path)
        self._backend.is_gone = True
        self._stack.close()
        if self._record.problem is not None:
            self._next_try = 0.0
            self.flush()  # closing the server may have freed a descriptor for it
        self._stack = None

    def on_vcpus(self, vcpus: Sequence[VcpuStatus]) -> None:
        """Publish the vCPUs of the VM made last; in the record, the stops once all have run."""
        self._vcpus = tuple(vcpus)
        if not self._spec.hold or self._has_been_held:
            self._backend.known_vcpus = self._vcpus
        if self._record.stops is None and all(vcpu.has_run for vcpu in vcpus):
            self._update_record(stops=self._count_stops())

    def on_vpmu(self, *, has_vpmu: bool) -> None:
        """Publish whether the VM has a vPMU; without one, no settings are recorded."""
        self._backend.known_vpmu = has_vpmu
        if not has_vpmu and (self._record.pmu or self._record.cpus):
            self._update_record(pmu=None, filter=None, cpus=None)

    def on_default_pmu(self, pmu: tuple[int, str] | None) -> None:
        """Publish the PMU that KVM chose by itself; None if it is not certain."""
        self._backend.known_default_pmu = pmu
        if self._record.derived != pmu:
            self._update_record(derived=pmu)

    def on_applied(self, descriptions: Sequence[str]) -> None:
        """Record that these calls applied the settings to a VM."""
        if self._spec.hold:
            return
        if self._spec.pmu is None and self._record.cpus is None:
            self._update_record(cpus=self._spec.affinity)
        elif not self._record.applied:
            self._record_first_settings(descriptions)

    def _record_first_settings(self, descriptions: Sequence[str]) -> None:
        """Publish and record the settings of the launch spec, if it has a PMU."""
        if self._spec.pmu is not None:
            number, name = self._spec.pmu
            cpus = self._find_pmu_cpus(name) if self._spec.hold else self._spec.affinity
            target = TargetSettings(type=number, name=name, filter=self._spec.filter, cpus=cpus)
            self._server.settings.set_applied(target)
            self._record_change(BY_RUN, tuple(descriptions))

    def on_refused(self, error: PmuctlError) -> None:
        """Record why the VM does not start."""
        self._record_problem(error, int(ExitStatus.ENDED))

    def on_no_vm(self, error: PmuctlError) -> None:
        """Record why the settings have reached no VM."""
        self._record_problem(error, 0)

    def _record_problem(self, error: PmuctlError, status: int) -> None:
        problem = Problem(
            message=error.message, why=error.why, now=error.now, fix=error.fix, status=status
        )
        if self._record.problem != problem:
            self._update_record(problem=problem)

    def on_held(self, descriptions: Sequence[str]) -> None:
        """Publish the held VM; these calls applied the settings of the launch spec."""
        self._record_first_settings(descriptions)
        self._has_been_held = True
        self._backend.known_vcpus = self._vcpus  # from here on clients find vCPUs to address

    def make_pending_calls(self) -> None:
        """Make the calls that clients wait for."""
        self._backend.make_pending_calls()

    def _make_checked_call(self, vcpu: int, attr: int, payload: bytes) -> None:
        """Make a call in the held VM once it is certain that its threads can follow the PMU."""
        if attr == KVM_ARM_VCPU_PMU_V3_SET_PMU:
            number = int.from_bytes(payload, sys.byteorder)
            name = scan_pmu_types(Sysfs()).get(number)
            if name is not None and (cpus := self._find_pmu_cpus(name)) is not None:
                self._check_cpus(cpus)
        self._make_call(vcpu, attr, payload)

    def released_spec(self) -> LaunchSpec | None:
        """Return the spec to go on with once the VM was released, None until then."""
        return self._make_current_spec() if self._server.settings.closed.is_set() else None

    def _make_current_spec(self) -> LaunchSpec:
        """Return the launch spec updated with the settings applied during the hold."""
        settings = self._server.settings.query()
        pmu, event_filter = self._server.settings.pmu, settings["filter"]
        if pmu is None:
            return replace(self._spec, pmu=None, filter=None)
        cpus = self._server.settings.cpus
        if cpus is not None and self._spec.affinity is not None:
            cpus &= self._spec.affinity
        return replace(
            self._spec,
            pmu=pmu,
            filter=filter_from(event_filter) if isinstance(event_filter, dict) else None,
            affinity=cpus,
        )

    def _find_pmu_cpus(self, name: str) -> CpuSet | None:
        """Return the CPUs for a VM with this PMU: the PMU's, of those in the launch spec."""
        cpus, named = _scan_pmu_cpus(name), self._spec.affinity
        return named if cpus is None else cpus if named is None else cpus & named

    def pmu_cpus(self) -> CpuSet | None:
        """Return the CPUs of the VM's PMU, None if it has none that is certain."""
        pmu = self._record.pmu or self._record.derived
        return None if pmu is None else _scan_pmu_cpus(pmu[1])

    def recorded_cpus(self, pid: int) -> Mapping[int, CpuSet]:
        """Return the CPUs on which pmuctl has put threads of a process since, by thread id.

        Only root and the user of this supervisor are believed.
        """
        started, uid = self._procs.start_time(pid), os.geteuid()
        if started is None:
            return {}
        # the environment, which may name other directories, is not passed on to a supervisor
        directories = ((PATH_RUN, None), (self._spec.socket.parent, uid))
        process = ProcessId(pid, started)
        return last_affinity_record(directories, uid, process, owner=None).cpus

    def _record_client_change(self, client: str, descriptions: tuple[str, ...]) -> None:
        """Write a client's change to the record before the client gets its answer."""
        self._record_change(client, descriptions)
        self.flush()

    def _record_change(self, by: str, descriptions: tuple[str, ...]) -> None:
        """Record the settings after a change, and who made it; called from any thread."""
        spec = self._make_current_spec()
        change = SettingsChange(when=int(time.time()), by=by, steps=descriptions)
        with self._lock:
            applied = (*self._record.applied, change)
        self._update_record(pmu=spec.pmu, filter=spec.filter, cpus=spec.affinity, applied=applied)

    def _update_record(self, **changes: object) -> None:
        """Change the record, to be written once nobody waits for the supervisor."""
        with self._lock:
            self._record = replace(self._record, **changes)  # type: ignore[arg-type]
            self._is_record_stale = True

    def flush(self) -> None:
        """Write the record if it has changed: no thread of the VMM is stopped now.

        If that fails, warn the first time, and try again in a later call, after RETRY_SECONDS.
        """
        with self._lock:
            now = time.monotonic()
            if not self._is_record_stale or self._stack is None or now < self._next_try:
                return
            try:
                write_record(self._record_path, self._record)
            except OSError as error:
                self._next_try = now + RETRY_SECONDS
                if self._has_warned:
                    return
                self._has_warned = True
                failure = _make_record_error(self._spec.name, self._record_path, error)
            else:
                self._is_record_stale = False
                return
        self._warn(failure)


def _scan_pmu_cpus(name: str) -> CpuSet | None:
    """Return the CPUs of a PMU, None if they are not known."""
    found = scan_pmus(Sysfs(), [name])
    return found[0].cpus if found else None


def _make_record_error(name: str, path: Path, error: OSError) -> PmuctlError:
    """Return the error for a VM's record that could not be written."""
    failure = RefusedError(
        "the record of its start could not be written",
        why=f"{path}: {error.strerror or error}",
        fix=f"free space or descriptors, or check the owner and mode of {path.parent}; "
        "pmuctl tries again by itself",
        errno=errno.errorcode.get(error.errno or 0),
    )
    failure.subject = name
    failure.now = "the VM goes on; pmuctl vm show may tell less of it"
    return failure
