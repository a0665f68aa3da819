# SPDX-License-Identifier: Apache-2.0
"""What is shown of VMs: their columns."""

from collections.abc import Callable, Sequence

from pmuctl.model.alignment import VmAlignment
from pmuctl.model.event_filter import Action, EventFilter
from pmuctl.model.pmu import format_code
from pmuctl.model.vm import Vm, VmState, Window
from pmuctl.render.columns import UNKNOWN, Column, Shape, known
from pmuctl.render.text import printable
from pmuctl.render.vcpu import CANDIDATES_SHAPE, VCPU_COLUMNS, Candidates


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


def _is_blank(vm: Vm) -> bool:
    """Whether nothing is known of a VM that could not be asked, not even by its process."""
    return vm.state in _UNASKED and not vm.vcpus


Held = Callable[[VmAlignment], object]


def _vm(get: Callable[[Vm], object]) -> Held:
    """What is known of a VM however that is."""
    return lambda its: get(its.vm)


def _if_held(get: Held) -> Held:
    """What follows from where its vCPUs may be, and which PMU it has."""
    return lambda its: UNKNOWN if _is_blank(its.vm) else get(its)


def _if_known(get: Callable[[Vm], object]) -> Held:
    """What a VM's socket, its record or its process tells."""
    return _if_held(_vm(get))


def _if_told(get: Callable[[Vm], object]) -> Held:
    """What a VM itself can tell, or a record of its start."""

    def value(vm: Vm) -> object:
        return UNKNOWN if vm.state in _UNASKED or not vm.is_managed else get(vm)

    return _vm(value)


def _if_asked(get: Callable[[Vm], object]) -> Held:
    """What only a VM itself can tell."""
    return _if_told(lambda vm: UNKNOWN if vm.state is VmState.ORPHANED else get(vm))


def _source(vm: Vm) -> str:
    if vm.state is VmState.ORPHANED:
        return "record"
    return "socket" if vm.is_managed else "process"


def _command_line(words: Sequence[str]) -> str:
    import shlex

    return printable(shlex.join(words))


def _pmu_name(its: VmAlignment) -> object:
    vm, chosen = its.vm, its.effective_pmu
    if chosen.pmu is not None:
        return chosen.pmu.name
    if chosen.candidates:
        return Candidates(chosen.candidates)
    # a VM of a host without a PMU can have none
    has_none = vm.state is VmState.WAITING or vm.window in (Window.NONE, Window.OPEN)
    return None if has_none or not vm.is_managed else UNKNOWN


def _pmu_origin(its: VmAlignment) -> object:
    return (
        UNKNOWN
        if its.effective_pmu.candidates
        else its.effective_pmu.pmu and its.effective_pmu.pmu.origin
    )


def _uuid(vm: Vm) -> object:
    return UNKNOWN if vm.state in (*_UNASKED, VmState.ORPHANED) else vm.uuid


def _aligned(its: VmAlignment) -> object:
    """Of a VM that has no PMU there is nothing to say."""
    if not its.effective_pmu.names:
        return None if _pmu_name(its) is None else UNKNOWN
    return known(its.alignment.aligned)


VM_COLUMNS: Sequence[Column[VmAlignment]] = (
    Column(name="NAME", help="the VM's name", value=_vm(lambda vm: vm.name)),
    Column(
        name="STATE",
        help="waiting, starting, running, paused, orphaned, dead, denied, silent",
        value=_vm(lambda vm: vm.state),
    ),
    Column(
        name="PID",
        help="the process of its VMM",
        value=_vm(lambda vm: known(vm.pid)),
        is_number=True,
    ),
    Column(
        name="VCPUS",
        help="how many vCPUs it has",
        value=_vm(lambda vm: UNKNOWN if vm.vcpus is None else len(vm.vcpus)),
        is_number=True,
    ),
    Column(
        name="PMU",
        help="the PMU it has, or those it can have",
        value=_if_held(_pmu_name),
        shape=CANDIDATES_SHAPE,
    ),
    Column(
        name="FILTER",
        help="its event filter",
        value=_if_told(lambda vm: vm.filter),
        shape=FILTER_SHAPE,
    ),
    Column(
        name="WINDOW",
        help="whether KVM still takes settings: open, sealed, none",
        value=_if_known(lambda vm: known(vm.window)),
    ),
    Column(
        name="ALIGNED",
        help="whether no vCPU can leave its PMU",
        value=_if_held(_aligned),
    ),
    Column(
        name="MEANS",
        help="what it means where its vCPUs may be",
        value=_if_held(lambda its: its.explanation),
        shown=False,
    ),
    Column(
        name="CANDIDATES",
        help="the PMUs that KVM can have chosen",
        value=_if_held(lambda its: its.effective_pmu.candidates),
        shown=False,
        in_json=True,
    ),
    Column(name="SOURCE", help="who tells of it", value=_vm(_source), shown=False),
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
        value=_if_held(lambda its: its.effective_pmu.pmu and its.effective_pmu.pmu.type),
        is_number=True,
        shown=False,
    ),
    Column(
        name="PMU-ORIGIN",
        help="who says which PMU it has",
        value=_if_held(_pmu_origin),
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
        value=_if_told(lambda vm: vm.filter and vm.filter.describe(vm.event_names)),
        shown=False,
    ),
    Column(
        name="FILTER-ORIGIN",
        help="who says which filter it has",
        value=_if_told(lambda vm: vm.filter_origin),
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
        value=_if_known(lambda vm: known(vm.vmm) if vm.state is not VmState.ORPHANED else UNKNOWN),
        shown=False,
    ),
    Column(
        name="OWNER",
        help="the user id its VMM runs as",
        value=_if_known(lambda vm: vm.owner),
        is_number=True,
        shown=False,
    ),
    Column(name="UUID", help="its UUID", value=_vm(_uuid), shown=False),
    Column(name="SOCKET", help="its control socket", value=_vm(lambda vm: vm.socket), shown=False),
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
        value=_vm(lambda vm: known(vm.vcpus)),
        shown=False,
        nested=VCPU_COLUMNS,
    ),
    Column(
        name="PROBLEM",
        help="why it could not be asked",
        value=_vm(lambda vm: vm.problem and f"{vm.problem.message}: {vm.problem.why}"),
        shown=False,
    ),
)
