# SPDX-License-Identifier: Apache-2.0
"""What changed between two looks at a host."""

from typing import Any

from pmuctl.model.alignment import VmAlignment
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.effective_pmu import Consequence, EffectivePmu
from pmuctl.model.host_diff import (
    KEPT_VCPUS,
    ChangeKind,
    HostObservation,
    ObservedVm,
    find_changes,
    find_misplaced,
    with_silent,
)
from pmuctl.model.vm import Vm, VmPmu, VmState, VmVcpu, Window
from pmuctl.model.vm_ref import ProcessId, VmId
from pmuctl.value import replace

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
ID = VmId(ProcessId(100, 5), 9)
PMUS = {A53: CpuSet.parse("0-1"), A72: CpuSet.parse("2-3")}

SET = EffectivePmu(
    pmu=VmPmu(name=A72, type=11, origin="vmm"), cpus={A72: PMUS[A72]}, is_explicit=True
)
EITHER = EffectivePmu(cpus=PMUS)
ON, OFF = "2-3", "0-3"
"""A mask on its PMU, and one that leaves it."""


def seen(
    *masks: str | None, chosen: EffectivePmu = SET, is_silent: bool = False, **how: Any
) -> ObservedVm:
    """A VM whose vCPUs are threads 100, 101, ... with these masks."""
    vcpus = tuple(
        VmVcpu(index=index, tid=100 + index, initialised=None, has_run=None)
        for index in range(len(masks))
    )
    given: dict[str, Any] = {
        "name": "web1",
        "id": ID,
        "socket": "/run/pmuctl/web1.sock",
        "state": VmState.RUNNING,
        "window": Window.SEALED,
    }
    vm = Vm(**given | how, vcpus=vcpus)
    known = {100 + index: CpuSet.parse(its) for index, its in enumerate(masks) if its is not None}
    held = VmAlignment.of(vm, chosen, known, CpuSet.parse("0-3"))
    return ObservedVm(alignment=held, is_silent=is_silent)


def web1(*masks: str | None, **how: Any) -> ObservedVm:
    return seen(*(masks or (ON,)), **how)


def host(*vms: ObservedVm, online: str = "0-3") -> HostObservation:
    return HostObservation(vms=vms, online=CpuSet.parse(online), pmus=PMUS)


def told(
    before: HostObservation | None, after: HostObservation
) -> list[tuple[str, str | None, int | None]]:
    return [(its.kind, its.vm, its.vcpu) for its in find_changes(before, after)]


def words(before: HostObservation | None, after: HostObservation) -> str:
    (change,) = find_changes(before, after)
    return change.what


def test_nothing_has_changed() -> None:
    assert told(host(web1()), host(web1())) == []
    assert told(None, host(web1())) == []


def test_at_first_only_what_is_wrong_is_told() -> None:
    assert told(None, host(web1(ON, OFF))) == [("vcpu-left", "web1", 1)]
    assert told(None, host(online="0-1")) == [("pmu-offline", None, None)]


def test_a_vm_starts_and_ends() -> None:
    assert told(host(), host(web1())) == [("vm-started", "web1", None)]
    assert words(host(), host(web1())) == (
        f"running, window sealed, PMU {A72}, 1 vCPU, process 100"
    )
    assert told(host(web1()), host()) == [("vm-ended", "web1", None)]


def test_a_vm_that_starts_with_unknown_vcpus_has_no_number_of_them() -> None:
    its = seen()
    vm = replace(its.alignment.vm, vcpus=None)
    its = replace(its, alignment=replace(its.alignment, vm=vm))
    assert "vCPUs not known" in words(host(), host(its))


def test_a_new_process_with_an_old_pid_is_another_vm() -> None:
    after = host(web1(id=VmId(ProcessId(100, 6), 9)))
    assert told(host(web1()), after) == [
        ("vm-ended", "web1", None),
        ("vm-started", "web1", None),
    ]


