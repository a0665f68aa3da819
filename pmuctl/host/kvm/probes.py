# SPDX-License-Identifier: Apache-2.0
"""Probes of what KVM does on this host: tried on scratch VMs, never concluded from a version."""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import or_

from pmuctl.host.kvm.device import (
    get_sys_reg,
    has_pmu_attr,
    on_cpus,
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
    pack_filter,
    pack_nr_counters,
    pack_pmu,
)

MAX_COUNTERS = 31
"""The most programmable counters a PMUv3 can have: PMCR_EL0.N has five bits."""

PMCR_EL0 = arm64_sys_reg(3, 3, 9, 12, 0)


def probe_kvm_caps(pmus: Sequence[Pmu]) -> KvmCaps:
    """Probe everything that differs between hosts, for the CPU PMUs that `scan_pmus` found.

    Makes about six short-lived VMs of one vCPU that never run, from the calling thread, which
    moves between the PMUs' CPUs meanwhile. What cannot be tried because the thread may not run
    there stays unknown. Raise OSError for an errno that KVM should not give.
    """
    known = {pmu.type: pmu for pmu in pmus if pmu.type is not None}
    places = {pmu_type: reachable(pmu.cpus) for pmu_type, pmu in known.items()}
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
    for pmu_type, cpus in places.items():
        if not selects:
            counters[pmu_type] = None
        elif probe_pmu(pmu_type, cpus=cpus or home):
            counters[pmu_type] = probe_counters(pmu_type, cpus=cpus)
            pmu_bits = probe_event_bits(pmu_type=pmu_type, cpus=cpus or home) if filters else None
            if pmu_bits is not None:
                bits[pmu_type] = pmu_bits
    default, default_pmu = None, None
    if selects and filters:
        default, default_pmu = probe_default({pmu_type: places[pmu_type] for pmu_type in counters})
    host_bits = probe_event_bits(cpus=home) if filters else None
    return KvmCaps(
        has_vpmu=True,
        attributes=attributes,
        counters=counters,
        event_bits=host_bits,
        event_bits_of={
            pmu_type: pmu_bits for pmu_type, pmu_bits in bits.items() if pmu_bits != host_bits
        },
        default=default,
        default_pmu=default_pmu,
        has_strict=probe_strict(cpus=home),
        cpus={
            pmu_type: pmu.cpus
            for pmu_type, pmu in known.items()
            if pmu_type in counters and pmu.cpus
        },
    )


def reachable(cpus: CpuSet | None) -> CpuSet | None:
    """Return these CPUs if the calling thread may run on one of them, else None."""
    try:
        with on_cpus(cpus):
            return cpus or None
    except OSError:
        return None


def probe_event_bits(
    *, pmu_type: int | None = None, cpus: Iterable[int] | None = None
) -> int | None:
    """Return the width of the event space that FILTER accepts on this host: 10 or 16 bits.

    No interface tells it, so this filters event 0x400 on a scratch VM, the first event that PMUv3
    for Armv8.0 does not have (vcpu.rst section 1.3). Kernels before v6.6 take the width from the
    VM's PMU, which `pmu_type` names; later ones have one for the host (335ca49ff31f). The default
    PMU is that of the CPU the probe runs on: if `cpus` is given, the calling thread runs there
    meanwhile.

    Return None if it is unknown: /dev/kvm is missing or may not be opened, this is no arm64 host,
    there is no vPMU, KVM does not have a PMU of this type, or the kernel has no event filter.
    Raise OSError for any other errno of KVM.
    """
    with _suppress_missing(), on_cpus(cpus), scratch_vcpu() as vcpu:
        if pmu_type is not None and has_pmu_attr(vcpu, KVM_ARM_VCPU_PMU_V3_SET_PMU):
            set_pmu_attr(vcpu, KVM_ARM_VCPU_PMU_V3_SET_PMU, pack_pmu(pmu_type))
        if _try_attr(vcpu, KVM_ARM_VCPU_PMU_V3_FILTER, _pack_denial(0x400)):
            return 16
        # v6.5 and older treat PMUv3p8 and later as if it had an event space of one event
        return 10 if _try_attr(vcpu, KVM_ARM_VCPU_PMU_V3_FILTER, _pack_denial(0x3FF)) else None
    return None


def probe_pmu(pmu_type: int, *, cpus: Iterable[int] | None = None) -> bool:
    """Return whether KVM has this PMU; SET_PMU fails with ENXIO if not (vcpu.rst section 1.4)."""
    with on_cpus(cpus), scratch_vcpu() as vcpu:
        payload = pack_pmu(pmu_type)
        return _try_attr(vcpu, KVM_ARM_VCPU_PMU_V3_SET_PMU, payload, refusal=errno.ENXIO)


