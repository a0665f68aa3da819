# SPDX-License-Identifier: Apache-2.0
"""Reader of what makes one cause of a symptom likelier on this host, and its fixes concrete."""

import re
from collections.abc import Sequence

from pmuctl.host.cpus import read_core, read_online, scan_cores, scan_present
from pmuctl.host.host import Host
from pmuctl.host.kvm.cache import read_cached
from pmuctl.host.pmus import rank_pmus, scan_pmus
from pmuctl.host.snapshot_files import PATH_OSRELEASE
from pmuctl.host.sysfs import PATH_EVENT_SOURCE, Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.pmu import Pmu
from pmuctl.model.symptoms.host import SymptomHost
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_SET_PMU


def read_symptom_host(host: Host) -> SymptomHost:
    """Read what is known of this host, or of a captured one, without asking KVM.

    What KVM does is known if it was probed before. Nothing is known of the host of a message that
    is explained on another kind of machine.
    """
    sysfs = host.sysfs
    pmus = scan_pmus(sysfs, sysfs.entries(PATH_EVENT_SOURCE))
    if host.is_live and not pmus and not scan_cores(sysfs, scan_present(sysfs)):
        return SymptomHost()  # no CPU has a MIDR: it is no arm64 host
    probed = read_cached(sysfs, pmus, host.environ, uid=host.uid)
    has_vpmu = probed.has_vpmu if probed else None
    online = read_online(sysfs)
    return SymptomHost(
        core_kinds=_count_core_kinds(sysfs, pmus),
        kernel=_parse_release(sysfs.read_text(PATH_OSRELEASE)),
        has_vpmu=has_vpmu,
        has_set_pmu=KVM_ARM_VCPU_PMU_V3_SET_PMU in probed.attributes
        if probed and has_vpmu
        else None,
        online=online,
        pmus=tuple((pmu.name, _online_cpus(pmu, online)) for pmu in rank_pmus(pmus, sysfs)),
    )


def _count_core_kinds(sysfs: Sysfs, pmus: Sequence[Pmu]) -> int | None:
    """Return the number of kinds of core of the CPUs; None if too little is known of them.

    Several PMUs are several kinds, also if the CPUs of one are offline, whose MIDR is not shown.
    """
    cores = [read_core(sysfs, cpu) for cpu in scan_present(sysfs)]
    kinds = {(core.implementer, core.part) for core in cores if core is not None}
    count = max(len(kinds), len(pmus))
    if count == 1 and None in cores:
        return None
    return count or None


def _parse_release(release: str | None) -> tuple[int, int] | None:
    """Return the version in a release such as "6.1.75-vendor-rk35xx": (6, 1)."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})", release or "")
    return (int(match[1]), int(match[2])) if match else None


def _online_cpus(pmu: Pmu, online: CpuSet | None) -> CpuSet:
    """Return the CPUs of a PMU that are online, all of its CPUs if that is not known."""
    cpus = pmu.cpus or CpuSet()
    return cpus if online is None else cpus & online
