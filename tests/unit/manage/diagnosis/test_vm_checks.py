# SPDX-License-Identifier: Apache-2.0
"""The checks of `pmuctl doctor`, each made to pass, to warn and to fail."""

from typing import Any

import pytest

from pmuctl.errors import UnreachableError
from pmuctl.host.kvm.access import KvmAccess
from pmuctl.manage.affinity.blockers import Blocker
from pmuctl.manage.diagnosis import host_checks, vm_checks
from pmuctl.manage.diagnosis.host_checks import HostFacts, RuntimeDir, check_host
from pmuctl.manage.diagnosis.vm_checks import VmFacts, check_vm
from pmuctl.manage.hints import MOUNT_DEBUGFS
from pmuctl.model.alignment import VmAlignment
from pmuctl.model.check_result import CheckId, Finding, Result
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import EffectivePmu
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.model.vm import Vm, VmPmu, VmState, VmVcpu, Window
from pmuctl.model.vm_ref import ProcessId, VmId
from pmuctl.model.vmm_identity import VmmIdentity, VmmKind
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_FILTER,
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
    KVM_ARM_VCPU_PMU_V3_SET_PMU,
)
from pmuctl.value import replace

PASS, WARN, FAIL = Result
A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
ALL = CpuSet.parse("0-3")
ATTRIBUTES = frozenset(
    {
        KVM_ARM_VCPU_PMU_V3_SET_PMU,
        KVM_ARM_VCPU_PMU_V3_FILTER,
        KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
    }
)


def pmu(name: str, cpus: str, online: str | None = None, type: int = 10) -> Pmu:
    return Pmu(
        name=name,
        path=f"/sys/devices/{name}",
        type=type,
        cpus=CpuSet.parse(cpus),
        online=CpuSet.parse(cpus if online is None else online),
        cores=(),
        events={},
        formats={},
        caps={},
    )


PMUS = (pmu(A53, "0-1"), pmu(A72, "2-3", type=11))
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
        *("vm.socket", "vm.supervisor", "vm.window", "vm.pmu-online", "vm.blocked"),
        *("vm.aligned", "vm.spinning"),
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
    assert one(of_host("host.processes", processes=3, uid=1000)) == (
        WARN,
        "3 processes may not be read: VMs of theirs are not seen",
        "sudo pmuctl doctor",
    )
    assert "hidden" in one(of_host("host.processes", is_partial=True))[1]
    assert one(of_host("host.debugfs", has_debugfs=False))[2] == MOUNT_DEBUGFS
    assert one(of_host("host.debugfs", has_debugfs=False, uid=1))[2] == "sudo pmuctl doctor"


# --- VMs ---

CPUS = {pmu.name: pmu.cpus for pmu in PMUS}
SET = EffectivePmu(
    pmu=VmPmu(name=A72, type=11, origin="vmm"), cpus={A72: CPUS[A72]}, is_explicit=True
)
DEFAULT = replace(SET, is_explicit=False)
EITHER = EffectivePmu(cpus=CPUS)


def a_vm(**how: Any) -> Vm:
    given: dict[str, Any] = {
        "name": "web1",
        "socket": "/run/pmuctl/web1.sock",
        "state": VmState.RUNNING,
        "window": Window.SEALED,
        "id": VmId(ProcessId(100, 1), 9),
        "supervised": True,
        "is_own": True,
    }
    return Vm(**given | how)


def facts(
    *masks: str | None, vm: Vm | None = None, chosen: EffectivePmu = SET, **how: Any
) -> VmFacts:
    texts = masks or ("2-3",)
    vcpus = tuple(
        VmVcpu(index=index, tid=101 + index, initialised=True, has_run=True)
        for index in range(len(texts))
    )
    known = {
        101 + index: CpuSet.parse(text) for index, text in enumerate(texts) if text is not None
    }
    its = replace(vm or a_vm(), vcpus=vcpus)
    given = {"online": ALL, **how}
    return VmFacts(held=VmAlignment.of(its, chosen, known, given["online"]), **given)


