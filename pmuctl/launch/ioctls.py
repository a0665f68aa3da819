# SPDX-License-Identifier: Apache-2.0
"""The ioctls made in a VMM at each vCPU's window, derived from the launch spec."""

import errno
import struct
from collections.abc import Iterator

from pmuctl.errors import PmuctlError, RefusedError
from pmuctl.launch.spec import LaunchSpec
from pmuctl.model.event_filter import Action, FilterRange
from pmuctl.model.kvm_caps import ATTR_NAMES, KvmCaps
from pmuctl.model.plan import CurrentState, SetAttr, TargetSettings, plan, refusal
from pmuctl.model.vpmu import Vcpu, Vpmu
from pmuctl.uapi.kvm import (
    DEVICE_ATTR_ADDR,
    KVM_ARM_VCPU_INIT,
    KVM_SET_DEVICE_ATTR,
    pack_device_attr,
)
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_TARGET_GENERIC_V8,
    KVM_ARM_VCPU_PMU_V3,
    KVM_ARM_VCPU_PMU_V3_CTRL,
    KVM_ARM_VCPU_PMU_V3_FILTER,
)
from pmuctl.value import value

LOCK = FilterRange(base=0, nevents=0, action=Action.DENY)
"""A filter that denies no events: it allows all, and from then on KVM refuses another PMU."""

NO_EVENTS = FilterRange(base=0, nevents=0, action=Action.ALLOW)
"""A filter that allows no events: it denies all, and from then on KVM refuses another PMU."""


@value(kw_only=True)
class IoctlCall:
    """One ioctl: its struct, and behind it what `pointer` leads to.

    `pointer` is the offset of the member that is to hold the address of what follows the first 24
    bytes of `argument`.
    """

    description: str
    request: int
    argument: bytes
    pointer: int | None = None
    step: SetAttr | None = None

    def refusal(self, number: int) -> PmuctlError:
        """Return the error that stands for this errno from the kernel."""
        if self.step is None:
            return RefusedError(
                f"{self.description} was refused", errno=errno.errorcode.get(number)
            )
        return refusal(
            self.step,
            number,
            _make_fresh_vpmu(KvmCaps(has_vpmu=True, attributes=frozenset(ATTR_NAMES))),
        )


def steps(spec: LaunchSpec) -> tuple[SetAttr, ...]:
    """Return what is set at each window, in KVM's order, the lock last if there is no filter.

    Return an empty tuple if the VM is to keep what KVM chooses. Raise what plan() raises.
    """
    if spec.pmu is None:
        return ()
    number, name = spec.pmu
    caps = KvmCaps(
        has_vpmu=True,
        counters={number: None},
        attributes=spec.attributes,
        event_bits=spec.event_bits,
        event_bits_of=spec.event_bits_of,
    )
    target = TargetSettings(type=number, name=name, filter=spec.filter)
    planned = plan(CurrentState(vpmu=_make_fresh_vpmu(caps), threads={}), target)
    return tuple(_append_lock(step for step in planned if isinstance(step, SetAttr)))


def _append_lock(planned: Iterator[SetAttr]) -> Iterator[SetAttr]:
    """Yield these steps, and the lock unless one of them sets a filter."""
    has_filter = False
    for step in planned:
        has_filter |= step.attr == KVM_ARM_VCPU_PMU_V3_FILTER
        yield step
    if not has_filter:
        yield lock()


def lock() -> SetAttr:
    """Return the step after which KVM keeps the PMU as it is."""
    return SetAttr(0, KVM_ARM_VCPU_PMU_V3_FILTER, LOCK)


def deny_all() -> SetAttr:
    """Return the step after which a VM counts nothing."""
    return SetAttr(0, KVM_ARM_VCPU_PMU_V3_FILTER, NO_EVENTS)


def init_ioctl() -> IoctlCall:
    """Return the KVM_ARM_VCPU_INIT of a vCPU with a vPMU and no other feature."""
    features = (1 << KVM_ARM_VCPU_PMU_V3, *[0] * 6)
    return IoctlCall(
        description="KVM_ARM_VCPU_INIT",
        request=KVM_ARM_VCPU_INIT,
        argument=struct.pack("<8I", KVM_ARM_TARGET_GENERIC_V8, *features),
    )


def _make_fresh_vpmu(caps: KvmCaps) -> Vpmu:
    return Vpmu(caps=caps, vcpus=(Vcpu(has_pmu=True, initialised=False),))


def ioctl_of(step: SetAttr) -> IoctlCall:
    """Return a step as the ioctl that makes it."""
    return attr_ioctl(step.attr, step.payload(), step)


def attr_ioctl(attr: int, data: bytes, step: SetAttr | None = None) -> IoctlCall:
    """Return the KVM_SET_DEVICE_ATTR of a vCPU's PMU with this attribute and data."""
    return IoctlCall(
        description=step.describe() if step else f"KVM_SET_DEVICE_ATTR {attr}",
        request=KVM_SET_DEVICE_ATTR,
        argument=pack_device_attr(KVM_ARM_VCPU_PMU_V3_CTRL, attr) + data,
        pointer=DEVICE_ATTR_ADDR,
        step=step,
    )
