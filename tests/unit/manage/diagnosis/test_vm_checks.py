# SPDX-License-Identifier: Apache-2.0
"""The checks of a VM, each made to pass, to warn and to fail."""

from typing import Any

import pytest

from pmuctl.errors import UnreachableError
from pmuctl.manage.affinity.blockers import Blocker
from pmuctl.manage.diagnosis import vm_checks
from pmuctl.manage.diagnosis.vm_checks import VmFacts, check_vm
from pmuctl.manage.hints import FIND_OUT_PMU
from pmuctl.model.alignment import VmAlignment
from pmuctl.model.check_result import Finding, Result
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import EffectivePmu
from pmuctl.model.vm import Vm, VmPmu, VmState, VmVcpu, Window
from pmuctl.model.vm_ref import ProcessId, VmId
from pmuctl.model.vmm.identity import VmmIdentity, VmmKind
from pmuctl.value import replace
from tests.unit.manage.diagnosis.two_pmus import A53, A72, ALL, FAIL, PASS, PMUS, WARN

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
    return VmFacts(alignment=VmAlignment.of(its, chosen, known, given["online"]), **given)


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


def test_cpus_of_which_it_is_not_known_whether_they_are_online_do_not_fail() -> None:
    found = of_vm("vm.aligned", facts("0-3", online=None))
    assert found is not None
    assert found.result is WARN
    assert "may run on CPUs 0-1" in found.why


def test_a_default_pmu_that_can_be_left_warns() -> None:
    found = of_vm("vm.aligned", facts("0-3", chosen=DEFAULT))
    assert found is not None
    assert found.result is WARN
    assert "counters stop there silently" in found.why


def test_one_of_several_pmus() -> None:
    assert result("vm.aligned", facts("0-3", chosen=EITHER)) == (
        *(WARN, "pmuctl affinity set web1 0-1"),
    )
    # each vCPU may be on the right one, both cannot
    torn = of_vm("vm.aligned", facts("0-1", "2-3", chosen=EITHER))
    assert torn is not None
    assert torn.why == (
        f"vCPUs 0-1 may run outside its PMU, on CPUs 2-3 if that is {A53} or CPUs 0-1 if that is "
        f"{A72}: the guest's counters stop there silently"
    )
    unknown = of_vm("vm.aligned", facts("2-3", chosen=EITHER))
    assert unknown is not None
    assert (unknown.result, unknown.fix) == (WARN, FIND_OUT_PMU)


def test_nothing_is_put_on_cpus_that_are_all_offline() -> None:
    three = EffectivePmu(cpus={"armv9_cortex_x3": CpuSet.parse("4"), **CPUS})
    assert result("vm.aligned", facts("0-4", chosen=three))[1] == "pmuctl affinity set web1 0-1"


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
