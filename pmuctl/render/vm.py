# SPDX-License-Identifier: Apache-2.0
"""Columns of VMs."""

from collections.abc import Callable, Sequence

from pmuctl.model.alignment import VmAffinityRecord, VmAlignment
from pmuctl.model.event_filter import Action, EventFilter
from pmuctl.model.pmu import format_code
from pmuctl.model.vm import Vm, VmState, Window
from pmuctl.render.columns import NO_IS_BAD, UNKNOWN, Column, Mark, Shape, cell, known
from pmuctl.render.text import printable
from pmuctl.render.vcpu import CANDIDATES_SHAPE, NESTED_COLUMNS, Candidates, get_has_pmu


def filter_summary(event_filter: EventFilter) -> str:
    """Return a filter as the text of a table cell: how many events it allows or denies."""
    count = len(event_filter.exceptions)
    if event_filter.default is Action.DENY:
        return f"{count} allowed" if count else "all denied"
    return f"{count} denied" if count else "all allowed"


def filter_plain(event_filter: EventFilter) -> dict[str, object]:
    """Return a filter as JSON: its default, and the ranges of events that are exceptions to it."""
    ranges = [
        {"code": base, "code_hex": format_code(base), "nevents": nevents}
        for base, nevents in event_filter.exceptions.runs()
    ]
    return {"default": str(event_filter.default), "except": ranges}


FILTER_SHAPE = Shape(text=filter_summary, plain=filter_plain)


_NOT_QUERIED = (VmState.DEAD, VmState.DENIED, VmState.SILENT)


def _is_blank(vm: Vm) -> bool:
    """Return True if a VM could not be queried, and its process tells nothing either."""
    return vm.state in _NOT_QUERIED and not vm.vcpus


Getter = Callable[[VmAlignment], object]


def _from_vm(get: Callable[[Vm], object]) -> Getter:
    """Return a getter of what is known of a VM, whatever the source."""
    return lambda alignment: get(alignment.vm)


def _unless_blank(get: Getter) -> Getter:
    """Return a getter of the PMU or alignment of a VM; UNKNOWN if nothing is known of the VM."""
    return lambda alignment: UNKNOWN if _is_blank(alignment.vm) else get(alignment)


def _if_known(get: Callable[[Vm], object]) -> Getter:
    """Return a getter of what the socket, the record or the process of a VM tells."""
    return _unless_blank(_from_vm(get))


def _if_reported(get: Callable[[Vm], object]) -> Getter:
    """Return a getter of what only the socket of a VM or the record of its start can tell."""

    def get_reported(vm: Vm) -> object:
        return UNKNOWN if vm.state in _NOT_QUERIED or not vm.is_managed else get(vm)

    return _from_vm(get_reported)


def _if_queried(get: Callable[[Vm], object]) -> Getter:
    """Return a getter of what only the socket of a VM can tell."""
    return _if_reported(lambda vm: UNKNOWN if vm.state is VmState.ORPHANED else get(vm))


def _get_source(vm: Vm) -> str:
    if vm.state is VmState.ORPHANED:
        return "record"
    return "socket" if vm.is_managed else "process"


def _quote_command(argv: Sequence[str]) -> str:
    import shlex

    return printable(shlex.join(argv))


def _get_pmu_name(alignment: VmAlignment) -> object:
    vm, effective = alignment.vm, alignment.effective_pmu
    if effective.pmu is not None:
        return effective.pmu.name
    if not effective.is_known:
        return UNKNOWN
    if effective.candidates:
        return Candidates(effective.candidates)
    # a VM on a host without a PMU cannot have one
    has_none = vm.state is VmState.WAITING or vm.window in (Window.NONE, Window.OPEN)
    return None if has_none or not vm.is_managed else UNKNOWN


def _get_pmu_type(alignment: VmAlignment) -> object:
    effective = alignment.effective_pmu
    if effective.candidates or not effective.is_known:
        return UNKNOWN
    return effective.pmu and effective.pmu.type


