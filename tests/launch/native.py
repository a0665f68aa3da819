# SPDX-License-Identifier: Apache-2.0
"""Starting commands behind the gate on this machine, and looking at them from outside."""

import functools
import itertools
import json
import os
import platform
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pmuctl.host.procfs import Procfs
from pmuctl.host.thread_affinity import ThreadAffinity
from pmuctl.launch.confined_processes import ConfinedProcesses
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.trace.address_space import AddressSpaces
from pmuctl.launch.trace.arch import ARCHES, native_arch
from pmuctl.launch.trace.tracer import Tracer
from pmuctl.launch.vmm_processes import VmmProcesses
from pmuctl.uapi.ioctl import ioctl
from tests.skips import skip

HERE = Path(__file__).parent
STARTER, TEST_SUPERVISOR, VMM = HERE / "starter.py", HERE / "supervisor.py", HERE / "vmm.py"
KVM_CREATE_VM = 0xAE01
NOT_ALLOWED = ("EPERM", "EACCES", "ENOSYS", "EBUSY")
"""What a sandbox around these tests gives: anything else is a fault of the engine."""

_count = itertools.count()
T = TypeVar("T")
PATIENCE = 60.0
"""Seconds to wait for what is certain to come; on a busy machine 9 were seen."""


def python(path: Path, *words: str, executable: str = sys.executable) -> tuple[str, ...]:
    """A command that runs one of the programs here."""
    return (executable, "-I", "-S", str(path), *words)


def vmm(*words: str, executable: str = sys.executable) -> tuple[str, ...]:
    """The command of the VMM of these tests."""
    return python(VMM, *words, executable=executable)


def spec(orders: LaunchSpec, supervisor: Path | None, *, announce: bool = False) -> str:
    """What the starter is told."""
    its = {"orders": json.loads(orders.encode()), "announce": announce}
    return json.dumps(its | {"supervisor": supervisor and str(supervisor)})


def fresh_name(prefix: str = "t") -> str:
    """A name that no other process has in its command line."""
    return f"{prefix}-{os.getpid()}-{next(_count)}-{time.monotonic_ns()}"


def read_vmm_processes(tracer: Tracer) -> VmmProcesses:
    """The processes of this machine, as a supervisor with this tracer sees them."""
    spaces = AddressSpaces(Procfs())
    confined = ConfinedProcesses(None, native_arch(), Procfs(), ThreadAffinity(), spaces)
    return VmmProcesses(Procfs(), tracer, spaces, confined)


@functools.cache
def no_gate() -> str | None:
    """Why no gate can be had on this machine, None where it can."""
    if platform.machine() not in ARCHES:
        return f"pmuctl run does not know {platform.machine()} machines"
    orders = LaunchSpec(name=fresh_name(), socket=Path(os.devnull), command=("true",))
    argv = python(STARTER, spec(orders, TEST_SUPERVISOR))
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PATIENCE)
    with suppress(ValueError):
        error = json.loads(done.stderr)
        if error["errno"] in NOT_ALLOWED:
            return f"seccomp or ptrace is not allowed here: {error['why']}"
    return None


@functools.cache
def no_kvm() -> str | None:
    """Why the VMM of these tests cannot run here, None where it can."""
    if platform.machine() != "x86_64":
        return f"the VMM of these tests is for x86-64, this is {platform.machine()}"
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.close(ioctl(kvm, KVM_CREATE_VM, what="KVM_CREATE_VM"))
        finally:
            os.close(kvm)
    except OSError as error:
        return f"there is no KVM to be used: {error}"
    return no_gate()


def need(reason: str | None) -> None:
    """Skip the test, aloud, if there is a reason to."""
    if reason is not None:
        skip(reason, runs="on an x86-64 machine with KVM where seccomp and ptrace are allowed")


def wait_for(what: Callable[[], T], why: str) -> T:
    """The first true value, or a failure after a while."""
    until = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < until, f"in vain: {why}"
        time.sleep(0.005)
    return found


def start_sleeper(seconds: float) -> "subprocess.Popen[bytes]":
    """A process that sleeps by now: one traced from here on has no stop of its start to come."""
    process = subprocess.Popen(("sleep", str(seconds)))
    # its execve(2) is over for the parent before its last stop, that for a tracer
    wait_for(
        lambda: (
            Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
            and Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n"
        ),
        "it sleeps",
    )
    return process


def end_sleeper(process: "subprocess.Popen[bytes]") -> None:
    """Kill it. Popen.kill() does not where a tracer in this process left a stop to be reported."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def processes_of(name: str) -> list[int]:
    """The living processes with this word in their command line: a supervisor, mostly."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if name.encode() in words:  # a zombie has none
                found.append(int(pid))
    return found


