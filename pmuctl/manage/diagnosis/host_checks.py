# SPDX-License-Identifier: Apache-2.0
"""The checks of a host, which judge facts that were read before and read nothing themselves."""

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
EMPTY = CpuSet()
CAPTURE_ANEW = "sudo pmuctl host snapshot DIR"
"""The fix for what a captured tree does not have, on its machine."""


@value(kw_only=True)
class RuntimeDir:
    """A directory of control sockets, and the users who may own it.

    `owner` is None if the directory does not exist (yet).
    """

    path: str
    owners: tuple[int, ...]
    owner: int | None = None
    mode: int = 0o755
    is_directory: bool = True


@value(kw_only=True)
class HostFacts:
    """The facts that the checks of a host judge; None if a fact is not known.

    `are_pmus_complete` is False if there may be other CPU PMUs, `present` are the CPUs that were
    seen. `kvm_group` is the group that may open /dev/kvm, `unreadable_processes` the number of
    those that could not be read; `unscanned` tells of those for which there was no time.
    `unsearched` are directories of other users that a look could wait for, for ever.
    `is_partial` is True if others are hidden or may not be captured, `is_live` if the host is
    this machine.
    """

    uid: int
    pmus: Sequence[Pmu]
    are_pmus_complete: bool = True
    online: CpuSet | None = None
    present: CpuSet = EMPTY
    kvm: KvmAccess | None = None
    kvm_group: str | None = None
    probed: KvmCaps | None = None
    directories: Sequence[RuntimeDir] = ()
    unreadable_processes: int = 0
    is_partial: bool = False
    unscanned: str | None = None
    unsearched: Sequence[str] = ()
    has_debugfs: bool | None = None
    is_live: bool = True


def check_host(facts: HostFacts) -> list[Finding]:
    """Return the findings of all checks, in the order of CHECKS; none for what is not known."""
    return [
        Finding.of(id, HOST, outcome) for id, check in CHECKS.items() for outcome in check(facts)
    ]


def _check_kvm(facts: HostFacts) -> Iterator[Outcome]:
    match facts.kvm:
        case KvmAccess.USABLE:
            yield _make_pass("/dev/kvm can be used")
        case KvmAccess.DENIED:
            why = "/dev/kvm may not be opened by this user: neither it nor its VMMs have KVM"
            if facts.kvm_group is None:
                why += "; no group has it that a user could be put into"
            yield _make_warning(why, fix=grant_kvm_access(facts.kvm_group))
        case KvmAccess.MISSING:
            yield _make_failure(
                "there is no /dev/kvm: the kernel has no KVM, or was not started at EL2",
                fix="dmesg | grep -i kvm",
            )


def _check_vpmu(facts: HostFacts) -> Iterator[Outcome]:
    if facts.kvm in (KvmAccess.DENIED, KvmAccess.MISSING):
        return
    if facts.kvm is None and facts.probed is None:
        return
    if facts.probed is None or facts.probed.has_vpmu is None:
        why = "KVM could not be asked whether guests can have a PMU"
        yield _make_warning(why, fix="pmuctl host info")
    elif facts.probed.has_vpmu:
        yield _make_pass("KVM gives guests a PMU (KVM_CAP_ARM_PMU_V3)")
    else:
        cause = _explain_missing_vpmu(facts)
        why = f"KVM has no KVM_CAP_ARM_PMU_V3: guests have no PMU; {cause}"
        yield _make_failure(why, fix="dmesg | grep -iE 'kvm|pmu'")


def _explain_missing_vpmu(facts: HostFacts) -> str:
    """Return why KVM has no KVM_CAP_ARM_PMU_V3, as far as there is evidence of a cause."""
    pmus = facts.pmus
    if not facts.are_pmus_complete:
        return "not all PMUs of this host are known, so neither is the cause"
    if not pmus:
        return "the kernel has found no PMU of its own CPUs"
    if all(pmu.name.startswith("apple_") for pmu in pmus):
        return "this KVM has none for Apple's PMUs"
    if len(pmus) > 1:
        # since ec3eb9ed6081, v6.6
        names = ", ".join(pmu.name for pmu in pmus)
        return (
            f"there are several PMUs ({names}), and KVM has none where their versions differ "
            "(ID_AA64DFR0_EL1.PMUVer)"
        )
    return "no arm64 host, or CPUs without PMUv3"


def _check_attributes(facts: HostFacts) -> Iterator[Outcome]:
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
        yield _make_failure(why, fix=fix)
    elif KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS not in attributes:
        yield _make_pass("SET_PMU and FILTER; the number of counters stays fixed")
    else:
        yield _make_pass("SET_PMU, FILTER and SET_NR_COUNTERS")