def _get_pmu_origin(alignment: VmAlignment) -> object:
    effective = alignment.effective_pmu
    if effective.candidates or not effective.is_known:
        return UNKNOWN
    return effective.pmu and effective.pmu.origin


def _get_has_pmu(alignment: VmAlignment) -> object:
    return UNKNOWN if _get_pmu_name(alignment) is UNKNOWN else get_has_pmu(alignment)


def _get_candidates(alignment: VmAlignment) -> object:
    effective = alignment.effective_pmu
    return effective.candidates if effective.is_known else UNKNOWN


def _get_uuid(vm: Vm) -> object:
    return UNKNOWN if vm.state in (*_NOT_QUERIED, VmState.ORPHANED) else vm.uuid


def _get_problem(vm: Vm) -> object:
    problem = vm.problem or vm.unmade
    return problem and f"{problem.message}: {problem.why}"


def _get_aligned(alignment: VmAlignment) -> object:
    """Return whether the VM stays on its PMU; None if it has no PMU."""
    if not alignment.effective_pmu.names:
        return None if _get_pmu_name(alignment) is None else UNKNOWN
    return known(alignment.aligned)


def _explain(alignment: VmAlignment) -> object:
    """Return what its placement means for the guest, or why a VMM that is known gave it no PMU."""
    vm = alignment.vm
    if vm.is_without_pmu and vm.identity.kind is not None:
        return vm.identity.explain_no_vpmu()
    return alignment.explanation


def _get_affinity(alignment: VmAlignment) -> object:
    record = alignment.affinity_record
    if record is None:
        return UNKNOWN
    return record if record.cpus or record.is_left_alone else None


def _describe_record(record: VmAffinityRecord) -> str:
    """Return where pmuctl put vCPUs, as `vm set` takes it if that is one place for all."""
    if record.is_left_alone:
        return "none"
    places = list(dict.fromkeys(map(str, record.cpus.values())))
    return places[0] if len(places) == 1 else cell(record.cpus)


def _record_plain(record: VmAffinityRecord) -> dict[str, object]:
    vcpus = {str(index): list(cpus) for index, cpus in record.cpus.items()}
    return {"left_alone": record.is_left_alone, "vcpus": vcpus}


AFFINITY_COLUMN: Column[VmAlignment] = Column(
    name="AFFINITY",
    help="where pmuctl last put its vCPUs",
    value=_get_affinity,
    shape=Shape(text=_describe_record, plain=_record_plain),
    shown=False,
)