def tracers(pid: int) -> dict[int, str]:
    """Who traces each thread of a process."""
    found = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        with suppress(OSError):
            text = Path(f"/proc/{pid}/task/{tid}/status").read_text()
            found[int(tid)] = text.split("TracerPid:\t", 1)[1].split("\n", 1)[0]
    return found


def lowest_free(pid: int) -> int:
    """The descriptor that a process would get next."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return next(fd for fd in range(len(taken) + 1) if fd not in taken)


@contextmanager
def starved(pid: int, limit: int = 3) -> Iterator[None]:
    """Within, a supervisor can open nothing, as its 0 to 2 are open.

    With the lowest that is free as the limit, nothing until it has closed something.
    """
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def has_a_turn(pid: int) -> None:
    """Wait for a whole turn of a supervisor: from one of its sleeps to the next."""

    def sleeps() -> int:
        text = Path(f"/proc/{pid}/status").read_text()
        found = re.search(r"^voluntary_ctxt_switches:\t(\d+)$", text, re.MULTILINE)
        assert found, text
        return int(found[1])

    before = sleeps()
    wait_for(lambda: sleeps() >= before + 2, f"{pid} has a turn")


class Gated:
    """A command behind the gate: its process, and what its supervisor tells."""

    def __init__(
        self,
        orders: LaunchSpec,
        *,
        supervisor: Path | None = TEST_SUPERVISOR,
        announce: bool = False,
        executable: str = sys.executable,
        environ: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        preexec: Callable[[], None] | None = None,
    ) -> None:
        self.orders = orders
        self.name = orders.name
        text = spec(orders, supervisor, announce=announce)
        self.process = subprocess.Popen(
            python(STARTER, text, executable=executable),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            pass_fds=pass_fds,
            preexec_fn=preexec,
        )
        self.pid = self.process.pid
        self.said: list[dict[str, Any]] = []
        self._buffer = b""

    def line(self) -> bytes:
        """The next line of its output; EOFError where there is none."""
        assert self.process.stdout is not None
        while b"\n" not in self._buffer:
            fd = self.process.stdout.fileno()
            assert select.select([fd], [], [], PATIENCE)[0], f"silent after {self.said}"
            part = os.read(fd, 1 << 16)
            if not part:
                raise EOFError(f"its output ended after {self.said}")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def hear(self, key: str, value: object = None) -> dict[str, Any]:
        """The next thing it says with this member (of this value)."""
        while True:
            its = json.loads(self.line())
            self.said.append(its)
            if key in its and value in (None, its[key]):
                return its  # type: ignore[no-any-return]

    def go_on(self) -> None:
        """Let it go on from where it pauses."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def all_said(self, key: str) -> list[dict[str, Any]]:
        """What it has said with this member, after hearing it to its end."""
        with suppress(EOFError):
            while True:
                self.said.append(json.loads(self.line()))
        return [its for its in self.said if key in its]

    def status(self) -> int:
        """Its exit status."""
        return self.process.wait(PATIENCE)

    def complaint(self) -> str:
        """All of its standard error, once it has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def events(self, what: str) -> list[dict[str, Any]]:
        """What the test's supervisor has logged under this name."""
        try:
            lines = self.orders.socket.read_text().splitlines(keepends=True)
        except OSError:
            return []
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [its for its in found if its["what"] == what]

    def event(self, what: str) -> dict[str, Any]:
        """The first one of these, waited for."""
        return wait_for(lambda: self.events(what), f"{what} in the log of {self.name}")[0]

    @property
    def supervisor(self) -> int:
        """Its supervisor's process."""
        return int(self.event("ready")["supervisor"])

    def is_left_alone(self) -> None:
        """Its supervisor leaves."""
        wait_for(lambda: not processes_of(self.name), f"the supervisor of {self.name} leaves")

    def close(self) -> None:
        """End what is left of it: the process that was started, its daemon, its supervisor."""
        if self.process.poll() is None:
            self.process.kill()
        with suppress(EOFError, ValueError, AssertionError):
            self.all_said("pid")
        pids = {its["pid"] for its in self.said if "pid" in its} - {self.pid}
        for pid in (*pids, *processes_of(self.name)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


class Behind:
    """Runs commands behind the gate, the true supervisor beside them."""

    def __init__(self, room: Path) -> None:
        self.room = room
        self.names: list[str] = []

    def argv(self, command: tuple[str, ...]) -> tuple[str, ...]:
        """The words that run it so."""
        name = fresh_name()
        self.names.append(name)
        orders = LaunchSpec(name=name, socket=self.room / f"{name}.sock", command=command)
        return python(STARTER, spec(orders, None))
