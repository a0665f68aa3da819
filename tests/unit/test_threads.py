# SPDX-License-Identifier: Apache-2.0
"""Masks of threads are asked for only where the ids in /proc are those the kernel takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmuctl.errors import UnsupportedError
from pmuctl.host.threads import Threads
from pmuctl.model.cpuset import CpuSet

AS_ROOT = () if os.geteuid() == 0 else ("--map-root-user",)
CPUS = CpuSet.of([0])


def test_ids_of_another_pid_namespace_are_refused(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("1")
    threads = Threads(str(tmp_path))
    before = os.sched_getaffinity(0)
    for ask in (lambda: threads.affinity(os.getpid()), lambda: threads.place(os.getpid(), CPUS)):
        with pytest.raises(UnsupportedError) as caught:
            ask()
        assert "another pid namespace" in str(caught.value.why)
    assert os.sched_getaffinity(0) == before
    assert Threads().affinity(os.getpid()).cpus == before


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
        "from pmuctl.host.threads import Threads\n"
        "try: Threads().affinity(1)\n"
        "except UnsupportedError as error: print(error.why)"
    )
    assert "another pid namespace" in inside(code=code)
    assert inside("--mount-proc", code=code) == ""


def test_what_is_outside_of_a_pid_namespace_is_hidden() -> None:
    code = "from pmuctl.host.procs import Procfs\nprint(Procfs().scan_kvm().is_partial)"
    assert inside("--mount-proc", code=code) == "True\n"