VM_COLUMNS: Sequence[Column[VmAlignment]] = (
    Column(name="NAME", help="the VM's name", value=_from_vm(lambda vm: vm.name)),
    Column(
        name="STATE",
        help="waiting, starting, running, paused, orphaned, dead, denied, silent",
        value=_from_vm(lambda vm: vm.state),
        marks={
            VmState.RUNNING: Mark.GOOD,
            VmState.WAITING: Mark.CAUTION,
            **dict.fromkeys((VmState.ORPHANED, *_NOT_QUERIED), Mark.BAD),
        },
    ),
    Column(
        name="PID",
        help="the process of its VMM",
        value=_from_vm(lambda vm: known(vm.pid)),
        is_number=True,
    ),
    Column(
        name="VCPUS",
        help="how many vCPUs it has",
        value=_from_vm(lambda vm: UNKNOWN if vm.vcpus is None else len(vm.vcpus)),
        is_number=True,
    ),
    Column(
        name="PMU",
        help="the PMU it has, or those it can have",
        value=_unless_blank(_get_pmu_name),
        shape=CANDIDATES_SHAPE,
    ),
    Column(
        name="FILTER",
        help="its event filter",
        value=_if_reported(lambda vm: vm.filter),
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
        value=_unless_blank(_get_aligned),
        marks=NO_IS_BAD,
    ),
    Column(
        name="MEANS",
        help="what it means where its vCPUs may be",
        value=_unless_blank(_explain),
        shown=False,
        is_prose=True,
    ),
    AFFINITY_COLUMN,
    Column(
        name="HAS-PMU",
        help="whether it has a PMU",
        value=_unless_blank(_get_has_pmu),
        shown=False,
        is_detail=True,
        in_json=True,
    ),
    Column(
        name="CANDIDATES",
        help="the PMUs that KVM can have chosen",
        value=_unless_blank(_get_candidates),
        shown=False,
        in_json=True,
    ),
    Column(
        name="SOURCE",
        help="who tells of it",
        value=_from_vm(_get_source),
        shown=False,
        is_detail=True,
    ),
    Column(
        name="SEALED-BY",
        help="what closed its window",
        value=_if_known(lambda vm: vm.by),
        shown=False,
    ),
    Column(
        name="SINCE",
        help="when its window was closed",
        value=_if_queried(lambda vm: vm.since),
        is_time=True,
        shown=False,
    ),
    Column(
        name="PMU-TYPE",
        help="the perf type of its PMU",
        value=_unless_blank(_get_pmu_type),
        is_number=True,
        shown=False,
        is_detail=True,
    ),
    Column(
        name="PMU-ORIGIN",
        help="who says which PMU it has",
        value=_unless_blank(_get_pmu_origin),
        shown=False,
    ),
    Column(
        name="COUNTERS",
        help="the number of counters it was given",
        value=_if_queried(lambda vm: vm.counters),
        is_number=True,
        shown=False,
    ),
    Column(
        name="COUNTERS-ORIGIN",
        help="who says how many counters it has",
        value=_if_queried(lambda vm: vm.counters_origin),
        shown=False,
        is_detail=True,
    ),
    Column(
        name="RULES",
        help="its event filter, as vm set takes it",
        value=_if_reported(lambda vm: vm.filter and vm.filter.describe(vm.event_names)),
        shown=False,
    ),
    Column(
        name="FILTER-ORIGIN",
        help="who says which filter it has",
        value=_if_reported(lambda vm: vm.filter_origin),
        shown=False,
        is_detail=True,
    ),
    Column(
        name="EVENT-BITS",
        help="the width of its event space",
        value=_if_queried(lambda vm: known(vm.event_bits)),
        is_number=True,
        shown=False,
        is_detail=True,
    ),
    Column(
        name="ATTRIBUTES",
        help="the PMU attributes its kernel has",
        value=_if_queried(lambda vm: vm.attributes),
        shown=False,
        is_detail=True,
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
    Column(name="UUID", help="its UUID", value=_from_vm(_get_uuid), shown=False, is_detail=True),
    Column(
        name="SOCKET", help="its control socket", value=_from_vm(lambda vm: vm.socket), shown=False
    ),
    Column(
        name="COMMAND",
        help="the command that pmuctl run started",
        value=_if_known(lambda vm: vm.command),
        shown=False,
        shape=Shape(text=_quote_command, plain=list),
    ),
    Column(
        name="APPLIED-BY",
        help="who set it last under pmuctl run",
        value=_if_known(lambda vm: vm.applied[-1].by if vm.applied else None),
        shown=False,
    ),
    Column(
        name="APPLIED-AT",
        help="when that was",
        value=_if_known(lambda vm: vm.applied[-1].when if vm.applied else None),
        is_time=True,
        shown=False,
    ),
    Column(
        name="VCPU-LIST",
        help="its vCPUs",
        value=_from_vm(lambda vm: known(vm.vcpus)),
        shown=False,
        nested=NESTED_COLUMNS,
    ),
    Column(
        name="PROBLEM",
        help="why it could not be asked",
        value=_from_vm(_get_problem),
        shown=False,
        is_prose=True,
    ),
)
