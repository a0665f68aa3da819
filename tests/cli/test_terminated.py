# SPDX-License-Identifier: Apache-2.0
"""SIGTERM ends a command at once, also while it looks at what has no end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.vmm import fake_proc

ROOT = Path(__file__).parents[2]
ENDLESS = """
import os, signal, sys
from pathlib import Path
from pmuctl.cli.context import Context
from pmuctl.cli.main import main
from pmuctl.errors import ExitStatus, Stopped
from pmuctl.host.host import Host
from pmuctl.host.sysfs import Sysfs
from tests.fakes.vmm import ClosedProcfs
root = Path(sys.argv.pop(1))
class Told(ClosedProcfs):
    def iter_links(self, path, *, most=None):
        if most is None:
            print(flush=True, file=sys.__stdout__)
        return super().iter_links(path, most=most)
def stop(number, _):
    raise Stopped(ExitStatus.TERMINATED)
signal.signal(signal.SIGTERM, stop)
procs = Told(root / "proc", endless=frozenset([4121]))
host = Host(environ=os.environ, uid=0, sysfs=Sysfs(root), procs=procs)
sys.exit(main(sys.argv[1:], Context(stdout=sys.stderr, stderr=sys.stderr, host=host)))
"""
"""pmuctl on a host where a process has endless descriptors; it tells when it reads them."""
AT_ONCE = 1.0
"""Seconds in which a command ends."""


@pytest.mark.parametrize(
    "line",
    [
        "vm list",
        "vm show web1",
        "vm vcpus",
        "vm release web1",
        "vm set web1 affinity 1",
        "vm wait web1 --for stopped",
        "affinity check",
        "affinity align --all",
        "doctor",
        "monitor",
    ],
)
def test_sigterm_ends_a_search_of_endless_descriptors(tmp_path: Path, line: str) -> None:
    fake_proc(tmp_path / "proc", 4121, uid=1234)
    argv = [sys.executable, "-P", "-c", ENDLESS, str(tmp_path), *line.split(), "--deadline", "600"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PMUCTL_RUNTIME_DIR": str(tmp_path / "run")}
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, env=environ, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n", process.communicate()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
        assert time.monotonic() - began < AT_ONCE
