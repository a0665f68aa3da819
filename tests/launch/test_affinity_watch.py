# SPDX-License-Identifier: Apache-2.0
"""The watch over the masks of vCPU threads: for how long, and of which processes."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pmuctl.control.runtime.affinity_record import write_affinity_record
from pmuctl.errors import PmuctlError
from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import ResourceExhaustedError
from pmuctl.launch.affinity_watch import LOOK_SECONDS, WATCH_SECONDS, AffinityWatch
from pmuctl.launch.confinement import Confinement
from pmuctl.launch.observer import VmObserver
from pmuctl.launch.serve.control_service import ControlService
from pmuctl.launch.spec import LaunchSpec
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm_ref import ProcessId, VmId

CPUS, ALL, PMU = CpuSet.parse("2-3"), CpuSet.parse("0-3"), CpuSet.parse("1-3")


class Confined:
    """The confinement of one process, with what its next looks find."""

    def __init__(self, *found: list[tuple[int, CpuSet, bool]]) -> None:
        self.cpus = CPUS
        self.looks = 0
        self.ended = False
        self._found = list(found)

    def is_there(self) -> bool:
        return not self.ended

    def repair(self, is_chosen: Callable[[int, CpuSet], bool]) -> list[tuple[int, CpuSet, bool]]:
        self.looks += 1
        found = self._found.pop(0) if self._found else []
        return [row for row in found if not is_chosen(row[0], row[1])]


class Watching(AffinityWatch):
    """A watch that keeps what it warns of."""

    def __init__(self) -> None:
        self.observer = SimpleNamespace(
            pmu_cpus=lambda: self.pmu, recorded_cpus=lambda pid: self.recorded
        )
        super().__init__(
            cast(VmObserver, self.observer),
            lambda pid, error: self.warnings.append((pid, error)),
        )
        self.pmu: CpuSet | None = None
        self.recorded: dict[int, CpuSet] = {}
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


def looks(watch: Watching, *found: tuple[int, CpuSet, bool]) -> int:
    """The number of the first of several looks that warns of this, 0 if none does."""
    confined = Confined(*[[row for row in found]] * 5)
    for number in range(1, 6):
        watch.look(100, cast(Confinement, confined), number * LOOK_SECONDS)
        if watch.warnings:
            return number
    return 0


def test_cpus_of_the_pmu_that_an_admin_has_chosen_with_pmuctl_are_left() -> None:
    watch = Watching()
    watch.pmu, watch.recorded = PMU, {101: PMU}
    assert looks(watch, (101, PMU, True)) == 0
    assert looks(watch, (101, CpuSet.parse("1-2"), True)) == 0  # a cpuset has taken one away
    assert looks(watch, (102, PMU, True)) == 2  # another thread


def test_a_mask_that_is_not_recorded_is_repaired_at_the_second_look() -> None:
    """pmuctl may be about to record it at the first."""
    watch = Watching()
    watch.pmu = PMU
    assert looks(watch, (101, PMU, True)) == 2


def test_what_comes_just_before_the_end_of_the_watch_is_repaired_as_well() -> None:
    """At one look more, by which pmuctl would have recorded it; the watch is over then."""
    watch, row = Watching(), (101, PMU, True)
    watch.pmu = PMU
    quiet: list[list[tuple[int, CpuSet, bool]]] = [[]] * (int(WATCH_SECONDS / LOOK_SECONDS) - 1)
    confined = Confined(*quiet, [row], [row])
    watch.begin(100, confined)
    now, seconds = 0.0, watch.poll(0.0)
    while seconds is not None:
        now += seconds
        seconds = watch.poll(now)
    assert now == WATCH_SECONDS + LOOK_SECONDS
    assert [error.now for _, error in watch.warnings] == ["it was put back on 2-3"]


def test_a_mask_is_left_for_as_long_as_what_is_recorded_cannot_be_read() -> None:
    watch = Watching()
    watch.pmu = PMU
    confined = Confined(*[[(101, PMU, True)]] * 3)

    def recorded(pid: int) -> dict[int, CpuSet]:
        raise ResourceExhaustedError("no descriptor is left")

    watch.observer.recorded_cpus = recorded
    watch.look(100, cast(Confinement, confined), LOOK_SECONDS)
    watch.look(100, cast(Confinement, confined), 2 * LOOK_SECONDS)
    assert watch.warnings == []
    watch.observer.recorded_cpus = lambda pid: {}
    watch.look(100, cast(Confinement, confined), 3 * LOOK_SECONDS)
    assert len(watch.warnings) == 1


@pytest.mark.parametrize("pmu", [None, CPUS])
def test_cpus_outside_the_pmu_are_repaired_at_once_though_recorded(pmu: CpuSet | None) -> None:
    """Nor if no PMU is certain: the counters could stop there."""
    watch = Watching()
    watch.pmu, watch.recorded = pmu, {101: ALL}
    assert looks(watch, (101, ALL, True)) == 1


def test_what_pmuctl_records_of_a_process_is_known_to_its_supervisor(tmp_path: Path) -> None:
    procs, pid, uid = Procfs(), os.getpid(), os.geteuid()
    spec = LaunchSpec(name="vm", socket=tmp_path / "run/vm.sock", command=("vmm",))
    service = ControlService(spec, pid, procs=procs, wake=lambda: None, warn=lambda error: None)
    assert service.recorded_cpus(pid) == {}
    vm = VmId(ProcessId(pid, procs.start_time(pid) or 0))
    environ = {"PMUCTL_RUNTIME_DIR": str(tmp_path / "run")}
    write_affinity_record(environ, uid, vm, {pid: CPUS}, procs, owner=uid)
    assert service.recorded_cpus(pid) == {pid: CPUS}
    assert service.recorded_cpus(os.getppid()) == service.recorded_cpus(1 << 22) == {}


def test_two_looks_at_one_time_count_as_one() -> None:
    watch, confined = Watching(), Confined(*[[(101, PMU, True)]] * 2)
    watch.pmu = PMU
    for _ in range(2):
        watch.look(100, cast(Confinement, confined), 1.0)
    assert watch.warnings == []
