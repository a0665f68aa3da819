# SPDX-License-Identifier: Apache-2.0
"""Threads narrowed to a PMU's CPUs, and given their masks back: by what /proc would show."""

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pmuctl.errors import PinnedError
from pmuctl.host.procfs import Procfs
from pmuctl.launch.confinement import Confinement
from pmuctl.launch.trace.arch import ARCHES
from pmuctl.model.cpuset import CpuSet
from tests.fakes.vmm import FakeThreads

PID = 100
RUN = "29 {fd:#x} 0xae80 0x0 0x0 0x0 0x0 0xffff 0xaaaa"
IDLE = "98 0x1 0x80 0x0 0x0 0x0 0x0 0xffff 0xaaaa"


class Process(FakeThreads):
    """One process of a /proc, and the masks of its threads; `on_place` is told of each change."""

    def __init__(self, root: Path) -> None:
        super().__init__({})
        self.root = root
        self.on_place: Callable[[int], None] = lambda _: None

    def get(self, tid: int) -> CpuSet:
        if tid not in self.masks:
            raise ProcessLookupError(errno.ESRCH, "gone")
        return super().get(tid)

    def set(self, tid: int, cpus: CpuSet) -> None:
        super().set(tid, cpus)
        self.on_place(tid)

    def thread(
        self,
        tid: int,
        cpus: str = "0-3",
        *,
        call: str = "running",
        guest_time: int = 0,
        name: str = "qemu",
        flags: int = 0,
    ) -> None:
        """A thread that there is, or what it does now."""
        its = self.root / str(PID) / "task" / str(tid)
        its.mkdir(parents=True, exist_ok=True)
        (its / "stat").write_text(
            f"{tid} ({name}) S {'0 ' * 5}{flags} {'0 ' * 33}{guest_time} 0\n"
        )
        (its / "comm").write_text(f"{name}\n")
        (its / "syscall").write_text(f"{call}\n")
        self.masks.setdefault(tid, CpuSet.parse(cpus))

    def start(self, ticks: int) -> None:
        """When it was started, which tells it from another process with its id."""
        (self.root / str(PID) / "stat").write_text(f"{PID} (qemu) S {'0 ' * 18}{ticks} 0\n")

    def runs(self, tid: int, fd: int) -> None:
        """It sleeps in KVM_RUN of that descriptor."""
        self.thread(tid, call=RUN.format(fd=fd))

    def vcpu(self, fd: int, index: int) -> None:
        """A descriptor of a vCPU that is open."""
        (self.root / str(PID) / "fd").mkdir(parents=True, exist_ok=True)
        (self.root / str(PID) / "fd" / str(fd)).symlink_to(f"anon_inode:kvm-vcpu:{index}")

    def shown(self) -> Mapping[int, str]:
        return {tid: str(cpus) for tid, cpus in sorted(self.masks.items())}


MADE = {10: 0, 11: 1}
"""The descriptors of both vCPUs."""


@pytest.fixture
def process(tmp_path: Path) -> Process:
    """Of three threads: the main one, and two that will be vCPUs."""
    its = Process(tmp_path)
    (tmp_path / str(PID)).mkdir()
    its.start(7)
    for tid in (100, 101, 102):
        its.thread(tid)
    for index in range(2):
        its.vcpu(10 + index, index)
    return its


@pytest.fixture
def placement(process: Process) -> Confinement:
    its = Confinement(PID, ARCHES["aarch64"], Procfs(process.root), process)
    its.cpus = CpuSet.parse("2-3")
    for fd, index in MADE.items():
        its.add(fd, index, 100)
    return its


def give_back(its: Confinement, makers: Mapping[int, int]) -> bool:
    """As if these threads had made the vCPUs."""
    for fd, index in MADE.items():
        its.add(fd, index, makers.get(index, 0))
    return its.restore_masks()


def test_all_threads_are_narrowed(process: Process, placement: Confinement) -> None:
    process.masks[102] = CpuSet.parse("1-2")
    placement.confine()
    assert process.shown() == {100: "2-3", 101: "2-3", 102: "2"}


def test_without_cpus_none_is(process: Process, placement: Confinement) -> None:
    placement.cpus = None
    placement.confine()
    assert set(process.shown().values()) == {"0-3"}


