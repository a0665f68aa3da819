# SPDX-License-Identifier: Apache-2.0
"""The calls put into a VMM at each vCPU's window, from the settings that are wanted."""

import errno
from collections.abc import Iterator

from pmuctl.control.server.pmu_state import payload
from pmuctl.errors import PmuctlError, RefusedError
from pmuctl.launch.spec import LaunchSpec
from pmuctl.model.event_filter import Action, FilterRange
from pmuctl.model.kvm_caps import ATTR_NAMES, KvmCaps
from pmuctl.model.plan import CurrentState, SetAttr, TargetSettings, plan, refusal
from pmuctl.model.vpmu import Vcpu, Vpmu
from pmuctl.uapi.kvm import KVM_SET_DEVICE_ATTR, kvm_device_attr
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_FILTER
from pmuctl.value import value

LOCK = FilterRange(base=0, nevents=0, action=Action.DENY)
"""A filter of no events that denies: it allows all, and from then on KVM refuses another PMU."""


@value(kw_only=True)
class IoctlCall:
    """One ioctl: the struct, and what follows it for `pointer`.

    `pointer` is the offset of the member that is to point behind the first 24 bytes.
    """

    words: str
    request: int
    argument: bytes
    pointer: int | None = None
    step: SetAttr | None = None

    def refusal(self, number: int) -> PmuctlError:
        """What it means that the kernel gave this errno."""
        if self.step is None:
            return RefusedError(f"{self.words} was refused", errno=errno.errorcode.get(number))
        return refusal(
            self.step, number, _fresh(KvmCaps(has_vpmu=True, attributes=frozenset(ATTR_NAMES)))
        )


def steps(orders: LaunchSpec) -> tuple[SetAttr, ...]:
    """What is set at each window, in KVM's order, the lock last where there is no filter.

    None where the VM is to keep what KVM chooses. Raises what plan() raises.
    """
    if orders.pmu is None:
        return ()
    number, name = orders.pmu
    kernel = KvmCaps(
        has_vpmu=True,
        counters={number: None},
        attributes=orders.attributes,
        event_bits=orders.event_bits,
    )
    wanted = TargetSettings(type=number, name=name, filter=orders.filter)
    planned = plan(CurrentState(vpmu=_fresh(kernel), threads={}), wanted)
    return tuple(_locked(its for its in planned if isinstance(its, SetAttr)))


def _locked(planned: Iterator[SetAttr]) -> Iterator[SetAttr]:
    has_filter = False
    for step in planned:
        has_filter |= step.attr == KVM_ARM_VCPU_PMU_V3_FILTER
        yield step
    if not has_filter:
        yield lock()


def lock() -> SetAttr:
    """The step after which KVM keeps the PMU as it is."""
    return SetAttr(0, KVM_ARM_VCPU_PMU_V3_FILTER, LOCK)


def _fresh(kernel: KvmCaps) -> Vpmu:
    return Vpmu(caps=kernel, vcpus=(Vcpu(has_pmu=True, initialised=False),))


def ioctl_of(step: SetAttr) -> IoctlCall:
    """A step as the ioctl that it is."""
    return attr_call(step.attr, payload(step), step)


def attr_call(attr: int, data: bytes, step: SetAttr | None = None) -> IoctlCall:
    """KVM_SET_DEVICE_ATTR of a vCPU's PMU."""
    its = kvm_device_attr(group=KVM_ARM_VCPU_PMU_V3_CTRL, attr=attr)
    return IoctlCall(
        words=step.describe() if step else f"KVM_SET_DEVICE_ATTR {attr}",
        request=KVM_SET_DEVICE_ATTR,
        argument=bytes(its) + data,
        pointer=kvm_device_attr.addr.offset,
        step=step,
    )
