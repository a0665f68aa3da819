# SPDX-License-Identifier: Apache-2.0
"""A VM of a host, as its control socket, its start record or its process describes it."""

from collections.abc import Mapping
from enum import StrEnum

from pmuctl.errors import PmuctlError
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event_filter import EventFilter
from pmuctl.model.kvm_caps import DERIVED
from pmuctl.model.settings_change import SettingsChange
from pmuctl.model.vm_ref import ByGlob, ByName, ByPid, ByUuid, ProcessId, VmId, VmRef
from pmuctl.model.vmm.identity import VmmIdentity
from pmuctl.value import field, value


class VmState(StrEnum):
    """The state of a VM in its life cycle."""

    WAITING = "waiting"
    """its window is open, and it waits for its release"""
    STARTING = "starting"
    """no vCPU has run: its window is closed, it does not wait, or its VMM has not made it yet"""
    RUNNING = "running"
    PAUSED = "paused"
    """a vCPU has run, but its VMM says that none runs now, or the process is stopped"""
    ORPHANED = "orphaned"
    """its process runs without its supervisor: it cannot be queried, only its record is known"""
    DEAD = "dead"
    """no process listens at its control socket"""
    DENIED = "denied"
    """this user may not query it"""
    SILENT = "silent"
    """its control socket does not answer, or answers wrongly"""


class Window(StrEnum):
    """Whether KVM still takes PMU settings for a VM."""

    OPEN = "open"
    SEALED = "sealed"
    NONE = "none"
    """the VM has no vPMU"""


class Evidence(StrEnum):
    """The source from which it is known which thread runs a vCPU, best first."""

    SOCKET = "socket"
    """the VM's control socket says so"""
    QMP = "qmp"
    """QEMU's own monitor says so"""
    DEBUGFS = "debugfs"
    """KVM's debugfs names the thread that ran it last"""
    KVM_RUN = "kvm-run"
    """the thread sleeps in KVM_RUN of that vCPU"""
    NAME = "name"
    """the thread is named as its VMM names those of vCPUs"""


@value(kw_only=True)
class VmVcpu:
    """One vCPU.

    `tid` is None if its thread is not known, or if the VMM names a thread that is not its own.
    `initialised` and `has_run` are None if they cannot be told, `evidence` is None if `tid` is.
    `is_dead` says that it has run and that its thread has ended; then `tid` is None.
    """

    index: int
    tid: int | None
    initialised: bool | None
    has_run: bool | None
    evidence: Evidence | None = None
    is_dead: bool = False


_NOT_SET = (DERIVED, "unknown")
"""The origins of a PMU that nobody has set, or of which nobody knows who did."""


@value(kw_only=True)
class VmPmu:
    """The PMU of a VM: its name, its perf type, and the source of that (`origin`)."""

    name: str
    type: int
    origin: str

    @property
    def is_explicit(self) -> bool:
        """Whether it is certain that it was set, by SET_PMU, and not chosen by KVM itself."""
        return self.origin not in _NOT_SET


@value(kw_only=True)
class Vm:
    """One VM.

    `name` is for display: any process can claim a name. `socket` is the path of its control
    socket; a VM without one was found by its process. `id` is None if its process is not known.
    `owner` is the user id its VMM runs as, None if that is not known. `since` is when its window
    was sealed, in seconds since the epoch, and `by` is what sealed it.

    `identity` is what the command line of its process says; all its fields are None if that was
    not read. `is_own` is True if its control socket is in a directory of root's or the caller's,
    where nobody else can take its name; `is_scratch` is True for pmuctl's own probes.

    `counters` and `filter` are None if they were never set. `event_names` maps the names of its
    PMU's events to codes, if they were looked up. `supervised` is True if another process than
    the VMM serves its socket (pmuctl run); the record of such a VM has the `command` that started
    it, the changes that were `applied` and the CPUs that its vCPU threads are `confined_to`.

    `unmade` is why its process has made no VM yet, though there are settings for one.

    `problem` is why the VM could not be queried. All else is then unknown (None) except its name,
    its socket, what its process tells, and, of an orphaned VM, what its record has.
    """

    name: str
    socket: str | None
    state: VmState
    uuid: str | None = None
    vmm: str | None = None
    id: VmId | None = None
    owner: int | None = None
    window: Window | None = None
    since: int | None = None
    by: str | None = None
    attributes: tuple[str, ...] = ()
    event_bits: int | None = None
    pmu: VmPmu | None = None
    counters: int | None = None
    counters_origin: str | None = None
    filter: EventFilter | None = None
    filter_origin: str | None = None
    vcpus: tuple[VmVcpu, ...] | None = None
    event_names: Mapping[str, int] = field(default_factory=dict)
    supervised: bool = False
    command: tuple[str, ...] | None = None
    applied: tuple[SettingsChange, ...] = ()
    confined_to: CpuSet | None = None
    unmade: PmuctlError | None = None
    problem: PmuctlError | None = None
    identity: VmmIdentity = field(default_factory=VmmIdentity)
    is_own: bool = False
    is_scratch: bool = False

    @property
    def explicit_pmu(self) -> VmPmu | None:
        """The PMU that was set; None if there is none, or KVM chose it by itself."""
        return self.pmu if self.pmu is not None and self.pmu.is_explicit else None

    @property
    def process(self) -> ProcessId | None:
        """The process of the VM, if it is known."""
        return self.id.process if self.id else None

    @property
    def pid(self) -> int | None:
        """The process id of the VM, if it is known."""
        return self.id.process.pid if self.id else None

    @property
    def address(self) -> str:
        """The reference to this VM and no other, for a command that the user types next.

        It is the process, unless nobody else can take the name, or the process is not known.
        """
        if self.is_own or self.id is None or self.name.startswith("pid/"):
            return self.name
        return str(ByPid(self.id.process.pid))

    def is_meant(self, ref: VmRef) -> bool:
        """Return whether a reference matches this VM, perhaps beside others."""
        match ref:
            case ByName(name):
                return name == self.name
            case ByGlob():
                return ref.matches(self.name)
            case ByUuid(uuid):
                return self.uuid is not None and self.uuid.lower() == uuid.lower()
            case ByPid(pid, fd):
                return self.id is not None and self.pid == pid and fd in (None, self.id.fd)

    @property
    def dead_vcpus(self) -> tuple[int, ...]:
        """The numbers of its vCPUs that have run and whose threads have ended."""
        return tuple(vcpu.index for vcpu in self.vcpus or () if vcpu.is_dead)

    @property
    def is_without_pmu(self) -> bool:
        """Whether it has no PMU and gets none: its vCPUs are made without."""
        rules_it_out = self.identity.has_vpmu is False and self.pmu is None
        return self.window is Window.NONE or rules_it_out

    @property
    def query_error(self) -> PmuctlError | None:
        """Why it could not be queried; None also if its process tells its vCPUs all the same."""
        return None if self.vcpus else self.problem

    @property
    def is_managed(self) -> bool:
        """Whether the VM has a control socket."""
        return self.socket is not None
