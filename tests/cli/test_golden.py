# SPDX-License-Identifier: Apache-2.0
"""What each read command prints of each captured machine, byte for byte, with its exit status.

The expectations are tests/expected/COMMAND/DUMP.txt. After a change that is meant, write them
anew and look at the difference:

    UPDATE_EXPECTED=1 tests/run tests/cli/test_golden.py && git diff tests/expected

In these files an escape byte stands as "␛", a tab as "␉"; the one line of JSON is laid out on
several; a line of stderr begins with "! ".
"""

import io
import json
import os
import pty
import socket
import struct
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pmuctl.cli.main import main
from pmuctl.control.server.server import VcpuStatus
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.value import replace
from tests.cli.conftest import Machine
from tests.conftest import DUMPS
from tests.fakes.vmm import FakeThreads, FakeVm, fake_proc, fake_vmm
from tests.skips import skip_if

EXPECTED = Path(__file__).parents[1] / "expected"
NAMES = sorted(str(path.relative_to(DUMPS))[:-4] for path in DUMPS.rglob("*.txt"))
WIDTH = 80
PID, SINCE = 4121, 1_700_000_000

PIPED: Sequence[tuple[str, ...]] = (
    (),
    ("-n",),
    ("-O",),
    ("-J",),
    ("--format", "jsonl"),
    ("--format", "csv"),
    ("--format", "tsv"),
    ("--format", "raw"),
    ("--format", "name"),
)
COMMANDS = ("host info", "pmu list", "pmu show", "pmu cpus", "doctor")
VM_COMMANDS = ("vm list", "vm vcpus", "affinity check", "vm show")
VMS_ON = ("one-pmu", "rk3588-like", "two-pmus-6.12")


@contextmanager
def terminal(width: int) -> Iterator[tuple[io.TextIOWrapper, Callable[[], str]]]:
    """A terminal to write to, and what has been written once that is closed."""
    parent, child = pty.openpty()
    tty.setraw(child)  # line ends as they are written
    termios.tcsetwinsize(child, (25, width))
    pieces: list[bytes] = []

    def drain() -> None:
        try:
            while piece := os.read(parent, 1 << 16):
                pieces.append(piece)
        except OSError:  # EIO: the other end was closed
            pass

    reader = threading.Thread(target=drain)
    reader.start()
    out = open(child, "w", encoding="utf-8")

    def written() -> str:
        out.close()
        reader.join()
        return b"".join(pieces).decode()

    try:
        yield out, written
    finally:
        out.close()
        reader.join()
        os.close(parent)


def on_terminal(machine: Machine, words: Sequence[str]) -> tuple[int, str, str]:
    stderr = io.StringIO()
    with terminal(WIDTH) as (out, written):
        env = machine.env(out, stderr, environ={"TERM": "xterm"}, uid=0)
        status = main(words, env)
        return status, written(), stderr.getvalue()


def piped(machine: Machine, words: Sequence[str]) -> tuple[int, str, str]:
    ran = machine.run(*words, uid=0)
    return ran.status, ran.stdout, ran.stderr


def laid_out(text: str) -> str:
    """JSON on several lines, having seen that it was on one."""
    objects = [json.loads(line) for line in text.splitlines()]
    assert text == "".join(json.dumps(its) + "\n" for its in objects)
    return "".join(json.dumps(its, indent=1) + "\n" for its in objects)


def section(title: str, ran: tuple[int, str, str], *, is_json: bool) -> str:
    status, out, err = ran
    assert out == "" or out.endswith("\n")
    if is_json:
        out = laid_out(out)
    out = out.replace("\x1b", "␛").replace("\t", "␉")
    err = "".join(f"! {line}\n" for line in err.splitlines())
    return f"=== {title}\n{out}{err}=== exit {status}\n\n"


def transcript(machine: Machine, words: Sequence[str]) -> str:
    """A command on a terminal, and in each format into a pipe; a refusal is always the same."""
    command = "pmuctl " + " ".join(words)
    seen = on_terminal(machine, words)
    parts = [section(f"{command}  # terminal", seen, is_json=False)]
    for options in PIPED if seen[0] in (0, 1) else (("-J",),):
        title = " ".join((command, *options))
        is_json = options == ("-J",)
        parts.append(section(title, piped(machine, (*words, *options)), is_json=is_json))
    return "".join(parts)


class Vm(FakeVm):
    """A fake VM with threads of its own."""

    def __init__(self, name: str, tid: int, machine: Machine, *, has_pmu: bool = True) -> None:
        types = [pmu.type for pmu in scan_pmus(Sysfs(machine.root)) if pmu.type is not None]
        super().__init__(name, has_pmu=has_pmu, counters=dict.fromkeys(types, 6))
        self.tid = tid
        self.threads = FakeThreads(dict.fromkeys((tid, tid + 1), CpuSet.parse("0-3")))

    def vcpus(self) -> Sequence[VcpuStatus]:
        return [replace(its, tid=self.tid + its.index) for its in super().vcpus()]


