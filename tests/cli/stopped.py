# SPDX-License-Identifier: Apache-2.0
"""pmuctl as a process of its own on a made-up machine: python -m tests.cli.stopped ROOT RUNTIME
PROC MASKS WORD..., where MASKS are threads and CPUs, as "1001=0-3;1002=0-3"."""

import os
import sys
from pathlib import Path

from pmuctl.cli.context import Context
from pmuctl.cli.main import handle_signals, main
from pmuctl.host.host import Host
from pmuctl.host.procfs import Procfs
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.render.streams import guarded
from tests.fakes.vmm import FakeThreads

root, runtime, proc, masks, *words = sys.argv[1:]
handle_signals()
threads = dict(its.split("=") for its in masks.split(";"))
host = Host(
    environ={"PMUCTL_RUNTIME_DIR": runtime},
    uid=0,
    sysfs=Sysfs(Path(root)),
    procs=Procfs(Path(proc)),
    threads=FakeThreads({int(tid): CpuSet.parse(cpus) for tid, cpus in threads.items()}),
)
status = main(words, Context(stdout=guarded(sys.stdout), stderr=sys.stderr, host=host))
sys.stderr.flush()
os._exit(status)
