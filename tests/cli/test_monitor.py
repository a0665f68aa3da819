# SPDX-License-Identifier: Apache-2.0
"""`pmuctl monitor`: what changes, as it happens, on machines that change while it looks."""

import errno
import gc
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import pytest

from pmuctl.cli.main import main
from pmuctl.errors import ExitStatus, Stopped
from pmuctl.host.udev import NoUevents, Uevent, UeventBatch
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.host_diff import ChangeKind
from pmuctl.value import replace
from tests.cli.conftest import Machine, Ran
from tests.cli.host_cpus import put_online
from tests.fakes.peers import mute
from tests.fakes.vmm import FakeVm, KernelThreads, StallingVm, fake_proc, fake_vmm
from tests.skips import only_root

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
PMUCTL = [sys.executable, "-P", "-c", "from pmuctl.cli.main import run; run()"]


class Script(NoUevents):
    """Instead of waiting it does what is to happen next; once nothing is left, it waits."""

    def __init__(self, *acts: Callable[[], object], is_open: bool = True) -> None:
        self.acts = list(acts)
        self.is_open = is_open

    def wait(self, seconds: float) -> UeventBatch:
        if self.acts:
            heard = self.acts.pop(0)()
            return heard if isinstance(heard, UeventBatch) else UeventBatch()
        time.sleep(max(seconds, 0))
        return UeventBatch()


def end() -> None:
    """SIGTERM comes while nothing happens."""
    raise Stopped(ExitStatus.TERMINATED)


def monitor(
    machine: Machine, *words: str, ear: Script | None = None, timeout: str | None = None
) -> Ran:
    """What is told while an ear acts, each act followed by a look, and until it ends that.

    No clock ends it, however slow the machine is, nor does a look go without an answer, unless
    there is a timeout (seconds): then it also looks each tenth of a second.
    """
    stdout, stderr = io.StringIO(), io.StringIO()
    ear = ear or Script()
    times = ["--interval", "0.1", "--timeout", timeout] if timeout else ["--interval", "3600"]
    if timeout is None:
        ear.acts.append(end)
    env = replace(machine.env(stdout, stderr), uevents=ear)
    status = main(["monitor", *times, *words], env)
    return Ran(int(status), stdout.getvalue(), stderr.getvalue())


def events(ran: Ran) -> list[dict[str, Any]]:
    assert ran.status in (0, 143), ran
    return [json.loads(line) for line in ran.stdout.splitlines()]


def told(machine: Machine, *acts: Callable[[], Any], words: tuple[str, ...] = ()) -> list[Any]:
    """Each event with its VM and vCPU."""
    seen = events(monitor(machine, "--format", "jsonl", *words, ear=Script(*acts)))
    return [(its["event"], its["vm"], its["vcpu"]) for its in seen]


@pytest.fixture
def host(machine: Machine) -> Machine:
    """A host with a VM that has run, on CPUs 2-3, where its PMU is."""
    vm = machine.start(FakeVm("web1"))
    machine.threads = KernelThreads(vm.threads.masks)
    assert machine.run("vm", "set", "web1", "pmu", A72).status == 0
    assert machine.run("vm", "release", "web1").status == 0
    vm.initialise()
    vm.run()
    # what the VM's own process has put its threads on
    for tid in (1001, 1002):
        machine.threads.masks[tid] = CpuSet.parse("2-3")
    return machine


def put(machine: Machine, tid: int, mask: str) -> Callable[[], None]:
    """Somebody else gives a thread another mask."""

    def act() -> None:
        assert machine.threads is not None
        machine.threads.masks[tid] = CpuSet.parse(mask)

    return act


def start_qemu(machine: Machine) -> None:
    fake_vmm(machine.proc, 5120, ("qemu-system-aarch64", "-name", "db1"), masks="0-1")
    for tid in range(5120, 5124):
        put(machine, tid, "0-1")()


