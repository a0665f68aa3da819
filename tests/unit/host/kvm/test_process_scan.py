# SPDX-License-Identifier: Apache-2.0
"""The scan of processes: no user's descriptors can lengthen it, and what is seen despite them."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pmuctl.host.kvm.process_scan import SMALL, KvmScanner, ScanLimits
from pmuctl.host.procfs import Procfs
from pmuctl.value import field, value
from tests.fakes.vmm import ClosedProcfs, fake_proc

DESCRIPTORS = 3 * SMALL
TASKS = 40
ENDLESS, OTHER, VMM = 4121, 5120, 6000
STRANGER, OWNER = 1001, 1002

SHARED = """
import ctypes, json, os, resource, signal, sys, threading
descriptors, tasks, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(2 * descriptors, hard), hard))
for _ in range(descriptors):
    os.dup(0)
syscall = ctypes.CDLL(None).syscall
clone, leave = {"x86_64": (56, 60), "aarch64": (220, 93)}[os.uname().machine]
tids = [os.getpid()]
if kind == "processes":
    CLONE_FILES = 0x400
    for _ in range(tasks):
        pid = syscall(clone, CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            signal.pause()
        tids.append(pid)
else:
    for _ in range(tasks):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
print(json.dumps(tids), flush=True)
if kind == "threads":
    syscall(leave, 0)  # of the first thread alone
sys.stdin.read()
for pid in tids[1:]:
    os.kill(pid, signal.SIGKILL)
"""
"""Has so many descriptors in one table, which so many processes or threads share."""


@value
class CountingProcfs(Procfs):
    """The running kernel's, with these processes alone; it counts the descriptors read."""

    only: Sequence[int] = ()
    read: list[int] = field(default_factory=list)

    def pids(self) -> list[int]:
        return list(self.only)

    def iter_links(self, path: str, *, most: int | None = None) -> Iterator[tuple[int, str]]:
        for link in super().iter_links(path, most=most):
            self.read.append(link[0])
            yield link


@contextmanager
def sharing(kind: str) -> Iterator[CountingProcfs]:
    """Tasks that share a table, and a /proc that has only them."""
    argv = [sys.executable, "-c", SHARED, str(DESCRIPTORS), str(TASKS), kind]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pids = json.loads(process.stdout.readline())
        try:
            if kind == "threads":
                wait_for_end_of_leader(process.pid)
            yield CountingProcfs(only=pids)
        finally:
            if kind == "threads":
                process.kill()


def wait_for_end_of_leader(pid: int) -> None:
    procs = Procfs()
    while not procs.is_zombie(pid, pid):
        pass


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_a_table_that_many_tasks_share_is_read_once(kind: str) -> None:
    with sharing(kind) as procs:
        scanner = KvmScanner(procs)
        assert scanner.scan().processes == ()
    assert not scanner.left_out
    # one look beyond it finds out whether a table is empty
    assert DESCRIPTORS <= len(procs.read) < 1.1 * DESCRIPTORS


def fake_large(root: Path, pid: int, *, uid: int, has_vm: bool) -> None:
    """A process with more descriptors than are read at once."""
    fake_proc(root, pid, holds_kvm=has_vm, uid=uid, start=5)
    for fd in range(10, 10 + SMALL):
        (root / str(pid) / "fd" / str(fd)).symlink_to("/dev/null")


def test_a_user_whose_tables_have_no_end_hides_no_vm_of_another(tmp_path: Path) -> None:
    for pid in (ENDLESS, ENDLESS + 1):
        fake_proc(tmp_path, pid, uid=STRANGER)
    fake_large(tmp_path, OTHER, uid=OWNER, has_vm=False)
    fake_large(tmp_path, VMM, uid=OWNER, has_vm=True)
    procs = ClosedProcfs(tmp_path, endless=frozenset({ENDLESS, ENDLESS + 1}))
    scanner = KvmScanner(procs, ScanLimits(seconds=1))
    assert [process.pid for process in scanner.scan().processes] == [VMM]
    assert scanner.left_out == {STRANGER: 2}


def test_without_any_time_what_is_named_is_looked_at(tmp_path: Path) -> None:
    fake_proc(tmp_path, OTHER, uid=OWNER, start=5)
    fake_proc(tmp_path, VMM, uid=OWNER, start=5)
    scanner = KvmScanner(Procfs(tmp_path), ScanLimits(seconds=0, first=[VMM]))
    assert [process.pid for process in scanner.scan().processes] == [VMM]
    assert scanner.left_out == {OWNER: 1}


def test_own_processes_are_read_before_those_of_others(tmp_path: Path) -> None:
    fake_proc(tmp_path, ENDLESS, uid=STRANGER)
    fake_large(tmp_path, VMM, uid=OWNER, has_vm=True)
    procs = ClosedProcfs(tmp_path, endless=frozenset({ENDLESS}))
    scanner = KvmScanner(procs, ScanLimits(seconds=0.5, uid=OWNER))
    assert [process.pid for process in scanner.scan().processes] == [VMM]
    assert scanner.left_out == {STRANGER: 1}


def test_a_process_with_endless_descriptors_is_not_known_to_have_no_vm(tmp_path: Path) -> None:
    fake_proc(tmp_path, ENDLESS)
    procs = ClosedProcfs(tmp_path, endless=frozenset({ENDLESS}))
    assert procs.holds_kvm(ENDLESS) is None
