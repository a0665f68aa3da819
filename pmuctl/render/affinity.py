# SPDX-License-Identifier: Apache-2.0
"""Columns of the affinity of vCPU threads: of `affinity check`, and of changes."""

from collections.abc import Callable, Sequence

from pmuctl.manage.affinity.assess import VcpuRow
from pmuctl.manage.affinity.mask_changes import AffinityResult
from pmuctl.model.effective_pmu import Consequence
from pmuctl.render.columns import NO_IS_BAD, UNKNOWN, Column, Mark
from pmuctl.render.vcpu import (
    AFFINITY_COLUMN,
    CANDIDATES_SHAPE,
    CPU_COLUMN,
    HAS_PMU_COLUMN,
    TID_COLUMN,
    VCPU_COLUMN,
    VM_COLUMN,
    Candidates,
    if_has_pmu,
)


def _unless_unknown(get: Callable[[VcpuRow], object]) -> Callable[[VcpuRow], object]:
    """Return a getter that gives UNKNOWN if it is not known whether the vCPU can leave its PMU."""
    return lambda row: UNKNOWN if row.is_unknown else get(row)


def _get_outside(row: VcpuRow) -> object:
    alignment = row.vcpu.alignment
    if len(alignment.outside) > 1:
        return Candidates(tuple(alignment.outside.values()))
    return alignment.only_outside


CHECK_COLUMNS: Sequence[Column[VcpuRow]] = (
    VM_COLUMN,
    VCPU_COLUMN,
    TID_COLUMN,
    AFFINITY_COLUMN,
    Column(
        name="PMU-CPUS",
        help="the CPUs of its PMU",
        value=if_has_pmu(lambda row: row.alignment.effective_pmu.only_cpus),
    ),
    CPU_COLUMN,
    Column(
        name="CONSEQUENCE",
        help="what happens off its PMU, if it can leave it",
        value=_unless_unknown(lambda row: row.vcpu.alignment.consequence),
        marks={"?": Mark.CAUTION, **dict.fromkeys(map(str, Consequence), Mark.BAD)},
    ),
    Column(
        name="BLOCKER",
        help="what is in the way of affinity align",
        value=lambda row: row.blocker,
        is_prose=True,
    ),
    Column(
        name="PMU",
        help="its PMU",
        value=if_has_pmu(lambda row: row.alignment.effective_pmu.only),
        shown=False,
    ),
    Column(
        name="OUTSIDE",
        help="the CPUs it may be on that are not of its PMU",
        value=_unless_unknown(_get_outside),
        shown=False,
        shape=CANDIDATES_SHAPE,
    ),
    Column(
        name="ALIGNED",
        help="whether it cannot leave its PMU",
        value=if_has_pmu(lambda row: row.vcpu.alignment.aligned),
        marks=NO_IS_BAD,
        shown=False,
    ),
    Column(
        name="VM-ALIGNED",
        help="whether no vCPU of the VM can leave its PMU",
        value=if_has_pmu(lambda row: row.alignment.aligned),
        marks=NO_IS_BAD,
        shown=False,
        in_json=True,
    ),
    HAS_PMU_COLUMN,
)

AFFINITY_COLUMNS: Sequence[Column[AffinityResult]] = (
    Column(name="VM", help="the VM", value=lambda result: result.vm),
    Column(name="VCPU", help="its number", value=lambda result: result.vcpu, is_number=True),
    Column(name="TID", help="its thread", value=lambda result: result.tid, is_number=True),
    Column(name="OUTCOME", help="set, unchanged or planned", value=lambda result: result.outcome),
    Column(name="AFFINITY", help="the CPUs it may be on now", value=lambda result: result.cpus),
    Column(
        name="BEFORE",
        help="the CPUs it might be on before",
        value=lambda result: result.before,
        shown=False,
    ),
)
