# SPDX-License-Identifier: Apache-2.0
"""What every command owes its user: streams, exit status, no traceback, safe text."""

import io
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pmuctl.cli.main import main
from pmuctl.errors import ExitStatus, Stopped
from pmuctl.host.sysfs import Sysfs
from tests.cli.conftest import Machine
from tests.fakes.vmm import FakeVm

PMUCTL = [sys.executable, "-P", "-c", "from pmuctl.cli.main import run; run()"]
Dump = Callable[[str], Path]


def spawn(*words: str, **options: object) -> "subprocess.CompletedProcess[str]":
    """The true program, in a process of its own."""
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*PMUCTL, *words], **{"capture_output": True, "text": True, "check": False, **options}
    )


def test_version() -> None:
    ran = spawn("--version")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.fullmatch(r"pmuctl \d+\.\d+\.\d+\n", ran.stdout)
    assert spawn("--version", "pmu").stdout == ran.stdout


@pytest.mark.parametrize("words", [(), ("pmu",), ("vm",)])
def test_no_command_shows_help_and_is_a_usage_error(words: tuple[str, ...]) -> None:
    ran = spawn(*words)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("Usage: pmuctl")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("pmu", "lst"), "fix: pmuctl pmu list"),
        (("vmm",), "fix: pmuctl vm --help"),
        (("pmu", "list", "--jsn"), "--json"),
        (("vm", "set", "web1", "pum", "x"), "did you mean pmu?"),
        (("vm", "set", "web1"), "KEY VALUE"),
        (("vm", "list", "--deadline", "0"), "seconds"),
        (("vm", "list", "--deadline", "nan"), "seconds"),
        (("pmu", "list", "--sysroot", "/nonexistent"), "not a captured tree"),
    ],
)
def test_usage_errors_are_one_line_each_and_say_what_to_type(
    words: tuple[str, ...], hint: str
) -> None:
    ran = spawn(*words)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert hint in ran.stderr
    assert all(re.match(r"(error|  why|  now|  fix): ", line) for line in ran.stderr.splitlines())


def test_piped_output_is_whole_one_line_a_row_without_escapes(dump: Dump) -> None:
    ran = spawn(
        "pmu",
        "list",
        "--sysroot",
        str(dump("rk3588-like")),
        env={**os.environ, "COLUMNS": "20", "FORCE_COLOR": "1"},
    )
    assert "\x1b" not in ran.stdout
    assert len(ran.stdout.splitlines()) == 3
    assert all(name in ran.stdout for name in ("armv8_cortex_a55", "Cortex-A76", "4-7", "4-6"))


def test_a_terminal_gets_a_table_that_fits(dump: Dump) -> None:
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*PMUCTL, "pmu", "list", "--sysroot", str(dump("rk3588-like"))],
        stdout=child,
        env={**os.environ, "COLUMNS": "100", "TERM": "xterm"},
    )
    os.close(child)
    assert process.wait(30) == 0
    text = os.read(parent, 1 << 16).decode()
    os.close(parent)
    assert "\x1b[1m" in text
    assert "armv8_cortex_a76" in text


def test_a_closed_pipe_ends_quietly(dump: Dump) -> None:
    read, write = os.pipe()
    os.close(read)
    ran = spawn(
        "pmu",
        "list",
        "--sysroot",
        str(dump("one-pmu")),
        capture_output=False,
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, "")


@pytest.mark.parametrize("words", [("pmu", "list"), ("pmu", "show", "armv8_pmuv3"), ("--help",)])
def test_a_full_disk_is_told(dump: Dump, words: tuple[str, ...]) -> None:
    options = () if words == ("--help",) else ("--sysroot", str(dump("one-pmu")))
    with open("/dev/full", "w") as full:
        ran = spawn(*words, *options, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert ran.returncode == 74
    assert ran.stderr.startswith("error: the result could not be written")
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
@pytest.mark.parametrize("words", [("show", "web1"), ("list",), ("wait", "web1", "--for", "open")])
def test_a_signal_ends_a_command_at_once_and_quietly(
    tmp_path: Path, words: tuple[str, ...], number: signal.Signals, status: int
) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.settimeout(30)
        silent.bind(str(tmp_path / "web1.sock"))
        silent.listen()
        process = subprocess.Popen(
            [*PMUCTL, "vm", *words, "--deadline", "60"],
            env={**os.environ, "PMUCTL_RUNTIME_DIR": str(tmp_path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        with silent.accept()[0]:  # it is connected, and waits for a greeting
            process.send_signal(number)
            _, text = process.communicate(timeout=20)
    assert process.returncode == status
    assert "Traceback" not in text


def test_a_signal_that_cut_a_lock_in_two_is_no_bug(machine: Machine) -> None:
    """Python's locks raise an error of their own then, which takes the place of the signal's."""

    def cut() -> None:
        try:
            raise Stopped(ExitStatus.TERMINATED)
        finally:
            threading.Lock().release()

    machine.before = cut
    ran = machine.run("vm", "list")
    assert (ran.status, ran.stderr) == (143, "")


def test_names_from_outside_never_reach_the_terminal_raw(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    vm.vmm = "evil\x1b]0;owned\x07[red]\u202e\n"
    ran = machine.run("vm", "show", "web1")
    assert ran.status == 0
    assert "\x1b" not in ran.stdout
    assert "\\x1b]0;owned\\x07[red]\\u202e\\n" in ran.stdout
    assert json.loads(machine.run("vm", "show", "web1", "-J").stdout)["vm"]["vmm"] == vm.vmm


@pytest.mark.parametrize(
    "word", ["\x1b[2J", "a\nb", "../../etc/passwd", "[bold]x", "\udcff", "🦀"]
)
def test_hostile_arguments_are_only_names(machine: Machine, word: str) -> None:
    for words in (("pmu", "show", word), ("vm", "show", word), ("vm", "set", word, "pmu", word)):
        ran = machine.run(*words)
        assert ran.status == (2 if "/" in word and words[0] == "vm" else 4)
        assert "\x1b" not in ran.stderr
        assert len(ran.stderr.splitlines()) <= 4


def test_a_bug_is_one_line_and_a_traceback_with_vv(machine: Machine) -> None:
    class Broken(Sysfs):
        def entries(self, path: str, *, most: int = 0) -> list[str]:
            raise ZeroDivisionError("boom")

    def run(*words: str) -> tuple[int, str]:
        text = io.StringIO()
        env = machine.env(io.StringIO(), text, sysfs=Broken(machine.root))
        return main(words, env), text.getvalue()

    status, text = run("pmu", "list")
    assert status == 70
    assert text.startswith("error: a bug in pmuctl: ZeroDivisionError: boom\n")
    assert "Traceback" not in text
    assert "Traceback" in run("pmu", "list", "-vv")[1]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
@pytest.mark.parametrize("is_ignored", [False, True])
def test_a_signal_while_it_is_still_starting(
    number: signal.Signals, status: int, *, is_ignored: bool
) -> None:
    """It comes between two imports: that is no traceback, and no other status than later."""
    code = f"""
import os, signal, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "pmuctl.cli.main":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Finder)
signal.signal({int(number)}, signal.SIG_IGN if {is_ignored} else signal.getsignal({int(number)}))
from pmuctl.cli.entry import run
run()
"""
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code, "pmu", "list", "nothing"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == (4 if is_ignored else status), ran
    assert "Traceback" not in ran.stderr
