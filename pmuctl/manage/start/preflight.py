# SPDX-License-Identifier: Apache-2.0
"""Checks of this host against the settings of a VMM, made before the VMM is started."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pmuctl.errors import (
    DeniedError,
    RefusedError,
    UnsupportedError,
    UsageError,
)
from pmuctl.host.cpus import read_online
from pmuctl.host.host import Host
from pmuctl.host.kvm.access import Kvm, KvmAccess
from pmuctl.host.kvm.cache import read_kvm_caps
from pmuctl.host.procfs import Procfs
from pmuctl.host.sysfs import Sysfs
from pmuctl.manage.hints import bring_online, describe_cpus, grant_kvm_access
from pmuctl.manage.resolve import resolve_cpus
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event_filter import EventFilter
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.plan import CurrentState, TargetSettings, make_pinned_error, no_attribute, plan
from pmuctl.model.pmu import Pmu
from pmuctl.model.vmm.service_client import find_service_client
from pmuctl.model.vpmu import Vpmu
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_FILTER, KVM_ARM_VCPU_PMU_V3_SET_PMU


def check_kernel(probed: KvmCaps, pmu: Pmu | None, event_filter: EventFilter | None) -> None:
    """Refuse what this host's KVM cannot do, by the rules that a VM's settings are planned with.

    Raise UnsupportedError if guests can have no PMU or an attribute is missing, NotFoundError for
    a PMU that KVM does not know, UsageError for an event past the event space.
    """
    fix = "pmuctl doctor tells why; --best-effort starts the VMM all the same"
    check_has_vpmu(probed, fix=fix)
    if KVM_ARM_VCPU_PMU_V3_SET_PMU not in probed.attributes:
        raise no_attribute("SET_PMU")
    if pmu is not None and pmu.type is not None:
        wanted = TargetSettings(type=pmu.type, name=pmu.name, filter=event_filter)
        plan(CurrentState(vpmu=Vpmu(caps=probed), threads={}), wanted)
        # a FILTER call locks the PMU even if no filter is wanted
        if KVM_ARM_VCPU_PMU_V3_FILTER not in probed.attributes:
            raise no_attribute("FILTER")


def check_has_vpmu(caps: KvmCaps, *, fix: str | None = None) -> None:
    """Raise UnsupportedError if this host's KVM gives guests no PMU."""
    if not caps.has_vpmu:
        raise UnsupportedError(
            "guests can have no PMU here",
            why="KVM has no KVM_CAP_ARM_PMU_V3: no arm64 host, or one whose CPUs lack it",
            fix=fix,
        )


@contextmanager
def _refuse_on_oserror(message: str) -> Iterator[None]:
    """Raise RefusedError with this message instead of an OSError."""
    try:
        yield
    except OSError as error:
        raise RefusedError(message, why=error.strerror or str(error)) from error


def check_own_process(procs: Procfs, pid: int) -> None:
    """Refuse a /proc in which the VMM, which will be process `pid`, is another process or none.

    Nobody could follow its threads by their ids there. Raise RefusedError.
    """
    seen = procs.read_own_id()
    if seen != pid:
        shown = "none" if seen is None else f"process {seen}"
        raise RefusedError(
            "/proc is not that of this pid namespace",
            why=f"this is process {pid}, and /proc/self is {shown}",
            fix="mount the namespace's own: mount -t proc proc /proc",
        )


def check_is_no_client(command: Sequence[str]) -> None:
    """Raise UsageError for a command that has a service start the VM."""
    client = find_service_client(command)
    if client is not None:
        raise UsageError(
            f"{client.program} is not a VMM: {client.starts} starts the VM",
            why="the settings reach only VMs of the command itself and of its descendants",
            fix=client.fix,
        )


def check_access(kvm: Kvm | None) -> Kvm:
    """Return KVM if this user can use it.

    Raise UnsupportedError if there is none, DeniedError if this user may not use it.
    """
    access = kvm.access() if kvm is not None else KvmAccess.MISSING
    if kvm is None or access is KvmAccess.MISSING:
        raise UnsupportedError(
            "this host has no KVM",
            why="there is no /dev/kvm",
            fix="load KVM, or use another host",
        )
    if access is KvmAccess.DENIED:
        raise DeniedError(
            "KVM cannot be asked",
            why="/dev/kvm may not be opened by this user",
            fix=f"run pmuctl as root, or give USER access: {grant_kvm_access(kvm.group())}",
        )
    return kvm


def ask_kvm(host: Host, pmus: Sequence[Pmu]) -> KvmCaps:
    """Return what KVM does here, from the cache or from probes.

    Raise UnsupportedError if there is no KVM, DeniedError if this user may not use it,
    RefusedError if a probe fails.
    """
    kvm = check_access(host.kvm)
    with _refuse_on_oserror("KVM could not be asked"):
        return read_kvm_caps(host.sysfs, pmus, host.environ, uid=host.uid, probe=kvm.probe)


def parse_affinity(text: str, pmu: Pmu | None, pmus: Sequence[Pmu], sysfs: Sysfs) -> CpuSet:
    """Return the CPUs that --affinity names.

    Raise what `resolve_cpus` raises, and UsageError unless all of them are of `pmu`.
    """
    cpus = resolve_cpus(text, pmus, sysfs)
    if pmu is not None and pmu.cpus is not None and (outside := cpus - pmu.cpus):
        raise UsageError(
            f"--affinity {text}: {describe_cpus(outside)} not of {pmu.name}",
            why=f"its CPUs are {pmu.cpus}, and a vCPU elsewhere fails to enter the guest",
            fix=f"name CPUs of {pmu.cpus}, or leave --affinity out",
        )
    return cpus


def cpus_of(pmu: Pmu) -> CpuSet:
    """Return the CPUs of a PMU; raise RefusedError if they are not known."""
    if not pmu.cpus:
        raise RefusedError(
            f"{pmu.name}: its CPUs cannot be read",
            why="its vCPUs must be kept on them",
            fix="name them: --affinity CPUSET",
        )
    return pmu.cpus


def check_cpus(cpus: CpuSet, pmu: Pmu | None, host: Host, pid: int) -> None:
    """Refuse CPUs that the VMM, which will be process `pid`, cannot run on.

    Raise RefusedError if none of them is online, or the mask of `pid` cannot be read; PinnedError
    if that mask, which the VMM inherits, has none of them.
    """
    name = None if pmu is None else pmu.name
    online = read_online(host.sysfs)
    if online is not None and not cpus & online:
        raise RefusedError(
            f"no CPU of {name} is online" if name else "no CPU is online",
            why=f"wanted are {cpus}, online are {online}",
            fix=bring_online(cpus),
        )
    with _refuse_on_oserror("the CPUs that this process may run on cannot be read"):
        mask = host.threads.get(pid)
    if not mask & (cpus if online is None else cpus & online):
        error = make_pinned_error("the VMM", f"it inherits the mask {mask}", cpus, name)
        error.fix = f"taskset -c {cpus} pmuctl run ..."
        raise error
