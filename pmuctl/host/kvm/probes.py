# SPDX-License-Identifier: Apache-2.0
"""What KVM does on this host, found by trying it on scratch VMs: never from a kernel version."""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pmuctl.host.kvm.device import (
    get_sys_reg,
    has_pmu_attr,
    on_cpus,
    pack_filter,
    pack_nr_counters,
    pack_pmu,
    scratch_vcpu,
    set_pmu_attr,
)
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import ATTR_NAMES, DefaultPmu, KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_FILTER,
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
    KVM_ARM_VCPU_PMU_V3_SET_PMU,
    KVM_PMU_EVENT_DENY,
    arm64_sys_reg,
)

MAX_COUNTERS = 31
"""Programmable counters that a PMUv3 can have at most: PMCR_EL0.N has five bits."""

PMCR_EL0 = arm64_sys_reg(3, 3, 9, 12, 0)


def probe_kvm_caps(pmus: Sequence[Pmu]) -> KvmCaps:
    """Everything that differs between hosts, for the CPU PMUs that `scan_pmus` found.

    Makes about six short-lived VMs of one vCPU that never run, from the calling thread, which is
    moved between the PMUs' CPUs meanwhile; what cannot be tried because it may not go there is
    not known. Raises OSError for what KVM should not say.
    """
    known = {pmu.type: pmu for pmu in pmus if pmu.type is not None}
    places = {pmu: reachable(its.cpus) for pmu, its in known.items()}
    home = next((cpus for cpus in places.values() if cpus), None)
    try:
        with on_cpus(home), scratch_vcpu() as vcpu:
            attributes = frozenset(attr for attr in ATTR_NAMES if has_pmu_attr(vcpu, attr))
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        return KvmCaps(has_vpmu=False if error.errno == errno.ENODEV else None)
    selects = KVM_ARM_VCPU_PMU_V3_SET_PMU in attributes
    filters = KVM_ARM_VCPU_PMU_V3_FILTER in attributes
    counters: dict[int, int | None] = {}
    bits: dict[int, int] = {}
    for pmu in known:
        if not selects:
            counters[pmu] = None
        elif probe_pmu(pmu, cpus=places[pmu] or home):
            counters[pmu] = probe_counters(pmu, cpus=places[pmu])
            its_bits = (
                probe_event_bits(pmu_type=pmu, cpus=places[pmu] or home) if filters else None
            )
            if its_bits is not None:
                bits[pmu] = its_bits
    default, default_pmu = None, None
    if selects and filters:
        default, default_pmu = probe_default({pmu: places[pmu] for pmu in counters})
    host_bits = probe_event_bits(cpus=home) if filters else None
    return KvmCaps(
        has_vpmu=True,
        attributes=attributes,
        counters=counters,
        event_bits=host_bits,
        event_bits_of={pmu: its for pmu, its in bits.items() if its != host_bits},
        default=default,
        default_pmu=default_pmu,
        has_strict=probe_strict(cpus=home),
        cpus={pmu: its.cpus for pmu, its in known.items() if pmu in counters and its.cpus},
    )


def reachable(cpus: CpuSet | None) -> CpuSet | None:
    """These CPUs if the calling thread may be on one of them, else None."""
    try:
        with on_cpus(cpus):
            return cpus or None
    except OSError:
        return None


def probe_event_bits(
    *, pmu_type: int | None = None, cpus: Iterable[int] | None = None
) -> int | None:
    """The size of the event space that FILTER accepts on this host: 10 or 16 bits.

    It is nowhere to be read, so a scratch VM is asked to filter event 0x400, the first one that
    PMUv3 for Armv8.0 does not have (vcpu.rst section 1.3). Kernels before v6.6 take the size
    from the VM's PMU: `pmu_type` names it; later ones have one for the host (335ca49ff31f). The
    default PMU is that of the CPU the probe runs on: the calling thread is put on `cpus`
    meanwhile, if given.

    None means not known: /dev/kvm is missing or may not be opened, this is no arm64 host, there
    is no vPMU, KVM does not have a PMU of this type, or the kernel has no event filter. Raises
    OSError for what else KVM may say.
    """
    with _none_without_vpmu(), on_cpus(cpus), scratch_vcpu() as vcpu:
        if pmu_type is not None and has_pmu_attr(vcpu, KVM_ARM_VCPU_PMU_V3_SET_PMU):
            set_pmu_attr(vcpu, KVM_ARM_VCPU_PMU_V3_SET_PMU, pack_pmu(pmu_type))
        if _accepts(vcpu, KVM_ARM_VCPU_PMU_V3_FILTER, _deny(0x400)):
            return 16
        # v6.5 and older take PMUv3p8 and later for an event space of one event
        return 10 if _accepts(vcpu, KVM_ARM_VCPU_PMU_V3_FILTER, _deny(0x3FF)) else None
    return None


def probe_pmu(pmu_type: int, *, cpus: Iterable[int] | None = None) -> bool:
    """Whether KVM has this PMU: SET_PMU gives ENXIO otherwise (vcpu.rst section 1.4)."""
    with on_cpus(cpus), scratch_vcpu() as vcpu:
        return _accepts(vcpu, KVM_ARM_VCPU_PMU_V3_SET_PMU, pack_pmu(pmu_type), refusal=errno.ENXIO)