def of_vm(id: str, its: VmFacts) -> Finding | None:
    found = [finding for finding in check_vm(its) if finding.id == id]
    assert len(found) < 2
    return found[0] if found else None


def result(id: str, its: VmFacts) -> tuple[Result, str | None]:
    found = of_vm(id, its)
    assert found is not None
    return found.result, found.fix


def test_a_good_vm_passes_every_check() -> None:
    found = check_vm(facts(spins={0: 0.0}))
    assert {its.result for its in found} == {PASS}
    assert [its.id for its in found] == [its for its in vm_checks.CHECKS if its != "vm.blocked"]


def test_a_set_pmu_that_can_be_left_fails_and_names_the_spin() -> None:
    found = of_vm("vm.aligned", facts("2-3", "0-3"))
    assert found is not None
    assert (found.result, found.fix) == (FAIL, "pmuctl affinity align web1")
    assert found.why.startswith(f"vCPU 1 may run on CPUs 0-1, outside {A72} (2-3): ")
    assert "KVM_EXIT_FAIL_ENTRY" in found.why
    assert "QEMU spins at 100 %" in found.why


def test_a_default_pmu_that_can_be_left_warns() -> None:
    found = of_vm("vm.aligned", facts("0-3", chosen=DEFAULT))
    assert found is not None
    assert found.result is WARN
    assert "counters stop there silently" in found.why


def test_one_of_several_pmus() -> None:
    assert result("vm.aligned", facts("0-3", chosen=EITHER)) == (
        *(WARN, "pmuctl affinity set web1 0-1 or pmuctl affinity set web1 2-3"),
    )
    # each vCPU may be on the right one, both cannot
    torn = of_vm("vm.aligned", facts("0-1", "2-3", chosen=EITHER))
    assert torn is not None
    assert torn.why == (
        f"vCPU 0-1 may run outside its PMU, on CPUs 2-3 if that is {A53} or CPUs 0-1 if that is "
        f"{A72}: the guest's counters stop there silently"
    )
    unknown = of_vm("vm.aligned", facts("2-3", chosen=EITHER))
    assert unknown is not None
    assert (unknown.result, unknown.fix) == (WARN, "pmuctl vm vcpus web1")


def test_a_vm_without_a_pmu_has_nothing_to_leave() -> None:
    its = facts(chosen=EffectivePmu())
    assert [of_vm(id, its) for id in ("vm.aligned", "vm.pmu-online", "vm.spinning")] == [None] * 3


def test_the_fix_is_one_that_works() -> None:
    """Align refuses a pin that pmuctl did not make."""
    assert result("vm.aligned", facts("0-1"))[1] == f"pmuctl affinity set web1 pmu/{A72}"
    recorded = {0: CpuSet.parse("2")}
    assert result("vm.aligned", facts("0-1", recorded=recorded))[1] == (
        "pmuctl affinity align web1"
    )
    named = facts("0-3", vm=a_vm(name="a b; rm x"))
    assert result("vm.aligned", named)[1] == "pmuctl affinity align 'a b; rm x'"


def test_the_last_cpu_of_its_pmu() -> None:
    online = CpuSet.parse("0-1")
    assert result("vm.pmu-online", facts("", online=online)) == (
        *(FAIL, "echo 1 >/sys/devices/system/cpu/cpu2/online"),
    )
    assert result("vm.aligned", facts("", online=online))[0] is FAIL
    assert result("vm.pmu-online", facts(online=CpuSet.parse("0-2")))[0] is PASS
    assert of_vm("vm.pmu-online", facts("2", online=None)) is None


def test_a_cpuset_in_the_way() -> None:
    blocker = Blocker("the cpuset cgroup (v2) /sys/fs/cgroup/vm allows only 0-1", "echo 0-3 >x")
    found = of_vm("vm.blocked", facts("0-1", blockers={0: blocker}))
    assert found is not None
    assert (found.result, found.fix) == (FAIL, "echo 0-3 >x")
    assert "/sys/fs/cgroup/vm allows only 0-1" in found.why
    assert of_vm("vm.blocked", facts("0-1")) is None