def test_a_thread_that_is_born_meanwhile_is_narrowed_too(
    process: Process, placement: Confinement
) -> None:
    process.on_place = lambda tid: process.thread(tid + 10) if tid < 130 else None
    placement.confine()
    assert set(process.shown()) > {130, 131, 132}
    assert set(process.shown().values()) == {"2-3"}


def test_a_thread_that_has_gone_is_passed_over(process: Process, placement: Confinement) -> None:
    del process.masks[101]
    placement.confine()
    assert process.shown() == {100: "2-3", 102: "2-3"}


def test_a_mask_is_never_widened(process: Process, placement: Confinement) -> None:
    process.masks[101] = CpuSet.parse("0-1")
    with pytest.raises(PinnedError) as error:
        placement.confine()
    assert error.value.message == "thread 101 may not run on any of the CPUs 2-3"
    assert error.value.why == "it is pinned to 0-1, and a mask is never widened"
    assert process.shown()[101] == "0-1"


@pytest.mark.parametrize(
    ("number", "why"), [(errno.EINVAL, "(EINVAL)"), (errno.EPERM, "(EPERM)")], ids=["cpus", "user"]
)
def test_a_mask_that_the_kernel_refuses(
    process: Process, placement: Confinement, number: int, why: str
) -> None:
    process.refuses[102] = number
    with pytest.raises(PinnedError) as error:
        placement.confine()
    assert error.value.message == "thread 102 could not be put on 2-3"
    assert why in str(error.value.why)


def test_masks_come_back_only_once_all_vcpus_run(process: Process, placement: Confinement) -> None:
    placement.confine()
    assert not placement.restore_masks()
    process.runs(101, 10)
    assert not placement.restore_masks()
    assert placement.running == {0: 101}
    assert set(process.shown().values()) == {"2-3"}
    process.thread(102, guest_time=1)
    assert give_back(placement, {1: 102})
    assert placement.running == {0: 101, 1: 102}
    assert process.shown() == {100: "0-3", 101: "2-3", 102: "2-3"}


def test_a_mask_narrowed_to_other_cpus_counts_as_it_was_before(
    process: Process, placement: Confinement
) -> None:
    process.masks[100] = CpuSet.parse("0,2")
    placement.confine()
    assert process.shown() == {100: "2", 101: "2-3", 102: "2-3"}
    placement.check(CpuSet.parse("0-1"))
    with pytest.raises(PinnedError):
        placement.check(CpuSet.parse("1"))
    placement.cpus = CpuSet.parse("0-1")
    placement.confine()
    assert process.shown() == {100: "0", 101: "0-1", 102: "0-1"}
    process.runs(101, 10)
    process.runs(102, 11)
    assert placement.restore_masks()
    assert process.shown() == {100: "0,2", 101: "0-1", 102: "0-1"}


def test_a_thread_born_later_gets_the_leaders_mask(
    process: Process, placement: Confinement
) -> None:
    placement.confine()
    process.thread(103, "2-3")
    process.runs(101, 10)
    process.runs(102, 11)
    assert placement.restore_masks()
    assert process.shown()[103] == "0-3"


def test_what_somebody_changed_meanwhile_stays(process: Process, placement: Confinement) -> None:
    process.thread(103)
    placement.confine()
    process.masks[100], process.masks[103] = CpuSet.parse("3"), CpuSet.parse("0")
    process.runs(101, 10)
    process.runs(102, 11)
    assert placement.restore_masks()
    assert process.shown() == {100: "3", 101: "2-3", 102: "2-3", 103: "0"}


def test_a_vcpu_whose_thread_has_ended_is_no_longer_waited_for(
    process: Process, placement: Confinement
) -> None:
    """It has run; the masks of threads that are no vCPUs do not wait for it for ever."""
    placement.confine()
    process.runs(102, fd=11)
    assert not placement.restore_masks()
    shutil.rmtree(process.root / str(PID) / "task" / "102")
    del process.masks[102]
    assert not placement.restore_masks()
    assert placement.running == {1: 102}
    process.runs(101, fd=10)
    assert placement.restore_masks()
    assert placement.running == {0: 101, 1: 102}
    assert process.shown() == {100: "0-3", 101: "2-3"}


