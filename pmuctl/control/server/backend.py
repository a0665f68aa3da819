# SPDX-License-Identifier: Apache-2.0
"""What the control server sees of its VMM, and filters as they stand on the wire."""

from collections.abc import Sequence
from typing import Protocol

from pmuctl.value import value


@value(kw_only=True)
class VcpuStatus:
    """One vCPU as its VMM knows it: its thread, and how far it is.

    `tid` is None where it is not known (yet) which thread runs it.
    """

    index: int
    tid: int | None
    initialised: bool
    has_run: bool


class VmmBackend(Protocol):
    """What pmuctl needs of a VMM: the one it lives in, or one that it supervises.

    `vmm` is what the VMM calls itself. Called from the server's thread.
    """

    name: str
    uuid: str | None
    vmm: str

    @property
    def pid(self) -> int:
        """The VMM's process: os.getpid() where the server lives in it."""

    def vcpus(self) -> Sequence[VcpuStatus]:
        """Every vCPU of the VM; none before the VMM has made one."""

    def has_vpmu(self) -> bool:
        """Whether the vCPUs are, or will be, made with the feature KVM_ARM_VCPU_PMU_V3."""

    def default_pmu(self) -> tuple[int, str] | None:
        """The PMU that KVM chose by itself, by perf type and name; None where that is not certain.

        Asked for where none was set and the window is closed.
        """

    def event_bits(self) -> int | None:
        """The width of KVM's event space, 10 or 16; None where it is not known."""

    def counters_limit(self, pmu_type: int) -> int | None:
        """How many programmable counters KVM has with this PMU; None where it is not known."""

    def has_attr(self, attr: int) -> bool:
        """KVM_HAS_DEVICE_ATTR of the group KVM_ARM_VCPU_PMU_V3_CTRL on a vCPU."""

    def set_attr(self, vcpu: int, attr: int, payload: bytes) -> None:
        """KVM_SET_DEVICE_ATTR of that group on this vCPU; raises OSError with KVM's errno."""
