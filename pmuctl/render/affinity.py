# SPDX-License-Identifier: Apache-2.0
"""What is shown of the affinity of vCPU threads: the columns of a check, and of a change."""

from collections.abc import Callable, Sequence

from pmuctl.manage.placing import Placed
from pmuctl.manage.standing import Checked
from pmuctl.render.columns import UNKNOWN, Column, known


def _of_pmu(get: Callable[[Checked], object]) -> Callable[[Checked], object]:
    """Of a VM that has no PMU there is nothing to tell; else None is what is not known."""
    return lambda its: known(get(its)) if its.standing.cpus else None


def _if_stray(get: Callable[[Checked], object]) -> Callable[[Checked], object]:
    """What holds only of a vCPU that can leave its PMU."""
    return lambda its: UNKNOWN if its.is_unknown else get(its)


CHECK_COLUMNS: Sequence[Column[Checked]] = (
    Column(name="VM", help="the VM", value=lambda its: its.placed.vm),
    Column(
        name="VCPU", help="its number", value=lambda its: its.placed.vcpu.index, is_number=True
    ),
    Column(
        name="TID",
        help="its thread",
        value=lambda its: known(its.placed.vcpu.tid),
        is_number=True,
    ),
    Column(
        name="AFFINITY",
        help="the CPUs it may be on",
        value=lambda its: known(its.placed.affinity),
    ),
    Column(
        name="PMU-CPUS",
        help="the CPUs of its PMU",
        value=_of_pmu(lambda its: its.standing.only),
    ),
    Column(
        name="CPU",
        help="the CPU it was last on",
        value=lambda its: known(its.placed.cpu),
        is_number=True,
    ),
    Column(
        name="CONSEQUENCE",
        help="what happens off its PMU, if it can leave it",
        value=_if_stray(lambda its: its.judgement.consequence),
    ),
    Column(
        name="BLOCKER",
        help="what is in the way of affinity align",
        value=lambda its: its.blocker,
    ),
    Column(
        name="PMU",
        help="its PMU",
        value=_of_pmu(lambda its: its.standing.name),
        shown=False,
    ),
    Column(
        name="OUTSIDE",
        help="the CPUs it may be on that are not of its PMU",
        value=_if_stray(lambda its: its.judgement.outside),
        shown=False,
    ),
    Column(
        name="ALIGNED",
        help="whether it cannot leave its PMU",
        value=_of_pmu(lambda its: its.judgement.aligned),
        shown=False,
    ),
)

PLACING_COLUMNS: Sequence[Column[Placed]] = (
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
