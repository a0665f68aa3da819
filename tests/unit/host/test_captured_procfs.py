# SPDX-License-Identifier: Apache-2.0
"""The processes of VMs, live and captured: found in one pass, and no captured link is followed."""

import os
from pathlib import Path

import pytest

from pmuctl.host.captured_procfs import CapturedProcfs, scan_captured_vms
from pmuctl.host.kvm.fds import KvmProcess
from pmuctl.host.kvm.process_scan import KvmScanner
from pmuctl.host.procfs import Procfs
from pmuctl.host.snapshot_files import write_capture
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm_ref import ProcessId
from tests.fakes.vmm import fake_proc, fake_vmm

QEMU = ("qemu-system-aarch64", "-name", "db1")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A procfs with a VMM, pid 5120, and a process that is none."""
    root = fake_vmm(tmp_path / "proc", 5120, QEMU, vcpus={0: "0-3", 1: "2-3"})
    fake_proc(root, 6000, holds_kvm=False, start=1)
    (root / "self").symlink_to("5120")
    (root / "uptime").write_text("1 1\n")
    (root / "pmuctl-unreadable").write_text("0\n")
    return root


HOLDER = KvmProcess(process=ProcessId(5120, 100), vms=(9,), vcpus={20: 0, 21: 1})


@pytest.mark.parametrize("kind", [Procfs, CapturedProcfs])
def test_who_holds_vms(proc: Path, kind: type[Procfs]) -> None:
    its = kind(proc)
    scan = KvmScanner(its).scan()
    assert (scan.processes, scan.unreadable, scan.is_partial) == ((HOLDER,), 0, False)
    assert its.command_line(5120) == QEMU
    assert its.comm(5120, 5121) == "CPU 0/KVM"
    assert its.threads(5120) == {5120, 5121, 5122, 5123}
    assert its.affinity(5120, 5122) == CpuSet.parse("2-3")
    assert (its.uid(5120), its.parent(5120), its.start_time(5120)) == (os.geteuid(), 1, 100)
    assert (its.guest_time(5120, 5121), its.last_cpu(5120, 5121)) == (7, 1)
    assert its.holds_kvm(5120) is True
    assert its.holds_kvm(6000) is its.holds_kvm(1) is False


@pytest.mark.parametrize("kind", [Procfs, CapturedProcfs])
def test_without_anything_there_is_nothing(tmp_path: Path, kind: type[Procfs]) -> None:
    its = kind(tmp_path / "none")
    assert KvmScanner(its).scan().processes == ()
    assert its.command_line(1) == ()
    assert its.affinity(1, 1) is None
    assert its.thread_stat(1, 1) is None
    assert its.read_text("1/stat") is None
    assert its.links(1) == {}


def test_files_are_read_of_vms_only(proc: Path) -> None:
    read: list[str] = []

    class Watched(Procfs):
        def _read_file(self, path: str) -> bytes:
            read.append(path)
            return super()._read_file(path)

    KvmScanner(Watched(proc)).scan()
    assert {path.partition("/")[0] for path in read} == {"5120"}


def test_a_reused_pid_is_not_taken_for_the_vm(proc: Path) -> None:
    starts = iter(["100", "101"])

    class Reused(Procfs):
        def _read_file(self, path: str) -> bytes:
            return super()._read_file(path).replace(b" 100 ", f" {next(starts)} ".encode())

    assert KvmScanner(Reused(proc)).scan().processes == ()


def test_a_capture_holds_what_is_read(proc: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_capture(scan_captured_vms(Procfs(proc), Sysfs(proc.parent)), out)
    assert KvmScanner(CapturedProcfs(out / "proc")).scan().processes == (HOLDER,)
    assert sorted(os.listdir(out / "proc")) == ["5120", "pmuctl-unreadable", "uptime"]
    assert sorted(os.listdir(out / "proc/5120/fd")) == ["20", "21", "50", "51", "9", "90"]
    again = tmp_path / "again"
    write_capture(scan_captured_vms(CapturedProcfs(out / "proc"), Sysfs(out)), again)
    names = {path.relative_to(out) for path in out.rglob("*")}
    assert names == {path.relative_to(again) for path in again.rglob("*")}
    assert (again / "proc/5120/cmdline").read_bytes() == (proc / "5120/cmdline").read_bytes()


def test_a_capture_holds_a_process_of_which_it_is_not_known_what_it_has(
    proc: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    vmms = [ProcessId(6000, 1), ProcessId(5120, 100), ProcessId(6000, 2), ProcessId(9, 1)]
    write_capture(scan_captured_vms(Procfs(proc), Sysfs(proc.parent), vmms), out)
    its = CapturedProcfs(out / "proc")
    assert KvmScanner(its).scan().processes == (HOLDER,)
    assert its.is_there(ProcessId(6000, 1))
    assert sorted(os.listdir(out / "proc")) == ["5120", "6000", "pmuctl-unreadable", "uptime"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("29 0x15 0xae80 0x0 0x1 0x2 0x3 0xffffe0 0xffff12\n", "29 0x15 0xae80\n"),
        ("63 0x3 0xffffe000 0x400 0x0 0x0 0x0 0xffffe0 0xffff12\n", "63\n"),
        ("29 0x15 0xae03 0xffffe000 0x0 0x0 0x0 0xffffe0 0xffff12\n", "29\n"),
        ("-1 0xffffe0 0xffff12\n", "-1\n"),
        ("running\n", "running\n"),
    ],
)
def test_a_capture_has_no_addresses(proc: Path, tmp_path: Path, text: str, kept: str) -> None:
    (proc / "5120/task/5121/syscall").write_text(text)
    write_capture(scan_captured_vms(Procfs(proc), Sysfs(proc.parent)), tmp_path / "out")
    assert (tmp_path / "out/proc/5120/task/5121/syscall").read_text() == kept


@pytest.mark.parametrize(
    ("text", "unreadable", "is_partial"),
    [
        ("12\n", 12, False),
        ("0\n", 0, False),
        ("3 hidden\n", 3, True),
        *((text, 0, True) for text in ("", "-1", "x", "9" * 5000, "0 hid")),
        (None, 0, True),
    ],
)
def test_a_capture_tells_how_many_could_not_be_looked_at(
    tmp_path: Path, text: str | None, unreadable: int, *, is_partial: bool
) -> None:
    """One that does not tell was not made by pmuctl, and may lack any process."""
    (tmp_path / "proc").mkdir()
    if text is not None:
        (tmp_path / "proc/pmuctl-unreadable").write_text(text)
    scan = KvmScanner(CapturedProcfs(tmp_path / "proc")).scan()
    assert (scan.unreadable, scan.is_partial) == (unreadable, is_partial)


def test_a_capture_of_nothing_is_partial(tmp_path: Path) -> None:
    assert KvmScanner(CapturedProcfs(tmp_path / "proc")).scan().is_partial


def test_no_captured_link_is_followed(proc: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    fake_vmm(secret, 7000, QEMU)
    (proc / "7000").symlink_to(secret / "7000")
    task = proc / "5120/task/5121"
    for name in ("comm", "status", "stat"):
        (task / name).unlink()
        (task / name).symlink_to(secret / "7000/task/7001" / name)
    (task / "syscall").symlink_to("/proc/self/syscall")
    its = CapturedProcfs(proc)
    assert KvmScanner(its).scan().processes == (HOLDER,)
    assert its.comm(5120, 5121) == ""
    assert its.affinity(5120, 5121) is None
    assert its.last_cpu(5120, 5121) is None
    assert its.syscall(5120, 5121) == ()
    (tmp_path / "link").symlink_to(proc)
    assert KvmScanner(CapturedProcfs(tmp_path / "link")).scan().processes == ()


def test_only_regular_files_are_opened(proc: Path) -> None:
    task = proc / "5120/task/5121"
    (task / "comm").unlink()
    os.mkfifo(task / "comm")
    (task / "stat").unlink()
    (task / "stat").mkdir()
    assert CapturedProcfs(proc).comm(5120, 5121) == ""
    assert CapturedProcfs(proc).thread_stat(5120, 5121) is None


@pytest.mark.parametrize("field", [b"9" * 5000, b"-1", b"x", "٣".encode(), b""])
def test_odd_numbers_are_none(proc: Path, field: bytes) -> None:
    fields = [b"S", *[field] * 50]
    (proc / "5120/task/5121/stat").write_bytes(b"1 (x) " + b" ".join(fields))
    (proc / "5120/stat").write_bytes(b"1 (x) " + b" ".join(fields))
    its = Procfs(proc)
    assert its.start_time(5120) is its.last_cpu(5120, 5121) is None
    assert its.guest_time(5120, 5121) == 0
    (proc / "5120/task/5121/syscall").write_bytes(field * 2)
    assert its.syscall(5120, 5121) in ((), (-1,))
