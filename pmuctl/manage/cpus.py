# SPDX-License-Identifier: Apache-2.0
"""The CPUs of a machine: which PMU and core model each has."""

from collections.abc import Sequence

from pmuctl.host.cpus import read_core, read_online, scan_present
from pmuctl.host.sysfs import PATH_CPU, Sysfs
from pmuctl.model.pmu import CoreModel, Pmu
from pmuctl.value import value


@value(kw_only=True)
class Cpu:
    """One CPU; what could not be read is None, and so is `pmu` if no PMU covers it."""

    number: int
    pmu: str | None
    core: CoreModel | None
    capacity: int | None
    online: bool | None


def scan_cpus(sysfs: Sysfs, pmus: Sequence[Pmu]) -> list[Cpu]:
    """Return every present CPU, in order."""
    online = read_online(sysfs)
    return [
        Cpu(
            number=cpu,
            pmu=next((pmu.name for pmu in pmus if pmu.cpus and cpu in pmu.cpus), None),
            core=read_core(sysfs, cpu),
            capacity=sysfs.read_int(f"{PATH_CPU}/cpu{cpu}/cpu_capacity"),
            online=None if online is None else cpu in online,
        )
        for cpu in scan_present(sysfs)
    ]