def probe_counters_limit(pmu_type: int, *, cpus: Iterable[int] | None = None) -> int | None:
    """Return the largest number that SET_NR_COUNTERS accepts on this host with this PMU.

    Return None if it is unknown: as for `probe_event_bits`, or the kernel does not have the
    attribute (it came with v6.16, commit b7628c797376). Raise OSError for any other errno of
    KVM.
    """
    with _suppress_missing(), on_cpus(cpus), scratch_vcpu() as vcpu:
        set_pmu_attr(vcpu, KVM_ARM_VCPU_PMU_V3_SET_PMU, pack_pmu(pmu_type))
        for counters in range(MAX_COUNTERS, -1, -1):
            payload = pack_nr_counters(counters)
            if _try_attr(vcpu, KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS, payload):
                return counters
    return None


def probe_counters(pmu_type: int, *, cpus: CpuSet | None) -> int | None:
    """Return how many programmable counters a guest gets with this PMU, whose CPUs are `cpus`.

    That is the most SET_NR_COUNTERS accepts, or else PMCR_EL0.N of a vCPU after SET_PMU. Kernels
    before v6.6 read the latter on the CPU of KVM_ARM_VCPU_INIT, so without `cpus` it is unknown
    (None).
    """
    limit = probe_counters_limit(pmu_type, cpus=cpus)
    if limit is not None or cpus is None:
        return limit
    with _suppress_missing(), on_cpus(cpus), scratch_vcpu() as vcpu:
        set_pmu_attr(vcpu, KVM_ARM_VCPU_PMU_V3_SET_PMU, pack_pmu(pmu_type))
        return get_sys_reg(vcpu, PMCR_EL0) >> 11 & 0x1F
    return None


def probe_default(
    places: Mapping[int, CpuSet | None],
) -> tuple[DefaultPmu | None, int | None]:
    """Return how KVM picks a VM's default PMU, and that PMU's type if it is always the same.

    `places` has the CPUs of each PMU by perf type, None if the calling thread may not run there.
    The probe makes KVM_ARM_VCPU_INIT on a CPU of one PMU and sets a filter on a CPU of another,
    or on one that no PMU covers; then SET_PMU fails with EBUSY for all PMUs but the one KVM has
    picked. If there is only one such place to try, its answer counts if the host has no CPUs
    elsewhere, offline ones included. Return (None, None) if it is unknown.
    """
    covered = reduce(or_, filter(None, places.values()), CpuSet())
    bare = reachable(CpuSet.of(os.sched_getaffinity(0)) - covered)
    spots: list[tuple[int | None, CpuSet]] = [(pmu, cpus) for pmu, cpus in places.items() if cpus]
    if bare:
        spots.append((None, bare))
    if not spots or (len(spots) == 1 and len(covered) < os.sysconf("SC_NPROCESSORS_CONF")):
        return None, None
    (here, here_cpus), (there, there_cpus) = spots[0], spots[1 % len(spots)]
    first = _find_default_pmu(places, here_cpus, there_cpus)
    second = _find_default_pmu(places, there_cpus, here_cpus)
    if first == second:
        return (None if first is None else DefaultPmu.ONE), first
    if (first, second) == (here, there):
        return DefaultPmu.AT_VCPU_INIT, None
    return (DefaultPmu.AT_ATTRIBUTE if (first, second) == (there, here) else None), None


def _find_default_pmu(pmus: Iterable[int], init: CpuSet, attribute: CpuSet) -> int | None:
    """Return the default PMU of a VM with KVM_ARM_VCPU_INIT and FILTER made on these CPUs."""
    with _suppress_missing(), on_cpus(init), scratch_vcpu() as vcpu, on_cpus(attribute):
        set_pmu_attr(vcpu, KVM_ARM_VCPU_PMU_V3_FILTER, pack_filter(0, 0, KVM_PMU_EVENT_DENY))
        for pmu in pmus:
            payload = pack_pmu(pmu)
            if _try_attr(vcpu, KVM_ARM_VCPU_PMU_V3_SET_PMU, payload, refusal=errno.EBUSY):
                return pmu
    return None


def probe_strict(*, cpus: Iterable[int] | None = None) -> bool:
    """Return whether KVM_ARM_VCPU_INIT knows KVM_ARM_VCPU_PMU_V3_STRICT (v7.3); ENOENT before."""
    try:
        with on_cpus(cpus), scratch_vcpu(strict=True):
            return True
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):
            return False
        raise


def _pack_denial(event: int) -> bytes:
    return pack_filter(event, 1, KVM_PMU_EVENT_DENY)


def _try_attr(vcpu_fd: int, attr: int, payload: bytes, *, refusal: int = errno.EINVAL) -> bool:
    """Set a PMU attribute; return False if KVM refuses it with the errno `refusal`."""
    try:
        set_pmu_attr(vcpu_fd, attr, payload)
    except OSError as error:
        if error.errno == refusal:
            return False
        raise
    return True


@contextmanager
def _suppress_missing() -> Iterator[None]:
    """Suppress OSErrors that mean: KVM, PMU or attribute is missing, or may not be used."""
    try:
        yield
    except OSError as error:
        if error.errno not in _MISSING:
            raise


_MISSING = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EACCES, errno.EPERM})
