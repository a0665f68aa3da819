# SPDX-License-Identifier: Apache-2.0
"""The settings of a VM behind a supervisor: without vCPUs, threads or calls of their own."""

import os
from typing import Any

import pytest

from pmuctl.control.protocol.messages import COMMANDS
from pmuctl.control.server.pmu_state import ApplyError, PmuState
from pmuctl.errors import RefusedError, SealedError, UnsupportedError, UsageError
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import EventSet
from pmuctl.model.event_filter import Action, EventFilter
from pmuctl.model.plan import SetAttr, TargetSettings
from tests.fakes.vmm import FakeVm, SupervisedVm

PMUS = {10: "armv8_cortex_a53", 11: "armv8_cortex_a72"}
ONE_EVENT = EventFilter(Action.DENY, EventSet.of_ranges([(0x11, 1)]))
A72 = TargetSettings(type=11, name=PMUS[11])
FILTERED = TargetSettings(type=11, name=PMUS[11], filter=ONE_EVENT)


def settings_of(vm: FakeVm) -> PmuState:
    return PmuState(vm, lambda: PMUS, vm.threads)


def query(settings: PmuState) -> dict[str, Any]:
    """An answer that holds against the table."""
    answer = settings.query()
    COMMANDS["query-pmu"].result.check(answer, "return")
    return answer


def refused(settings: PmuState, wanted: TargetSettings) -> ApplyError:
    with pytest.raises(ApplyError) as caught:
        settings.apply(wanted, dry_run=False)
    assert caught.value.applied == ()
    return caught.value


def test_the_pid_is_the_vmms() -> None:
    assert query(settings_of(FakeVm()))["pid"] == os.getpid()
    assert query(settings_of(SupervisedVm(4121)))["pid"] == 4121


def test_a_filter_has_the_event_space_of_its_own_pmu() -> None:
    """Before v6.6 that of the PMU which KVM would choose may be narrower, or wider."""
    wide = EventFilter(Action.ALLOW, EventSet.of_ranges([(0x4004, 1)]))
    vm = FakeVm(event_bits=10, event_bits_of={11: 16})
    settings = settings_of(vm)
    assert query(settings)["event-bits"] is None, "that depends on the PMU"
    error = refused(settings, TargetSettings(type=10, name=PMUS[10], filter=wide)).__cause__
    assert isinstance(error, UsageError)
    assert "10 bits" in str(error.why)
    settings.apply(TargetSettings(type=11, name=PMUS[11], filter=wide), dry_run=False)
    assert query(settings)["event-bits"] == 16
    # the difference to the standing one is planned in the same space
    settings.apply(FILTERED, dry_run=False)
    assert vm.vpmu.allowed == ONE_EVENT.allowed(16)


def test_a_vm_without_vcpus_has_its_window() -> None:
    settings = settings_of(SupervisedVm(4121))
    answer = query(settings)
    # it does not wait for anybody yet
    assert (answer["window"], answer["waiting"], answer["by"]) == ("open", False, None)
    assert answer["vcpus"] == []
    assert "SET_NR_COUNTERS" not in str(answer["attributes"])
    settings.seal("pmuctl run has set it")
    answer = query(settings)
    assert (answer["window"], answer["by"]) == ("sealed", "pmuctl run has set it")
    assert answer["waiting"] is False


def test_without_a_vpmu_there_is_no_window() -> None:
    vm = SupervisedVm(4121)
    vm.kvm = FakeVm(has_pmu=False).kvm
    assert query(settings_of(vm))["window"] == "none"
    assert isinstance(refused(settings_of(vm), A72).cause, UnsupportedError)


def test_nothing_is_applied_before_there_is_a_vcpu() -> None:
    vm = SupervisedVm(4121)
    settings = settings_of(vm)
    refusal = refused(settings, FILTERED).cause
    assert isinstance(refusal, RefusedError)
    assert refusal.message == "the VM has no vCPU yet"
    settings.seal("it goes on")
    refusal = refused(settings, FILTERED).cause
    assert isinstance(refusal, SealedError)
    assert "it goes on" in str(refusal.why)
    assert vm.calls == []


def test_a_thread_that_is_not_known_is_not_placed() -> None:
    vm = SupervisedVm(4121)
    vm.is_made = True
    settings = settings_of(vm)
    assert [its["tid"] for its in query(settings)["vcpus"]] == [None, None]
    wanted = TargetSettings(type=11, name=PMUS[11], cpus=CpuSet.parse("2-3"))
    steps = settings.apply(wanted, dry_run=False)
    assert all(isinstance(step, SetAttr) for step in steps)
    assert set(map(str, vm.threads.masks.values())) == {"0-3"}


