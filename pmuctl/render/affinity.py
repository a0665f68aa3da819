# SPDX-License-Identifier: Apache-2.0
"""What is shown of the affinity of vCPU threads: the columns of a check, and of a change."""

from collections.abc import Callable, Sequence

from pmuctl.manage.affinity.assess import VcpuRow
from pmuctl.manage.affinity.vcpu_threads import AffinityResult
from pmuctl.render.columns import UNKNOWN, Column, known
from pmuctl.render.vcpu import CANDIDATES_SHAPE, Candidates


def _of_pmu(get: Callable[[VcpuRow], object]) -> Callable[[VcpuRow], object]:
    """Of a VM that has no PMU there is nothing to tell; else None is what is not known."""
    return lambda row: known(get(row)) if row.vm.effective_pmu.names else None


def _if_stray(get: Callable[[VcpuRow], object]) -> Callable[[VcpuRow], object]:
    """What holds only of a vCPU that can leave its PMU."""
    return lambda row: UNKNOWN if row.is_unknown else get(row)


def _outside(row: VcpuRow) -> object:
    outside = row.its.alignment.outside
    return (
        Candidates(tuple(outside.values()))
        if len(outside) > 1
        else (row.its.alignment.only_outside)
    )


CHECK_COLUMNS: Sequence[Column[VcpuRow]] = (
    Column(name="VM", help="the VM", value=lambda row: row.vm.vm.name),
    Column(name="VCPU", help="its number", value=lambda row: row.its.index, is_number=True),
    Column(
        name="TID",
        help="its thread",
        value=lambda row: known(row.its.tid),
        is_number=True,
    ),
    Column(
        name="AFFINITY",
        help="the CPUs it may be on",
        value=lambda row: known(row.its.affinity),
    ),
    Column(
        name="PMU-CPUS",
        help="the CPUs of its PMU",
        value=_of_pmu(lambda row: row.vm.effective_pmu.only_cpus),
    ),
    Column(
        name="CPU",
        help="the CPU it was last on",
        value=lambda row: known(row.cpu),
        is_number=True,
    ),
    Column(
        name="CONSEQUENCE",
        help="what happens off its PMU, if it can leave it",
        value=_if_stray(lambda row: row.its.alignment.consequence),
    ),
    Column(
        name="BLOCKER",
        help="what is in the way of affinity align",
        value=lambda row: row.blocker,
    ),
    Column(
        name="PMU",
        help="its PMU",
        value=_of_pmu(lambda row: row.vm.effective_pmu.only),
        shown=False,
    ),
    Column(
        name="OUTSIDE",
        help="the CPUs it may be on that are not of its PMU",
        value=_if_stray(_outside),
        shown=False,
        shape=CANDIDATES_SHAPE,
    ),
    Column(
        name="ALIGNED",
        help="whether it cannot leave its PMU",
        value=_of_pmu(lambda row: row.its.alignment.aligned),
        shown=False,
    ),
    Column(
        name="VM-ALIGNED",
        help="whether no vCPU of the VM can leave its PMU",
        value=_of_pmu(lambda row: row.vm.alignment.aligned),
        shown=False,
        in_json=True,
    ),
)

PLACING_COLUMNS: Sequence[Column[AffinityResult]] = (
    Column(name="VM", help="the VM", value=lambda its: its.vm),
    Column(name="VCPU", help="its number", value=lambda its: its.vcpu, is_number=True),
    Column(name="TID", help="its thread", value=lambda its: its.tid, is_number=True),
    Column(name="OUTCOME", help="set, unchanged or planned", value=lambda its: its.outcome),
    Column(name="AFFINITY", help="the CPUs it may be on now", value=lambda its: its.cpus),
    Column(
        name="BEFORE",
        help="the CPUs it might be on before",
        value=lambda its: its.before,
        shown=False,
    ),
)
