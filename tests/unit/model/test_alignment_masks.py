# SPDX-License-Identifier: Apache-2.0
"""The rule of align, and what is in the way of a mask."""

from pmuctl.model.alignment import Obstacle, aligned_mask, find_obstacle
from pmuctl.model.cpuset import CpuSet


def cpus(text: str) -> CpuSet:
    return CpuSet.parse(text)


def test_the_new_mask_is_the_threads_own_cut_down_to_the_pmu() -> None:
    assert aligned_mask(cpus("0-3"), cpus("2-3")) == cpus("2-3")
    assert aligned_mask(cpus("1-2"), cpus("2-3")) == cpus("2")
    assert aligned_mask(cpus("2"), cpus("2-3")) == cpus("2")
    assert aligned_mask(cpus("2"), cpus("2-3"), cpus("3")) == cpus("2")


def test_a_pin_is_not_widened_to_what_was_recorded() -> None:
    assert aligned_mask(cpus("1-2"), cpus("2-3"), cpus("2-3")) == cpus("2")


def test_a_mask_that_somebody_widened_is_the_recorded_one_again() -> None:
    assert aligned_mask(cpus("0-3"), cpus("2-3"), cpus("3")) == cpus("3")
    assert aligned_mask(cpus("0-3"), cpus("2-3"), cpus("1-3")) == cpus("2-3")


def test_where_they_do_not_meet_what_pmuctl_recorded_holds() -> None:
    assert aligned_mask(cpus("0-1"), cpus("2-3"), cpus("2-3")) == cpus("2-3")
    assert aligned_mask(cpus("0-1"), cpus("2-3"), cpus("1-2")) == cpus("2")


def test_a_cpu_that_is_offline_stays_in_the_mask() -> None:
    """Recorded ones count where it is the only one: the thread could run nowhere."""

    def with_3_offline(now: str, recorded: str | None = None) -> CpuSet | None:
        known = None if recorded is None else cpus(recorded)
        return aligned_mask(cpus(now), cpus("2-3"), known, online=cpus("0-2"))

    assert with_3_offline("0-3") == cpus("2-3")
    assert with_3_offline("0,3", "2-3") == cpus("2-3")
    assert with_3_offline("0,3", "3") == cpus("3")
    assert with_3_offline("0,3") == cpus("3")


def test_a_pin_that_pmuctl_does_not_know_is_left_alone() -> None:
    assert aligned_mask(cpus("0-1"), cpus("2-3")) is None
    assert aligned_mask(cpus("0-1"), cpus("2-3"), cpus("0")) is None


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
