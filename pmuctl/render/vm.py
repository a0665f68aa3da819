# SPDX-License-Identifier: Apache-2.0
"""What is shown of VMs: their columns, and those of their vCPUs and of changes to them."""

from collections.abc import Callable, Sequence

from pmuctl.manage.settings import Change
from pmuctl.manage.vcpus import PlacedVcpu
from pmuctl.model.filter import Action, EventFilter
from pmuctl.model.pmu import format_code
from pmuctl.model.vm import Vm, VmState, VmVcpu, Window
from pmuctl.render.columns import UNKNOWN, Column, Shape, known
from pmuctl.render.text import printable

VCPU_COLUMNS: Sequence[Column[VmVcpu]] = (
    Column(name="VCPU", help="its number", value=lambda vcpu: vcpu.index, is_number=True),
    Column(name="TID", help="its thread", value=lambda vcpu: known(vcpu.tid), is_number=True),
    Column(
        name="INITIALISED",
        help="whether its PMU is initialised",
        value=lambda vcpu: vcpu.initialised,
    ),
    Column(name="HAS-RUN", help="whether it has run", value=lambda vcpu: vcpu.has_run),
)


def filter_summary(value: EventFilter) -> str:
    """A filter in a table's cell: how many events it lets through or keeps back."""
    count = len(value.exceptions)
    if value.default is Action.DENY:
        return f"{count} allowed" if count else "all denied"
    return f"{count} denied" if count else "all allowed"


def filter_plain(value: EventFilter) -> dict[str, object]:
    """A filter in JSON: its default, and the ranges of events that are excepted from it."""
    ranges = [
        {"code": base, "code_hex": format_code(base), "nevents": nevents}
        for base, nevents in value.exceptions.runs()
    ]
    return {"default": str(value.default), "except": ranges}


FILTER_SHAPE = Shape(text=filter_summary, plain=filter_plain)


_UNASKED = (VmState.DEAD, VmState.DENIED, VmState.SILENT)


def _if_known(get: Callable[[Vm], object]) -> Callable[[Vm], object]:
    """Of a VM that could not be asked nothing is known, but for what a record tells."""
    return lambda vm: UNKNOWN if vm.state in _UNASKED else get(vm)


def _if_asked(get: Callable[[Vm], object]) -> Callable[[Vm], object]:
    """What only a VM itself can tell."""
    return lambda vm: UNKNOWN if vm.state in (*_UNASKED, VmState.ORPHANED) else get(vm)


def _command_line(words: Sequence[str]) -> str:
    import shlex

    return printable(shlex.join(words))


def _pmu_name(vm: Vm) -> object:
    if vm.pmu is not None:
        return vm.pmu.name
    # once it has started, KVM has chosen one, and cannot be asked which
    return None if vm.state is VmState.WAITING or vm.window is Window.NONE else UNKNOWN