def end_qemu(machine: Machine) -> None:
    for link in (machine.proc / "5120/fd").iterdir():
        link.unlink()


def test_nothing_happens(host: Machine) -> None:
    ran = monitor(host, timeout="0.2")
    assert ran.status == 0
    assert ran.stdout.split() == ["TIME", "EVENT", "VM", "WHAT"]
    assert ran.stderr == (
        "watching 1 VM and 2 PMUs: looking every 0.1 s, and when the kernel tells of a VM or a "
        "CPU\n"
    )


def test_without_the_kernels_events_it_says_so_and_looks(host: Machine) -> None:
    ran = monitor(host, ear=Script(lambda: start_qemu(host), is_open=False))
    assert "; the kernel's own events cannot be heard here\n" in ran.stderr
    assert "vm-started" in ran.stdout


def test_a_vcpu_that_leaves_and_returns(host: Machine) -> None:
    ran = monitor(host, ear=Script(put(host, 1002, "0-3"), put(host, 1002, "3")))
    _, left, returned = ran.lines
    assert left.split()[1:3] == ["vcpu-left", "web1"]
    assert (
        f"vCPU 1 (thread 1002) may run on CPUs 0-1, outside {A72} (2-3): KVM_RUN fails there "
        "with KVM_EXIT_FAIL_ENTRY" in left
    )
    assert "QEMU spins at 100 %" in left
    assert returned.endswith(f"vCPU 1 (thread 1002) stays on CPUs 3, of {A72}")


def test_what_is_wrong_already_is_told_first(host: Machine) -> None:
    put(host, 1001, "0")()
    assert told(host) == [("vcpu-left", "web1", 0)]


def test_vms_start_and_end(host: Machine) -> None:
    acts = (lambda: start_qemu(host), lambda: end_qemu(host))
    assert told(host, *acts) == [("vm-started", "db1", None), ("vm-ended", "db1", None)]


def test_the_kernel_wakes_it(host: Machine) -> None:
    """A look follows at once, though the next one would be an hour away."""

    def create() -> UeventBatch:
        start_qemu(host)
        return UeventBatch(events=(Uevent(device="kvm", action="create", tid=5121),))

    words = ("-v", "--event", "vm-started")
    ran = monitor(host, *words, ear=Script(create))
    assert ran.lines[1].split()[1:3] == ["vm-started", "db1"]
    assert "the kernel: kvm create, thread 5121" in ran.stderr


def test_windows_and_cpus(host: Machine) -> None:
    vm = FakeVm("new1")

    def release() -> None:
        assert host.run("vm", "release", "new1").status == 0

    seen = told(
        host,
        lambda: host.start(vm),
        release,
        lambda: put_online(host, "0-2"),
        lambda: put_online(host, "0-3"),
    )
    assert seen == [
        ("vm-started", "new1", None),
        ("window", "new1", None),
        ("released", "new1", None),
        ("cpu-offline", None, None),
        ("cpu-online", None, None),
    ]


def test_settings_and_the_release_of_a_vm_are_told(host: Machine) -> None:
    host.start(FakeVm("new1"))
    settings = ("pmu", A72, "filter", "default", "deny", "allow", "0x11")

    def change() -> None:
        assert host.run("vm", "set", "new1", *settings).status == 0

    def release() -> None:
        assert host.run("vm", "release", "new1").status == 0

    ear = Script(change, release)
    seen = events(monitor(host, "new1", "--format", "jsonl", ear=ear))
    what = f"pmu {A72}, filter default deny allow cpu_cycles"
    assert [(event["event"], event["what"]) for event in seen] == [
        ("settings", what),
        ("window", "sealed, was open"),
        ("released", what),
    ]


def test_the_last_cpu_of_a_pmu(host: Machine) -> None:
    seen = told(host, lambda: put_online(host, "0-1"))
    assert ("pmu-offline", None, None) in seen
    # no CPU is left to its threads: once they wake up they are anywhere
    assert ("vcpu-left", "web1", 0) in seen


