# SPDX-License-Identifier: Apache-2.0
"""Facts about a host: its kernel, its CPUs and PMUs, and what KVM can do there."""

from collections.abc import Mapping, Sequence

from pmuctl.host.cpus import read_core, read_online, scan_present
from pmuctl.host.host import Host
from pmuctl.host.kvm.access import KvmAccess, read_kvm_mode
from pmuctl.host.kvm.cache import read_cached, read_kvm_caps
from pmuctl.host.pmus import PmuScan
from pmuctl.host.snapshot_files import PATH_OSRELEASE
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.pmu import CoreModel, Pmu
from pmuctl.value import value


@value(kw_only=True)
class HostReport:
    """One host; `probed` is None if KVM was not asked.

    `are_pmus_complete` is False if there may be other CPU PMUs, which could not be seen.
    """

    kernel: str | None
    kvm: KvmAccess | None
    mode: str | None
    present: CpuSet
    online: CpuSet | None
    cores: Mapping[CoreModel | None, CpuSet]
    pmus: Sequence[Pmu]
    are_pmus_complete: bool
    probed: KvmCaps | None


def read_host(host: Host, scan: PmuScan) -> HostReport:
    """Read this host, with KVM probed on scratch VMs (once a boot), or a captured tree.

    Raise OSError as `probe_kvm_caps` does.
    """
    sysfs = host.sysfs
    release = sysfs.read_text(PATH_OSRELEASE)
    access = host.kvm.access() if host.kvm else None
    return HostReport(
        kernel=release.strip() if release else None,
        kvm=access,
        mode=read_kvm_mode() if sysfs.is_live else None,
        present=scan_present(sysfs),
        online=read_online(sysfs),
        cores=_group_by_core(sysfs),
        pmus=scan.pmus,
        are_pmus_complete=scan.is_complete,
        probed=read_host_kvm_caps(host, scan.pmus, access),
    )


def read_host_kvm_caps(
    host: Host, pmus: Sequence[Pmu], access: KvmAccess | None
) -> KvmCaps | None:
    """Return what KVM does: probed on scratch VMs, once a boot, if this user may use it.

    Otherwise return what others found before, and for a captured tree what was captured; None if
    that is nothing. Raise OSError as `probe_kvm_caps` does.
    """
    if host.kvm is not None and access is KvmAccess.USABLE:
        return read_kvm_caps(host.sysfs, pmus, host.environ, uid=host.uid, probe=host.kvm.probe)
    return read_cached(host.sysfs, pmus, host.environ, uid=host.uid)


def explain_unknown(report: HostReport, *, is_live: bool) -> str | None:
    """Return why facts of KVM are not known, and what to type instead; None if all are known."""
    is_probed = report.probed is not None and report.probed.has_vpmu is not None
    if not is_live and is_probed:
        return "KVM and KVM-MODE are not captured; to see them, on that host: pmuctl host info"
    if not is_live:
        why = "no probe of KVM was captured"
        return f"what KVM does is not known: {why}; on that host: sudo pmuctl host snapshot DIR"
    if is_probed or report.kvm is KvmAccess.USABLE:
        return None
    if report.kvm is KvmAccess.DENIED:
        why = "this user may not open /dev/kvm"
        return f"what KVM does is not known: {why}; as root: sudo pmuctl host info"
    return "what KVM does is not known: there is no /dev/kvm"


def _group_by_core(sysfs: Sysfs) -> dict[CoreModel | None, CpuSet]:
    """Return the present CPUs by core model; None stands for a model that could not be read."""
    cores: dict[CoreModel | None, CpuSet] = {}
    for cpu in scan_present(sysfs):
        core = read_core(sysfs, cpu)
        cores[core] = cores.get(core, CpuSet()) | CpuSet.of([cpu])
    return cores
