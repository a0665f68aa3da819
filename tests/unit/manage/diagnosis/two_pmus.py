# SPDX-License-Identifier: Apache-2.0
"""A host with two PMUs, for the checks of `pmuctl doctor`, and what a check comes to."""

from pmuctl.model.check_result import Result
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.pmu import Pmu

PASS, WARN, FAIL = Result
A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
ALL = CpuSet.parse("0-3")


def pmu(name: str, cpus: str, online: str | None = None, type: int = 10) -> Pmu:
    return Pmu(
        name=name,
        path=f"/sys/devices/{name}",
        type=type,
        cpus=CpuSet.parse(cpus),
        online=CpuSet.parse(cpus if online is None else online),
        cores=(),
        events={},
        formats={},
        caps={},
    )


PMUS = (pmu(A53, "0-1"), pmu(A72, "2-3", type=11))
