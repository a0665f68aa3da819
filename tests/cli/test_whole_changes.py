# SPDX-License-Identifier: Apache-2.0
"""Changes are whole, or told: whatever fails at any step of one, and whenever it does."""

import errno
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pmuctl.cli.main import main
from pmuctl.control.server.server import Server
from pmuctl.errors import Stopped
from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import raise_if_exhausted
from pmuctl.host.sysfs import Sysfs
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.model.cpuset import CpuSet
from tests.cli.conftest import Machine, Ran
from tests.fakes.peers import GREETING, PATIENCE, RawClient, bad_server, query
from tests.fakes.shortage import no_descriptors
from tests.fakes.vmm import FakeThreads, FakeVm, KernelThreads, fake_proc
from tests.launch.native import need, no_kvm

Stop = Callable[[int], None]

A72 = "armv8_cortex_a72"
TIDS = (1001, 1002)
ALL, PMU = CpuSet.parse("0-3"), CpuSet.parse("2-3")

CHANGES = [
    ("affinity", "set", "web1", "2-3"),
    ("affinity", "align", "web1"),
    ("affinity", "align", "--all"),
    ("vm", "set", "web1", "affinity", "2-3"),
    ("vm", "set", "web1", "affinity", "auto"),
]


def os_error(number: int) -> Callable[[], BaseException]:
    return lambda: OSError(number, os.strerror(number))


FAULTS: dict[str, Callable[[], BaseException]] = {
    **{
        name: os_error(getattr(errno, name))
        for name in ("EMFILE", "ENFILE", "ENOMEM", "EPERM", "ESRCH", "EINTR")
    },
    "memory": MemoryError,
    "ctrl-c": KeyboardInterrupt,
    "bug": lambda: ZeroDivisionError("boom"),
}


@dataclass
class Fault:
    """An exception at one access to the machine, or at all from that on.

    They are counted from the first change, which is 0: what fails before changes nothing.
    """

    make: Callable[[], BaseException]
    at: int
    lasts: bool
    seen: int = 0
    has_begun: bool = False

    def count(self) -> None:
        if not self.has_begun:
            return
        now, self.seen = self.seen, self.seen + 1
        if now == self.at or (self.lasts and now > self.at):
            raise self.make()

    def count_read(self) -> None:
        """Count an access that reads a file, as pmuctl.host does it."""
        try:
            self.count()
        except OSError as error:
            raise_if_exhausted(error)
            raise


class FaultyThreads(FakeThreads):
    """Masks of threads; each call counts once before it is made, a change once more after it."""

    fault: Fault | None = None

    def get(self, tid: int) -> CpuSet:
        if self.fault is not None:
            self.fault.count_read()
        return super().get(tid)

    def set(self, tid: int, cpus: CpuSet) -> None:
        if self.fault is not None:
            self.fault.has_begun = True
            self.fault.count()
        super().set(tid, cpus)
        if self.fault is not None:
            with suppress(OSError):  # a call that succeeds gives no errno
                self.fault.count()


@pytest.fixture
def host(machine: Machine) -> Machine:
    """A host with one VM that runs, on its PMU, but whose threads may run on all CPUs."""
    vm = FakeVm()
    vm.threads = machine.threads = FaultyThreads(dict.fromkeys(TIDS, ALL))
    fake_proc(machine.proc, os.getpid(), tids=TIDS, uid=os.geteuid(), start=5)
    machine.start(vm)
    assert machine.run("vm", "set", "web1", "pmu", A72, "affinity", "none").status == 0
    machine.servers["web1"].seal("it was released")
    vm.initialise()
    vm.run()
    return machine


def at_each_access(host: Machine, kind: str, *words: str, lasts: bool) -> Iterator[Ran]:
    """What a command leaves behind that fails at its first change, at the next access, …"""
    threads = host.threads
    assert isinstance(threads, FaultyThreads)
    for number in itertools.count():
        for file in host.runtime.glob(".placed-*"):
            file.unlink()
        threads.fault = None
        threads.masks.update(dict.fromkeys(TIDS, ALL))
        fault = threads.fault = Fault(FAULTS[kind], number, lasts)
        host.before = fault.count_read
        # the server of the VM reads masks as well, but of other commands only
        ran = host.run(*words)
        host.before, threads.fault = (lambda: None), None
        yield ran
        if fault.seen <= number:
            assert number > 8
            return


