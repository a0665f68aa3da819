# SPDX-License-Identifier: Apache-2.0
"""Which vCPU a call is for where a VMM duplicates, closes and takes anew descriptors."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmuctl.host.procfs import Procfs
from pmuctl.launch.trace.vcpu_tracker import VcpuTracker
from pmuctl.uapi.kvm import KVM_RUN
from pmuctl.uapi.pidfd import kcmp_file
from tests.launch.scripted import ARM64, Vmm
from tests.skips import skip

CLOSE_RANGE = 436
FD, OTHER, COPY = 710, 711, 720
"""Numbers of descriptors that this process has no other use for."""
NOBODY = 1 << 30
"""More than any process can have as its number: of it the kernel tells nothing."""


class Files:
    """The descriptors of a process, as /proc lists them and as the kernel compares them.

    If `kernel_tells`, it is this process, and every descriptor is open here.
    """

    def __init__(self, root: Path, *, kernel_tells: bool) -> None:
        self.tgid = os.getpid() if kernel_tells else NOBODY
        self.folder = root / str(self.tgid) / "fd"
        self.folder.mkdir(parents=True)
        self.kernel_tells = kernel_tells
        self.here: set[int] = set()

    def open(self, fd: int, index: int) -> None:
        (self.folder / str(fd)).symlink_to(f"anon_inode:kvm-vcpu:{index}")
        if self.kernel_tells:
            null = os.open("/dev/null", os.O_RDONLY)
            self._take(null, fd)
            os.close(null)

    def duplicate(self, fd: int, to: int) -> None:
        (self.folder / str(to)).symlink_to((self.folder / str(fd)).readlink())
        if self.kernel_tells:
            self._take(fd, to)

    def close(self, fd: int) -> None:
        (self.folder / str(fd)).unlink()
        if self.kernel_tells:
            self.here.remove(fd)
            os.close(fd)

    def _take(self, fd: int, to: int) -> None:
        assert not Path(f"/proc/self/fd/{to}").exists()
        self.here.add(os.dup2(fd, to, inheritable=False))


@pytest.fixture
def kernel_tells() -> bool:
    """Whether the kernel compares descriptors; tests of both have it as a parameter."""
    return True


@pytest.fixture
def files(tmp_path: Path, *, kernel_tells: bool) -> Iterator[Files]:
    pid = os.getpid()
    if kernel_tells and not kcmp_file(pid, 0, pid, 0):
        skip("no kcmp(2) for this process", runs="where the kernel has it")
    files = Files(tmp_path, kernel_tells=kernel_tells)
    yield files
    for fd in files.here:
        os.close(fd)


@pytest.fixture
def vmm(files: Files, tmp_path: Path) -> Vmm:
    vmm = Vmm(tgid=files.tgid)
    vmm.windows = VcpuTracker(ARM64, Procfs(tmp_path), vmm.master)
    return vmm


def make(vmm: Vmm, files: Files, fd: int, index: int = 0, *, vm_fd: int = 4) -> None:
    files.open(fd, index)
    vmm.create(index, fd=fd, vm_fd=vm_fd)


@pytest.mark.parametrize("kernel_tells", [True, False])
@pytest.mark.parametrize("closes", [True, False])
def test_a_duplicate_is_the_vcpu(vmm: Vmm, files: Files, *, closes: bool) -> None:
    make(vmm, files, FD)
    files.duplicate(FD, COPY)
    if closes:
        files.close(FD)
        vmm.close(FD)
    assert vmm.master.told == []
    vmm.init(COPY)
    assert vmm.master.told == [("opened", 0), "settled"]


@pytest.mark.parametrize("kernel_tells", [True, False])
def test_another_vms_vcpu_of_the_same_number_is_another(vmm: Vmm, files: Files) -> None:
    make(vmm, files, FD)
    vmm.init(FD)
    make(vmm, files, OTHER, vm_fd=5)
    vmm.ioctl(FD, KVM_RUN, 0)  # the first VM runs on
    vmm.init(FD)  # and is reset
    assert vmm.master.told == [("opened", 0), "settled"]
    vmm.init(OTHER)
    assert vmm.master.told == [("opened", 0), "settled", ("opened", 0), "settled"]


def test_a_vcpu_is_not_waited_for_that_was_closed_with_others(vmm: Vmm, files: Files) -> None:
    make(vmm, files, FD)
    files.close(FD)
    vmm.call(CLOSE_RANGE, FD, COPY, 0)
    assert vmm.windows.is_idle


def test_what_took_a_closed_ones_descriptor_is_itself(vmm: Vmm, files: Files) -> None:
    make(vmm, files, FD)
    files.close(FD)
    make(vmm, files, FD, vm_fd=5)
    vmm.init(FD)
    assert vmm.master.told == [("opened", 0), "settled"]
    assert vmm.windows.is_idle
