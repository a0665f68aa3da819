# SPDX-License-Identifier: Apache-2.0
"""Results of checks of a host or a VM."""

from enum import StrEnum

from pmuctl.value import value


class Result(StrEnum):
    """The result of a check."""

    PASS = "PASS"
    WARN = "WARN"
    """it can go wrong, or it cannot be told"""
    FAIL = "FAIL"


class CheckId(StrEnum):
    """The name of a check. A name never changes its meaning."""

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
    VM_MADE = "vm.made"
    VM_WINDOW = "vm.window"
    VM_VCPUS = "vm.vcpus"
    VM_PMU_ONLINE = "vm.pmu-online"
    VM_BLOCKED = "vm.blocked"
    VM_ALIGNED = "vm.aligned"
    VM_SPINNING = "vm.spinning"


@value
class Outcome:
    """The outcome of one check.

    `why` is the reason, `fix` one command that mends it, or that shows more if no command mends
    it. `subject` is what the check looked at, if that is only a part of the host or VM.
    """

    result: Result
    why: str
    fix: str | None = None
    subject: str | None = None


@value(kw_only=True)
class Finding:
    """One check of one subject, with its outcome; see Outcome."""

    id: CheckId
    subject: str
    result: Result
    why: str
    fix: str | None = None

    @classmethod
    def of(cls, id: CheckId, subject: str, outcome: Outcome) -> "Finding":
        """Return the finding of this check of a subject; the outcome's own subject wins."""
        return cls(
            id=id,
            subject=outcome.subject or subject,
            result=outcome.result,
            why=outcome.why,
            fix=outcome.fix,
        )