def test_another_name_is_no_other_vm() -> None:
    assert told(host(web1(name="pid/100")), host(web1())) == []


def test_a_vm_that_starts_off_its_pmu_is_both() -> None:
    assert told(host(), host(web1(OFF))) == [
        ("vm-started", "web1", None),
        ("vcpu-left", "web1", 0),
    ]


def test_a_vcpu_leaves_and_returns_once_each() -> None:
    on, off = host(web1()), host(web1(OFF))
    assert told(on, off) == [("vcpu-left", "web1", 0)]
    assert told(off, off) == []
    assert told(off, on) == [("vcpu-returned", "web1", 0)]
    assert words(off, on) == f"vCPU 0 (thread 100) stays on CPUs 2-3, of {A72}"
    (change,) = find_changes(on, off)
    assert change.what == (
        f"vCPU 0 (thread 100) may run on CPUs 0-1, outside {A72} (2-3): "
        f"{Consequence.FAIL_ENTRY.explain()}"
    )
    assert (change.tid, change.pid, change.pmu, str(change.cpus)) == (100, 100, A72, "0-1")


def test_a_vcpu_with_no_cpu_left_may_be_anywhere() -> None:
    what = words(host(web1()), host(web1("9")))
    assert what.startswith("vCPU 0 (thread 100) may run anywhere, for all its CPUs are offline")


def test_where_it_can_have_several_pmus_each_is_told_of() -> None:
    (change,) = find_changes(None, host(web1("1-2", chosen=EITHER)))
    assert change.what == (
        f"vCPU 0 (thread 100) may run outside its PMU, on CPU 2 if that is {A53} or CPU 1 if that "
        f"is {A72}: {Consequence.COUNTERS_STOP.explain()}"
    )
    # no CPU is for certain one that it should not be on
    assert (change.pmu, change.cpus) == (None, None)


def test_vcpus_on_two_pmus_have_left_whichever_it_is() -> None:
    one, torn = host(web1("0", "0", chosen=EITHER)), host(web1("0", "3", chosen=EITHER))
    assert told(one, torn) == [("vcpu-left", "web1", None)]
    assert words(one, torn) == (
        f"vCPUs 0-1 may run outside its PMU, on CPU 3 if that is {A53} or CPU 0 if that is {A72}: "
        f"{Consequence.COUNTERS_STOP.explain()}"
    )
    assert (find_misplaced(one), len(find_misplaced(torn))) == ([], 1)
    assert told(torn, torn) == []


def test_what_is_not_known_any_more_is_lost() -> None:
    before = host(web1(ON, ON, ON))
    after = host(web1(ON, None, None))
    assert told(before, after) == [("lost", "web1", None)]
    assert words(before, after) == "not known any more of vCPUs 1-2: whether it can leave its PMU"
    # it never was
    assert told(after, after) == []
    assert told(after, before) == []


def test_the_window_changes() -> None:
    waiting = web1(window=Window.OPEN)
    assert told(host(waiting), host(web1())) == [("window", "web1", None)]
    assert words(host(waiting), host(web1())) == "sealed, was open"
    assert words(host(web1(window=None)), host(waiting)) == "open"
    assert told(host(waiting), host(web1(window=None))) == []


def test_cpus_come_and_go_one_by_one() -> None:
    assert told(host(), host(online="0-2")) == [("cpu-offline", None, None)]
    assert words(host(), host(online="0-2")) == f"CPU 3 of {A72} is offline"
    assert [its.kind for its in find_changes(host(online="0,2"), host())] == ["cpu-online"] * 2
    nowhere = HostObservation(online=None, pmus=PMUS)
    assert told(host(), nowhere) == told(nowhere, host()) == []


def test_the_last_cpu_of_a_pmu_is_told_with_whom_it_hits() -> None:
    before, after = host(web1(), online="0-2"), host(web1(), online="0-1")
    assert told(before, after) == [("cpu-offline", None, None), ("pmu-offline", None, None)]
    change = find_changes(before, after)[1]
    assert change.what == f"no CPU of {A72} is online; VMs that have it, or can: web1"
    assert (change.pmu, str(change.cpus)) == (A72, "2-3")
    assert told(after, after) == []


