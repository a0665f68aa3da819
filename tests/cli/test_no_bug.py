# SPDX-License-Identifier: Apache-2.0
"""What is no bug of pmuctl never ends it as one (70): shortages, odd paths, odd environments."""

import json
import os
import random
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest

from pmuctl.host.procfs import Procfs
from tests.cli.conftest import Machine
from tests.cli.processes import QEMU, with_vmm
from tests.fakes.peers import GREETING, RawClient, bad_server, query
from tests.fakes.vmm import FakeVm, fake_proc

PMUCTL = [sys.executable, "-P", "-c", "from pmuctl.cli.entry import run; run()"]

COMMANDS = [
    ("pmu", "list"),
    ("pmu", "show", "x"),
    ("pmu", "cpus"),
    ("host", "info"),
    ("host", "capabilities"),
    ("host", "snapshot", "tree"),
    ("vm", "list"),
    ("vm", "show", "x"),
    ("vm", "vcpus"),
    ("vm", "wait", "x", "--for", "open", "--timeout", "0"),
    ("vm", "set", "x", "pmu", "x"),
    ("vm", "release", "x"),
    ("affinity", "set", "x", "0"),
    ("affinity", "align", "--all"),
    ("affinity", "check"),
    ("monitor", "--timeout", "0"),
    ("doctor",),
    ("doctor", "--symptom", "kvm run failed"),
    ("conformance", "x.sock"),
    ("run", "--", "true"),
    ("completion", "bash"),
]


FEW = (3, 4, 5, 6)
"""Limits of descriptors with which imports may fail, so that only a whole start shows anything."""

_AT_LIMITS = """
import os, resource, sys
from pmuctl.cli.entry import run

limits, sys.argv[1:] = sys.argv[1].split(), sys.argv[2:]
end, os._exit = os._exit, sys.exit
sys.stdout.flush()
os.mkdir("0")
os.chdir("0")
with open("said", "w") as said:
    kept = [os.dup(1), os.dup(2)]
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
try:
    run()
except SystemExit:
    os._exit = end
    for number, fd in enumerate(kept, 1):
        os.dup2(fd, number)
        os.close(fd)
os.chdir("..")
for limit in limits:
    os.mkdir(limit)
    pid = os.fork()
    if pid == 0:
        os.chdir(limit)
        with open("said", "w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(limit), int(limit)))
        run()
    print(limit, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Runs a command once, so that it has imported all it needs, and forks for each limit then."""


def start_at_limit(words: Sequence[str], folder: Path, limit: int) -> tuple[int, str]:
    """The exit status of pmuctl, and what it said, with so many descriptors from its start on."""
    (folder / str(limit)).mkdir()
    done = subprocess.run(
        [*PMUCTL, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=folder / str(limit),
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PMUCTL_RUNTIME_DIR": str(folder / "run")},
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (limit, limit)),
        timeout=60,
    )
    return done.returncode, done.stdout


def fork_at_limits(
    words: Sequence[str], folder: Path, limits: Sequence[int]
) -> Iterator[tuple[int, int, str]]:
    """The same of a pmuctl that has imported all, for each of the limits."""
    argv = [sys.executable, "-P", "-c", _AT_LIMITS, " ".join(map(str, limits)), *words]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PMUCTL_RUNTIME_DIR": str(folder / "run")},
        timeout=60,
    )
    rows = [[*map(int, line.split())] for line in done.stdout.splitlines()]
    assert [limit for limit, _ in rows] == list(limits), done
    for limit, status in rows:
        yield limit, status, (folder / str(limit) / "said").read_text()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_too_few_descriptors_are_no_bug(tmp_path: Path, words: tuple[str, ...]) -> None:
    limits = range(7, 33) if words == ("vm", "list") else (7, 8, 10, 12, 32)
    is_whole = words[0] == "run"  # it becomes its VMM
    for limit in (*FEW, *limits) if is_whole else FEW:
        status, said = start_at_limit(words, tmp_path, limit)
        assert status != 70, (limit, said)
    for limit, status, said in () if is_whole else fork_at_limits(words, tmp_path, limits):
        assert 0 <= status != 70, (limit, said)
        assert said, (limit, status)


