# SPDX-License-Identifier: Apache-2.0
"""The checks of a host, each made to pass, to warn and to fail."""

from typing import Any

import pytest

from pmuctl.host.kvm.access import KvmAccess
from pmuctl.manage.diagnosis import host_checks, vm_checks
from pmuctl.manage.diagnosis.host_checks import HostFacts, RuntimeDir, check_host
from pmuctl.manage.hints import MOUNT_DEBUGFS
from pmuctl.model.check_result import CheckId, Result
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_FILTER,
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
    KVM_ARM_VCPU_PMU_V3_SET_PMU,
)
from pmuctl.value import replace
from tests.unit.manage.diagnosis.two_pmus import A53, A72, ALL, FAIL, PASS, PMUS, WARN, pmu

ATTRIBUTES = frozenset(
    {
        KVM_ARM_VCPU_PMU_V3_SET_PMU,
        KVM_ARM_VCPU_PMU_V3_FILTER,
        KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
    }
)
GOOD = HostFacts(
    uid=0,
    pmus=PMUS,
    online=ALL,
    kvm=KvmAccess.USABLE,
    probed=KvmCaps(has_vpmu=True, attributes=ATTRIBUTES),
    directories=(RuntimeDir(path="/run/pmuctl", owners=(0,), owner=0),),
    has_debugfs=True,
)


def of_host(id: str, **facts: Any) -> list[tuple[Result, str, str | None]]:
    found = [its for its in check_host(replace(GOOD, **facts)) if its.id == id]
    return [(its.result, its.why, its.fix) for its in found]


def one(found: list[tuple[Result, str, str | None]]) -> tuple[Result, str, str | None]:
    (its,) = found
    return its


def test_the_ids_of_checks_are_stable() -> None:
    assert list(CheckId) == [
        *("host.kvm", "host.vpmu", "host.attributes", "host.pmus", "host.pmu-online"),
        *("host.runtime-dir", "host.processes", "host.debugfs"),
        *("vm.socket", "vm.supervisor", "vm.made", "vm.window", "vm.vcpus", "vm.pmu-online"),
        *("vm.blocked", "vm.aligned", "vm.spinning"),
    ]
    assert [*host_checks.CHECKS, *vm_checks.CHECKS] == list(CheckId)


def test_a_good_host_passes_every_check() -> None:
    found = check_host(GOOD)
    assert {its.result for its in found} == {PASS}
    assert list(dict.fromkeys(its.id for its in found)) == list(host_checks.CHECKS)
    assert [its.subject for its in found if its.id == "host.pmu-online"] == [A53, A72]


def test_what_is_not_known_is_left_out() -> None:
    """As of another machine's tree."""
    facts = HostFacts(uid=0, pmus=PMUS, online=ALL)
    ids = {its.id for its in check_host(facts)}
    assert ids == {"host.pmus", "host.pmu-online", "host.processes"}


def test_kvm() -> None:
    result, why, fix = one(of_host("host.kvm", kvm=KvmAccess.DENIED, kvm_group="virt"))
    assert (result, fix) == (WARN, "usermod -aG virt USER")
    assert "no group" not in why
    result, why, fix = one(of_host("host.kvm", kvm=KvmAccess.DENIED))
    assert (result, fix) == (WARN, "setfacl -m u:USER:rw /dev/kvm")
    assert "no group has it" in why
    result, why, fix = one(of_host("host.kvm", kvm=KvmAccess.MISSING))
    assert (result, fix) == (FAIL, "dmesg | grep -i kvm")
    assert "no /dev/kvm" in why


def test_vpmu() -> None:
    assert one(of_host("host.vpmu", probed=None))[0] is WARN
    assert of_host("host.vpmu", kvm=KvmAccess.DENIED) == []


@pytest.mark.parametrize(
    ("pmus", "cause"),
    [
        (PMUS, "versions differ (ID_AA64DFR0_EL1.PMUVer)"),
        (PMUS[:1], "CPUs without PMUv3"),
        ((), "no PMU of its own CPUs"),
        ((pmu("apple_icestorm_pmu", "0-3"),), "this KVM has none for Apple's PMUs"),
    ],
)
def test_no_vpmu_is_explained_as_far_as_there_is_evidence(
    pmus: tuple[Pmu, ...], cause: str
) -> None:
    result, why, _ = one(of_host("host.vpmu", probed=KvmCaps(has_vpmu=False), pmus=pmus))
    assert result is FAIL
    assert "KVM_CAP_ARM_PMU_V3" in why
    assert cause in why