def _check_pmus(facts: HostFacts) -> Iterator[Outcome]:
    if not facts.are_pmus_complete:
        names = ", ".join(pmu.name for pmu in facts.pmus)
        what = f"which PMUs there are besides {names}" if names else "whether there is a PMU"
        why = f"not known {what}: event sources are hidden, or were not captured"
        fix = "ls -lL /sys/bus/event_source/devices" if facts.is_live else CAPTURE_ANEW
        yield _make_warning(why, fix=fix)
        return
    if not facts.pmus:
        why = "the kernel has no CPU PMU: no guest can count"
        yield _make_failure(why, fix="dmesg | grep -i pmu")
        return
    covered = CpuSet.of(cpu for pmu in facts.pmus if pmu.cpus for cpu in pmu.cpus)
    cpus = facts.present if facts.online is None else facts.online
    bare = cpus - covered
    if any(pmu.cpus is None for pmu in facts.pmus):
        why = "the CPUs of a PMU cannot be read"
        yield _make_warning(why, fix="pmuctl pmu list")
    elif not cpus:
        why = "not known which CPUs there are, so whether each belongs to a PMU"
        yield _make_warning(why, fix="lscpu" if facts.is_live else CAPTURE_ANEW)
    elif bare:
        why = f"{describe_cpus(bare)} of no PMU: a VM that is made or runs there does not count"
        yield _make_warning(why, fix="pmuctl pmu cpus")
    elif len(facts.pmus) > 1:
        names = ", ".join(f"{pmu.name} ({pmu.cpus})" for pmu in facts.pmus)
        why = f"{len(facts.pmus)} PMUs, of which a VM has one: {names}"
        yield _make_pass(why)
    else:
        yield _make_pass(f"{facts.pmus[0].name} is the PMU of all CPUs")


def _check_pmu_online(facts: HostFacts) -> Iterator[Outcome]:
    for pmu in facts.pmus:
        if not pmu.cpus or pmu.online is None:
            continue
        if pmu.online:
            why = f"CPUs {pmu.online} of {pmu.cpus} are online"
            yield Outcome(Result.PASS, why, subject=pmu.name)
        else:
            why = f"none of its CPUs {pmu.cpus} is online: no VM can count with it"
            yield Outcome(Result.WARN, why, bring_online(pmu.cpus), subject=pmu.name)


def _check_runtime_dir(facts: HostFacts) -> Iterator[Outcome]:
    for directory in facts.directories:
        why, fix = "only its owner can put control sockets there", None
        path = shlex.quote(directory.path)
        if directory.owner is None:
            why = "it is not there; the first VM makes it"
        elif not directory.is_directory:
            why, fix = "it is no directory: control sockets in it are not believed", f"rm {path}"
        elif directory.owner not in directory.owners:
            why = f"it is uid {directory.owner}'s, who could speak for VMs of others"
            fix = f"chown {directory.owners[-1]} {path}"
        elif directory.mode & 0o022:
            mode = directory.mode & 0o7777
            why = f"others may write to it (mode {mode:o}): anybody could be a VM"
            fix = f"chmod go-w {path}"
        result = Result.WARN if fix else Result.PASS
        yield Outcome(result, why, fix, subject=directory.path)
    for path in facts.unsearched:
        why = "its file system may never answer (FUSE, network): sockets there are not seen"
        yield Outcome(Result.WARN, why, LIST_MOUNTS, subject=path)


def _check_processes(facts: HostFacts) -> Iterator[Outcome]:
    if facts.is_partial and not facts.is_live:
        why = "not known whether all processes are captured: there may be other VMs"
        yield _make_warning(why, fix=CAPTURE_ANEW)
    elif facts.unscanned:
        yield _make_warning(facts.unscanned, fix="pmuctl doctor --deadline 60")
    elif facts.unreadable_processes or facts.is_partial:
        what = f"{facts.unreadable_processes} processes may not be read"
        if facts.is_partial:
            what = "processes are hidden (hidepid, or a container)"
        fix = _rerun_as_root(facts) if facts.is_live else CAPTURE_ANEW
        yield _make_warning(f"{what}: VMs of theirs are not seen", fix=fix)
    else:
        yield _make_pass("all processes can be looked at")


def _check_debugfs(facts: HostFacts) -> Iterator[Outcome]:
    if facts.has_debugfs is None:
        return
    if facts.has_debugfs:
        yield _make_pass("KVM tells there which thread made which VM")
    else:
        why = "KVM's debugfs cannot be read: of several that hold a VM, who made it is not told"
        yield _make_warning(why, fix=_rerun_as_root(facts) or MOUNT_DEBUGFS)


LIST_MOUNTS = "findmnt --list -o TARGET,FSTYPE,SOURCE"
"""It reads the table of mounts, and looks at none of them."""

Check = Callable[[HostFacts], Iterator[Outcome]]

CHECKS: Mapping[CheckId, Check] = {
    CheckId.HOST_KVM: _check_kvm,
    CheckId.HOST_VPMU: _check_vpmu,
    CheckId.HOST_ATTRIBUTES: _check_attributes,
    CheckId.HOST_PMUS: _check_pmus,
    CheckId.HOST_PMU_ONLINE: _check_pmu_online,
    CheckId.HOST_RUNTIME_DIR: _check_runtime_dir,
    CheckId.HOST_PROCESSES: _check_processes,
    CheckId.HOST_DEBUGFS: _check_debugfs,
}


def _rerun_as_root(facts: HostFacts) -> str | None:
    """Return the command that repeats the checks as root; None if this is root."""
    return "sudo pmuctl doctor" if facts.uid != 0 else None


def _make_pass(why: str) -> Outcome:
    return Outcome(Result.PASS, why)


def _make_warning(why: str, *, fix: str | None) -> Outcome:
    return Outcome(Result.WARN, why, fix)


def _make_failure(why: str, *, fix: str | None) -> Outcome:
    return Outcome(Result.FAIL, why, fix)