SOCKET_COMMANDS = [
    ("vm", "list"),
    ("vm", "show", "x"),
    ("vm", "vcpus"),
    ("vm", "wait", "x", "--for", "open", "--timeout", "0"),
    ("vm", "set", "x", "pmu", "armv8_cortex_a72"),
    ("vm", "release", "x"),
    ("affinity", "set", "x", "0"),
    ("affinity", "align", "--all"),
    ("affinity", "check"),
    ("monitor", "--timeout", "0"),
    ("doctor",),
]


@pytest.mark.parametrize("path", ["", ".", "/", "..", "a" * 5000, "\udcff", "./"])
@pytest.mark.parametrize("words", SOCKET_COMMANDS, ids=" ".join)
def test_no_path_of_a_socket_is_a_bug(machine: Machine, words: tuple[str, ...], path: str) -> None:
    ran = machine.run(*words, "--socket", path)
    assert ran.status != 70, ran
    if path in ("", ".", "/"):
        assert ran.status == 2, ran
        assert "not a socket" in ran.stderr


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 21, "-1", "", "1 2"])
def test_no_number_of_a_process_is_a_bug(machine: Machine, number: str) -> None:
    with_vmm(machine, 6000, QEMU, "-name", "web1")
    for path in (machine.proc / "6000").rglob("status"):
        lines = path.read_text().splitlines()
        odd = [f"{line.partition(':')[0]}:\t{number}" for line in lines]
        path.write_text("\n".join(odd) + "\n")
    assert Procfs(machine.proc).tgid(6000) is None
    for words in (("vm", "list"), ("vm", "show", "pid/6000"), ("affinity", "check"), ("doctor",)):
        assert machine.run(*words).status != 70


ODD_NUMBERS = (
    *("9" * 5000, "9" * 21, "18446744073709551616", "4294967296", "2147483648", "-1"),
    *("1e999", "1e400", "nan", "0x" + "f" * 5000, "٣", "²", "1_0", "007", ""),
)


READING = [
    ("vm", "list", "-O"),
    ("vm", "show", "pid/6000"),
    ("vm", "vcpus"),
    ("affinity", "check"),
    ("doctor",),
    ("pmu", "list", "-O"),
    ("pmu", "cpus"),
    ("host", "info"),
]


def with_odd_numbers(text: str, rng: random.Random, share: float) -> str:
    """The same text, but a share of its numbers are others."""
    return re.sub(
        r"[0-9]+",
        lambda match: rng.choice(ODD_NUMBERS) if rng.random() < share else match[0],
        text,
    )


def test_no_number_of_a_tree_or_a_record_is_a_bug(machine: Machine) -> None:
    with_vmm(machine, 6000, QEMU, "-name", "web1")
    machine.start(FakeVm("web2"))
    assert machine.run("vm", "set", "web2", "pmu", "armv8_cortex_a72").status == 0
    assert machine.run("vm", "set", "pid/6000", "affinity", "none").status == 0
    folders = (machine.root, machine.proc, machine.runtime)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    texts = {path: path.read_text(errors="surrogateescape") for path in files}
    assert any(path.name.startswith(".placed-") for path in files)
    for seed in range(40):
        rng = random.Random(seed)
        share = rng.choice((0.02, 0.1, 0.5, 1))
        for path, text in texts.items():
            path.write_text(with_odd_numbers(text, rng, share), errors="surrogateescape")
        for words in READING:
            ran = machine.run(*words)
            assert ran.status != 70, (seed, words, ran)


@pytest.mark.parametrize("number", [number for number in ODD_NUMBERS if number])
def test_no_number_of_an_answer_is_a_bug(machine: Machine, number: str) -> None:
    answer = json.dumps(query())
    fake_proc(machine.proc, os.getpid(), tids=[1001, 1002], start=5)
    machine.runtime.mkdir()
    for place in re.finditer(r"(?<![\w.-])[0-9]+(?![\w.-])", answer):
        odd = answer[: place.start()] + number + answer[place.end() :]

        def serve(client: RawClient, odd: str = odd) -> None:
            client.send(GREETING)
            for text in ("{}", odd):
                tag = json.dumps(client.read()["id"])
                client.send(f'{{"return": {text}, "id": {tag}}}'.encode())

        path = machine.runtime / "web1.sock"
        with bad_server(path, serve):
            ran = machine.run("vm", "show", "web1", "--deadline", "10")
        path.unlink()
        assert ran.status != 70, (odd, ran)


