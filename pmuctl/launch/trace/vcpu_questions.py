# SPDX-License-Identifier: Apache-2.0
"""What KVM tells of the vCPU at a descriptor, asked by a thread of its VMM.

KVM answers once the vCPU does not run: each is asked only where nobody runs it.
"""

import errno

from pmuctl.launch.trace.tracee import StuckError, Tracee
from pmuctl.uapi.kvm import KVM_GET_ONE_REG, KVM_HAS_DEVICE_ATTR, pack_device_attr
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_SET_PMU

NO_ADDRESS = (1 << 64) - 4096
"""An address that no process has."""
HAS_VPMU = pack_device_attr(KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_SET_PMU)


def is_first_answer(answer: int) -> bool:
    """Return whether KVM_GET_ONE_REG at NO_ADDRESS answered for a vCPU never initialised before.

    KVM answers ENOEXEC for such a vCPU, EFAULT for others (kvm_arch_vcpu_ioctl() in
    arch/arm64/kvm/arm.c). Any other answer says nothing: a VMM's own seccomp filter may give one.
    """
    return answer != -errno.EFAULT


def is_uninitialised(thread: Tracee, fd: int) -> bool | None:
    """Return whether the vCPU at a descriptor was never initialised; None if KVM does not tell.

    The thread is stopped at a call's exit.
    """
    answer = thread.ask(fd, KVM_GET_ONE_REG, NO_ADDRESS)
    return {-errno.ENOEXEC: True, -errno.EFAULT: False}.get(answer)


def is_gone(answer: int) -> bool:
    """Return whether the answer was that there is no vCPU at the descriptor."""
    return answer in (-errno.EBADF, -errno.ENOTTY)


def has_vpmu(thread: Tracee, fd: int) -> bool:
    """Return whether an initialised vCPU has a vPMU; True if that cannot be asked.

    If it has none after all, that shows when the settings are applied.
    """
    try:
        return thread.ioctl(fd, KVM_HAS_DEVICE_ATTR, HAS_VPMU) == 0
    except (ProcessLookupError, StuckError):
        raise
    except OSError:
        return True
