# SPDX-License-Identifier: Apache-2.0
"""A VM of a host, as its control socket, its record or its process tells of it."""

from collections.abc import Mapping
from enum import StrEnum

from pmuctl.errors import PmuctlError
from pmuctl.model.event_filter import EventFilter
from pmuctl.model.kvm_caps import DERIVED
from pmuctl.model.settings_change import SettingsChange
from pmuctl.model.vm_ref import ByName, ByPid, ByUuid, ProcessId, VmId, VmRef
from pmuctl.model.vmm_identity import VmmIdentity
from pmuctl.value import field, value


class VmState(StrEnum):
    """Where a VM is in its life."""

    WAITING = "waiting"
    """its window is open, and it waits to be released"""
    STARTING = "starting"
    """its window is closed or it does not wait, or its VMM has not made it yet; no vCPU has run"""
    RUNNING = "running"
    PAUSED = "paused"
    """a vCPU has run, and its VMM says that none does now, or the process is stopped"""
    ORPHANED = "orphaned"
    """the process goes on without its supervisor: it cannot be asked, only its record is known"""
    DEAD = "dead"
    """nobody listens at its control socket"""
    DENIED = "denied"
    """this user may not ask it"""
    SILENT = "silent"
    """its control socket does not answer, or not as it should"""


class Window(StrEnum):
    """Whether KVM still takes PMU settings for a VM."""

    OPEN = "open"
    SEALED = "sealed"
    NONE = "none"
    """the VM has no vPMU"""


class Evidence(StrEnum):
    """How it is known which thread runs a vCPU, the best first."""

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
    """One vCPU; `tid` is None where the thread the VMM names is not one of its own, or unknown.

    `initialised` and `has_run` are None where nobody can tell, `evidence` where `tid` is.
    """

    index: int
    tid: int | None
    initialised: bool | None
    has_run: bool | None
    evidence: Evidence | None = None


@value(kw_only=True)
class VmPmu:
    """The PMU a VM has, its perf type, and who says so."""

    name: str
    type: int
    origin: str

    @property
    def is_explicit(self) -> bool:
        """Whether it was set, by SET_PMU; else KVM chose it by itself."""
        return self.origin != DERIVED


@value(kw_only=True)
class Vm:
    """One VM. `owner` is the user id its VMM runs as; `since` is in seconds since the epoch, `by`
    what sealed its window.

    `id` is None where its process is not known; a VM without a `socket` was found by that. Its
    `name` is for show: anybody can take one. `identity` is what the command line of its process
    tells, in which everything is None where that was not read. `is_own` tells that its control
    socket is in a directory of root's or of the caller's, where nobody else can take its name,
    `is_scratch` that it is one of pmuctl's own probes.

    `counters` and `filter` are None where they were never set; `event_names` maps the names of
    its PMU's events to codes, where they were looked up. `supervised` tells that another process
    than the VMM serves its socket (pmuctl run); from the record of such a VM come the `command`
    that started it and the changes that were `applied`. `problem` is why a VM could not be asked,
    and then all else but its name and socket, and what its process tells, is unknown (None); of
    an orphaned one that is known which its record has.
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
    problem: PmuctlError | None = None
    identity: VmmIdentity = field(default_factory=VmmIdentity)
    is_own: bool = False
    is_scratch: bool = False

    @property
    def explicit_pmu(self) -> VmPmu | None:
        """The PMU that was set; None where there is none, or KVM chose it by itself."""
        return self.pmu if self.pmu is not None and self.pmu.is_explicit else None

    @property
    def process(self) -> ProcessId | None:
        """The process that has it."""
        return self.id.process if self.id else None

    @property
    def pid(self) -> int | None:
        """The number of that process."""
        return self.id.process.pid if self.id else None

    @property
    def address(self) -> str:
        """What means this VM and no other, for commands that are to be typed next.

        That is its process, unless nobody else can take its name, or its process is not known.
        """
        if self.is_own or self.id is None or self.name.startswith("pid/"):
            return self.name
        return str(ByPid(self.id.process.pid))

    def is_meant(self, ref: VmRef) -> bool:
        """Whether somebody who calls a VM so means this one, perhaps beside others."""
        match ref:
            case ByName(name):
                return name == self.name
            case ByUuid(uuid):
                return self.uuid is not None and self.uuid.lower() == uuid.lower()
            case ByPid(pid, fd):
                return self.id is not None and self.pid == pid and fd in (None, self.id.fd)

    @property
    def query_error(self) -> PmuctlError | None:
        """Why it could not be asked, where its process does not tell its vCPUs either."""
        return None if self.vcpus else self.problem

    @property
    def is_managed(self) -> bool:
        """Whether it has a control socket."""
        return self.socket is not None