TERMINAL = {"TERM": "xterm", "LANG": "C.UTF-8", "PATH": os.environ["PATH"]}

ODD_ENVIRONMENTS: dict[str, dict[str, str]] = {
    "nothing": {},
    "no columns": TERMINAL | {"COLUMNS": "0", "LINES": "-1"},
    "too many columns": TERMINAL | {"COLUMNS": "9" * 5000, "LINES": "9" * 30},
    "columns in words": TERMINAL | {"COLUMNS": "٣", "LINES": "x", "FORCE_COLOR": "x"},
    "an unknown terminal": TERMINAL | {"TERM": "\x1b[31m", "COLORTERM": "x", "FORCE_COLOR": "1"},
    "a dumb terminal": TERMINAL | {"TERM": "dumb", "TTY_COMPATIBLE": "1"},
    "ASCII": TERMINAL | {"PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C"},
    "UTF-16": TERMINAL | {"PYTHONIOENCODING": "utf-16", "LC_ALL": "xx_YY.bogus"},
    "no UTF-8": TERMINAL | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
    "no home": TERMINAL | {"HOME": "/nonexistent/\udcff", "TZ": "\udcff", "SHELL": ""},
    "a relative directory": TERMINAL | {"XDG_RUNTIME_DIR": "relative"},
    "a device for a directory": TERMINAL | {"PMUCTL_RUNTIME_DIR": "/dev/null"},
    "a long directory": TERMINAL | {"PMUCTL_RUNTIME_DIR": "/" + "a" * 5000},
    "no text for a directory": TERMINAL | {"PMUCTL_RUNTIME_DIR": "\udcff\n"},
}

SOME = [("vm", "list"), ("vm", "show", "x"), ("run", "--", "true"), ("vm", "set", "--help")]


def start_oddly(
    words: Sequence[str],
    folder: Path,
    environ: Mapping[str, str],
    *,
    closes: Sequence[int] = (),
    is_gone: bool = False,
    is_full: bool = False,
) -> "subprocess.CompletedProcess[bytes]":
    """pmuctl without these standard streams, or its working directory, or space for output."""
    folder.mkdir()

    def become_odd() -> None:
        if is_gone:
            folder.rmdir()
        for descriptor in closes:
            os.close(descriptor)

    with open("/dev/full" if is_full else os.devnull, "wb") as out:
        return subprocess.run(
            [*PMUCTL, *words],
            stdin=subprocess.DEVNULL,
            stdout=out if is_full else subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
            cwd=folder,
            env=environ,
            preexec_fn=become_odd,
            timeout=60,
        )


def check_is_no_bug(done: "subprocess.CompletedProcess[bytes]") -> None:
    text = (done.stdout or b"") + done.stderr
    assert 0 <= done.returncode not in (70, 120), done
    assert b"Traceback" not in text, done
    assert b"Exception ignored" not in text, done


@pytest.mark.parametrize("name", ODD_ENVIRONMENTS)
def test_no_environment_is_a_bug(tmp_path: Path, name: str) -> None:
    for number, words in enumerate(SOME):
        check_is_no_bug(start_oddly(words, tmp_path / str(number), ODD_ENVIRONMENTS[name]))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_lack_of_streams_or_of_a_directory_is_a_bug(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    environ = TERMINAL | {"PMUCTL_RUNTIME_DIR": str(tmp_path / "run")}
    check_is_no_bug(start_oddly(words, tmp_path / "1", environ, closes=(0, 1, 2)))
    check_is_no_bug(start_oddly(words, tmp_path / "2", environ, closes=(1,), is_gone=True))
    check_is_no_bug(start_oddly(words, tmp_path / "3", environ, closes=(0, 2), is_full=True))
