# SPDX-License-Identifier: Apache-2.0
"""A program that is forked with its imports done is what it is when it is executed."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.errors import LabError, Result
from tests.lab.machine import Lab, boot
from tests.lab.runs import A72
from tests.lab.vms import pmuctl, reference_vm

ABOUT_ITSELF = """
import json, os, sys
def read(path):
    with open(f"/proc/self/{path}") as file:
        return file.read()
def main():
    status = dict(line.split(":\\t", 1) for line in read("status").splitlines())
    kept = ("Name", "Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapEff",
            "NoNewPrivs", "Seccomp", "Cpus_allowed_list", "TracerPid", "Threads")
    print(json.dumps({
        **{key: status[key] for key in kept},
        "cmdline": read("cmdline"),
        "limits": read("limits"),
        "environ": {**os.environ},
        "argv": sys.argv[1:],
        "cwd": os.getcwd(),
        "fds": sorted(map(int, os.listdir("/proc/self/fd"))),
        "session": os.getsid(0) == os.getpgid(0) == os.getpid(),
        "nice": os.nice(0),
        "stdin": sys.stdin.read(),
        "encodings": [(its.encoding, its.errors, its.line_buffering, its.isatty())
                      for its in (sys.stdin, sys.stdout, sys.stderr)],
        "module": __name__,
        "path": sys.path[1:],
        "flags": str(sys.flags),
    }))
    print("an error", file=sys.stderr)
    sys.exit(7)
if __name__ == "__main__":
    main()
"""


@pytest.fixture
def about_itself(lab: Lab) -> Iterator[list[str]]:
    """The command of a program that tells what the kernel and the interpreter tell it."""
    path = "/lab/tests/lab/about_itself.py"
    lab.write_file(path, ABOUT_ITSELF.encode())
    yield ["python3", "-m", "tests.lab.about_itself", "one word", "", "ünï"]
    lab.run(["rm", path], check=True)


def test_it_is_the_process_that_was_asked_for(lab: Lab, about_itself: list[str]) -> None:
    """Its words, environment, directory, streams, limits, signals, session and status."""
    how: Any = {"env": {"WHAT": "x y", "HOME": "/tmp"}, "cwd": "/run", "stdin": b"some\r\ninput"}
    plain, forked = (
        lab.run(about_itself, **how, preloaded=preloaded) for preloaded in (False, True)
    )
    assert json.loads(forked.stdout) == json.loads(plain.stdout)
    assert forked.status == plain.status == 7
    # that no VM was made is told once it has ended, and may come after this has stopped reading
    first = [ran.stderr.splitlines(keepends=True)[0] for ran in (forked, plain)]
    assert first == ["an error\n"] * 2


def test_what_pmuctl_run_starts_is_the_same(lab: Lab) -> None:
    """The VMM that takes its place, down to its limits, its signals and its environment."""
    lab.write_file("/tmp/about_itself.py", ABOUT_ITSELF.encode())
    command = ["pmuctl", "run", "--pmu", A72, "--", "python3", "/tmp/about_itself.py", "a word"]
    how: Any = {"env": {"WHAT": "x y"}, "cwd": "/run", "stdin": b"some\ninput"}
    plain, forked = (lab.run(command, **how, preloaded=preloaded) for preloaded in (False, True))
    assert json.loads(forked.stdout) == json.loads(plain.stdout)
    assert json.loads(forked.stdout)["Seccomp"] == "2"
    assert forked.status == plain.status == 7
    # that no VM was made is told once it has ended, and may come after this has stopped reading
    first = [ran.stderr.splitlines(keepends=True)[0] for ran in (forked, plain)]
    assert first == ["an error\n"] * 2


@pytest.mark.parametrize(
    "words",
    [
        ("--version",),
        ("pmu", "list", "-O"),
        ("vm", "show", "nobody"),
        ("vm", "list", "--nonsense"),
        ("pmu", "show", "armv8_cortex_a72", "-J"),
        (),
    ],
)
def test_pmuctl_says_the_same(lab_newest: Lab, words: tuple[str, ...]) -> None:
    def said(ran: Result) -> tuple[int, str, str]:
        return ran.status, ran.stdout, ran.stderr

    forked = pmuctl(lab_newest, *words)
    assert said(forked) == said(pmuctl(lab_newest, *words, preloaded=False))


def test_it_is_signalled_and_ends_by_it(lab_newest: Lab) -> None:
    with reference_vm(lab_newest) as vm:
        job = lab_newest.start(
            ["pmuctl", "vm", "wait", vm.name, "--for", "sealed"], preloaded=True
        )
        cmdline = lab_newest.read_file(f"/proc/{job.pid}/cmdline").split(b"\0")
        assert cmdline[1:4] == [b"/usr/bin/pmuctl", b"vm", b"wait"]
        job.kill(9)
        assert job.wait().status == -9


def test_a_folder_that_is_not_there_is_told(lab_newest: Lab) -> None:
    with pytest.raises(FileNotFoundError, match="/no/such"):
        lab_newest.run(["pmuctl", "--version"], cwd="/no/such", preloaded=True)


@pytest.mark.parametrize(
    ("command", "how", "why"),
    [
        (["ls"], {}, "not preloaded: ls"),
        (["pmuctl", "--version"], {"user": "admin"}, "has the agent's rights"),
        (["pmuctl", "--version"], {"env": {"PYTHONUTF8": "1"}}, "reads PYTHONUTF8 as it starts"),
    ],
)
def test_what_must_start_anew_is_refused(
    lab_newest: Lab, command: list[str], how: Any, why: str
) -> None:
    with pytest.raises(OSError, match=why):
        lab_newest.run(command, **how, preloaded=True)


def test_a_lab_whose_forkserver_was_killed_says_so() -> None:
    """At once, instead of waiting for programs that nobody starts."""
    with boot() as lab:
        pmuctl(lab, "--version")
        (forkserver,) = lab.find_processes("guest.forkserver")
        with pytest.raises(LabError, match="the forkserver ended with status -9"):
            lab.run(["sh", "-c", f"kill -9 {forkserver}; sleep 100"])
