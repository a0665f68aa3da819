# SPDX-License-Identifier: Apache-2.0
"""The rule of align, what can leave a PMU, and what is in the way of a mask."""

import pytest

from pmuctl.model.align import (
    Consequence,
    Judgement,
    Obstacle,
    aligned_mask,
    find_obstacle,
    judge,
)
from pmuctl.model.cpuset import CpuSet


def cpus(text: str) -> CpuSet:
    return CpuSet.parse(text)


def test_the_new_mask_is_the_threads_own_cut_down_to_the_pmu() -> None:
    assert aligned_mask(cpus("0-3"), cpus("2-3")) == cpus("2-3")
    assert aligned_mask(cpus("1-2"), cpus("2-3")) == cpus("2")
    assert aligned_mask(cpus("2"), cpus("2-3")) == cpus("2")


def test_a_pin_is_not_widened_to_what_was_recorded() -> None:
    assert aligned_mask(cpus("1-2"), cpus("2-3"), cpus("2-3")) == cpus("2")


def test_where_they_do_not_meet_what_pmuctl_recorded_holds() -> None:
    assert aligned_mask(cpus("0-1"), cpus("2-3"), cpus("2-3")) == cpus("2-3")
    assert aligned_mask(cpus("0-1"), cpus("2-3"), cpus("1-2")) == cpus("2")


def test_a_pin_that_pmuctl_does_not_know_is_left_alone() -> None:
    assert aligned_mask(cpus("0-1"), cpus("2-3")) is None
    assert aligned_mask(cpus("0-1"), cpus("2-3"), cpus("0")) is None


def test_within_its_pmu_a_thread_is_aligned() -> None:
    for mask in ("2-3", "2", "3"):
        assert judge(cpus(mask), [cpus("2-3")], is_explicit=True) == Judgement(aligned=True)


@pytest.mark.parametrize(
    ("is_explicit", "consequence"),
    [(True, Consequence.FAIL_ENTRY), (False, Consequence.COUNTERS_STOP)],
)
def test_outside_it_fails_or_its_counters_stop(
    *, is_explicit: bool, consequence: Consequence
) -> None:
    its = judge(cpus("0-2"), [cpus("2-3")], is_explicit=is_explicit)
    assert its == Judgement(aligned=False, outside=cpus("0-1"), consequence=consequence)


def test_of_several_pmus_it_is_certain_only_that_none_holds_all() -> None:
    choices = [cpus("0-1"), cpus("2-3")]
    its = judge(cpus("1-2"), choices, is_explicit=False)
    assert (its.aligned, its.outside) == (False, cpus("1-2"))
    assert judge(cpus("2-3"), choices, is_explicit=False).aligned is None
    assert judge(cpus("2"), [cpus("1-2"), cpus("2-3")], is_explicit=False).aligned is True


def test_what_is_not_known_is_not_judged() -> None:
    assert judge(None, [cpus("2-3")], is_explicit=True).aligned is None
    assert judge(cpus("2"), [None], is_explicit=True).aligned is None
    assert judge(cpus("9"), [cpus("2-3"), None], is_explicit=False).aligned is None
    assert judge(cpus("2"), [], is_explicit=False).aligned is None


def test_what_is_in_the_way() -> None:
    def of(wanted: str, online: str | None, allowed: str | None) -> Obstacle | None:
        known = [None if its is None else cpus(its) for its in (online, allowed)]
        return find_obstacle(cpus(wanted), online=known[0], allowed=known[1])

    assert of("2-3", "0-1", "0-3") is Obstacle.OFFLINE
    assert of("2-3", "0-3", "0-1") is Obstacle.CPUSET
    assert of("2-3", "0-2", "3") is Obstacle.CPUSET
    assert of("2-3", "0-2", "1-2") is None
    assert of("2-3", None, None) is None
    assert of("2-3", None, "0") is Obstacle.CPUSET


def test_a_consequence_says_what_it_means() -> None:
    assert "KVM_EXIT_FAIL_ENTRY" in Consequence.FAIL_ENTRY.words()
    assert "silently" in Consequence.COUNTERS_STOP.words()


def test_a_thread_of_which_all_cpus_are_offline_can_be_anywhere_next() -> None:
    its = judge(cpus(""), [cpus("2-3")], is_explicit=True)
    assert its == Judgement(aligned=False, consequence=Consequence.FAIL_ENTRY)
    assert judge(cpus(""), [cpus("0-1"), cpus("2-3")], is_explicit=False).aligned is False
