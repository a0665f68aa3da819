# SPDX-License-Identifier: Apache-2.0
"""Exit status, output and surroundings of a command: behind the real gate as without it."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.peers import PATIENCE
from tests.launch.native import (
    HERE,
    Behind,
    processes_of,
    python,
    wait_for,
)

PROBE = python(HERE / "probe.py")
COMMANDS = (
    ("true",),
    ("false",),
    ("sh", "-c", "exit 7"),
    ("sh", "-c", "kill -9 $$"),
    ("sh", "-c", "kill -TERM $$"),
    ("sh", "-c", "kill -SEGV $$"),
    ("cat",),
    ("head", "-c", "5000000", "/dev/zero"),
    ("sh", "-c", "echo out; echo err >&2; exit 3"),
    ("sh", "-c", "trap 'echo caught; exit 4' TERM; kill -TERM $$; sleep 9"),
    ("sh", "-c", "yes | head -n 1"),
    ("echo", "a b", "", "ä", "$HOME", "-x"),
    ("sh", "-c", 'printf %s "$0"', os.fsdecode(b"\xff\xfe")),
    ("sh", "-c", "wait; echo $?"),
)


def run(argv: tuple[str, ...], **how: Any) -> tuple[int, bytes, bytes]:
    words: dict[str, Any] = {"input": b"in\n", "capture_output": True, "check": False} | how
    done = subprocess.run(argv, timeout=PATIENCE, **words)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=lambda its: " ".join(its)[:40])
def test_status_and_output_are_the_same(behind: Behind, command: tuple[str, ...]) -> None:
    assert run(behind.argv(command)) == run(command)
    wait_for(lambda: not processes_of(behind.names[0]), "the supervisor leaves")
    wait_for(lambda: sorted(os.listdir(behind.room)) in ([], [".lock"]), "no file stays")


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_a_closed_descriptor_stays_closed(behind: Behind, fd: int) -> None:
    command = ("sh", "-c", "readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2 >&9; exit 5")
    results = []
    for argv in (command, behind.argv(command)):
        read, write = os.pipe()

        def prepare(write: int = write) -> None:
            os.dup2(write, 9)
            os.close(fd)

        done = subprocess.Popen(
            argv, preexec_fn=prepare, close_fds=False, stdin=subprocess.DEVNULL
        )
        os.close(write)
        status = done.wait(PATIENCE)
        results.append((status, re.sub(rb"[0-9]+", b"N", os.read(read, 1000))))
        os.close(read)
    assert results[0] == results[1]
    assert results[0][0] == 5
    wait_for(lambda: not processes_of(behind.names[0]), "the supervisor leaves")


@pytest.mark.parametrize("errors", [subprocess.DEVNULL, subprocess.STDOUT], ids=["null", "pipe"])
def test_what_stays_in_the_background_does_not_hold_a_pipe(behind: Behind, errors: int) -> None:
    command = ("sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!")
    start = time.monotonic()
    status, out, _ = run(
        behind.argv(command), capture_output=False, stdout=subprocess.PIPE, stderr=errors
    )
    os.kill(int(out), signal.SIGKILL)
    assert status == 0
    assert time.monotonic() - start < 5
    wait_for(lambda: not processes_of(behind.names[0]), "the supervisor leaves")


def test_a_reader_that_has_gone_ends_it_by_sigpipe(behind: Behind) -> None:
    for argv in (("yes",), behind.argv(("yes",))):
        read, write = os.pipe()
        os.close(read)
        its = subprocess.Popen(argv, stdout=write, stderr=subprocess.DEVNULL)
        os.close(write)
        assert its.wait(PATIENCE) == -signal.SIGPIPE


def surroundings(argv: tuple[str, ...], **how: Any) -> dict[str, Any]:
    """What the probe finds; its pid is checked, and pipes, which have numbers, are likened."""
    its = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **how)
    out, _ = its.communicate(timeout=PATIENCE)
    assert its.returncode == 0
    found: dict[str, Any] = json.loads(out)
    assert found.pop("pid") == its.pid
    if found["session"][1] == its.pid:
        found["session"][0:2] = ["own", "own"]
    found["descriptors"]["1"] = found["descriptors"]["1"].partition(":")[0]
    return found


def ignore_some() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])


def limit_some() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"cwd": "/"},
        {"umask": 0o027},
        {"env": {"A": "1", "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "B": "\udcff"}},
        {"preexec_fn": ignore_some},
        {"preexec_fn": limit_some},
        {"preexec_fn": lambda: os.nice(3) and None},
        {"start_new_session": True},
        {"process_group": 0},
    ],
    ids=["plain", "cwd", "umask", "environment", "signals", "limits", "nice", "session", "group"],
)
def test_a_command_finds_itself_where_it_would_be(behind: Behind, how: dict[str, Any]) -> None:
    without = surroundings(PROBE, **how)
    its = surroundings(behind.argv(PROBE), **how)
    assert its == without
    assert its["children"] == "ChildProcessError"


def test_signals_that_python_ignores_are_not(behind: Behind) -> None:
    # SigQ counts the signals of all processes of this user
    command = ("grep", "^Sig[^Q]", "/proc/self/status")
    assert run(behind.argv(command)) == run(command)


def test_a_descriptor_is_inherited_but_not_by_the_supervisor(behind: Behind) -> None:
    read, write = os.pipe()
    try:
        argv = behind.argv(("sh", "-c", f"echo hi; read line; echo $line >/dev/fd/{write}"))
        its = subprocess.Popen(
            argv, pass_fds=[write], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    finally:
        os.close(write)
    assert its.stdin is not None
    assert its.stdout is not None
    assert its.stdout.readline() == b"hi\n"
    supervisor = next(pid for pid in processes_of(behind.names[0]) if pid != its.pid)
    links = {os.readlink(link) for link in Path(f"/proc/{supervisor}/fd").iterdir()}
    assert os.readlink(f"/proc/self/fd/{read}") not in links
    assert os.readlink(f"/proc/self/fd/{its.stdout.fileno()}") not in links
    assert os.readlink(f"/proc/self/fd/{its.stdin.fileno()}") not in links
    status = Path(f"/proc/{supervisor}/status").read_text()
    assert f"PPid:\t{its.pid}\n" not in status
    assert os.getsid(supervisor) != os.getsid(0)
    its.communicate(b"seven\n", timeout=PATIENCE)
    assert os.read(read, 100) == b"seven\n"
    os.close(read)


def test_huge_pages_are_kept_from_the_supervisor_alone(behind: Behind) -> None:
    """They go to whoever touches a part of one: some MiB, or none, as addresses happen to fall."""
    command = ("sh", "-c", "grep ^THP_enabled: /proc/self/status; read line")
    without = run(command)[1]
    with subprocess.Popen(
        behind.argv(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as its:
        assert its.stdout is not None
        assert its.stdout.readline() == without
        [supervisor] = [pid for pid in processes_of(behind.names[0]) if pid != its.pid]
        assert "THP_enabled:\t0\n" in Path(f"/proc/{supervisor}/status").read_text()
        its.communicate(b"\n", timeout=PATIENCE)


def test_a_daemon_is_nobodys_business(behind: Behind) -> None:
    code = (
        "import os, sys, time; os.fork() and os._exit(6); os.setsid(); print(os.getpid()); "
        "sys.stdout.flush(); sys.stdin.readline()"
    )
    its = subprocess.Popen(
        behind.argv((sys.executable, "-I", "-S", "-c", code)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert its.wait(PATIENCE) == 6
    assert its.stdout is not None
    daemon = int(its.stdout.readline())
    assert processes_of(behind.names[0])
    assert os.getsid(daemon) == daemon
    its.communicate(b"\n", timeout=PATIENCE)
    wait_for(lambda: not processes_of(behind.names[0]), "the supervisor leaves")