def test_attributes() -> None:
    def lacking(*numbers: int) -> tuple[Result, str, str | None]:
        probed = KvmCaps(has_vpmu=True, attributes=ATTRIBUTES - set(numbers))
        return one(of_host("host.attributes", probed=probed))

    assert lacking(KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS)[0] is PASS
    result, why, _ = lacking(KVM_ARM_VCPU_PMU_V3_SET_PMU)
    assert result is FAIL
    assert why == "this KVM lacks SET_PMU: a newer kernel is needed"
    assert "lacks FILTER:" in lacking(KVM_ARM_VCPU_PMU_V3_FILTER)[1]
    both = lacking(KVM_ARM_VCPU_PMU_V3_FILTER, KVM_ARM_VCPU_PMU_V3_SET_PMU)
    assert "lacks SET_PMU, FILTER:" in both[1]
    assert of_host("host.attributes", probed=KvmCaps(has_vpmu=False)) == []


def test_pmus() -> None:
    assert one(of_host("host.pmus", pmus=()))[0] is FAIL
    result, why, _ = one(of_host("host.pmus", pmus=PMUS[:1]))
    assert result is WARN
    assert "2-3" in why
    assert "2 PMUs" in one(of_host("host.pmus"))[1]
    # one that is offline is missed by nobody
    gone = of_host("host.pmus", pmus=PMUS[:1], online=CpuSet.parse("0-1"))
    assert one(gone)[0] is PASS
    assert one(of_host("host.pmus", pmus=(replace(PMUS[0], cpus=None),)))[0] is WARN


def test_pmus_that_were_not_seen_neither_pass_nor_fail() -> None:
    for pmus in ((), PMUS[:1], PMUS):
        result, why, fix = one(of_host("host.pmus", pmus=pmus, are_pmus_complete=False))
        assert result is WARN
        assert why.startswith("not known")
        assert fix == "ls -lL /sys/bus/event_source/devices"
        captured = of_host("host.pmus", pmus=pmus, are_pmus_complete=False, is_live=False)
        assert one(captured)[2] == "sudo pmuctl host snapshot DIR"


def test_cpus_that_were_not_seen_are_not_all_cpus() -> None:
    for pmus in (PMUS[:1], PMUS):
        assert one(of_host("host.pmus", pmus=pmus, online=None))[0] is WARN
    result, why, _ = one(of_host("host.pmus", pmus=PMUS[:1], online=None, present=ALL))
    assert result is WARN
    assert "2-3" in why
    assert one(of_host("host.pmus", online=None, present=ALL))[0] is PASS


def test_the_cause_of_no_vpmu_is_not_told_where_pmus_were_not_seen() -> None:
    probed = KvmCaps(has_vpmu=False)
    found = one(of_host("host.vpmu", probed=probed, pmus=(), are_pmus_complete=False))
    assert found[0] is FAIL
    assert "found no PMU" not in found[1]
    assert "not all PMUs of this host are known" in found[1]


def test_processes_that_were_not_captured_do_not_pass() -> None:
    found = one(of_host("host.processes", is_partial=True, is_live=False))
    assert found[0] is WARN
    assert "not known" in found[1]
    assert found[2] == "sudo pmuctl host snapshot DIR"


def test_a_pmu_without_a_cpu() -> None:
    found = of_host("host.pmu-online", pmus=(PMUS[0], pmu(A72, "2-3", "")))
    assert [its[0] for its in found] == [PASS, WARN]
    assert found[1][2] == "echo 1 >/sys/devices/system/cpu/cpu2/online"


@pytest.mark.parametrize(
    ("change", "result", "fix"),
    [
        ({"owner": None}, PASS, None),
        ({"owner": 1000}, WARN, "chown 0 '/run/a b'"),
        ({"mode": 0o775}, WARN, "chmod go-w '/run/a b'"),
        ({"mode": 0o757}, WARN, "chmod go-w '/run/a b'"),
        ({"is_directory": False}, WARN, "rm '/run/a b'"),
    ],
)
def test_runtime_directories(change: dict[str, Any], result: Result, fix: str | None) -> None:
    its = RuntimeDir(path="/run/a b", owners=(0,), owner=0)
    found = one(of_host("host.runtime-dir", directories=(replace(its, **change),)))
    assert (found[0], found[2]) == (result, fix)


def test_who_may_not_look_is_told() -> None:
    assert one(of_host("host.processes", unreadable_processes=3, uid=1000)) == (
        WARN,
        "3 processes may not be read: VMs of theirs are not seen",
        "sudo pmuctl doctor",
    )
    assert "hidden" in one(of_host("host.processes", is_partial=True))[1]
    assert one(of_host("host.debugfs", has_debugfs=False))[2] == MOUNT_DEBUGFS
    assert one(of_host("host.debugfs", has_debugfs=False, uid=1))[2] == "sudo pmuctl doctor"
