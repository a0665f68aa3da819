# SPDX-License-Identifier: Apache-2.0
"""This host: its kernel and CPUs, and what KVM can do here."""

from collections.abc import Mapping, Sequence

from pmuctl.host.cpus import read_core, read_online, scan_present
from pmuctl.host.host import Host
from pmuctl.host.kvm.access import KvmAccess, read_kvm_mode
from pmuctl.host.kvm.cache import read_cached, read_kvm_caps
from pmuctl.host.snapshot_files import PATH_OSRELEASE
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.pmu import CoreModel, Pmu
from pmuctl.value import value


@value(kw_only=True)
class HostReport:
    """One machine; `probed` is None where KVM was not asked."""

    kernel: str | None
    kvm: KvmAccess | None
    mode: str | None
    present: CpuSet
    online: CpuSet | None
    cores: Mapping[CoreModel | None, CpuSet]
    pmus: Sequence[Pmu]
    probed: KvmCaps | None


def read_host(host: Host, pmus: Sequence[Pmu]) -> HostReport:
    """This machine, KVM probed on scratch VMs (once a boot), or another one's captured tree."""
    sysfs = host.sysfs
    release = sysfs.read_text(PATH_OSRELEASE)
    access = host.kvm.access() if host.kvm else None
    return HostReport(
        kernel=release.strip() if release else None,
        kvm=access,
        mode=read_kvm_mode() if sysfs.is_live else None,
        present=scan_present(sysfs),
        online=read_online(sysfs),
        cores=_cores(sysfs),
        pmus=pmus,
        probed=read_probed(host, pmus, access),
    )


def read_probed(host: Host, pmus: Sequence[Pmu], access: KvmAccess | None) -> KvmCaps | None:
    """What KVM does: tried on scratch VMs, once a boot, or what others found before.

    Of a captured tree it is what was captured. Raises OSError as `probe_kvm_caps` does.
    """
    if access is KvmAccess.USABLE:
        return read_kvm_caps(host.sysfs, pmus, host.environ)
    return read_cached(host.sysfs, pmus, host.environ)


def _cores(sysfs: Sysfs) -> dict[CoreModel | None, CpuSet]:
    cores: dict[CoreModel | None, CpuSet] = {}
    for cpu in scan_present(sysfs):
        core = read_core(sysfs, cpu)
        cores[core] = cores.get(core, CpuSet()) | CpuSet.of([cpu])
    return cores