VM_COLUMNS: Sequence[Column[Vm]] = (
    Column(name="NAME", help="the VM's name", value=lambda vm: vm.name),
    Column(
        name="STATE",
        help="waiting, starting, running, orphaned, dead, denied, silent",
        value=lambda vm: vm.state,
    ),
    Column(
        name="PID",
        help="the process of its VMM",
        value=_if_known(lambda vm: vm.pid),
        is_number=True,
    ),
    Column(
        name="VCPUS",
        help="how many vCPUs it has",
        value=_if_asked(lambda vm: len(vm.vcpus or ())),
        is_number=True,
    ),
    Column(name="PMU", help="the PMU it was given", value=_if_known(_pmu_name)),
    Column(
        name="FILTER",
        help="its event filter",
        value=_if_known(lambda vm: vm.filter),
        shape=FILTER_SHAPE,
    ),
    Column(
        name="WINDOW",
        help="whether KVM still takes settings: open, sealed, none",
        value=_if_known(lambda vm: known(vm.window)),
    ),
    Column(
        name="SEALED-BY",
        help="what closed its window",
        value=_if_known(lambda vm: vm.by),
        shown=False,
    ),
    Column(
        name="SINCE",
        help="when its window was closed, in seconds since the epoch",
        value=_if_asked(lambda vm: vm.since),
        is_number=True,
        shown=False,
    ),
    Column(
        name="PMU-TYPE",
        help="the perf type of its PMU",
        value=_if_known(lambda vm: vm.pmu and vm.pmu.type),
        is_number=True,
        shown=False,
    ),
    Column(
        name="PMU-ORIGIN",
        help="who says which PMU it has",
        value=_if_known(lambda vm: vm.pmu and vm.pmu.origin),
        shown=False,
    ),
    Column(
        name="COUNTERS",
        help="the number of counters it was given",
        value=_if_asked(lambda vm: vm.counters),
        is_number=True,
        shown=False,
    ),
    Column(
        name="COUNTERS-ORIGIN",
        help="who says how many counters it has",
        value=_if_asked(lambda vm: vm.counters_origin),
        shown=False,
    ),
    Column(
        name="RULES",
        help="its event filter, as vm set takes it",
        value=_if_known(lambda vm: vm.filter and vm.filter.words(vm.event_names)),
        shown=False,
    ),
    Column(
        name="FILTER-ORIGIN",
        help="who says which filter it has",
        value=_if_known(lambda vm: vm.filter_origin),
        shown=False,
    ),
    Column(
        name="EVENT-BITS",
        help="the width of its event space",
        value=_if_asked(lambda vm: known(vm.event_bits)),
        is_number=True,
        shown=False,
    ),
    Column(
        name="ATTRIBUTES",
        help="the PMU attributes its kernel has",
        value=_if_asked(lambda vm: vm.attributes),
        shown=False,
    ),
    Column(
        name="VMM",
        help="what its VMM calls itself",
        value=_if_asked(lambda vm: vm.vmm),
        shown=False,
    ),
    Column(
        name="OWNER",
        help="the user id its VMM runs as",
        value=_if_known(lambda vm: vm.owner),
        is_number=True,
        shown=False,
    ),
    Column(name="UUID", help="its UUID", value=_if_asked(lambda vm: vm.uuid), shown=False),
    Column(name="SOCKET", help="its control socket", value=lambda vm: vm.socket, shown=False),
    Column(
        name="COMMAND",
        help="the command that pmuctl run started",
        value=_if_known(lambda vm: vm.command),
        shown=False,
        shape=Shape(text=_command_line, plain=list),
    ),
    Column(
        name="APPLIED-BY",
        help="who set it last under pmuctl run",
        value=_if_known(lambda vm: vm.applied[-1].by if vm.applied else None),
        shown=False,
    ),
    Column(
        name="APPLIED-AT",
        help="when that was, in seconds since the epoch",
        value=_if_known(lambda vm: vm.applied[-1].when if vm.applied else None),
        is_number=True,
        shown=False,
    ),
    Column(
        name="VCPU-LIST",
        help="its vCPUs",
        value=_if_asked(lambda vm: vm.vcpus or ()),
        shown=False,
        nested=VCPU_COLUMNS,
    ),
    Column(
        name="PROBLEM",
        help="why it could not be asked",
        value=lambda vm: vm.problem and f"{vm.problem.message}: {vm.problem.why}",
        shown=False,
    ),
)

PLACED_COLUMNS: Sequence[Column[PlacedVcpu]] = (
    Column(name="VM", help="the VM", value=lambda its: its.vm),
    Column(name="VCPU", help="its number", value=lambda its: its.vcpu.index, is_number=True),
    Column(name="TID", help="its thread", value=lambda its: known(its.vcpu.tid), is_number=True),
    Column(
        name="CPU",
        help="the CPU it was last on",
        value=lambda its: known(its.cpu),
        is_number=True,
    ),
    Column(name="AFFINITY", help="the CPUs it may be on", value=lambda its: known(its.affinity)),
    Column(name="PMU-CPUS", help="the CPUs of its PMU", value=lambda its: its.pmu_cpus),
    Column(
        name="ALIGNED",
        help="whether it cannot leave its PMU",
        value=lambda its: known(its.aligned) if its.pmu_cpus else None,
    ),
)

CHANGE_COLUMNS: Sequence[Column[Change]] = (
    Column(name="VM", help="the VM", value=lambda change: change.vm),
    Column(name="KEY", help="the setting", value=lambda change: change.key),
    Column(
        name="OUTCOME",
        help="set, released, unchanged or planned",
        value=lambda change: change.outcome,
    ),
    Column(name="VALUE", help="what it is now", value=lambda change: change.value),
)
