# SPDX-License-Identifier: Apache-2.0
"""What a check of a host or of a VM has found."""

from enum import StrEnum

from pmuctl.value import value


class Result(StrEnum):
    """How a check ended."""

    PASS = "PASS"
    WARN = "WARN"
    """it can go wrong, or cannot be told"""
    FAIL = "FAIL"


class CheckId(StrEnum):
    """The name of a check, which never changes its meaning."""

    HOST_KVM = "host.kvm"
    HOST_VPMU = "host.vpmu"
    HOST_ATTRIBUTES = "host.attributes"
    HOST_PMUS = "host.pmus"
    HOST_PMU_ONLINE = "host.pmu-online"
    HOST_RUNTIME_DIR = "host.runtime-dir"
    HOST_PROCESSES = "host.processes"
    HOST_DEBUGFS = "host.debugfs"
    VM_SOCKET = "vm.socket"
    VM_SUPERVISOR = "vm.supervisor"
    VM_WINDOW = "vm.window"
    VM_PMU_ONLINE = "vm.pmu-online"
    VM_BLOCKED = "vm.blocked"
    VM_ALIGNED = "vm.aligned"
    VM_SPINNING = "vm.spinning"


@value
class Outcome:
    """How a check ended; `subject` is what it looked at, where that is but a part of the thing.

    `why` is the reason, `fix` one command that mends it, or shows more where none does.
    """

    result: Result
    why: str
    fix: str | None = None
    subject: str | None = None


@value(kw_only=True)
class Finding:
    """One check of one thing, and how it ended; see Outcome."""

    id: CheckId
    subject: str
    result: Result
    why: str
    fix: str | None = None

    @classmethod
    def of(cls, id: CheckId, subject: str, its: Outcome) -> "Finding":
        """The outcome of this check of a thing."""
        return cls(
            id=id, subject=its.subject or subject, result=its.result, why=its.why, fix=its.fix
        )