def test_an_obstacle_is_removed_before_vcpus_are_placed() -> None:
    """Each vCPU can have a cpuset of its own."""
    same = Blocker("x allows only 0-1", "echo 0-3 >x")
    other = Blocker("y allows only 0-1", "echo 0-3 >y")
    recorded = {0: CpuSet.parse("2"), 1: CpuSet.parse("2"), 2: CpuSet.parse("3")}
    blockers = {0: same, 1: same, 2: other}
    its = facts("0-1", "0-1", "0-1", recorded=recorded, blockers=blockers, spins={0: 1.0})
    fix = "echo 0-3 >x && echo 0-3 >y && pmuctl affinity align web1"
    assert result("vm.aligned", its) == (FAIL, fix)
    assert result("vm.spinning", its) == (FAIL, fix)


def test_a_fix_names_a_vm_by_its_process_where_others_can_have_its_name() -> None:
    for name in ("web1", "--all", "a;b"):
        its = a_vm(name=name, socket=None, is_own=False)
        assert result("vm.aligned", facts("0-3", vm=its))[1] == "pmuctl affinity align pid/100"
    its = a_vm(name="pid/100/9", socket=None, is_own=False)
    assert result("vm.aligned", facts("0-3", vm=its))[1] == "pmuctl affinity align pid/100/9"
    its = a_vm(is_own=False, state=VmState.WAITING, window=Window.OPEN)
    assert result("vm.window", facts(vm=its, age=301.0))[1] == "pmuctl vm release pid/100"
    waits = replace(its, id=None)
    assert result("vm.window", facts(vm=waits, age=301.0))[1] == "pmuctl vm release web1"


def test_a_vcpu_that_spins() -> None:
    qemu = a_vm(identity=VmmIdentity(kind=VmmKind.QEMU))
    found = of_vm("vm.spinning", facts("0-3", "2-3", vm=qemu, spins={0: 0.99}))
    assert found is not None
    assert (found.result, found.fix) == (FAIL, "pmuctl affinity align web1")
    assert found.why == (
        "vCPU 0 takes 99% of a CPU and runs no guest: QEMU makes KVM_RUN again and again, and "
        "KVM answers KVM_EXIT_FAIL_ENTRY"
    )
    assert result("vm.spinning", facts("0-3", spins={0: 0.4}))[0] is PASS
    assert of_vm("vm.spinning", facts("0-3")) is None


def test_a_window_that_is_held() -> None:
    waits = a_vm(state=VmState.WAITING, window=Window.OPEN)
    assert result("vm.window", facts(vm=waits, age=20.0)) == (PASS, None)
    assert result("vm.window", facts(vm=waits)) == (PASS, None)
    assert result("vm.window", facts(vm=waits, age=301.0)) == (WARN, "pmuctl vm release web1")
    assert result("vm.window", facts(age=1e6)) == (PASS, None)


@pytest.mark.parametrize(
    ("state", "fix"),
    [
        (VmState.DEAD, "rm /run/pmuctl/web1.sock"),
        (VmState.SILENT, "pmuctl vm show web1 --deadline 30"),
        (VmState.DENIED, "sudo pmuctl doctor pid/100"),
    ],
)
def test_a_socket_that_does_not_answer(state: VmState, fix: str) -> None:
    its = facts(vm=a_vm(state=state, window=None))
    assert result("vm.socket", its) == (WARN, fix)
    assert of_vm("vm.supervisor", its) is None


def test_an_orphan() -> None:
    problem = UnreachableError("its supervisor has ended", fix="end web1 and start it anew")
    its = facts(vm=a_vm(state=VmState.ORPHANED, problem=problem))
    assert result("vm.supervisor", its) == (WARN, "end web1 and start it anew")
    assert of_vm("vm.socket", its) is None


def test_a_vm_without_a_socket_has_no_window_to_check() -> None:
    its = facts(vm=a_vm(socket=None, supervised=False))
    assert [of_vm(id, its) for id in ("vm.socket", "vm.supervisor", "vm.window")] == [None] * 3
