# SPDX-License-Identifier: Apache-2.0
"""The command line in process, on a captured machine, with fake VMMs behind true sockets."""

import io
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pytest

from pmuctl.cli.context import Context
from pmuctl.cli.main import ENDING, handle_signals, main
from pmuctl.control.server.server import Server
from pmuctl.host.host import Host
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.render.streams import guarded
from pmuctl.render.vm import AFFINITY_COLUMN, VM_COLUMNS
from tests.fakes.vmm import ClosedProcfs, FakeThreads, FakeVm, fake_proc

ME = os.geteuid()
CAPTURED = ",".join(column.name for column in VM_COLUMNS if column is not AFFINITY_COLUMN)
"""The columns of VMs that a snapshot can tell: where pmuctl put vCPUs is not captured."""


@dataclass(frozen=True)
class Ran:
    """What a command line left behind."""

    status: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()


@dataclass
class Machine:
    """A captured machine with a runtime directory of its own.

    `masks` are those of threads that no fake VM has, `unreadable` the processes that may not be
    looked at; `inherited`, `before` and `endless` as in `ClosedProcfs`.
    """

    root: Path
    runtime: Path
    proc: Path
    stack: ExitStack
    servers: dict[str, Server] = field(default_factory=dict)
    vms: list[FakeVm] = field(default_factory=list)
    masks: dict[int, CpuSet] = field(default_factory=dict)
    unreadable: set[int] = field(default_factory=set)
    inherited: dict[int, int] = field(default_factory=dict)
    before: Callable[[], None] = field(default=lambda: None)
    endless: set[int] = field(default_factory=set)
    threads: FakeThreads | None = None
    """What pmuctl itself sees of the threads; by default a copy of what the VMs have."""

    def run(self, *argv: str, uid: int = ME) -> Ran:
        """One command line on this machine."""
        stdout, stderr = io.StringIO(), io.StringIO()
        status = main(argv, self.env(stdout, stderr, uid=uid))
        return Ran(int(status), stdout.getvalue(), stderr.getvalue())

    def env(
        self, stdout: TextIO, stderr: TextIO, *, environ: Mapping[str, str] = {}, **changes: Any
    ) -> Context:
        """The outside of a command on this machine, with more of `environ`; `changes` to the
        Host."""
        return Context(
            stdout=guarded(stdout), stderr=stderr, host=self.host(environ=environ, **changes)
        )

    def host(self, *, environ: Mapping[str, str] = {}, **changes: Any) -> Host:
        """This machine as the tests' user sees it, unless `changes` say otherwise."""
        threads = self.threads or FakeThreads(
            self.masks | {tid: mask for vm in self.vms for tid, mask in vm.threads.masks.items()}
        )
        procs = ClosedProcfs(
            self.proc,
            frozenset(self.unreadable),
            self.inherited,
            self.before,
            frozenset(self.endless),
        )
        parts: dict[str, Any] = {
            "uid": ME,
            "sysfs": Sysfs(self.root),
            "procs": procs,
            "threads": threads,
        }
        runtime = {"PMUCTL_RUNTIME_DIR": str(self.runtime)}
        return Host(environ={**runtime, **environ}, **{**parts, **changes})

    def start(self, vm: FakeVm, path: Path | None = None) -> FakeVm:
        """Serve a fake VM's control socket until the end of the test."""
        its = self.proc / str(os.getpid()) / "stat"
        if its.parent.exists() and not its.exists():  # from now on it is a process that has a VM
            its.write_text(f"{os.getpid()} (pytest) S {'0 ' * 18}100 0\n")
        server = Server(
            vm,
            path or self.runtime / f"{vm.name}.sock",
            sysfs=Sysfs(self.root),
            threads=vm.threads,
        )
        self.vms.append(vm)
        self.servers[vm.name] = self.stack.enter_context(server)
        return vm


@pytest.fixture
def machine(tmp_path: Path, dump: Callable[[str], Path]) -> Iterator[Machine]:
    """A host with two PMUs, of CPUs 0-1 and 2-3, types 10 and 11."""
    proc = fake_proc(tmp_path / "proc", os.getpid(), tids=[1001, 1002])
    with ExitStack() as stack:
        yield Machine(dump("two-pmus-6.12"), tmp_path / "run", proc, stack)


@pytest.fixture
def with_signals() -> Iterator[None]:
    """Signals as the console script has them."""
    before = {number: signal.getsignal(number) for number in ENDING}
    handle_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
