# SPDX-License-Identifier: Apache-2.0
"""What the tables show: one list of columns for each kind of row, shared by every format."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from pmuctl.manage.settings import Change
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import format_code
from pmuctl.model.filter import Action, EventFilter
from pmuctl.model.pmu import CoreModel, Pmu
from pmuctl.model.vm import Vm, VmState, VmVcpu
from pmuctl.render.text import printable

Row = TypeVar("Row")


class Unknown(Enum):
    """The mark of a value that could not be known; None is the mark of none."""

    UNKNOWN = "?"


UNKNOWN: Final = Unknown.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[Row]):
    """One column: its heading (in lower case its JSON key), and how to get a row's value."""

    name: str
    help: str
    value: Callable[[Row], object]
    is_number: bool = False


def cell(value: object) -> str:
    """A value as a table shows it: `-` for none, `?` for not known."""
    if value is None:
        return "-"
    if isinstance(value, Unknown):
        return "?"
    if isinstance(value, EventFilter):
        return filter_summary(value)
    if isinstance(value, (list, tuple)):
        return ",".join(cell(item) for item in value) or "-"
    return printable(str(value)) or "-"


def plain(value: object) -> Any:
    """A value as JSON has it: null for none and for not known, CPUs as a list of integers."""
    if value is None or isinstance(value, Unknown):
        return None
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, CpuSet):
        return list(value)
    if isinstance(value, EventFilter):
        return {"default": str(value.default), "except": _event_ranges(value)}
    if isinstance(value, CoreModel):
        return value.name
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return str(value)


def _event_ranges(value: EventFilter) -> list[dict[str, object]]:
    return [
        {"code": base, "code_hex": format_code(base), "nevents": nevents}
        for base, nevents in value.exceptions.runs()
    ]


def filter_summary(value: EventFilter) -> str:
    """A filter in a table's cell: how many events it lets through or keeps back."""
    count = len(value.exceptions)
    if value.default is Action.DENY:
        return f"{count} allowed" if count else "all denied"
    return f"{count} denied" if count else "all allowed"


def known(value: object) -> object:
    """The value, where None means that it could not be read."""
    return UNKNOWN if value is None else value


PMU_COLUMNS: Sequence[Column[Pmu]] = (
    Column(name="NAME", help="its name in sysfs", value=lambda pmu: pmu.name),
    Column(
        name="TYPE",
        help="its perf type in this boot",
        value=lambda pmu: known(pmu.type),
        is_number=True,
    ),
    Column(
        name="CORE",
        help="the core models of its online CPUs, by MIDR",
        value=lambda pmu: [known(core.name) for core in pmu.cores] or UNKNOWN,
    ),
    Column(name="CPUS", help="the CPUs it counts on", value=lambda pmu: known(pmu.cpus)),
    Column(name="ONLINE", help="those that are online", value=lambda pmu: known(pmu.online)),
    Column(
        name="EVENTS",
        help="how many named events it has",
        value=lambda pmu: len(pmu.events),
        is_number=True,
    ),
)

_UNASKED = (VmState.DEAD, VmState.SILENT)


def _of_vm(get: Callable[[Vm], object]) -> Callable[[Vm], object]:
    return lambda vm: UNKNOWN if vm.state in _UNASKED else get(vm)


VM_COLUMNS: Sequence[Column[Vm]] = (
    Column(name="NAME", help="the VM's name", value=lambda vm: vm.name),
    Column(
        name="STATE", help="waiting, starting, running, dead, silent", value=lambda vm: vm.state
    ),
    Column(
        name="PID",
        help="the process of its VMM",
        value=_of_vm(lambda vm: vm.pid),
        is_number=True,
    ),
    Column(
        name="VCPUS",
        help="how many vCPUs it has",
        value=_of_vm(lambda vm: len(vm.vcpus or ())),
        is_number=True,
    ),
    Column(
        name="PMU",
        help="the PMU it was given",
        value=_of_vm(lambda vm: vm.pmu and vm.pmu.name),
    ),
    Column(name="FILTER", help="its event filter", value=_of_vm(lambda vm: vm.filter)),
    Column(
        name="WINDOW",
        help="whether KVM still takes settings: open, sealed, none",
        value=_of_vm(lambda vm: vm.window),
    ),
)

VCPU_COLUMNS: Sequence[Column[VmVcpu]] = (
    Column(name="VCPU", help="its number", value=lambda vcpu: vcpu.index, is_number=True),
    Column(name="TID", help="its thread", value=lambda vcpu: known(vcpu.tid), is_number=True),
    Column(
        name="INITIALISED",
        help="whether its PMU is initialised",
        value=lambda vcpu: "yes" if vcpu.initialised else "no",
    ),
    Column(
        name="RAN", help="whether it has run", value=lambda vcpu: "yes" if vcpu.has_run else "no"
    ),
)

CHANGE_COLUMNS: Sequence[Column[Change]] = (
    Column(name="VM", help="the VM", value=lambda change: change.vm),
    Column(name="KEY", help="the setting", value=lambda change: change.key),
    Column(name="OUTCOME", help="set, unchanged or planned", value=lambda change: change.outcome),
    Column(name="VALUE", help="what it is now", value=lambda change: change.value),
)