def probe_counters_limit(pmu_type: int, *, cpus: Iterable[int] | None = None) -> int | None:
    """The largest number that SET_NR_COUNTERS accepts on this host with this PMU.

    None means not known: as for `probe_event_bits`, or the kernel does not have the attribute
    (it came with v6.16, commit b7628c797376). Raises OSError for what else KVM may say.
    """
    with _none_without_vpmu(), on_cpus(cpus), scratch_vcpu() as vcpu:
        set_pmu_attr(vcpu, KVM_ARM_VCPU_PMU_V3_SET_PMU, pack_pmu(pmu_type))
        for counters in range(MAX_COUNTERS, -1, -1):
            payload = pack_nr_counters(counters)
            if _accepts(vcpu, KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS, payload):
                return counters
    return None


def probe_counters(pmu_type: int, *, cpus: CpuSet | None) -> int | None:
    """How many programmable counters a guest gets with this PMU, one of whose CPUs `cpus` are.

    What SET_NR_COUNTERS takes, else PMCR_EL0.N of a vCPU after SET_PMU. Kernels before v6.6 read
    the latter on the CPU of KVM_ARM_VCPU_INIT, so without `cpus` it is not known (None).
    """
    limit = probe_counters_limit(pmu_type, cpus=cpus)
    if limit is not None or cpus is None:
        return limit
    with _none_without_vpmu(), on_cpus(cpus), scratch_vcpu() as vcpu:
        set_pmu_attr(vcpu, KVM_ARM_VCPU_PMU_V3_SET_PMU, pack_pmu(pmu_type))
        return get_sys_reg(vcpu, PMCR_EL0) >> 11 & 0x1F
    return None


def probe_default(
    places: Mapping[int, CpuSet | None],
) -> tuple[DefaultPmu | None, int | None]:
    """Whose PMU a VM gets when nobody says, and which it is where it is always the same.

    `places` has the CPUs of each PMU by perf type, None where the calling thread may not go. A
    vCPU is INITed on one PMU's CPU and gets a filter on another's, or on a CPU that no PMU
    covers; then SET_PMU is EBUSY for all but the one KVM had chosen. Where only one such place
    can be tried, it is the answer if the host has no other, offline ones included. Not known is
    (None, None).
    """
    covered = CpuSet().cpus.union(*(cpus.cpus for cpus in places.values() if cpus))
    bare = reachable(CpuSet.of(os.sched_getaffinity(0)) - CpuSet.of(covered))
    spots: list[tuple[int | None, CpuSet]] = [(its, cpus) for its, cpus in places.items() if cpus]
    if bare:
        spots.append((None, bare))
    if not spots or (len(spots) == 1 and len(covered) < os.sysconf("SC_NPROCESSORS_CONF")):
        return None, None
    (here, here_cpus), (there, there_cpus) = spots[0], spots[1 % len(spots)]
    first = _chosen(places, here_cpus, there_cpus)
    second = _chosen(places, there_cpus, here_cpus)
    if first == second:
        return (None if first is None else DefaultPmu.ONE), first
    if (first, second) == (here, there):
        return DefaultPmu.AT_VCPU_INIT, None
    return (DefaultPmu.AT_ATTRIBUTE if (first, second) == (there, here) else None), None


def _chosen(pmus: Iterable[int], init: CpuSet, attribute: CpuSet) -> int | None:
    """The default PMU of a VM whose vCPU is INITed, and whose filter is set, on these CPUs."""
    with _none_without_vpmu(), on_cpus(init), scratch_vcpu() as vcpu, on_cpus(attribute):
        set_pmu_attr(vcpu, KVM_ARM_VCPU_PMU_V3_FILTER, pack_filter(0, 0, KVM_PMU_EVENT_DENY))
        for pmu in pmus:
            payload = pack_pmu(pmu)
            if _accepts(vcpu, KVM_ARM_VCPU_PMU_V3_SET_PMU, payload, refusal=errno.EBUSY):
                return pmu
    return None


def probe_strict(*, cpus: Iterable[int] | None = None) -> bool:
    """Whether KVM_ARM_VCPU_INIT knows KVM_ARM_VCPU_PMU_V3_STRICT (v7.3); ENOENT before."""
    try:
        with on_cpus(cpus), scratch_vcpu(strict=True):
            return True
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return False
        raise


def _deny(event: int) -> bytes:
    return pack_filter(event, 1, KVM_PMU_EVENT_DENY)


def _accepts(vcpu_fd: int, attr: int, payload: bytes, *, refusal: int = errno.EINVAL) -> bool:
    try:
        set_pmu_attr(vcpu_fd, attr, payload)
    except OSError as error:
        if error.errno == refusal:
            return False
        raise
    return True


@contextmanager
def _none_without_vpmu() -> Iterator[None]:
    """Leave the context, for a `return None` after it, where KVM, PMU or attribute is missing."""
    try:
        yield
    except OSError as error:
        if error.errno not in _MISSING:
            raise


_MISSING = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EACCES, errno.EPERM})
