# SPDX-License-Identifier: Apache-2.0
"""A supervised VM as the control server sees it; its calls are made by the tracer's thread."""

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pmuctl.control.door import VcpuStatus
from pmuctl.launch.orders import Orders
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS

SetAttr = Callable[[int, int, bytes], None]


@dataclass(slots=True)
class Call:
    """A call that waits to be made, and what came of it."""

    vcpu: int
    attr: int
    payload: bytes
    is_done: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


class SupervisedDoor:
    """What the server may know and do. The supervisor keeps `pid`, `known` and `vpmu` up to date.

    Only the thread that made this may touch a tracee, by `make`: `set_attr` from another one
    waits its turn, and `wake` tells that it does.
    """

    uuid: str | None = None

    def __init__(self, orders: Orders, pid: int, wake: Callable[[], None]) -> None:
        self.name = orders.name
        self.vmm = os.path.basename(orders.command[0])[:64]
        self.pid = pid
        self.known: tuple[VcpuStatus, ...] = ()
        self.vpmu = True
        self._calls: deque[Call] = deque()
        self._orders = orders
        self._wake = wake
        self._tracer = threading.get_ident()
        self.make: SetAttr | None = None

    def vcpus(self) -> Sequence[VcpuStatus]:
        """Those of the VM made last."""
        return self.known

    def has_vpmu(self) -> bool:
        """Whether they have one; before there are any, whether one is expected."""
        return self.vpmu

    def event_bits(self) -> int | None:
        """As found by a probe before the start."""
        return self._orders.event_bits

    def counters_limit(self, pmu_type: int) -> int | None:
        """Not known: counters are not offered."""
        return None

    def has_attr(self, attr: int) -> bool:
        """As found by that probe.

        Without SET_NR_COUNTERS: VMMs write PMCR_EL0 back after INIT, and every SET_PMU resets it.
        """
        return attr in self._orders.attributes and attr != KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS

    def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
        """Have the held thread make the call; raises OSError with KVM's errno."""
        if threading.get_ident() == self._tracer and self.make is not None:
            self.make(vcpu, attr, payload)
            return
        call = Call(vcpu, attr, payload)
        self._calls.append(call)
        self._wake()
        call.is_done.wait()
        if call.error is not None:
            raise call.error

    def carry_out(self) -> None:
        """In the tracer's thread: make the calls that wait."""
        while self._calls:
            call = self._calls.popleft()
            try:
                if self.make is None:
                    raise ProcessLookupError("it is not held")
                self.make(call.vcpu, call.attr, call.payload)
            except Exception as error:
                call.error = error
            call.is_done.set()
