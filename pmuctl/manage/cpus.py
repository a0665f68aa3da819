# SPDX-License-Identifier: Apache-2.0
"""The CPUs of a machine: which PMU and core model each has."""

from pmuctl.host.cpus import read_core, read_online, scan_present
from pmuctl.host.pmus import PmuScan
from pmuctl.host.sysfs import PATH_CPU, Sysfs
from pmuctl.model.pmu import CoreModel
from pmuctl.value import value


@value(kw_only=True)
class Cpu:
    """One CPU; what could not be read is None, and so is `pmu` if no PMU covers it.

    If `is_pmu_known` is False, a PMU may cover it that could not be read.
    """

    number: int
    pmu: str | None
    is_pmu_known: bool
    core: CoreModel | None
    capacity: int | None
    online: bool | None


def scan_cpus(sysfs: Sysfs, scan: PmuScan) -> list[Cpu]:
    """Return every present CPU, in order."""
    online = read_online(sysfs)
    is_complete = scan.is_complete and all(pmu.cpus is not None for pmu in scan.pmus)
    present = scan_present(sysfs)
    owners = {
        cpu: next((pmu.name for pmu in scan.pmus if pmu.cpus and cpu in pmu.cpus), None)
        for cpu in present
    }
    return [
        Cpu(
            number=cpu,
            pmu=owners[cpu],
            is_pmu_known=owners[cpu] is not None or is_complete,
            core=read_core(sysfs, cpu),
            capacity=sysfs.read_int(f"{PATH_CPU}/cpu{cpu}/cpu_capacity"),
            online=None if online is None else cpu in online,
        )
        for cpu in present
    ]
