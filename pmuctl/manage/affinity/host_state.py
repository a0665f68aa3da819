# SPDX-License-Identifier: Apache-2.0
"""The state of the host that affinity depends on, as it was at one look."""

from collections.abc import Sequence

from pmuctl.host.cpus import read_online
from pmuctl.host.cpuset_cgroup import Cpusets
from pmuctl.host.host import Host
from pmuctl.host.kvm.cache import read_cached
from pmuctl.host.pmus import look_for_pmus, rank_pmus
from pmuctl.host.sysfs import PATH_EVENT_SOURCE
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import EffectivePmu, HostPmus
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.value import field, replace, value


@value(kw_only=True)
class HostState:
    """A host, its PMUs and online CPUs, and a cache of its cpuset cgroups."""

    host: Host
    host_pmus: HostPmus
    cpusets: Cpusets = field(compare=False)

    @property
    def pmus(self) -> Sequence[Pmu]:
        """The CPU PMUs of the host."""
        return self.host_pmus.pmus

    @property
    def online(self) -> CpuSet | None:
        """The online CPUs of the host; None if they are not known."""
        return self.host_pmus.online

    def rank_pmus(self) -> Sequence[Pmu]:
        """Return the CPU PMUs of the host, the one to suggest first."""
        return rank_pmus(self.pmus, self.host.sysfs)

    def rank_cpus(self, pmu: EffectivePmu) -> list[CpuSet]:
        """Return the CPUs of the PMUs that a VM can have, of the one to suggest first."""
        choices = (pmu.cpus.get(each.name) for each in self.rank_pmus())
        return [cpus for cpus in choices if cpus]

    def read_mask(self, pid: int | None, tid: int | None) -> CpuSet | None:
        """Return the affinity mask of a thread; None if the thread is gone or not known."""
        if tid is None:
            return None
        if not self.host.is_live:
            return None if pid is None else self.host.procs.affinity(pid, tid)
        try:
            return self.host.threads.get(tid)
        except OSError:
            return None

    def with_kvm_caps(self, caps: KvmCaps | None) -> "HostState":
        """Return the state with what was probed of KVM just now; unchanged if that is None."""
        return replace(self, host_pmus=replace(self.host_pmus, probed=caps)) if caps else self


def read_host_state(host: Host) -> HostState:
    """Read the state of the host as it is now.

    No VM is made: what KVM does is known only if it was probed before. PMU names come from sysfs,
    on the live machine and in a captured tree alike.
    """
    sysfs = host.sysfs
    scan = look_for_pmus(sysfs, sysfs.entries(PATH_EVENT_SOURCE))
    caps = read_cached(sysfs, scan.pmus, host.environ, uid=host.uid)
    return HostState(
        host=host,
        host_pmus=HostPmus(
            pmus=scan.pmus,
            online=read_online(sysfs),
            probed=caps,
            is_complete=scan.is_complete,
        ),
        cpusets=Cpusets(sysfs),
    )
