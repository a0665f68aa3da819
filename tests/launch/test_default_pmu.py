# SPDX-License-Identifier: Apache-2.0
"""What a supervisor calls certain of the PMU that KVM chose for the VMs of a process."""

import errno
import shutil
from pathlib import Path

import pytest

from pmuctl.host.procfs import Procfs
from pmuctl.launch.default_pmu import DefaultPmuTracker
from pmuctl.model.cpuset import CpuSet
from tests.fakes.vmm import FakeThreads

PID, OTHER = 100, 200
QEMU = "qemu-system-aarch64\0-smp\0002\0"
A53, A72 = (10, "armv8_cortex_a53"), (11, "armv8_cortex_a72")
PLACES = {A53: CpuSet.parse("0-1"), A72: CpuSet.parse("2-3")}


class Process(FakeThreads):
    """Threads and their masks, and a witness of what they do; one of them can be `gone`."""

    gone = 0

    def __init__(self, root: Path) -> None:
        masks = {101: "0-1", 102: "2-3", 103: "3", 104: "0-3"}
        super().__init__({tid: CpuSet.parse(cpus) for tid, cpus in masks.items()})
        self.root = root
        self.is_called(QEMU)
        self.witness = DefaultPmuTracker(PLACES, Procfs(root), self)

    def get(self, tid: int) -> CpuSet:
        if tid == self.gone:
            raise ProcessLookupError(errno.ESRCH, "gone")
        return super().get(tid)

    def is_called(self, command: str, pid: int = PID) -> None:
        (self.root / str(pid) / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
        (self.root / str(pid) / "cmdline").write_text(command)

    def sees(self, *tids: int | None, pid: int = PID) -> tuple[int, str] | None:
        for tid in tids:
            self.witness.record(pid, tid)
        return self.witness.default_pmu(pid)


@pytest.fixture
def process(tmp_path: Path) -> Process:
    return Process(tmp_path)


@pytest.mark.parametrize(
    ("tids", "chosen"),
    [((101, 101), A53), ((102,), A72), ((102, 103), A72), ((103, 104), None), ((101, 102), None)],
)
def test_it_is_the_pmu_that_no_thread_could_leave(
    process: Process, tids: tuple[int, ...], chosen: tuple[int, str] | None
) -> None:
    assert process.sees(*tids) == chosen


def test_what_was_not_seen_leaves_it_open(process: Process) -> None:
    assert process.sees() is None
    assert process.sees(101) == A53
    assert process.sees(None) is None
    assert process.sees(101) is None


def test_a_thread_that_has_gone_leaves_it_open(process: Process) -> None:
    process.gone = 102
    assert process.sees(103) == A72
    assert process.sees(102) is None


def test_a_mask_that_changes_meanwhile_leaves_it_open(process: Process) -> None:
    assert process.sees(101) == A53
    process.masks[101] = PLACES[A72]
    assert process.sees(101) is None


def test_processes_are_told_apart(process: Process) -> None:
    process.is_called(QEMU, OTHER)
    assert process.sees(102, pid=OTHER) == A72
    assert process.sees(101) == A53
    assert process.sees(pid=OTHER) == A72


def test_of_a_process_that_has_ended_nothing_is_kept(process: Process) -> None:
    process.is_called(QEMU, OTHER)
    assert process.sees(102, pid=OTHER) == A72
    shutil.rmtree(process.root / str(OTHER))
    assert process.sees(101) == A53
    process.is_called(QEMU, OTHER)
    assert process.sees(pid=OTHER) is None
    assert process.sees(101, pid=OTHER) == A53


@pytest.mark.parametrize("command", ["lkvm\0run\0--pmu\0", "a-vmm-of-somebody\0", ""])
def test_a_vmm_that_can_set_another_later_leaves_it_open(process: Process, command: str) -> None:
    process.is_called(command)
    assert process.sees(101) is None


def test_where_kvm_chooses_otherwise_nothing_is_certain(process: Process) -> None:
    process.witness = DefaultPmuTracker({}, Procfs(process.root), process)
    assert process.sees(101) is None
