# SPDX-License-Identifier: Apache-2.0
"""The checks of a host: each looks at facts that were read before, and at nothing else."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence

from pmuctl.host.kvm.access import KvmAccess
from pmuctl.manage.hints import MOUNT_DEBUGFS, bring_online, describe_cpus, grant_kvm_access
from pmuctl.model.check_result import CheckId, Finding, Outcome, Result
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_FILTER,
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
    KVM_ARM_VCPU_PMU_V3_SET_PMU,
)
from pmuctl.value import value

HOST = "host"


@value(kw_only=True)
class RuntimeDir:
    """A directory of control sockets, and the users who may own it; None is not there (yet)."""

    path: str
    owners: tuple[int, ...]
    owner: int | None = None
    mode: int = 0o755
    is_directory: bool = True


@value(kw_only=True)
class HostFacts:
    """What the checks of a host judge; None is what could not be found out, or not of this one.

    `kvm_group` is the group that may open /dev/kvm, `processes` are those that could not be looked
    at, `is_partial` that others are hidden, `is_live` that it is this machine.
    """

    uid: int
    pmus: Sequence[Pmu]
    online: CpuSet | None = None
    kvm: KvmAccess | None = None
    kvm_group: str | None = None
    probed: KvmCaps | None = None
    directories: Sequence[RuntimeDir] = ()
    processes: int = 0
    is_partial: bool = False
    has_debugfs: bool | None = None
    is_live: bool = True


def check_host(facts: HostFacts) -> list[Finding]:
    """Every check of a host, in the order of CHECKS; what nothing is known of has no finding."""
    return [Finding.of(id, HOST, its) for id, check in CHECKS.items() for its in check(facts)]


def _kvm(facts: HostFacts) -> Iterator[Outcome]:
    match facts.kvm:
        case KvmAccess.USABLE:
            yield _passed("/dev/kvm can be used")
        case KvmAccess.DENIED:
            why = "/dev/kvm may not be opened by this user: neither it nor its VMMs have KVM"
            if facts.kvm_group is None:
                why += "; no group has it that a user could be put into"
            yield _warned(why, fix=grant_kvm_access(facts.kvm_group))
        case KvmAccess.MISSING:
            yield _failed(
                "there is no /dev/kvm: the kernel has no KVM, or was not started at EL2",
                fix="dmesg | grep -i kvm",
            )


def _vpmu(facts: HostFacts) -> Iterator[Outcome]:
    if facts.kvm in (KvmAccess.DENIED, KvmAccess.MISSING):
        return
    if facts.kvm is None and facts.probed is None:
        return
    if facts.probed is None or facts.probed.has_vpmu is None:
        why = "KVM could not be asked whether guests can have a PMU"
        yield _warned(why, fix="pmuctl host info")
    elif facts.probed.has_vpmu:
        yield _passed("KVM gives guests a PMU (KVM_CAP_ARM_PMU_V3)")
    else:
        why = f"KVM has no KVM_CAP_ARM_PMU_V3: guests have no PMU; {_cause(facts.pmus)}"
        yield _failed(why, fix="pmuctl host info")


def _cause(pmus: Sequence[Pmu]) -> str:
    """What is known to take the capability away, as far as there is evidence of it."""
    if not pmus:
        return "the kernel has found no PMU of its own CPUs"
    if all(pmu.name.startswith("apple_") for pmu in pmus):
        return "this KVM has none for Apple's PMUs"
    if len(pmus) > 1:
        # ec3eb9ed6081, v6.6
        names = ", ".join(pmu.name for pmu in pmus)
        return (
            f"there are several PMUs ({names}), and KVM has none where their versions differ "
            "(ID_AA64DFR0_EL1.PMUVer)"
        )
    return "no arm64 host, or CPUs without PMUv3"


def _attributes(facts: HostFacts) -> Iterator[Outcome]:
    if facts.probed is None or not facts.probed.has_vpmu:
        return
    attributes = facts.probed.attributes
    missing = [
        name
        for name, number in (
            ("SET_PMU", KVM_ARM_VCPU_PMU_V3_SET_PMU),
            ("FILTER", KVM_ARM_VCPU_PMU_V3_FILTER),
        )
        if number not in attributes
    ]
    fix = "pmuctl host capabilities"
    if missing:
        why = f"this KVM lacks {', '.join(missing)}: a newer kernel is needed"
        yield _failed(why, fix=fix)
    elif KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS not in attributes:
        yield _passed("SET_PMU and FILTER; the number of counters stays fixed")
    else:
        yield _passed("SET_PMU, FILTER and SET_NR_COUNTERS")


def _pmus(facts: HostFacts) -> Iterator[Outcome]:
    if not facts.pmus:
        why = "the kernel has no CPU PMU: no guest can count"
        yield _failed(why, fix="dmesg | grep -i pmu")
        return
    covered = CpuSet.of(cpu for pmu in facts.pmus if pmu.cpus for cpu in pmu.cpus)
    bare = facts.online - covered if facts.online is not None else CpuSet()
    if any(pmu.cpus is None for pmu in facts.pmus):
        why = "the CPUs of a PMU cannot be read"
        yield _warned(why, fix="pmuctl pmu list")
    elif bare:
        why = f"{describe_cpus(bare)} of no PMU: a VM that is made or runs there does not count"
        yield _warned(why, fix="pmuctl pmu cpus")
    elif len(facts.pmus) > 1:
        names = ", ".join(f"{pmu.name} ({pmu.cpus})" for pmu in facts.pmus)
        why = f"{len(facts.pmus)} PMUs, of which a VM has one: {names}"
        yield _passed(why)
    else:
        yield _passed(f"{facts.pmus[0].name} is the PMU of all CPUs")


def _pmu_online(facts: HostFacts) -> Iterator[Outcome]:
    for pmu in facts.pmus:
        if not pmu.cpus or pmu.online is None:
            continue
        if pmu.online:
            why = f"CPUs {pmu.online} of {pmu.cpus} are online"
            yield Outcome(Result.PASS, why, subject=pmu.name)
        else:
            why = f"none of its CPUs {pmu.cpus} is online: no VM can count with it"
            yield Outcome(Result.WARN, why, bring_online(pmu.cpus), subject=pmu.name)


def _runtime_dir(facts: HostFacts) -> Iterator[Outcome]:
    for its in facts.directories:
        why, fix = "only its owner can put control sockets there", None
        path = shlex.quote(its.path)
        if its.owner is None:
            why = "it is not there; the first VM makes it"
        elif not its.is_directory:
            why, fix = "it is no directory: control sockets in it are not believed", f"rm {path}"
        elif its.owner not in its.owners:
            why = f"it is uid {its.owner}'s, who could speak for VMs of others"
            fix = f"chown {its.owners[-1]} {path}"
        elif its.mode & 0o022:
            why = f"others may write to it (mode {its.mode & 0o7777:o}): anybody could be a VM"
            fix = f"chmod go-w {path}"
        yield Outcome(Result.WARN if fix else Result.PASS, why, fix, subject=its.path)


def _processes(facts: HostFacts) -> Iterator[Outcome]:
    if facts.processes or facts.is_partial:
        what = f"{facts.processes} processes may not be read"
        if facts.is_partial:
            what = "processes are hidden (hidepid, or a container)"
        fix = _as_root(facts) if facts.is_live else "sudo pmuctl host snapshot DIR"
        yield _warned(f"{what}: VMs of theirs are not seen", fix=fix)
    else:
        yield _passed("all processes can be looked at")


def _debugfs(facts: HostFacts) -> Iterator[Outcome]:
    if facts.has_debugfs is None:
        return
    if facts.has_debugfs:
        yield _passed("KVM tells there which thread made which VM")
    else:
        why = "KVM's debugfs cannot be read: of several that hold a VM, who made it is not told"
        yield _warned(why, fix=_as_root(facts) or MOUNT_DEBUGFS)


Check = Callable[[HostFacts], Iterator[Outcome]]

CHECKS: Mapping[CheckId, Check] = {
    CheckId.HOST_KVM: _kvm,
    CheckId.HOST_VPMU: _vpmu,
    CheckId.HOST_ATTRIBUTES: _attributes,
    CheckId.HOST_PMUS: _pmus,
    CheckId.HOST_PMU_ONLINE: _pmu_online,
    CheckId.HOST_RUNTIME_DIR: _runtime_dir,
    CheckId.HOST_PROCESSES: _processes,
    CheckId.HOST_DEBUGFS: _debugfs,
}


def _as_root(facts: HostFacts) -> str | None:
    return "sudo pmuctl doctor" if facts.uid != 0 else None


def _passed(why: str) -> Outcome:
    return Outcome(Result.PASS, why)


def _warned(why: str, *, fix: str | None) -> Outcome:
    return Outcome(Result.WARN, why, fix)


def _failed(why: str, *, fix: str | None) -> Outcome:
    return Outcome(Result.FAIL, why, fix)