def compare(path: Path, text: str) -> None:
    if "UPDATE_EXPECTED" in os.environ:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), "no such expectation: see this module's docstring"
    assert text == path.read_text(encoding="utf-8")


def path_of(command: str, name: str) -> Path:
    return EXPECTED / command.replace(" ", "-") / f"{name.replace('/', '-')}.txt"


def arguments(command: str, root: Path) -> list[tuple[str, ...]]:
    """What to run of a command: `pmu show` for each PMU and for one that is not there."""
    if command == "pmu show":
        return [*((pmu.name,) for pmu in scan_pmus(Sysfs(root))), ("armv8_nothing",)]
    return [()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", COMMANDS)
def test_hosts(
    machine: Machine,
    dump: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
    name: str,
) -> None:
    machine.root = machine.root if name == machine.root.name else dump(name)
    monkeypatch.chdir(tmp_path)
    machine.runtime = Path("none")
    text = "".join(
        transcript(machine, (*command.split(), *words))
        for words in arguments(command, machine.root)
    )
    compare(path_of(command, name), text)


@pytest.fixture
def vms(
    machine: Machine,
    dump: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Callable[[str], Machine]:
    """A machine with VMs in every state, whose kernel and clock say the same each time."""
    true_getsockopt = socket.socket.getsockopt

    def getsockopt(its: socket.socket, level: int, option: int, *size: int) -> object:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_PEERCRED):
            return struct.pack("3i", PID, 0, 0)
        return true_getsockopt(its, level, option, *size)

    monkeypatch.setattr(socket.socket, "getsockopt", getsockopt)
    monkeypatch.setattr(time, "time", lambda: float(SINCE))
    monkeypatch.chdir(tmp_path)

    def started(name: str) -> Machine:
        machine.root = machine.root if name == machine.root.name else dump(name)
        machine.runtime = Path("run")
        tids = range(5001, 5007)
        machine.proc = fake_proc(tmp_path / "proc4121", PID, tids=tids, start=100)
        for tid in tids:
            fields = ["S", *"0" * 35, str(tid % 4), *"0" * 13]
            stat = machine.proc / str(PID) / "task" / str(tid) / "stat"
            stat.write_text(f"{tid} (a ) b) {' '.join(fields)}\n")
        # one that has no control socket, and is not kept to a PMU
        argv = ("qemu-system-aarch64", "-name", "guest=db1", "-cpu", "host")
        fake_vmm(machine.proc, 5120, argv, uid=0)
        machine.masks = dict.fromkeys(range(5120, 5124), CpuSet.parse("0-3"))
        build = Vm("build", 5001, machine)
        for vm in (build, Vm("new-1", 5003, machine), Vm("no-vpmu", 5005, machine, has_pmu=False)):
            machine.start(vm)
        pmu = scan_pmus(Sysfs(machine.root))[0].name
        words = ("pmu", pmu, "counters", "4")
        rules = ("filter", "default", "deny", "allow", "cpu_cycles,0x8")
        assert machine.run("vm", "set", "build", *words, *rules).status == 0
        assert machine.run("vm", "release", "build").status == 0
        build.initialise()
        build.run()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(machine.runtime / "dead.sock"))
        return machine

    return started


@pytest.mark.parametrize("name", VMS_ON)
@pytest.mark.parametrize("command", VM_COMMANDS)
def test_vms(vms: Callable[[str], Machine], command: str, name: str) -> None:
    machine = vms(name)
    targets: list[tuple[str, ...]] = [()]
    if command == "vm show":
        targets = [("build",), ("db1",), ("new-1",), ("no-vpmu",), ("dead",), ("nothing",)]
    text = "".join(transcript(machine, (*command.split(), *words)) for words in targets)
    compare(path_of(command, name), text)


@pytest.mark.parametrize("command", VM_COMMANDS[:-1])
def test_no_vms(machine: Machine, command: str) -> None:
    compare(path_of(command, "none"), transcript(machine, command.split()))


@skip_if("UPDATE_EXPECTED" in os.environ, "they are being written", runs="without UPDATE_EXPECTED")
def test_every_expectation_is_compared() -> None:
    wanted = {path_of(command, name) for command in COMMANDS for name in NAMES}
    wanted |= {path_of(command, name) for command in VM_COMMANDS for name in VMS_ON}
    wanted |= {path_of(command, "none") for command in VM_COMMANDS[:-1]}
    assert {path for path in EXPECTED.rglob("*") if path.is_file()} == wanted
