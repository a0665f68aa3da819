# SPDX-License-Identifier: Apache-2.0
"""Masks of threads are what /proc tells, where its ids are those the kernel takes."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pmuctl.errors import UnsupportedError
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.model.cpuset import CpuSet

AS_ROOT = () if os.geteuid() == 0 else ("--map-root-user",)
CPUS = CpuSet.of([0])


def test_a_mask_keeps_what_is_offline(tmp_path: Path) -> None:
    folder = tmp_path / "7/task/7"
    folder.mkdir(parents=True)
    (folder / "status").write_text("Name:\tvmm\nCpus_allowed_list:\t0-3,8\n")
    (tmp_path / "self").symlink_to(str(os.getpid()))
    assert ThreadAffinity(str(tmp_path)).get(7) == CpuSet.parse("0-3,8")


def test_ids_of_another_pid_namespace_are_refused(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("1")
    threads = ThreadAffinity(str(tmp_path))
    before = os.sched_getaffinity(0)
    for ask in (lambda: threads.get(os.getpid()), lambda: threads.set(os.getpid(), CPUS)):
        with pytest.raises(UnsupportedError) as caught:
            ask()
        assert "another pid namespace" in str(caught.value.why)
    assert os.sched_getaffinity(0) == before
    assert CpuSet.of(before) <= ThreadAffinity().get(os.getpid())


def inside(*options: str, code: str) -> str:
    """What Python prints in a pid namespace of its own."""
    unshare = ("unshare", *AS_ROOT, "--pid", "--fork", *options)
    ran = subprocess.run(
        [*unshare, sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True
    )
    return ran.stdout


def test_a_proc_of_outside_is_noticed() -> None:
    code = (
        "from pmuctl.errors import UnsupportedError\n"
        "from pmuctl.host.thread_affinity import ThreadAffinity\n"
        "try: ThreadAffinity().get(1)\n"
        "except UnsupportedError as error: print(error.why)"
    )
    assert "another pid namespace" in inside(code=code)
    assert inside("--mount-proc", code=code) == ""


def test_what_is_outside_of_a_pid_namespace_is_hidden() -> None:
    code = (
        "from pmuctl.host.kvm.process_scan import KvmScanner\n"
        "from pmuctl.host.procfs import Procfs\n"
        "print(KvmScanner(Procfs()).scan().is_partial)"
    )
    assert inside("--mount-proc", code=code) == "True\n"


def test_it_is_what_the_kernel_tells_of_a_thread() -> None:
    """Of one that leads no process, too."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        mask = ThreadAffinity().get(thread.native_id)
        assert os.sched_getaffinity(thread.native_id) <= set(mask)
        ThreadAffinity().set(thread.native_id, mask)
        assert ThreadAffinity().get(thread.native_id) == mask
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("tid", [0, -1, 4194305])
def test_where_there_is_no_thread(tid: int) -> None:
    with pytest.raises(ProcessLookupError):
        ThreadAffinity().get(tid)
    with pytest.raises(ProcessLookupError):
        ThreadAffinity().set(tid, CpuSet.parse("0"))
