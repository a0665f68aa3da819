# SPDX-License-Identifier: Apache-2.0
"""What is shown of hosts: their columns, and those of KVM's attributes."""

from collections.abc import Callable, Sequence

from pmuctl.manage.host_info import HostReport
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import ATTR_NAMES, KvmCaps
from pmuctl.model.pmu import CoreModel
from pmuctl.render.columns import UNKNOWN, Column, known
from pmuctl.value import value


@value(kw_only=True)
class Capability:
    """One PMU attribute of KVM, and whether this kernel has it."""

    name: str
    number: int
    present: bool


CAPABILITY_COLUMNS: Sequence[Column[Capability]] = (
    Column(name="ATTRIBUTE", help="KVM_ARM_VCPU_PMU_V3_ and this", value=lambda its: its.name),
    Column(name="NUMBER", help="its number", value=lambda its: its.number, is_number=True),
    Column(name="PRESENT", help="whether this kernel has it", value=lambda its: its.present),
)

CORE_COLUMNS: Sequence[Column[tuple[CoreModel | None, CpuSet]]] = (
    Column(name="CORE", help="a core model", value=lambda its: known(its[0] and its[0].name)),
    Column(name="CPUS", help="its CPUs", value=lambda its: its[1]),
)


def _probed(get: Callable[[KvmCaps], object]) -> Callable[[HostReport], object]:
    """What the probes found out; unknown where KVM could not be asked."""

    def value(host: HostReport) -> object:
        if host.probed is None or host.probed.has_vpmu is None:
            return UNKNOWN
        return get(host.probed)

    return value


def _default_pmu(host: HostReport) -> object:
    """The PMU that every VM gets, where it is always the same one."""
    its = host.probed
    if its is None or its.default is None:
        return UNKNOWN
    return next((pmu.name for pmu in host.pmus if pmu.type == its.default_pmu), None)


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
        value=_probed(lambda its: its.has_vpmu),
    ),
    Column(
        name="ATTRIBUTES",
        help="the PMU attributes KVM has",
        value=_probed(lambda its: [ATTR_NAMES[attr] for attr in sorted(its.attributes)]),
    ),
    Column(
        name="EVENT-BITS",
        help="the width of the event space",
        value=_probed(lambda its: known(its.event_bits)),
        is_number=True,
    ),
    Column(
        name="DEFAULT",
        help="whose PMU a VM gets unasked: one, or that at-vcpu-init, at-attribute",
        value=_probed(lambda its: known(its.default and its.default.value)),
    ),
    Column(name="DEFAULT-PMU", help="that PMU, where it is always one", value=_default_pmu),
    Column(
        name="STRICT",
        help="whether a VM can refuse a PMU by default",
        value=_probed(lambda its: its.has_strict),
    ),
    Column(name="CPUS", help="the CPUs there are", value=lambda host: host.present),
    Column(name="ONLINE", help="those that are online", value=lambda host: known(host.online)),
    Column(name="PMUS", help="its CPU PMUs", value=lambda host: [pmu.name for pmu in host.pmus]),
    Column(
        name="CORE-LIST",
        help="its CPUs by core model",
        value=lambda host: list(host.cores.items()),
        nested=CORE_COLUMNS,
    ),
)
