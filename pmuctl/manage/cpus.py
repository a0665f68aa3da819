# SPDX-License-Identifier: Apache-2.0
"""The CPUs of a machine: which PMU and core model each has."""

from collections.abc import Sequence

from pmuctl.host.cpus import read_core, read_online, scan_present
from pmuctl.host.sysfs import PATH_CPU, Sysfs
from pmuctl.model.pmu import CoreModel, Pmu
from pmuctl.value import value


@value(kw_only=True)
class Cpu:
    """One CPU; None is what could not be read, `pmu` None where none covers it."""

    number: int
    pmu: str | None
    core: CoreModel | None
    capacity: int | None
    online: bool | None


def scan_cpus(sysfs: Sysfs, pmus: Sequence[Pmu]) -> list[Cpu]:
    """Every CPU that is present, in order."""
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