def test_repair_puts_it_back_and_says_so(host: Machine) -> None:
    ran = monitor(
        host, "--repair", "--format", "jsonl", ear=Script(put(host, 1001, "1-3"), lambda: None)
    )
    left, repaired, returned = events(ran)
    assert [its["event"] for its in (left, repaired, returned)] == [
        *("vcpu-left", "repaired", "vcpu-returned"),
    ]
    assert repaired["what"] == "vCPU 0 (thread 1001) put on CPUs 2-3, was 1-3"
    assert (repaired["vcpu"], repaired["tid"], repaired["pmu"]) == (0, 1001, A72)
    assert (left["cpus"], repaired["cpus"]) == ([1], [2, 3])
    assert str(host.threads and host.threads.masks[1001]) == "2-3"


def test_repair_is_not_misled_by_a_name(host: Machine) -> None:
    """Another VM calls itself web1, too, and is where it should be, or is not known to be."""
    fake_vmm(host.proc, 6000, ("qemu-system-aarch64", "-name", "web1"), masks="0-1")
    for tid in range(6000, 6004):
        put(host, tid, "0-1")()
    acts = (put(host, 1001, "1-3"), lambda: None)
    seen = events(monitor(host, "--repair", "--format", "jsonl", ear=Script(*acts)))
    assert [(its["event"], its["pid"]) for its in seen] == [
        *(("vcpu-left", os.getpid()), ("repaired", os.getpid()), ("vcpu-returned", os.getpid())),
    ]


def test_what_is_to_be_left_alone_is_not_repaired(host: Machine) -> None:
    fake_proc(host.proc, os.getpid(), tids=(1001, 1002), start=5)
    assert host.run("vm", "set", "web1", "affinity", "none").status == 0
    acts = (put(host, 1001, "1-3"), lambda: None)
    assert told(host, *acts, words=("--repair",)) == [("vcpu-left", "web1", 0)]
    assert host.run("vm", "set", "web1", "affinity", "auto").status == 0
    assert ("repaired", "web1", 0) in told(host, *acts, words=("--repair",))


def test_without_repair_nothing_is_changed(host: Machine) -> None:
    assert told(host, put(host, 1001, "1-3")) == [("vcpu-left", "web1", 0)]
    assert isinstance(host.threads, KernelThreads)
    assert host.threads.calls == []


def test_a_failed_repair_is_told_once_and_tried_again(host: Machine) -> None:
    threads = host.threads
    assert isinstance(threads, KernelThreads)
    acts = (
        lambda: put_online(host, "0-1"),
        put(host, 1001, "0-3"),
        lambda: None,
        lambda: put_online(host, "0-3"),
        lambda: None,
    )
    ran = monitor(host, "--repair", "--format", "jsonl", ear=Script(*acts))
    seen = events(ran)
    failed = [its for its in seen if its["event"] == "repair-failed"]
    assert failed
    assert len({its["what"] for its in failed}) == len(failed)
    assert "offline" in failed[0]["what"]
    assert "fix: echo 1 >/sys/devices/system/cpu/cpu2/online" in failed[0]["what"]
    assert seen[-1]["event"] == "vcpu-returned"
    assert [its["vcpu"] for its in seen if its["event"] == "repaired"][:1] == [0]