def test_who_was_placed_may_be_where_it_could_before_the_first_time() -> None:
    vm = FakeVm(cpus="0-2")
    settings = settings_of(vm)
    for cpus in ("1-2", "2", "0"):
        wanted = TargetSettings(type=11, name=PMUS[11], cpus=CpuSet.parse(cpus))
        settings.apply(wanted, dry_run=False)
        assert vm.threads.masks[1001] == vm.threads.masks[1002] == CpuSet.parse(cpus)


def test_the_cpus_stand_until_others_are_chosen() -> None:
    """Also with a supervised VM, whose threads are not known before they run."""
    vm = SupervisedVm(4121)
    vm.is_made = True
    settings = settings_of(vm)
    assert settings.cpus is None
    on_one = CpuSet.parse("3")
    settings.apply(TargetSettings(type=11, name=PMUS[11], cpus=on_one), dry_run=False)
    settings.apply(FILTERED, dry_run=False)
    settings.apply(TargetSettings(type=11, name=PMUS[11], cpus=CpuSet.parse("2")), dry_run=True)
    assert settings.cpus == on_one
    settings.apply(TargetSettings(type=11, name=PMUS[11], cpus=CpuSet.parse("2-3")), dry_run=False)
    assert settings.cpus == CpuSet.parse("2-3")


def test_a_pmu_without_cpus_leaves_the_threads_alone() -> None:
    vm = SupervisedVm(4121)
    vm.is_made = True
    settings = settings_of(vm)
    settings.apply(TargetSettings(type=10, name=PMUS[10], cpus=CpuSet.parse("0-1")), dry_run=False)
    settings.apply(A72, dry_run=False)
    assert settings.cpus is None


def test_what_was_applied_by_other_means_stands() -> None:
    vm = SupervisedVm(4121)
    settings = settings_of(vm)
    settings.set_applied(FILTERED)
    settings.seal("pmuctl run has set it")
    answer = query(settings)
    assert answer["pmu"] == {"name": PMUS[11], "type": 11, "origin": "applied"}
    assert answer["filter"] == {"default": "deny", "except": [[0x11, 1]], "origin": "applied"}
    assert answer["counters"] is None
    # the same again is no change, anything else is too late
    assert settings.apply(FILTERED, dry_run=False) == ()
    assert settings.apply(A72, dry_run=False) == ()
    other = TargetSettings(type=11, name=PMUS[11], filter=EventFilter(Action.DENY))
    assert isinstance(refused(settings, other).cause, SealedError)
    assert vm.calls == []


def test_what_kvm_chose_is_told_once_it_is_the_last_word() -> None:
    vm = FakeVm()
    settings = settings_of(vm)
    vm.default = (10, PMUS[10])
    assert query(settings)["pmu"] is None
    settings.seal("it did not wait")
    assert query(settings)["pmu"] == {"name": PMUS[10], "type": 10, "origin": "derived"}
    assert settings.pmu is None
    error = refused(settings, TargetSettings(type=10, name=PMUS[10]))
    assert isinstance(error.cause, SealedError)


def test_what_was_set_is_told_and_not_what_kvm_chose_before() -> None:
    vm = FakeVm()
    settings = settings_of(vm)
    vm.default = (10, PMUS[10])
    settings.apply(A72, dry_run=False)
    settings.seal("it did not wait")
    assert query(settings)["pmu"] == {"name": PMUS[11], "type": 11, "origin": "applied"}
    assert settings.pmu == (11, PMUS[11])


def test_what_is_not_adopted_stays_as_it_is() -> None:
    settings = settings_of(FakeVm())
    settings.set_applied(TargetSettings(type=11, name=PMUS[11], counters=3, filter=ONE_EVENT))
    settings.set_applied(A72)
    answer = query(settings)
    assert answer["counters"] == {"value": 3, "origin": "applied"}
    assert answer["filter"] == {"default": "deny", "except": [[0x11, 1]], "origin": "applied"}


@pytest.mark.parametrize("default", Action)
@pytest.mark.parametrize("ranges", [[], [(0x11, 1)]])
def test_an_adopted_filter_is_changed_by_the_difference_as_an_applied_one(
    default: Action, ranges: list[tuple[int, int]]
) -> None:
    before = EventFilter(default, EventSet.of_ranges(ranges))
    after = TargetSettings(
        type=11,
        name=PMUS[11],
        filter=EventFilter(Action.DENY, EventSet.of_ranges([(0x8, 1), (0x11, 1)])),
    )
    wanted = TargetSettings(type=11, name=PMUS[11], filter=before)
    applied, adopted = settings_of(FakeVm()), settings_of(FakeVm())
    applied.apply(wanted, dry_run=False)
    adopted.set_applied(wanted)
    assert query(adopted)["filter"] == query(applied)["filter"]
    assert adopted.apply(after, dry_run=True) == applied.apply(after, dry_run=True)
