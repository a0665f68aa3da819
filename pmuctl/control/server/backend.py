# SPDX-License-Identifier: Apache-2.0
"""The interface between the control server and its VMM."""

from collections.abc import Sequence
from typing import Protocol

from pmuctl.value import value


@value(kw_only=True)
class VcpuStatus:
    """The thread and the state of one vCPU, as its VMM knows them.

    `tid` is None if it is not known (yet) which thread runs the vCPU.
    """

    index: int
    tid: int | None
    initialised: bool
    has_run: bool


class VmmBackend(Protocol):
    """What the server needs of a VMM: the one it is part of, or one that pmuctl supervises.

    `vmm` is the VMM's name for itself. The methods are called by the server's thread, and by a
    thread that asks `PmuState` itself; one at a time, under its lock.
    """

    name: str
    uuid: str | None
    vmm: str

    @property
    def pid(self) -> int:
        """The pid of the VMM: os.getpid() if the server is part of it."""

    def vcpus(self) -> Sequence[VcpuStatus]:
        """Return every vCPU of the VM; an empty sequence before the VMM has created one."""

    def has_vpmu(self) -> bool:
        """Return whether the vCPUs are, or will be, created with KVM_ARM_VCPU_PMU_V3."""

    def default_pmu(self) -> tuple[int, str] | None:
        """Return the perf type and name of the PMU that KVM chose; None if that is not certain.

        The server asks for it only if no PMU was set and the window is closed.
        """

    def event_bits(self, pmu_type: int | None) -> int | None:
        """Return the width of KVM's event space with this PMU in bits, 10 or 16.

        `pmu_type` is None if it is not certain which PMU the VM has: return None then, as for any
        width that is not known, unless all PMUs have the same (before v6.6 they may differ).
        """

    def counters_limit(self, pmu_type: int) -> int | None:
        """Return how many programmable counters KVM has with this PMU; None if not known."""

    def has_attr(self, attr: int) -> bool:
        """Call KVM_HAS_DEVICE_ATTR for the group KVM_ARM_VCPU_PMU_V3_CTRL on a vCPU."""

    def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
        """Call KVM_SET_DEVICE_ATTR for that group on a vCPU; raise OSError with KVM's errno."""