def test_a_failed_repair_tells_what_stands(host: Machine) -> None:
    """The second thread refuses its mask, and the first one takes back its own, or does not."""

    class Refusing(KernelThreads):
        refused: tuple[tuple[int, str], ...] = ()

        def set(self, tid: int, cpus: CpuSet) -> None:
            if (tid, str(cpus)) in self.refused:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            super().set(tid, cpus)

    assert isinstance(host.threads, KernelThreads)
    threads = host.threads = Refusing(host.threads.masks)

    def repair(*refused: tuple[int, str]) -> str:
        """What is told of a repair in which threads refuse these masks."""
        for tid in (1001, 1002):
            put(host, tid, "1-3")()
        threads.refused = refused
        stdout, stderr = io.StringIO(), io.StringIO()
        context = replace(host.env(stdout, stderr), uevents=Script(end))
        assert main(["monitor", "--repair", "-q", "--format", "jsonl"], context) == 143
        assert stderr.getvalue() == "", "it was told as an event already"
        seen = map(json.loads, stdout.getvalue().splitlines())
        (what,) = [event["what"] for event in seen if event["event"] == "repair-failed"]
        return str(what)

    assert "; now: vCPU 0 put back; nothing else was changed; " in repair((1002, "2-3"))
    left = repair((1002, "2-3"), (1001, "1-3"))
    assert (
        "; now: left so: sched_setaffinity(1001, 2-3)  vCPU 0, was 1-3; nothing else was changed; "
        "fix: " in left
    )


def test_a_signal_repeats_no_repair_that_was_told(host: Machine) -> None:
    stray = put(host, 1001, "1-3")
    stdout, stderr = io.StringIO(), io.StringIO()
    context = replace(host.env(stdout, stderr), uevents=Script(*[stray] * 20, end))
    words = ["monitor", "--interval", "0.1", "--event", "repaired", "--repair", "-q"]
    assert main(words, context) == 143
    assert stdout.getvalue().count("put on CPUs 2-3, was 1-3") == 20
    assert stderr.getvalue() == ""


def test_a_repair_that_could_not_be_written_is_told_on_stderr(host: Machine) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            if "repaired" in text:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(text)

    put(host, 1001, "1-3")()
    put(host, 1002, "1-3")()
    stderr = io.StringIO()
    context = replace(host.env(Full(), stderr), uevents=Script(end))
    assert main(["monitor", "--repair", "-q"], context) == ExitStatus.OUTPUT
    steps = "; ".join(
        f"web1: sched_setaffinity({tid}, 2-3)  vCPU {vcpu}, was 1-3"
        for vcpu, tid in ((0, 1001), (1, 1002))
    )
    assert f"  now: done: {steps}\n" in stderr.getvalue()


def test_a_pin_of_others_is_left_alone(host: Machine) -> None:
    fake_vmm(host.proc, 6000, ("lkvm", "run", "--name", "kt1", "--pmu"), masks="0,2")
    for tid in range(6000, 6004):
        put(host, tid, "0,2")()
    ran = monitor(host, "--repair", "--format", "jsonl", ear=Script(lambda: None, lambda: None))
    failed = [its for its in events(ran) if its["event"] == "repair-failed"]
    assert [its["vm"] for its in failed] == ["kt1"]
    assert "which PMU it has is not known" in failed[0]["what"]


def test_what_the_kernel_drops_is_told(host: Machine) -> None:
    def drop() -> UeventBatch:
        return UeventBatch(is_lossy=True)

    (lost,) = events(monitor(host, "--format", "jsonl", ear=Script(drop)))
    assert (lost["event"], lost["vm"]) == ("lost", None)
    assert "ENOBUFS" in lost["what"]


def test_an_ear_that_closes_is_told(host: Machine) -> None:
    ear = Script()

    def close() -> UeventBatch:
        ear.is_open = False
        return UeventBatch(is_lossy=True)

    ear.acts.append(close)
    (lost,) = events(monitor(host, "--format", "jsonl", ear=ear))
    assert "cannot be heard any more" in lost["what"]


def stalling(host: Machine) -> StallingVm:
    """A VM that runs on CPUs 2-3, and can fall silent."""
    vm = StallingVm("web2")
    fake_proc(host.proc, os.getpid(), tids=(1001, 1002), start=5)
    host.start(vm)
    assert host.run("vm", "set", "web2", "pmu", A72).status == 0
    assert host.run("vm", "release", "web2").status == 0
    vm.initialise()
    vm.run()
    return vm


