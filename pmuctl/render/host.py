# SPDX-License-Identifier: Apache-2.0
"""Columns of hosts, of their core models, and of the PMU attributes of KVM."""

from collections.abc import Callable, Sequence

from pmuctl.manage.host_info import HostReport
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import ATTR_NAMES, KvmCaps
from pmuctl.model.pmu import CoreModel
from pmuctl.render.columns import UNKNOWN, Column, known
from pmuctl.render.pmu import CORE_SHAPE
from pmuctl.value import value


@value(kw_only=True)
class Capability:
    """A PMU attribute of KVM, and whether this kernel has it."""

    name: str
    number: int
    present: bool


CAPABILITY_COLUMNS: Sequence[Column[Capability]] = (
    Column(
        name="ATTRIBUTE",
        help="KVM_ARM_VCPU_PMU_V3_ and this",
        value=lambda attribute: attribute.name,
    ),
    Column(
        name="NUMBER", help="its number", value=lambda attribute: attribute.number, is_number=True
    ),
    Column(
        name="PRESENT",
        help="whether this kernel has it",
        value=lambda attribute: attribute.present,
    ),
)

CORE_COLUMNS: Sequence[Column[tuple[CoreModel | None, CpuSet]]] = (
    Column(name="CORE", help="a core model", value=lambda row: known(row[0]), shape=CORE_SHAPE),
    Column(
        name="MIDR",
        help="its implementer and part number",
        value=lambda row: known(row[0] and row[0].midr),
    ),
    Column(name="CPUS", help="its CPUs", value=lambda row: row[1]),
)


def _if_probed(get: Callable[[KvmCaps], object]) -> Callable[[HostReport], object]:
    """Return a getter of what the probes found out; UNKNOWN if KVM could not be asked."""

    def get_probed(host: HostReport) -> object:
        if host.probed is None or host.probed.has_vpmu is None:
            return UNKNOWN
        return get(host.probed)

    return get_probed


def _get_default_pmu(host: HostReport) -> object:
    """Return the name of the PMU that every VM gets; None if it is not always the same one."""
    caps = host.probed
    if caps is None or caps.default is None:
        return UNKNOWN
    names = (pmu.name for pmu in host.pmus if pmu.type == caps.default_pmu)
    is_missed = caps.default_pmu is not None and not host.are_pmus_complete
    return next(names, UNKNOWN if is_missed else None)


def _get_pmu_names(host: HostReport) -> object:
    """Return the names of the PMUs; UNKNOWN if there may be some that could not be seen."""
    return [pmu.name for pmu in host.pmus] or ([] if host.are_pmus_complete else UNKNOWN)


HOST_COLUMNS: Sequence[Column[HostReport]] = (
    Column(name="KERNEL", help="its release", value=lambda host: known(host.kernel)),
    Column(
        name="KVM",
        help="whether this user can use /dev/kvm: usable, denied, missing",
        value=lambda host: known(host.kvm),
    ),
    Column(name="KVM-MODE", help="how KVM runs: VHE, nVHE", value=lambda host: known(host.mode)),
    Column(
        name="VPMU",
        help="whether guests can have a PMU",
        value=_if_probed(lambda caps: caps.has_vpmu),
    ),
    Column(
        name="ATTRIBUTES",
        help="the PMU attributes KVM has",
        value=_if_probed(lambda caps: [ATTR_NAMES[attr] for attr in sorted(caps.attributes)]),
    ),
    Column(
        name="EVENT-BITS",
        help="the width of the event space",
        value=_if_probed(lambda caps: known(caps.event_bits)),
        is_number=True,
    ),
    Column(
        name="DEFAULT",
        help="whose PMU a VM gets unasked: one, or that at-vcpu-init, at-attribute",
        value=_if_probed(lambda caps: known(caps.default and caps.default.value)),
    ),
    Column(name="DEFAULT-PMU", help="that PMU, where it is always one", value=_get_default_pmu),
    Column(
        name="STRICT",
        help="whether a VM can refuse a PMU by default",
        value=_if_probed(lambda caps: caps.has_strict),
    ),
    Column(name="CPUS", help="the CPUs there are", value=lambda host: host.present or UNKNOWN),
    Column(name="ONLINE", help="those that are online", value=lambda host: known(host.online)),
    Column(name="PMUS", help="its CPU PMUs", value=_get_pmu_names),
    Column(
        name="CORE-LIST",
        help="its CPUs by core model",
        value=lambda host: list(host.cores.items()) or UNKNOWN,
        nested=CORE_COLUMNS,
    ),
)
