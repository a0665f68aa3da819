# SPDX-License-Identifier: Apache-2.0
"""What changed between two looks at a host."""

from dataclasses import replace

from pmuctl.model.align import Consequence, Judgement
from pmuctl.model.changes import (
    ChangeKind,
    SeenVcpu,
    SeenVm,
    Snapshot,
    find_changes,
    stray,
    with_silent,
)
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.ref import ProcessId, VmId
from pmuctl.model.vm import Window

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
ID = VmId(ProcessId(100, 5), 9)
PMUS = {A53: CpuSet.parse("0-1"), A72: CpuSet.parse("2-3")}

STAYS = Judgement(aligned=True)
LEAVES = Judgement(aligned=False, outside=CpuSet.parse("0-1"), consequence=Consequence.FAIL_ENTRY)
UNKNOWN = Judgement(aligned=None)


def vcpu(index: int = 0, judgement: Judgement = STAYS, mask: str = "2-3") -> SeenVcpu:
    return SeenVcpu(index=index, tid=100 + index, judgement=judgement, affinity=CpuSet.parse(mask))


def web1(*vcpus: SeenVcpu, window: Window | None = Window.SEALED) -> SeenVm:
    return SeenVm(
        name="web1",
        id=ID,
        socket="/run/pmuctl/web1.sock",
        state="running",
        window=window,
        pmus=(A72,),
        vcpus=vcpus or (vcpu(),),
    )


def host(*vms: SeenVm, online: str = "0-3") -> Snapshot:
    return Snapshot(vms=vms, online=CpuSet.parse(online), pmus=PMUS)


def told(before: Snapshot | None, after: Snapshot) -> list[tuple[str, str | None, int | None]]:
    return [(its.kind, its.vm, its.vcpu) for its in find_changes(before, after)]


def words(before: Snapshot | None, after: Snapshot) -> str:
    (change,) = find_changes(before, after)
    return change.what


def test_nothing_has_changed() -> None:
    assert told(host(web1()), host(web1())) == []
    assert told(None, host(web1())) == []


def test_at_first_only_what_is_wrong_is_told() -> None:
    assert told(None, host(web1(vcpu(), vcpu(1, LEAVES)))) == [("vcpu-left", "web1", 1)]
    assert told(None, host(online="0-1")) == [("pmu-offline", None, None)]


def test_a_vm_starts_and_ends() -> None:
    assert told(host(), host(web1())) == [("vm-started", "web1", None)]
    assert words(host(), host(web1())) == (
        f"running, window sealed, PMU {A72}, 1 vCPU, process 100"
    )
    assert told(host(web1()), host()) == [("vm-ended", "web1", None)]


def test_a_new_process_with_an_old_pid_is_another_vm() -> None:
    after = host(replace(web1(), id=VmId(ProcessId(100, 6), 9)))
    assert told(host(web1()), after) == [
        ("vm-ended", "web1", None),
        ("vm-started", "web1", None),
    ]


def test_another_name_is_no_other_vm() -> None:
    assert told(host(replace(web1(), name="pid/100")), host(web1())) == []


def test_a_vm_that_starts_off_its_pmu_is_both() -> None:
    assert told(host(), host(web1(vcpu(0, LEAVES)))) == [
        ("vm-started", "web1", None),
        ("vcpu-left", "web1", 0),
    ]


def test_a_vcpu_leaves_and_returns_once_each() -> None:
    on, off = host(web1()), host(web1(vcpu(0, LEAVES, "0-3")))
    assert told(on, off) == [("vcpu-left", "web1", 0)]
    assert told(off, off) == []
    assert told(off, on) == [("vcpu-returned", "web1", 0)]
    assert words(off, on) == f"vCPU 0 (thread 100) stays on CPUs 2-3, of {A72}"
    (change,) = find_changes(on, off)
    assert change.what == (
        f"vCPU 0 (thread 100) may run on CPUs 0-1, outside {A72} (2-3): "
        f"{Consequence.FAIL_ENTRY.words()}"
    )
    assert (change.tid, change.pid, change.pmu, str(change.cpus)) == (100, 100, A72, "0-1")


def test_a_vcpu_with_no_cpu_left_may_be_anywhere() -> None:
    lost = Judgement(aligned=False, consequence=Consequence.FAIL_ENTRY)
    what = words(host(web1()), host(web1(vcpu(0, lost, ""))))
    assert what.startswith("vCPU 0 (thread 100) may run anywhere, for all its CPUs are offline")