def test_a_vm_that_falls_silent_is_told_and_its_threads_are_watched_on(host: Machine) -> None:
    """Its PMU does not change any more; masks are there to be seen, whether it answers or not."""
    vm = stalling(host)
    stray = Script(vm.goes_on.clear, *[lambda: time.sleep(0.1)] * 5, put(host, 1001, "1-3"))
    words = ("web2", "--repair", "--deadline", "0.2", "--format", "jsonl")
    seen = events(monitor(host, *words, ear=stray, timeout="2"))
    vm.goes_on.set()
    assert [its["event"] for its in seen] == ["lost", "vcpu-left", "repaired", "vcpu-returned"]
    assert "does not answer: until it does no more than its threads is watched" in seen[0]["what"]
    assert seen[2]["what"] == "vCPU 0 (thread 1001) put on CPUs 2-3, was 1-3"


def test_it_does_not_fill_the_memory(host: Machine) -> None:
    """Errors of a look hold its frames in circles: only the collector frees them."""
    path = host.runtime / "dead.sock"
    with mute(path):  # nobody listens any more
        pass

    def frames() -> int:
        return sum(isinstance(its, FrameType | TracebackType) for its in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = frames()
        monitor(host, "-q", ear=Script(*[lambda: None] * 300, end), timeout="100")
        grown = frames() - before
    finally:
        gc.enable()
    assert grown < 1500


def test_mute_sockets_hold_up_nothing(host: Machine) -> None:
    """The time that is named is kept, and a vCPU that leaves is told within a look or two."""
    left: list[float] = []

    def leave() -> None:
        left.append(time.time())
        put(host, 1001, "0-3")()

    stray = Script(*[lambda: None] * 5, leave)
    began = time.monotonic()
    with mute(*(host.runtime / f"a{n}.sock" for n in range(100))):
        ran = monitor(host, "--format", "jsonl", "--deadline", "30", ear=stray, timeout="3")
    assert time.monotonic() - began < 5
    (its,) = [its for its in events(ran) if its["event"] == "vcpu-left"]
    assert datetime.fromisoformat(its["time"]).timestamp() - left[0] < 1


def test_a_vm_goes_on_without_its_socket(host: Machine) -> None:
    def stop() -> None:
        host.servers["web1"].__exit__(None, None, None)

    assert told(host, stop) == []


def test_only_the_events_that_are_wanted(host: Machine) -> None:
    acts = (put(host, 1001, "0-3"), put(host, 1001, "2"))
    words = ("--event", "vcpu-returned", "--event", "window")
    assert told(host, *acts, words=words) == [("vcpu-returned", "web1", 0)]


@pytest.mark.parametrize(
    "words",
    [
        ("--event", "vcpu"),
        ("--interval", "0.05"),
        ("--interval", "4000"),
        ("--interval", "nan"),
        ("--timeout", "-1"),
        ("-J",),
        ("--format", "json"),
        ("-o", "NOTHING"),
    ],
)
def test_wrong_words(host: Machine, words: tuple[str, ...]) -> None:
    ran = monitor(host, *words)
    assert (ran.status, ran.stdout) == (2, "")


@pytest.mark.parametrize("format", ["csv", "tsv", "raw", "name", "table"])
def test_each_format_is_a_line_each(host: Machine, format: str) -> None:
    ran = monitor(host, "--format", format, ear=Script(put(host, 1001, "0-3")))
    assert ran.status == 143
    assert len(ran.lines) == (1 if format == "name" else 2)
    bare = monitor(host, "--format", format, "-n", "-O")
    assert len(bare.lines) == 1


@pytest.fixture
def spawned(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []

    def spawn(*words: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*PMUCTL, "monitor", *words],
            env={**os.environ, "PMUCTL_RUNTIME_DIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield spawn
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_a_signal_ends_it(
    spawned: Callable[..., "subprocess.Popen[str]"], number: signal.Signals, status: int
) -> None:
    process = spawned("--interval", "3600")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("TIME")  # flushed at once
    process.send_signal(number)
    _, text = process.communicate(timeout=20)
    assert process.returncode == status
    assert "Traceback" not in text


def test_a_reader_that_goes_ends_it_quietly(host: Machine) -> None:
    read, write = os.pipe()
    out, err = os.fdopen(write, "w"), io.StringIO()
    closer = threading.Event()

    def leave() -> None:
        put(host, 1001, "0-3")()
        os.close(read)
        closer.set()

    env = replace(host.env(out, err), uevents=Script(leave))
    status = main(["monitor", "--interval", "0.1", "--timeout", "5", "-q"], env)
    assert closer.is_set()
    assert (status, err.getvalue()) == (141, "")
    with pytest.raises(BrokenPipeError):
        out.close()


def test_only_the_vms_that_are_named_are_watched_and_repaired(host: Machine) -> None:
    start_qemu(host)

    def stray() -> None:
        put(host, 1001, "0-3")()
        put(host, 5121, "0-3")()

    def kinds(*words: str) -> set[tuple[str, str]]:
        seen = events(monitor(host, "--format", "jsonl", *words, ear=Script(stray)))
        put(host, 1001, "2-3")()
        put(host, 5121, "0-1")()
        return {(its["event"], its["vm"]) for its in seen}

    assert kinds("web1") == {("vcpu-left", "web1")}
    assert kinds("pid/5120") == {("vcpu-left", "db1")}
    assert kinds("web1", "--repair") >= {("vcpu-left", "web1"), ("repaired", "web1")}
    assert {vm for _, vm in kinds("web1", "--repair")} == {"web1"}
    assert "watching 1 VM and" in monitor(host, "web1").stderr


def test_a_vm_that_is_named_may_come_later(host: Machine) -> None:
    ran = monitor(host, "db1", ear=Script(lambda: start_qemu(host)))
    assert "watching 0 VMs" in ran.stderr
    assert "db1: no such VM yet\n" in ran.stderr
    assert [line.split()[1:3] for line in ran.lines[1:]] == [["vm-started", "db1"]]
    assert monitor(host, "no/vm").status == 2


def test_it_says_at_first_which_vms_it_cannot_judge(host: Machine) -> None:
    start_qemu(host)
    whether = "cannot tell whether a vCPU leaves its PMU"
    ran = monitor(host)
    assert f"db1: {whether}: it has {A53} or {A72}, and which is not known\n" in ran.stderr
    assert "web1:" not in ran.stderr
    for tid in (5121, 5122):
        (host.proc / f"5120/task/{tid}/comm").write_text("vmm\n")
    ran = monitor(host)
    assert f"db1: {whether}: which threads run its vCPUs is not known\n" in ran.stderr


@only_root("only root can make what another may not ask")
@pytest.mark.parametrize("words", [(), ("--repair",)])
def test_a_vm_that_this_user_may_not_ask_is_not_watched(
    host: Machine, words: tuple[str, ...]
) -> None:
    for folder in (host.runtime, *list(host.runtime.parents)[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    (host.runtime / "web1.sock").chmod(0o600)
    host.unreadable.add(os.getpid())
    os.seteuid(4321)
    try:
        ran = monitor(host, "--format", "jsonl", *words)
    finally:
        os.seteuid(0)
    (lost,) = events(ran)
    assert (lost["event"], lost["vm"]) == ("lost", "web1")
    assert lost["what"].startswith("this user may not ask it: it is not watched; run pmuctl")
    assert "watching 0 VMs and 2 PMUs" in ran.stderr


def test_help_lists_the_events(host: Machine) -> None:
    # it may be wrapped at the hyphen of a word
    said = "".join(host.run("monitor", "--help").stdout.split())
    assert all(kind in said for kind in ChangeKind)
