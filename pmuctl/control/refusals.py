# SPDX-License-Identifier: Apache-2.0
"""What the server refuses, in words: a transaction that failed, and why."""

import errno
from collections.abc import Sequence

from pmuctl.errors import PmuctlError, RefusedError
from pmuctl.model.plan import Current, SetAttr, Step, refusal
from pmuctl.model.vpmu import Vpmu


class ApplyError(Exception):
    """A refusal, the step that met it, and what had been applied before and stays so.

    `dry_run` tells that nothing was to be applied anyway.
    """

    def __init__(
        self,
        cause: PmuctlError,
        step: Step | None,
        applied: Sequence[Step],
        *,
        dry_run: bool = False,
    ) -> None:
        super().__init__(cause.message)
        self.dry_run = dry_run
        self.cause = cause
        self.step = step
        self.applied = tuple(applied)


def no_vcpu() -> PmuctlError:
    """The refusal of settings before there is a vCPU to make the calls on."""
    return RefusedError(
        "the VM has no vCPU yet",
        why="KVM takes PMU settings through a vCPU, and the VMM has not made one",
    )


def refused(step: Step, error: Exception, state: Vpmu, current: Current) -> PmuctlError:
    """What it means that a step failed with this error when KVM was in this state."""
    if not isinstance(error, OSError):
        return RefusedError(
            "the VMM failed at a step, which may have been done or not",
            why=f"{type(error).__name__}; the step: {step.words()}",
        )
    number = error.errno or errno.EIO
    if isinstance(step, SetAttr):
        return refusal(step, number, state, current.sealed_by)
    why = error.strerror or str(error)
    if number == errno.EINVAL:
        why = "none of these CPUs is online and in the thread's cpuset cgroup (EINVAL)"
    return RefusedError(
        f"vCPU {step.vcpu} could not be put on {step.cpus}",
        why=why,
        errno=errno.errorcode.get(number),
    )