def now_line(ran: Ran) -> str:
    return "\n".join(line for line in ran.stderr.splitlines() if line.startswith("  now: "))


@pytest.mark.parametrize(
    ("kind", "lasts", "words"),
    [
        *((kind, False, CHANGES[0]) for kind in FAULTS),
        *((kind, True, CHANGES[0]) for kind in ("EMFILE", "ENFILE", "ENOMEM", "memory", "bug")),
        *(("EMFILE", lasts, words) for words in CHANGES[1:] for lasts in (False, True)),
    ],
    ids=str,
)
def test_a_placement_that_fails_anywhere_is_undone_or_told_thread_by_thread(
    host: Machine, kind: str, words: tuple[str, ...], *, lasts: bool
) -> None:
    threads = host.threads
    assert isinstance(threads, FaultyThreads)
    for ran in at_each_access(host, kind, *words, lasts=lasts):
        changed = {tid for tid in TIDS if threads.masks[tid] != ALL}
        if ran.status == 0:
            is_recorded = bool(list(host.runtime.glob(".placed-*")))
            is_told = is_recorded or "could not be recorded" in ran.stderr
            assert changed in (set(), set(TIDS)), ran
            # whose stat cannot be read is taken for a process that has ended
            assert is_told or not changed or kind in ("EPERM", "ESRCH", "EINTR"), ran
            continue
        told = {tid for tid in TIDS if f"sched_setaffinity({tid}, 2-3)" in now_line(ran)}
        if lasts and kind in ("memory", "bug"):  # nobody can know how far the last call came
            assert told >= changed, ran
        else:
            assert told == changed, ran
        assert ran.status != 70 or kind == "bug", ran
        if not lasts:
            assert changed in (set(), set(TIDS)), ran


