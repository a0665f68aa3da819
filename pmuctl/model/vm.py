# SPDX-License-Identifier: Apache-2.0
"""A VM of this host as its control socket tells of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pmuctl.errors import PmuctlError
from pmuctl.model.filter import EventFilter


class VmState(StrEnum):
    """Where a VM is in its life."""

    WAITING = "waiting"
    """its window is open, and it waits to be released"""
    STARTING = "starting"
    """its window is closed or it does not wait, but no vCPU has run"""
    RUNNING = "running"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class VmVcpu:
    """One vCPU; `tid` is None where the thread the VMM names is not one of its own."""

    index: int
    tid: int | None
    initialised: bool
    has_run: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VmPmu:
    """The PMU a VM was given, its perf type, and who says so."""

    name: str
    type: int
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """One VM. `owner` is the user id its VMM runs as; `since` is in seconds since the epoch, `by`
    what sealed its window.

    `counters` and `filter` are None where they were never set; `event_names` maps the names of
    its PMU's events to codes, where they were looked up. `problem` is why a VM could not be asked,
    and then all else but its name and socket is unknown (None).
    """

    name: str
    socket: str
    state: VmState
    uuid: str | None = None
    vmm: str | None = None
    pid: int | None = None
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
    problem: PmuctlError | None = None
