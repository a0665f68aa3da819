# SPDX-License-Identifier: Apache-2.0
"""What is shown of vCPUs: their columns below a VM, and those of a list of vCPUs."""

from collections.abc import Callable, Sequence

from pmuctl.manage.affinity.assess import VcpuRow
from pmuctl.model.vm import VmVcpu
from pmuctl.render.columns import Column, Shape, cell, known, plain
from pmuctl.value import value

VCPU_COLUMNS: Sequence[Column[VmVcpu]] = (
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
    """Values of which one is true, and nobody knows which: none in JSON."""

    values: Sequence[object]

    def __str__(self) -> str:
        return " or ".join(cell(known(its)) for its in self.values) + "?"


def _as_text(value: object) -> str:
    return str(value) if isinstance(value, Candidates) else cell(value)


def _as_plain(value: object) -> object:
    return None if isinstance(value, Candidates) else plain(value)


CANDIDATES_SHAPE = Shape(text=_as_text, plain=_as_plain)


def _pmu_cpus(row: VcpuRow) -> object:
    chosen = row.vm.effective_pmu
    return known(chosen.only_cpus) if chosen.pmu else Candidates(tuple(chosen.cpus.values()))


def _if_chosen(get: Callable[[VcpuRow], object]) -> Callable[[VcpuRow], object]:
    """What there is to tell only of a VM that has a PMU."""
    return lambda row: get(row) if row.vm.effective_pmu.names else None


PLACED_COLUMNS: Sequence[Column[VcpuRow]] = (
    Column(name="VM", help="the VM", value=lambda row: row.vm.vm.name),
    Column(name="VCPU", help="its number", value=lambda row: row.its.index, is_number=True),
    Column(name="TID", help="its thread", value=lambda row: known(row.its.tid), is_number=True),
    Column(
        name="CPU",
        help="the CPU it was last on",
        value=lambda row: known(row.cpu),
        is_number=True,
    ),
    Column(
        name="AFFINITY", help="the CPUs it may be on", value=lambda row: known(row.its.affinity)
    ),
    Column(
        name="PMU-CPUS",
        help="the CPUs of its PMU, or of those it can have",
        value=_if_chosen(_pmu_cpus),
        shape=CANDIDATES_SHAPE,
    ),
    Column(
        name="ALIGNED",
        help="whether it cannot leave its PMU",
        value=_if_chosen(lambda row: known(row.its.alignment.aligned)),
    ),
    Column(
        name="EVIDENCE",
        help="who tells which thread it is: socket, qmp, debugfs, kvm-run, name",
        value=lambda row: row.its.vcpu.evidence,
        shown=False,
    ),
)