def test_one_that_does_not_answer_has_not_ended() -> None:
    nameless = seen(id=None, is_silent=True)
    for its in (nameless, seen(is_silent=True)):
        before = host(web1(OFF))
        after = with_silent(before, host(its))
        assert told(before, after) == [("lost", "web1", None)]
        assert told(after, with_silent(after, host(its))) == []
        assert find_misplaced(after) == []
        # it answers again, and nothing has happened meanwhile; or something has
        assert told(after, host(web1(OFF))) == []
        assert told(after, host(web1())) == [("vcpu-returned", "web1", 0)]
        assert told(after, host()) == [("vm-ended", "web1", None)]


def test_of_another_users_silent_vms_no_more_vcpus_are_kept_than_one_can_have() -> None:
    def look(count: int, **how: Any) -> HostObservation:
        ids = [VmId(ProcessId(100 + number, 5), 9) for number in range(3)]
        masks = [None] * count
        return host(*(seen(*masks, id=id, socket=f"/{id}", owner=1, **how) for id in ids))

    for is_own, kept in ((False, 2), (True, 3)):
        before = look(KEPT_VCPUS // 2, is_own=is_own)
        after = with_silent(before, look(0, is_own=is_own, is_silent=True))
        assert sum(vm.is_kept for vm in after.vms) == kept


def test_one_that_never_answered_is_told_as_it_is() -> None:
    silent = seen(id=None, socket="/x.sock", state=VmState.SILENT, is_silent=True)
    assert told(host(), with_silent(host(), host(silent))) == [
        ("vm-started", "web1", None),
        ("lost", "web1", None),
    ]


def test_a_socket_that_another_process_has_now_is_another_vm() -> None:
    silent = seen(id=VmId(ProcessId(200, 5), 9), is_silent=True)
    after = with_silent(host(web1()), host(silent))
    assert told(host(web1()), after)[0] == ("vm-ended", "web1", None)


def test_the_words_of_kinds_are_stable() -> None:
    assert list(ChangeKind) == [
        *(
            "vm-started",
            "vm-ended",
            "vcpu-left",
            "vcpu-returned",
            "window",
            "settings",
            "released",
        ),
        *("cpu-offline", "cpu-online", "pmu-offline", "repaired", "repair-failed", "lost"),
    ]


def test_which_vm_of_its_process_it_is_may_become_known() -> None:
    before = web1(id=replace(ID, fd=None), socket=None)
    assert told(host(before), host(web1())) == []
    assert told(host(web1()), host(before)) == []


def test_two_vms_of_a_process_are_not_taken_for_each_other() -> None:
    first, second, left = (
        web1(name=name, id=replace(ID, fd=fd), socket=None)
        for name, fd in (("pid/100/9", 9), ("pid/100/10", 10), ("web1", 10))
    )
    # the one that is left has the name of the process now
    assert told(host(first, second), host(left)) == [("vm-ended", "pid/100/9", None)]
    assert told(host(left), host(first, second)) == [("vm-started", "pid/100/9", None)]


def test_that_a_vm_may_not_be_asked_is_no_silence() -> None:
    its = seen(socket="/x.sock", state=VmState.DENIED, is_silent=True)
    denied = replace(its, is_denied=True)
    fix = "run pmuctl monitor as root or as its user"
    told = f"this user may not ask it: it is not watched; {fix}"
    assert words(None, host(denied)) == told
    before = host(web1())
    assert words(before, with_silent(before, host(denied))) == told
    threads = replace(web1(state=VmState.DENIED, is_silent=True), is_denied=True)
    assert words(None, host(threads)) == (
        f"this user may not ask it: no more than its threads is watched; {fix}"
    )
