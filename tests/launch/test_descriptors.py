# SPDX-License-Identifier: Apache-2.0
"""Which vCPU a call is for where a VMM duplicates, closes and takes anew descriptors."""

from pathlib import Path

import pytest

from pmuctl.host.procfs import Procfs
from pmuctl.launch.trace import vcpu_tracker
from pmuctl.launch.trace.vcpu_tracker import VcpuTracker
from pmuctl.uapi.kvm import KVM_RUN
from tests.launch.scripted import ARM64, Vmm

CLOSE_RANGE = 436


class Files:
    """The descriptors of process 1, and which of them are of one open file."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "1" / "fd"
        self.folder.mkdir(parents=True)
        self.same: set[frozenset[int]] = set()
        self.kernel_tells = True

    def open(self, fd: int, index: int) -> None:
        (self.folder / str(fd)).symlink_to(f"anon_inode:kvm-vcpu:{index}")

    def duplicate(self, fd: int, to: int) -> None:
        (self.folder / str(to)).symlink_to((self.folder / str(fd)).readlink())
        self.same.add(frozenset({fd, to}))

    def close(self, fd: int) -> None:
        (self.folder / str(fd)).unlink()

    def compare(self, pid: int, first: int, other: int, second: int) -> bool | None:
        assert pid == other
        return frozenset({first, second}) in self.same if self.kernel_tells else None


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    its = Files(tmp_path)
    monkeypatch.setattr(vcpu_tracker, "kcmp_file", its.compare)
    return its


@pytest.fixture
def vmm(files: Files, tmp_path: Path) -> Vmm:
    its = Vmm()
    its.windows = VcpuTracker(ARM64, Procfs(tmp_path), its.master)
    return its


def make(vmm: Vmm, files: Files, fd: int, index: int = 0, *, vm_fd: int = 4) -> None:
    files.open(fd, index)
    vmm.create(index, fd=fd, vm_fd=vm_fd)


@pytest.mark.parametrize("kernel_tells", [True, False])
@pytest.mark.parametrize("closes", [True, False])
def test_a_duplicate_is_the_vcpu(
    vmm: Vmm, files: Files, *, kernel_tells: bool, closes: bool
) -> None:
    files.kernel_tells = kernel_tells
    make(vmm, files, 10)
    files.duplicate(10, 20)
    if closes:
        files.close(10)
        vmm.close(10)
    assert vmm.master.told == []
    vmm.init(20)
    assert vmm.master.told == [("opened", 0), "settled"]


@pytest.mark.parametrize("kernel_tells", [True, False])
def test_another_vms_vcpu_of_the_same_number_is_another(
    vmm: Vmm, files: Files, *, kernel_tells: bool
) -> None:
    files.kernel_tells = kernel_tells
    make(vmm, files, 10)
    vmm.init(10)
    make(vmm, files, 11, vm_fd=5)
    vmm.ioctl(10, KVM_RUN, 0)  # the first VM runs on
    vmm.init(10)  # and is reset
    assert vmm.master.told == [("opened", 0), "settled"]
    vmm.init(11)
    assert vmm.master.told == [("opened", 0), "settled", ("opened", 0), "settled"]


def test_a_vcpu_is_not_waited_for_that_was_closed_with_others(vmm: Vmm, files: Files) -> None:
    make(vmm, files, 10)
    files.close(10)
    vmm.call(CLOSE_RANGE, 10, 20, 0)
    assert vmm.windows.is_idle


def test_what_took_a_closed_ones_descriptor_is_itself(vmm: Vmm, files: Files) -> None:
    make(vmm, files, 10)
    files.close(10)
    make(vmm, files, 10, vm_fd=5)
    vmm.init(10)
    assert vmm.master.told == [("opened", 0), "settled"]
    assert vmm.windows.is_idle
