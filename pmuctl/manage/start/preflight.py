# SPDX-License-Identifier: Apache-2.0
"""What can stand in the way of a VMM's PMU settings on this host, found before it is started."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pmuctl.errors import (
    DeniedError,
    PinnedError,
    RefusedError,
    UnsupportedError,
    UsageError,
)
from pmuctl.host.cpus import read_online, scan_present
from pmuctl.host.host import Host
from pmuctl.host.kvm.access import Kvm, KvmAccess
from pmuctl.host.kvm.cache import read_kvm_caps
from pmuctl.host.sysfs import Sysfs
from pmuctl.manage.hints import cpus_words, giving_access
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import WIDEST_BITS
from pmuctl.model.event_filter import EventFilter
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.plan import CurrentState, TargetSettings, no_attribute, plan
from pmuctl.model.pmu import Pmu
from pmuctl.model.pmu_selector import check_present, parse_cpus
from pmuctl.model.vpmu import Vpmu
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_FILTER, KVM_ARM_VCPU_PMU_V3_SET_PMU


def check_kernel(probed: KvmCaps, pmu: Pmu | None, event_filter: EventFilter | None) -> None:
    """Refuse what this host's KVM cannot do, by the rules that a VM's settings are planned with.

    Raises UnsupportedError without a vPMU or an attribute, NotFoundError for a PMU that KVM does
    not know, UsageError past the event space.
    """
    if not probed.has_vpmu:
        raise UnsupportedError(
            "guests can have no PMU here",
            why="KVM has no KVM_CAP_ARM_PMU_V3: no arm64 host, or one whose CPUs lack it",
            fix="pmuctl doctor tells why; --best-effort starts the VMM all the same",
        )
    if KVM_ARM_VCPU_PMU_V3_SET_PMU not in probed.attributes:
        raise no_attribute("SET_PMU")
    if pmu is not None and pmu.type is not None:
        wanted = TargetSettings(type=pmu.type, name=pmu.name, filter=event_filter)
        plan(CurrentState(vpmu=Vpmu(caps=probed), threads={}), wanted)
        # the PMU is locked by one, too
        if KVM_ARM_VCPU_PMU_V3_FILTER not in probed.attributes:
            raise no_attribute("FILTER")


def event_bits(probed: KvmCaps, pmu: Pmu) -> int:
    """The width of the event space of a VM with this PMU, the widest where that is not known."""
    its = probed.event_bits_of.get(pmu.type) if pmu.type is not None else None
    return its or probed.event_bits or WIDEST_BITS


@contextmanager
def _as_refusal(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RefusedError(what, why=error.strerror or str(error)) from error


def check_access(kvm: Kvm | None) -> Kvm:
    """Return KVM if this user can use it.

    Raises UnsupportedError if there is none, DeniedError if this user may not use it.
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
            fix=f"run pmuctl as root, or give USER access: {giving_access(kvm.group())}",
        )
    return kvm


def ask_kvm(host: Host, pmus: Sequence[Pmu]) -> KvmCaps:
    """What KVM does here, from the cache or from probes.

    Raises UnsupportedError where there is no KVM, DeniedError, RefusedError.
    """
    kvm = check_access(host.kvm)
    with _as_refusal("KVM could not be asked"):
        return read_kvm_caps(host.sysfs, pmus, host.environ, uid=host.uid, probe=kvm.probe)


def chosen_cpus(text: str, pmu: Pmu | None, pmus: Sequence[Pmu], sysfs: Sysfs) -> CpuSet:
    """The CPUs that --affinity names; raises UsageError unless all are of the PMU, and
    NotFoundError for one that this host does not have."""
    present = scan_present(sysfs)
    cpus = parse_cpus(text, pmus, present)
    if not cpus:
        raise UsageError(f"--affinity {text}: no CPU is left", fix="name CPUs as 0-3,8")
    check_present(cpus, present)
    if pmu is not None and pmu.cpus is not None and (outside := cpus - pmu.cpus):
        raise UsageError(
            f"--affinity {text}: {cpus_words(outside)} not of {pmu.name}",
            why=f"its CPUs are {pmu.cpus}, and a vCPU elsewhere fails to enter the guest",
            fix=f"name CPUs of {pmu.cpus}, or leave --affinity out",
        )
    return cpus


def cpus_of(pmu: Pmu) -> CpuSet:
    """The CPUs of a PMU; raises RefusedError where they are not known."""
    if not pmu.cpus:
        raise RefusedError(
            f"{pmu.name}: its CPUs cannot be read",
            why="its vCPUs must be kept on them",
            fix="name them: --affinity CPUSET",
        )
    return pmu.cpus


def check_cpus(cpus: CpuSet, pmu: Pmu | None, host: Host, pid: int) -> None:
    """Refuse CPUs that the VMM could not run on: offline ones, and those outside its mask.

    Raises RefusedError and PinnedError.
    """
    of = f" of {pmu.name}" if pmu is not None else ""
    online = read_online(host.sysfs)
    if online is not None and not cpus & online:
        raise RefusedError(
            f"no CPU{of} is online",
            why=f"wanted are {cpus}, online are {online}",
            fix=f"echo 1 >/sys/devices/system/cpu/cpu{next(iter(cpus))}/online",
        )
    with _as_refusal("the CPUs that this process may run on cannot be read"):
        mask = host.threads.get(pid)
    if not mask & (cpus if online is None else cpus & online):
        raise PinnedError(
            f"the VMM may not run on any CPU{of}",
            why=f"it inherits the mask {mask}, wanted are {cpus}; a mask is never widened",
            fix=f"taskset -c {cpus} pmuctl run ...",
        )