def test_a_vcpu_whose_thread_ends_while_it_is_looked_at_has_still_run(
    process: Process, placement: Confinement
) -> None:
    """The thread is listed, but what it ran can no longer be read."""
    placement.confine()
    process.runs(102, fd=11)
    assert not placement.restore_masks()
    for file in (process.root / str(PID) / "task" / "102").iterdir():
        file.unlink()
    assert not placement.restore_masks()
    assert placement.running == {1: 102}
    process.runs(101, fd=10)
    assert placement.restore_masks()
    assert placement.running == {0: 101, 1: 102}
    assert process.shown() == {100: "0-3", 101: "2-3", 102: "2-3"}


def test_a_vcpu_that_another_thread_runs_now_is_that_threads(
    process: Process, placement: Confinement
) -> None:
    placement.confine()
    process.runs(102, fd=11)
    assert not placement.restore_masks()
    process.thread(102)
    process.runs(101, fd=11)
    assert not placement.restore_masks()
    assert placement.running == {1: 101}


@pytest.mark.parametrize("how", ["runs", "named", "made it"])
def test_a_vcpu_thread_that_was_widened_is_narrowed_again(
    process: Process, placement: Confinement, how: str
) -> None:
    """Known by its call, its name, or as the maker of one vCPU; all others stay where they are."""
    placement.confine()
    match how:
        case "runs":
            process.runs(101, fd=10)
            placement.restore_masks()
        case "named":
            process.thread(101, name="kvm-vcpu-0")
        case "made it":
            placement.add(10, 0, 101)
    process.masks |= {101: CpuSet.parse("1-2"), 102: CpuSet.parse("0-1")}
    assert placement.repair() == [(101, CpuSet.parse("1-2"), True)]
    assert placement.repair() == []
    assert process.shown() == {100: "2-3", 101: "2", 102: "0-1"}


def test_a_vcpu_thread_that_was_pinned_elsewhere_is_told_and_stays(
    process: Process, placement: Confinement
) -> None:
    placement.confine()
    process.thread(101, name="kvm-vcpu-0")
    process.masks[101] = CpuSet.parse("0-1")
    assert placement.repair() == [(101, CpuSet.parse("0-1"), False)]
    assert process.masks[101] == CpuSet.parse("0-1")


def test_a_mask_is_told_once_as_long_as_its_thread_lives(
    process: Process, placement: Confinement
) -> None:
    placement.confine()
    process.thread(101, name="kvm-vcpu-0")
    process.masks[101] = CpuSet.parse("0-1")
    assert placement.repair() == [(101, CpuSet.parse("0-1"), False)]
    assert placement.repair() == []
    process.masks[101] = CpuSet.parse("0")
    assert placement.repair() == [(101, CpuSet.parse("0"), False)]
    shutil.rmtree(process.root / str(PID) / "task" / "101")
    assert placement.repair() == []
    process.thread(101, name="kvm-vcpu-0")  # another thread with its id
    assert placement.repair() == [(101, CpuSet.parse("0"), False)]


def test_nothing_is_narrowed_again_after_a_release(
    process: Process, placement: Confinement
) -> None:
    placement.confine()
    process.thread(101, name="kvm-vcpu-0")
    placement.release()
    assert placement.repair() == []
    assert process.masks[101] == CpuSet.parse("0-3")


def test_a_release_gives_all_their_masks_back(process: Process, placement: Confinement) -> None:
    """Those of vCPUs, of threads made since then, but none that somebody changed."""
    placement.confine()
    process.runs(101, fd=10)
    process.thread(103, "2-3")
    process.masks[102] = CpuSet.parse("3")
    placement.release()
    assert process.shown() == {100: "0-3", 101: "0-3", 102: "3", 103: "0-3"}
    placement.confine()
    assert process.shown() == {100: "2-3", 101: "2-3", 102: "3", 103: "2-3"}


def test_a_thread_born_between_two_vcpus_is_no_pinned_one(
    process: Process, placement: Confinement
) -> None:
    """It has inherited a mask that was narrowed before."""
    placement.confine()
    process.thread(103, "2-3")
    placement.confine()
    placement.release()
    assert process.shown() == dict.fromkeys((100, 101, 102, 103), "0-3")


def test_that_a_vcpu_has_run_stays_known(process: Process, placement: Confinement) -> None:
    assert not placement.has_run()
    process.runs(101, fd=10)
    assert placement.has_run()
    process.thread(101, call=IDLE)
    placement.confine()
    assert placement.has_run()


