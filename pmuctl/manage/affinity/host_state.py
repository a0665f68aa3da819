# SPDX-License-Identifier: Apache-2.0
"""The machine on which VMs are judged and their threads placed, as it was at one look."""

from collections.abc import Mapping, Sequence

from pmuctl.host.cpus import read_online
from pmuctl.host.cpuset_cgroup import Cpusets
from pmuctl.host.kvm.cache import read_cached
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.procfs import Procfs
from pmuctl.host.sysfs import PATH_EVENT_SOURCE, Sysfs
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.manage.inventory.query import Session
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import HostPmus
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.value import field, replace, value


@value(kw_only=True)
class HostState:
    """Where VMs are: how this user reaches them, and what the truth about them rests on.

    `live_threads` are None where it is another machine's tree, `cpusets` what was read of them.
    """

    reach: Session
    ground: HostPmus
    live_threads: ThreadAffinity | None
    cpusets: Cpusets = field(compare=False)

    @property
    def sysfs(self) -> Sysfs:
        """Its /sys and /proc."""
        return self.reach.sysfs

    @property
    def procs(self) -> Procfs:
        """Its processes."""
        return self.reach.procs

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment of this process."""
        return self.reach.environ

    @property
    def uid(self) -> int:
        """The user who acts."""
        return self.reach.uid

    @property
    def pmus(self) -> Sequence[Pmu]:
        """Its CPU PMUs."""
        return self.ground.pmus

    @property
    def online(self) -> CpuSet | None:
        """Its online CPUs, None where they are not known."""
        return self.ground.online

    @property
    def threads(self) -> ThreadAffinity:
        """The threads of this machine; raises ValueError of another one's tree, which has none."""
        if self.live_threads is None:
            raise ValueError("a captured tree has no threads to be placed")
        return self.live_threads

    def mask(self, pid: int | None, tid: int | None) -> CpuSet | None:
        """The CPUs that a thread may be on; None where it is gone or not known."""
        if tid is None:
            return None
        if self.live_threads is None:
            return None if pid is None else self.procs.affinity(pid, tid)
        try:
            return self.live_threads.get(tid)
        except OSError:
            return None

    def with_probed(self, probed: KvmCaps | None) -> "HostState":
        """The same, with what KVM was found to do just now, if it was."""
        return replace(self, ground=replace(self.ground, probed=probed)) if probed else self


def read_host_state(reach: Session, threads: ThreadAffinity) -> HostState:
    """The machine as it is now. No VM is made: what KVM does is known if it was probed before.

    PMUs are named by sysfs, on the live machine as in a captured tree.
    """
    sysfs = reach.sysfs
    pmus = scan_pmus(sysfs, sysfs.entries(PATH_EVENT_SOURCE))
    probed = read_cached(sysfs, pmus, reach.environ, uid=reach.uid)
    return HostState(
        reach=reach,
        ground=HostPmus(pmus=pmus, online=read_online(sysfs), probed=probed),
        live_threads=threads if reach.is_live else None,
        cpusets=Cpusets(sysfs),
    )