VMM = """
import ctypes, os, sys, threading
from fcntl import ioctl
kvm = os.open("/dev/kvm", os.O_RDWR)
vm = ioctl(kvm, 0xAE01, 0)
begun = threading.Barrier(4)
def run(index):
    ctypes.CDLL(None).prctl(15, b"CPU %d/KVM" % index, 0, 0, 0)
    begun.wait()
    threading.Event().wait()
for index in range(3):
    ioctl(vm, 0xAE41, index)
    threading.Thread(target=run, args=(index,), daemon=True).start()
begun.wait()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_real_placement_without_descriptors_is_whole_or_told(machine: Machine) -> None:
    need(no_kvm())
    kernel, procs = ThreadAffinity(), Procfs()
    argv = [sys.executable, "-I", "-S", "-c", VMM]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        words = ("affinity", "set", f"pid/{process.pid}", "0")
        tids = [tid for tid in procs.threads(process.pid) if tid != process.pid]
        before = {tid: kernel.get(tid) for tid in tids}
        outcomes = set()
        for spare in range(100):
            stdout, stderr = io.StringIO(), io.StringIO()
            context = machine.env(stdout, stderr, procs=procs, threads=kernel)
            with no_descriptors(spare):
                status = main(words, context)
            ran = Ran(status, stdout.getvalue(), stderr.getvalue())
            changed = {tid for tid in tids if kernel.get(tid) != before[tid]}
            told = {tid for tid in tids if f"sched_setaffinity({tid}, 0)" in now_line(ran)}
            assert ran.status in (0, 9), ran
            assert changed == (told if ran.status else set(tids)), ran
            outcomes.add(ran.status)
            if ran.status == 0 and spare > 12:
                break
            for tid in tids:
                kernel.set(tid, before[tid])
        process.stdin.close()
    assert outcomes == {0, 9}


# signals


SET = ("vm", "set", "web1", "pmu", A72)
APPLIED = "KVM_SET_DEVICE_ATTR(vcpu 0, KVM_ARM_VCPU_PMU_V3_SET_PMU, 11)"


def answer_apply(request: dict[str, Any]) -> bytes:
    steps = [{"attribute": "SET_PMU", "words": APPLIED, "outcome": "done"}]
    result = {"outcome": "set", "steps": steps}
    return json.dumps({"return": result, "id": request["id"]}).encode()


@contextmanager
def stoppable(
    machine: Machine, *words: str, before_apply: Callable[[RawClient, Stop], None]
) -> Iterator[subprocess.Popen[str]]:
    """pmuctl as a process of its own; its VMM does `before_apply` where it would read a change."""
    fake_proc(machine.proc, os.getpid(), tids=TIDS, uid=os.geteuid(), start=5)
    machine.runtime.mkdir()
    started = threading.Event()
    process: subprocess.Popen[str]

    def serve(client: RawClient) -> None:
        client.send(GREETING)
        for answer in ({}, query()):
            request = client.read()
            client.send(json.dumps({"return": answer, "id": request["id"]}).encode())
        started.wait()
        before_apply(client, process.send_signal)

    masks = ";".join(f"{tid}=0-3" for tid in TIDS)
    argv = [sys.executable, "-P", "-m", "tests.cli.stopped", str(machine.root)]
    argv += [str(machine.runtime), str(machine.proc), masks, *words]
    with bad_server(machine.runtime / "web1.sock", serve):
        process = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        with process:
            started.set()
            yield process


ENDS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)]


@pytest.mark.parametrize(("number", "status"), ENDS)
def test_a_signal_while_a_request_is_sent_says_that_nothing_was_changed(
    machine: Machine, number: int, status: int
) -> None:
    """The request is larger than the socket takes, and nobody reads it."""
    half = [",".join(f"0x{code:x}" for code in range(n, n + 32768, 2)) for n in (0, 32768)]
    words = (*SET, "filter", "default", "allow", "deny", half[0], "deny", half[1])

    def stop(client: RawClient, send_signal: Stop) -> None:
        client.socket.recv(1)  # its first byte has come, and the rest has begun to be sent
        send_signal(number)
        process.wait(PATIENCE)

    with stoppable(machine, *words, before_apply=stop) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (status, "")
    assert err == (
        "error: web1: pmuctl was stopped before pmu-apply was sent\n  now: nothing was changed\n"
    )


@pytest.mark.parametrize(("number", "status"), ENDS)
def test_a_signal_before_the_answer_says_that_the_outcome_is_not_known(
    machine: Machine, number: int, status: int
) -> None:
    def stop(client: RawClient, send_signal: Stop) -> None:
        client.read()
        send_signal(number)
        process.wait(PATIENCE)

    with stoppable(machine, *SET, before_apply=stop) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (status, "")
    assert "error: web1: pmu-apply was sent, its outcome is not known\n" in err
    assert "why: pmuctl was stopped before an answer\n" in err


@pytest.mark.parametrize(("number", "status"), ENDS)
def test_a_signal_with_the_answer_says_what_was_done_and_records_it(
    machine: Machine, number: int, status: int
) -> None:
    def stop(client: RawClient, send_signal: Stop) -> None:
        answer = answer_apply(client.read())
        client.send(answer[:-1])
        send_signal(number)
        client.send(answer[-1:])
        process.wait(PATIENCE)

    with stoppable(machine, *SET, before_apply=stop) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (status, "")
    assert f"  now: done: web1: {APPLIED}\n" in err
    assert list(machine.runtime.glob(".placed-*"))


class SignalAt:
    """A signal to this process as a function of pmuctl returns, by the number of that return.

    They are counted from the first change on, of which `begins` is the function.
    """

    def __init__(self, number: int, begins: str) -> None:
        self.left = number
        self.begins = begins
        self.has_begun = False

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event != "return" or "/pmuctl/" not in frame.f_code.co_filename:
            return
        if frame.f_code.co_qualname == self.begins:
            self.has_begun = True
        if self.has_begun:
            self.left -= 1
            if self.left == -1:
                os.kill(os.getpid(), signal.SIGTERM)


@dataclass
class Swept:
    """What a command left behind that got a signal, and of its VM."""

    ran: Ran
    vm: FakeVm
    is_released: bool


def at_each_return(machine: Machine, begins: str, *words: str) -> Iterator[Swept]:
    """What comes of a new VM if a signal comes at the n-th return of a command that changes it."""
    threads = KernelThreads(dict.fromkeys(TIDS, ALL))
    machine.threads = threads
    fake_proc(machine.proc, os.getpid(), tids=TIDS, uid=os.geteuid(), start=5)
    unsent = 0  # how often so far
    for number in itertools.count():
        for file in machine.runtime.glob(".placed-*"):
            file.unlink()
        threads.masks.update(dict.fromkeys(TIDS, ALL))
        vm = FakeVm()
        vm.threads = threads
        path = machine.runtime / "web1.sock"
        at = SignalAt(number, begins)
        with Server(vm, path, sysfs=Sysfs(machine.root), threads=threads) as server:
            sys.setprofile(at)
            try:
                ran = machine.run(*words)
            except Stopped:  # it came once the command had ended
                assert number > 50
                return
            finally:
                sys.setprofile(None)
        if at.left >= 0:  # it ended before: what is read at once, and what in parts, is chance
            unsent += 1
            if unsent == 10:
                assert number > 50
                return
            continue
        yield Swept(ran, vm, server.settings.released.is_set())


@pytest.mark.usefixtures("with_signals")
def test_a_signal_at_any_moment_of_vm_set_hides_no_change(machine: Machine) -> None:
    told = set()
    for swept in at_each_return(machine, "_resolve_pmu", *SET):
        ran = swept.ran
        is_recorded = bool(list(machine.runtime.glob(".placed-*")))
        is_told = ran.status == 0 or "KVM_SET_DEVICE_ATTR" in now_line(ran)
        is_unknown = "its outcome is not known" in ran.stderr
        is_printed = len(ran.lines) == 2
        told.add("told" if is_told else "unknown" if is_unknown else "nothing")
        assert ran.status in (0, 143), ran
        assert not swept.vm.calls or is_told or is_unknown or is_printed, ran
        assert is_recorded or not is_told, ran
    assert told >= {"told", "nothing"}


@pytest.mark.usefixtures("with_signals")
def test_a_signal_at_any_moment_of_affinity_set_hides_no_change(machine: Machine) -> None:
    words = ("affinity", "set", "web1", "2-3")
    for swept in at_each_return(machine, "VcpuThreads.check", *words):
        ran = swept.ran
        masks = [str(machine.host().threads.get(tid)) for tid in TIDS]
        is_told = all(f"sched_setaffinity({tid}, 2-3)" in now_line(ran) for tid in TIDS)
        assert masks == ["2-3", "2-3"], ran
        assert ran.status in (0, 143), ran
        assert ran.status == 0 or is_told, ran
        assert list(machine.runtime.glob(".placed-*")), ran


@pytest.mark.usefixtures("with_signals")
def test_a_signal_at_any_moment_of_vm_release_hides_no_release(machine: Machine) -> None:
    told = set()
    for swept in at_each_return(machine, "defer_signals", "vm", "release", "web1"):
        ran = swept.ran
        is_told = "done: web1: released" in now_line(ran)
        is_unknown = "outcome is not known" in ran.stderr
        assert ran.status in (0, 143), ran
        assert swept.is_released or not (is_told or ran.status == 0), ran
        assert not swept.is_released or is_told or is_unknown or len(ran.lines) == 1, ran
        told.add("told" if is_told else "unknown" if is_unknown else "other")
    assert "told" in told


def test_a_refusal_after_a_part_was_applied_records_where_the_threads_are(host: Machine) -> None:
    """They are on the CPUs of a PMU that the VM has: align is to know the pin as pmuctl's."""
    threads = host.threads
    assert isinstance(threads, FaultyThreads)
    host.servers["web1"].__exit__(None, None, None)
    vm = FakeVm("web2")
    vm.threads = threads
    vm.faults["FILTER"] = errno.EIO
    host.start(vm)
    ran = host.run("vm", "set", "web2", "pmu", A72, "affinity", "3", "filter", "default", "deny")
    assert ran.status == 9
    assert "KVM_ARM_VCPU_PMU_V3_SET_PMU, 11)" in now_line(ran)
    assert [str(threads.masks[tid]) for tid in TIDS] == ["3", "3"]
    assert host.run("vm", "release", "web2").status == 0
    threads.masks.update(dict.fromkeys(TIDS, CpuSet.parse("0-1")))  # what the VMM does by itself
    assert host.run("affinity", "align", "web2").status == 0
    assert [str(threads.masks[tid]) for tid in TIDS] == ["3", "3"], "the mask that was recorded"