def test_a_process_that_has_gone_is_done_with(process: Process, placement: Confinement) -> None:
    placement.confine()
    for path in (process.root / str(PID) / "task").iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    assert placement.restore_masks()


def test_another_process_with_its_id_is_left_alone(
    process: Process, placement: Confinement
) -> None:
    placement.confine()
    for tid, index in ((101, 0), (102, 1)):
        process.runs(tid, fd=10 + index)
    process.start(8)
    process.masks |= {101: CpuSet.parse("0-3"), 102: CpuSet.parse("2-3")}
    assert not placement.is_there()
    assert placement.repair() == []
    assert placement.restore_masks()  # there is nothing to wait for
    placement.release()
    assert process.shown() == {100: "2-3", 101: "0-3", 102: "2-3"}


def test_a_process_without_vcpus_waits(process: Process, placement: Confinement) -> None:
    placement.confine()
    for link in (process.root / str(PID) / "fd").iterdir():
        link.unlink()
    assert not placement.restore_masks()


@pytest.mark.parametrize("name", ["CPU 1/KVM", "kvm-vcpu-1", "vcpu1", "crosvm_vcpu1", "fc_vcpu 1"])
def test_the_name_of_a_thread_is_the_least_evidence(
    process: Process, placement: Confinement, name: str
) -> None:
    placement.confine()
    process.thread(101, guest_time=5, name=name)
    process.thread(102, guest_time=5, name="CPU 9/KVM")  # there is no such vCPU
    assert placement.restore_masks()
    assert placement.running == {1: 101, 0: None}


def test_who_made_it_is_better_evidence(process: Process, placement: Confinement) -> None:
    placement.confine()
    process.thread(101, guest_time=5, name="CPU 1/KVM")
    process.thread(102, guest_time=5, name="CPU 0/KVM")
    assert give_back(placement, {0: 101, 1: 102})
    assert placement.running == {0: 101, 1: 102}


def test_a_maker_of_many_runs_none_of_them_for_that(
    process: Process, placement: Confinement
) -> None:
    placement.confine()
    process.thread(100, guest_time=5, name="CPU 1/KVM")
    process.thread(101, guest_time=5)
    give_back(placement, {0: 100, 1: 100})
    assert placement.running == {1: 100, 0: None}


def test_the_call_it_sleeps_in_is_the_best_evidence(
    process: Process, placement: Confinement
) -> None:
    placement.confine()
    process.thread(101, call=RUN.format(fd=11), name="CPU 0/KVM")
    process.thread(102, call=RUN.format(fd=10), guest_time=7, name="CPU 1/KVM")
    assert give_back(placement, {0: 101, 1: 102})
    assert placement.running == {1: 101, 0: 102}


@pytest.mark.parametrize("flags", [0x10, 0x4000])
def test_a_worker_of_the_kernel_runs_no_vcpu(
    process: Process, placement: Confinement, flags: int
) -> None:
    """It shows the call in which it was made, as those do that KVM makes at the first KVM_RUN."""
    placement.confine()
    process.runs(101, fd=10)
    process.thread(103, "2-3", call=RUN.format(fd=10), flags=flags)
    assert not placement.restore_masks()
    assert placement.running == {0: 101}
    process.runs(102, fd=11)
    assert placement.restore_masks()
    assert process.shown()[102] == "2-3"


def test_another_call_is_no_evidence(process: Process, placement: Confinement) -> None:
    placement.confine()
    process.thread(101, call=IDLE)
    process.thread(102, call=RUN.format(fd=10).replace("0xae80", "0xae41"))
    assert not placement.restore_masks()
    assert placement.running == {}


def test_a_duplicate_of_a_descriptor_is_no_further_vcpu(
    process: Process, placement: Confinement
) -> None:
    process.vcpu(20, 0)
    placement.confine()
    process.runs(101, 10)
    process.runs(102, 11)
    assert give_back(placement, {0: 100, 1: 100})


def test_descriptors_that_may_not_be_seen(process: Process, placement: Confinement) -> None:
    class Hidden(Procfs):
        def vcpu_fds(self, pid: int, tid: int | None = None) -> dict[int, int]:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    its = Confinement(PID, ARCHES["aarch64"], Hidden(process.root), process)
    its.cpus = placement.cpus
    its.confine()
    process.runs(101, 10)
    assert not its.restore_masks()
