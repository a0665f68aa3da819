# SPDX-License-Identifier: Apache-2.0
"""The watch over the masks of vCPU threads: for how long, and of which processes."""

from typing import cast

from pmuctl.errors import PmuctlError
from pmuctl.launch.affinity_watch import LOOK_SECONDS, WATCH_SECONDS, AffinityWatch
from pmuctl.launch.confinement import Confinement
from pmuctl.model.cpuset import CpuSet

CPUS, ALL = CpuSet.parse("2-3"), CpuSet.parse("0-3")


class Confined:
    """The confinement of one process, with what its next looks find."""

    def __init__(self, *found: list[tuple[int, CpuSet, bool]]) -> None:
        self.cpus = CPUS
        self.looks = 0
        self.ended = False
        self._found = list(found)

    def is_there(self) -> bool:
        return not self.ended

    def repair(self) -> list[tuple[int, CpuSet, bool]]:
        self.looks += 1
        return self._found.pop(0) if self._found else []


class Watching(AffinityWatch):
    """A watch that keeps what it warns of."""

    def __init__(self) -> None:
        super().__init__(lambda pid, error: self.warnings.append((pid, error)))
        self.warnings: list[tuple[int, PmuctlError]] = []

    def begin(self, pid: int, confined: Confined, now: float = 0.0) -> None:
        self.start(pid, cast(Confinement, confined), now)


def test_it_looks_for_ten_seconds_and_warns_of_what_it_finds() -> None:
    watch, confined = Watching(), Confined([(101, ALL, True), (102, CpuSet.parse("0"), False)])
    watch.begin(100, confined)
    now, seconds = 0.0, watch.poll(0.0)
    while seconds is not None:
        now += seconds
        seconds = watch.poll(now)
    assert (now, confined.looks) == (WATCH_SECONDS, WATCH_SECONDS / LOOK_SECONDS)
    assert [(pid, error.now) for pid, error in watch.warnings] == [
        (100, "it was put back on 2-3"),
        (100, "it stays there"),
    ]


def test_a_process_that_is_watched_is_not_watched_anew_but_for_another_vm() -> None:
    watch, confined = Watching(), Confined()
    watch.begin(100, confined)
    watch.poll(WATCH_SECONDS)
    assert watch.poll(WATCH_SECONDS) is None
    watch.begin(100, confined, WATCH_SECONDS)
    assert watch.poll(WATCH_SECONDS) is None
    watch.stop(100)
    watch.begin(100, confined, WATCH_SECONDS)
    assert watch.poll(WATCH_SECONDS) == LOOK_SECONDS


def test_a_process_that_has_ended_is_watched_no_more_once_another_is() -> None:
    watch, ended, confined = Watching(), Confined(), Confined()
    watch.begin(100, ended)
    ended.ended = True
    watch.begin(200, confined)
    watch.poll(LOOK_SECONDS)
    assert (ended.looks, confined.looks) == (0, 1)
