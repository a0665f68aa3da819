# SPDX-License-Identifier: Apache-2.0
"""Processes that end, or give way to others of the same ids, at any moment of a command."""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pmuctl.host.procfs import Procfs
from pmuctl.model.cpuset import CpuSet
from tests.cli.conftest import Machine, Ran
from tests.cli.processes import QEMU, with_vmm
from tests.fakes.vmm import KernelThreads
from tests.launch.native import need, no_kvm

PID = 6000
ALL = CpuSet.parse("0-3")


def start_old(host: Machine) -> None:
    """A VM of two vCPUs, whose threads are 6001 and 6002."""
    shutil.rmtree(host.proc / str(PID), ignore_errors=True)
    with_vmm(host, PID, QEMU, "-name", "old")


def end(host: Machine) -> None:
    """It ends."""
    shutil.rmtree(host.proc / str(PID))


def replace(host: Machine) -> None:
    """It ends, and another VM has all its ids, and one more."""
    end(host)
    words = ("lkvm", "run", "--name", "new")
    with_vmm(host, PID, *words, vcpus=dict.fromkeys(range(3), "0-3"), start=200)


@pytest.fixture
def host(machine: Machine) -> Machine:
    """A host with one VM."""
    shutil.rmtree(machine.proc / str(os.getpid()))
    start_old(machine)
    machine.threads = KernelThreads(dict.fromkeys(range(PID, PID + 6), ALL))
    return machine


def at_each_access(host: Machine, event: Callable[[Machine], None], *words: str) -> Iterator[Ran]:
    """What a command leaves behind where the event comes before its first access to /proc, before
    its second, and so on; the last time it ends before."""
    for number in itertools.count():
        start_old(host)
        left = number

        def count() -> None:
            nonlocal left
            if left == 0:
                event(host)
            left -= 1

        host.before = count
        ran = host.run(*words)
        host.before = lambda: None
        yield ran
        if left >= 0:
            assert number > 10
            return


def rows(ran: Ran) -> list[dict[str, Any]]:
    (found,) = (its for name, its in json.loads(ran.stdout).items() if name in ("vms", "vcpus"))
    return list(found)


@pytest.mark.parametrize("event", [end, replace])
def test_a_list_has_a_vm_as_it_was_or_not_at_all(
    host: Machine, event: Callable[[Machine], None]
) -> None:
    seen = set()
    for ran in at_each_access(host, event, "vm", "list", "-J", "-O"):
        assert (ran.status, ran.stderr) == (0, "")
        for row in rows(ran):
            tids = {vcpu["tid"] for vcpu in row["vcpu_list"]} - {None}
            kind = (row["name"], row["vmm"], row["vcpus"])
            assert kind in (("old", "qemu", 2), ("new", "kvmtool", 3))
            assert tids <= set(range(PID + 1, PID + 1 + row["vcpus"]))
            seen.add(row["name"])
        seen.add("none" if not rows(ran) else "one")
    assert seen == {"none", "one", "old"} | ({"new"} if event is replace else set())


@pytest.mark.parametrize("event", [end, replace])
@pytest.mark.parametrize(
    ("words", "statuses"),
    [
        (("vm", "vcpus", "-J"), {0}),
        (("vm", "show", "old", "-J"), {0, 4}),
        (("affinity", "check", "old", "-J"), {1, 4}),
        (("doctor", "old", "-J"), {0, 1, 4}),
    ],
)
def test_looks_at_one_that_ends_tell_what_they_saw(
    host: Machine,
    event: Callable[[Machine], None],
    words: tuple[str, ...],
    statuses: set[int],
) -> None:
    for ran in at_each_access(host, event, *words):
        assert ran.status in statuses, ran
        json.loads(ran.stdout or ran.stderr)


@pytest.mark.parametrize("event", [end, replace])
def test_threads_of_another_process_are_not_placed(
    host: Machine, event: Callable[[Machine], None]
) -> None:
    assert isinstance(host.threads, KernelThreads)
    kernel, late = host.threads, []

    def happen(machine: Machine) -> None:
        event(machine)
        kernel.masks.update(dict.fromkeys(kernel.masks, ALL))
        late.append(len(kernel.calls))

    statuses = set()
    for ran in at_each_access(host, happen, "affinity", "set", "old", "2-3"):
        statuses.add(ran.status)
        assert ran.status in (0, 4), ran
        assert kernel.calls[late.pop() if late else len(kernel.calls) :] == [], ran
        kernel.masks.update(dict.fromkeys(kernel.masks, ALL))
        kernel.calls.clear()
    assert statuses == {0, 4}


# On this machine's own KVM

CHURN = """
import os, random, signal, sys, threading, time
from fcntl import ioctl
rng = random.Random(int(sys.argv[1]))
def live():
    kvm = os.open("/dev/kvm", os.O_RDWR)
    vm = ioctl(kvm, 0xAE01, 0)
    for index in range(rng.randrange(3)):
        ioctl(vm, 0xAE41, index)
        threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
    if rng.random() < 0.3:
        os.fork()
    time.sleep(rng.random() * 0.05)
    os._exit(0)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
alive = []
while os.getppid() == int(sys.argv[2]):
    seed = rng.random()
    if not (pid := os.fork()):
        rng.seed(seed)
        live()
    alive.append(pid)
    time.sleep(0.002)
    if len(alive) > 8:
        try:
            os.kill(alive.pop(rng.randrange(8)), 9)
        except ProcessLookupError:
            pass
"""
SECONDS = 3.0


@contextmanager
def churn(seed: int) -> Iterator[int]:
    """VMMs that come and go, some with a helper, until the end: the process that makes them."""
    argv = [sys.executable, "-I", "-S", "-c", CHURN, str(seed), str(os.getpid())]
    with subprocess.Popen(argv) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def test_real_vmms_that_come_and_go(machine: Machine) -> None:
    need(no_kvm())
    seed = random.randrange(1 << 32)
    machine.proc = Procfs().root
    looks = [("vm", "list", "-J", "-O"), ("vm", "vcpus", "-J"), ("affinity", "check", "-J")]
    seen: set[int] = set()
    with churn(seed) as maker:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until or len(seen) < 5:
            for words in looks:
                ran = machine.run(*words)
                assert ran.status in (0, 1), (seed, ran)
                if words[1] == "list":
                    seen |= {row["pid"] for row in rows(ran)} - {maker}
