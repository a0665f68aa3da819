# SPDX-License-Identifier: Apache-2.0
"""A supervised VM as the control server sees it; its calls are made by the tracer's thread."""

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence

from pmuctl.control.server.backend import VcpuStatus
from pmuctl.launch.spec import LaunchSpec
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS

GONE_POLL_SECONDS = 0.5
"""How often a call that waits looks whether there is still anybody to make it."""

MakeCall = Callable[[int, int, bytes], None]


class PendingCall:
    """A call that waits to be made, and what came of it."""

    def __init__(self, vcpu: int, attr: int, payload: bytes) -> None:
        self.vcpu = vcpu
        self.attr = attr
        self.payload = payload
        self.is_done = threading.Event()
        self.error: Exception | None = None


class SupervisedBackend:
    """What the server may know and do.

    The supervisor keeps `pid`, `known`, `default` and `is_gone` up to date.

    Only its own thread may touch a tracee: what `set_attr` is asked for waits until that calls
    `carry_out`, which has `make` do it; `wake` tells that something waits.
    """

    uuid: str | None = None

    def __init__(self, spec: LaunchSpec, pid: int, wake: Callable[[], None]) -> None:
        self.name = spec.name
        self.vmm = os.path.basename(spec.command[0])[:64]
        self.pid = pid
        self.known_vcpus: tuple[VcpuStatus, ...] = ()
        self.known_default_pmu: tuple[int, str] | None = None
        self._pending_calls: deque[PendingCall] = deque()
        self._spec = spec
        self._wake = wake
        self.make_call: MakeCall | None = None
        self.is_gone = False

    def vcpus(self) -> Sequence[VcpuStatus]:
        """Those of the VM made last."""
        return self.known_vcpus

    def has_vpmu(self) -> bool:
        """They have: a VM without one is not started."""
        return True

    def default_pmu(self) -> tuple[int, str] | None:
        """As the supervisor saw the VM being made."""
        return self.known_default_pmu

    def event_bits(self) -> int | None:
        """As found by a probe before the start."""
        return self._spec.event_bits

    def counters_limit(self, pmu_type: int) -> int | None:
        """Not known: counters are not offered."""
        return None

    def has_attr(self, attr: int) -> bool:
        """As found by that probe.

        Without SET_NR_COUNTERS: VMMs write PMCR_EL0 back after INIT, and every SET_PMU resets it.
        """
        return attr in self._spec.attributes and attr != KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS

    def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
        """Have the held thread make the call; raises OSError with KVM's errno."""
        call = PendingCall(vcpu, attr, payload)
        self._pending_calls.append(call)
        self._wake()
        while not call.is_done.wait(GONE_POLL_SECONDS):
            if self.is_gone:
                raise ProcessLookupError("its VMM is gone")
        if call.error is not None:
            raise call.error

    def make_pending_calls(self) -> None:
        """In the tracer's thread: make the calls that wait."""
        while self._pending_calls:
            call = self._pending_calls.popleft()
            try:
                if self.make_call is None:
                    raise ProcessLookupError("it is not held")
                self.make_call(call.vcpu, call.attr, call.payload)
            except Exception as error:
                call.error = error
            call.is_done.set()