def test_vcpus_on_two_pmus_have_left_whichever_it_is() -> None:
    torn = Judgement(
        aligned=False, outside=CpuSet.parse("0,3"), consequence=Consequence.COUNTERS_STOP
    )
    vm = replace(web1(vcpu(0, UNKNOWN), vcpu(1, UNKNOWN)), pmus=(A53, A72))
    assert told(host(vm), host(replace(vm, judgement=torn))) == [("vcpu-left", "web1", None)]
    assert stray(host(replace(vm, judgement=torn))) != []
    assert told(host(replace(vm, judgement=torn)), host(replace(vm, judgement=torn))) == []


def test_what_is_not_known_any_more_is_lost() -> None:
    before = host(web1(vcpu(), vcpu(1), vcpu(2)))
    after = host(web1(vcpu(), vcpu(1, UNKNOWN), vcpu(2, UNKNOWN)))
    assert told(before, after) == [("lost", "web1", None)]
    assert words(before, after) == "not known any more of vCPU 1-2: whether it can leave its PMU"
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
    nowhere = Snapshot(online=None, pmus=PMUS)
    assert told(host(), nowhere) == told(nowhere, host()) == []


def test_the_last_cpu_of_a_pmu_is_told_with_whom_it_hits() -> None:
    before, after = host(web1(), online="0-2"), host(web1(), online="0-1")
    assert told(before, after) == [("cpu-offline", None, None), ("pmu-offline", None, None)]
    change = find_changes(before, after)[1]
    assert change.what == f"no CPU of {A72} is online; VMs that have it, or can: web1"
    assert (change.pmu, str(change.cpus)) == (A72, "2-3")
    assert told(after, after) == []


def test_one_that_does_not_answer_has_not_ended() -> None:
    silent = SeenVm(name="web1", id=None, socket="/run/pmuctl/web1.sock", is_silent=True)
    for its in (silent, replace(silent, id=ID)):
        before = host(web1(vcpu(0, LEAVES)))
        after = with_silent(before, host(its))
        assert told(before, after) == [("lost", "web1", None)]
        assert told(after, with_silent(after, host(its))) == []
        assert stray(after) == []
        # it answers again, and nothing has happened meanwhile; or something has
        assert told(after, host(web1(vcpu(0, LEAVES)))) == []
        assert told(after, host(web1())) == [("vcpu-returned", "web1", 0)]
        assert told(after, host()) == [("vm-ended", "web1", None)]


def test_one_that_never_answered_is_told_as_it_is() -> None:
    silent = SeenVm(name="web1", id=None, socket="/x.sock", state="silent", is_silent=True)
    assert told(host(), with_silent(host(), host(silent))) == [
        ("vm-started", "web1", None),
        ("lost", "web1", None),
    ]


def test_a_socket_that_another_process_has_now_is_another_vm() -> None:
    silent = SeenVm(
        name="web1", id=VmId(ProcessId(200, 5), 9), socket="/run/pmuctl/web1.sock", is_silent=True
    )
    after = with_silent(host(web1()), host(silent))
    assert told(host(web1()), after)[0] == ("vm-ended", "web1", None)


def test_the_words_of_kinds_are_stable() -> None:
    assert list(ChangeKind) == [
        *("vm-started", "vm-ended", "vcpu-left", "vcpu-returned", "window"),
        *("cpu-offline", "cpu-online", "pmu-offline", "repaired", "repair-failed", "lost"),
    ]


def test_which_vm_of_its_process_it_is_may_become_known() -> None:
    before = replace(web1(), id=replace(ID, fd=None), socket=None)
    assert told(host(before), host(web1())) == []
    assert told(host(web1()), host(before)) == []


def test_two_vms_of_a_process_are_not_taken_for_each_other() -> None:
    first, second = (
        replace(web1(), name=name, id=replace(ID, fd=fd), socket=None)
        for name, fd in (("pid/100/9", 9), ("pid/100/10", 10))
    )
    # the one that is left has the name of the process now
    left = replace(second, name="web1")
    assert told(host(first, second), host(left)) == [("vm-ended", "pid/100/9", None)]
    assert told(host(left), host(first, second)) == [("vm-started", "pid/100/9", None)]
