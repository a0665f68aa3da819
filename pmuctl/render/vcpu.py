# SPDX-License-Identifier: Apache-2.0
"""Columns of vCPUs: below a VM, and in a list of vCPUs; the columns that such lists share."""

from collections.abc import Callable, Sequence

from pmuctl.manage.affinity.assess import VcpuRow
from pmuctl.model.alignment import VmAlignment
from pmuctl.model.vm import VmState, VmVcpu, Window
from pmuctl.render.columns import NO_IS_BAD, UNKNOWN, Column, Shape, cell, known, plain
from pmuctl.value import value

NESTED_COLUMNS: Sequence[Column[VmVcpu]] = (
    Column(name="VCPU", help="its number", value=lambda vcpu: vcpu.index, is_number=True),
    Column(name="TID", help="its thread", value=lambda vcpu: known(vcpu.tid), is_number=True),
    Column(
        name="INITIALISED",
        help="whether its PMU is initialised",
        value=lambda vcpu: known(vcpu.initialised),
    ),
    Column(name="HAS-RUN", help="whether it has run", value=lambda vcpu: known(vcpu.has_run)),
    Column(
        name="EVIDENCE",
        help="who tells which thread it is: socket, qmp, debugfs, kvm-run, name",
        value=lambda vcpu: vcpu.evidence,
    ),
)


@value
class Candidates:
    """Possible values of which one is the true one, not known which; null in JSON."""

    values: Sequence[object]

    def __str__(self) -> str:
        return " or ".join(cell(known(item)) for item in self.values) + "?"


def _format_text(value: object) -> str:
    return str(value) if isinstance(value, Candidates) else cell(value)


def _convert_to_plain(value: object) -> object:
    return None if isinstance(value, Candidates) else plain(value)


CANDIDATES_SHAPE = Shape(text=_format_text, plain=_convert_to_plain)


def _get_pmu_cpus(row: VcpuRow) -> object:
    effective = row.alignment.effective_pmu
    return effective.only_cpus if effective.pmu else Candidates(tuple(effective.cpus.values()))


def if_has_pmu(get: Callable[[VcpuRow], object]) -> Callable[[VcpuRow], object]:
    """Return a getter that gives None if the VM has no PMU, and UNKNOWN if `get` gives None.

    It also gives UNKNOWN if it is not known whether the VM has a PMU.
    """

    def get_value(row: VcpuRow) -> object:
        if not row.alignment.effective_pmu.is_known:
            return UNKNOWN
        return known(get(row)) if row.alignment.effective_pmu.names else None

    return get_value


def get_has_pmu(alignment: VmAlignment) -> object:
    """Return whether a VM has a PMU; UNKNOWN if that is not known, or not decided yet."""
    effective, vm = alignment.effective_pmu, alignment.vm
    if effective.names or not effective.is_known:
        return bool(effective.names) or UNKNOWN
    is_undecided = vm.window is Window.OPEN or vm.state in (VmState.WAITING, VmState.STARTING)
    return UNKNOWN if is_undecided and not vm.is_without_pmu else False


VM_COLUMN: Column[VcpuRow] = Column(
    name="VM", help="the VM", value=lambda row: row.alignment.vm.name
)
VCPU_COLUMN: Column[VcpuRow] = Column(
    name="VCPU", help="its number", value=lambda row: row.vcpu.index, is_number=True
)
TID_COLUMN: Column[VcpuRow] = Column(
    name="TID", help="its thread", value=lambda row: known(row.vcpu.tid), is_number=True
)
CPU_COLUMN: Column[VcpuRow] = Column(
    name="CPU", help="the CPU it was last on", value=lambda row: known(row.cpu), is_number=True
)
AFFINITY_COLUMN: Column[VcpuRow] = Column(
    name="AFFINITY", help="the CPUs it may be on", value=lambda row: known(row.vcpu.affinity)
)
HAS_PMU_COLUMN: Column[VcpuRow] = Column(
    name="HAS-PMU",
    help="whether its VM has a PMU",
    value=lambda row: get_has_pmu(row.alignment),
    shown=False,
    in_json=True,
)


VCPU_COLUMNS: Sequence[Column[VcpuRow]] = (
    VM_COLUMN,
    VCPU_COLUMN,
    TID_COLUMN,
    CPU_COLUMN,
    AFFINITY_COLUMN,
    Column(
        name="PMU-CPUS",
        help="the CPUs of its PMU, or of those it can have",
        value=if_has_pmu(_get_pmu_cpus),
        shape=CANDIDATES_SHAPE,
    ),
    Column(
        name="ALIGNED",
        help="whether it cannot leave its PMU",
        value=if_has_pmu(lambda row: row.vcpu.alignment.aligned),
        marks=NO_IS_BAD,
    ),
    HAS_PMU_COLUMN,
    Column(
        name="EVIDENCE",
        help="who tells which thread it is: socket, qmp, debugfs, kvm-run, name",
        value=lambda row: row.vcpu.vcpu.evidence,
        shown=False,
    ),
)
