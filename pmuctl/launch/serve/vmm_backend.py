# SPDX-License-Identifier: Apache-2.0
"""A supervised VM as a backend of the control server; the tracer's thread makes its calls."""

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence

from pmuctl.control.server.backend import VcpuStatus
from pmuctl.launch.spec import LaunchSpec
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS

GONE_POLL_SECONDS = 0.5
"""How often a call that waits checks that the VMM is still there to make it (seconds)."""

MakeCall = Callable[[int, int, bytes], None]


class PendingCall:
    """A call that waits to be made, and its result."""

    def __init__(self, vcpu: int, attr: int, payload: bytes) -> None:
        self.vcpu = vcpu
        self.attr = attr
        self.payload = payload
        self.is_done = threading.Event()
        self.error: Exception | None = None


class SupervisedBackend:
    """What the control server may know of a supervised VM and do to it.

    ControlService keeps `pid`, `known_vcpus`, `known_default_pmu`, `known_vpmu` and `is_gone` up
    to date.

    Only the supervisor's own thread may touch a tracee: a call of `set_attr` waits until that
    thread calls `make_pending_calls`, which makes it with `make_call`; `wake` wakes that thread.
    """

    uuid: str | None = None

    def __init__(self, spec: LaunchSpec, pid: int, wake: Callable[[], None]) -> None:
        self.name = spec.name
        self.vmm = os.path.basename(spec.command[0])[:64]
        self.pid = pid
        self.known_vcpus: tuple[VcpuStatus, ...] = ()
        self.known_default_pmu: tuple[int, str] | None = None
        self.known_vpmu = True
        self._pending_calls: deque[PendingCall] = deque()
        self._spec = spec
        self._wake = wake
        self.make_call: MakeCall | None = None
        self.is_gone = False

    def vcpus(self) -> Sequence[VcpuStatus]:
        """Return the vCPUs of the VM made last."""
        return self.known_vcpus

    def has_vpmu(self) -> bool:
        """Return False if --best-effort let a VM without a vPMU run."""
        return self.known_vpmu

    def default_pmu(self) -> tuple[int, str] | None:
        """Return KVM's own choice as the supervisor observed it, None if it is not certain."""
        return self.known_default_pmu

    def event_bits(self, pmu_type: int | None) -> int | None:
        """Return the width of a PMU's event space that a probe found before the start."""
        bits, bits_of = self._spec.event_bits, self._spec.event_bits_of
        if pmu_type is None:
            return None if bits_of else bits
        return bits_of.get(pmu_type, bits)

    def counters_limit(self, pmu_type: int) -> int | None:
        """Return None, for not known: counters are not offered."""
        return None

    def has_attr(self, attr: int) -> bool:
        """Return True if a probe found this attribute before the start.

        SET_NR_COUNTERS is left out: VMMs write PMCR_EL0 back after INIT, and every SET_PMU resets
        it.
        """
        return attr in self._spec.attributes and attr != KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS

    def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
        """Have the held thread make the call; raise OSError with KVM's errno."""
        call = PendingCall(vcpu, attr, payload)
        self._pending_calls.append(call)
        self._wake()
        while not call.is_done.wait(GONE_POLL_SECONDS):
            if self.is_gone:
                raise ProcessLookupError("its VMM is gone")
        if call.error is not None:
            raise call.error

    def make_pending_calls(self) -> None:
        """Make the calls that wait; to be called in the tracer's thread."""
        while self._pending_calls:
            call = self._pending_calls.popleft()
            try:
                if self.make_call is None:
                    raise ProcessLookupError("it is not held")
                self.make_call(call.vcpu, call.attr, call.payload)
            except Exception as error:
                call.error = error
            call.is_done.set()
