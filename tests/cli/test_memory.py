# SPDX-License-Identifier: Apache-2.0
"""No command takes more than 128 MiB, whatever peers answer and captured trees hold."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from pmuctl.control.runtime import start_record
from pmuctl.host.procfs import Procfs
from pmuctl.host.sysfs import PATH_EVENT_SOURCE
from pmuctl.value import replace
from tests.fakes import flood
from tests.fakes.huge_tree import KINDS, make_huge_tree
from tests.fakes.tree import write_file

RECORD = start_record.Record(
    name="web1",
    pid=os.getpid(),
    start=Procfs().start_time(os.getpid()) or 0,
    supervisor=1,
    command=("\U0001f600" + "x" * 60000,) * 16,
    began=0,
)
MOST = 128 << 10
"""KiB."""
PATIENCE = 60.0
"""Seconds after which a command that does not end fails its test."""

_MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, status)
"""
"""A child counts as its own what its parent had at the fork: so the parent is a small one."""


def measure(*argv: str, environ: Mapping[str, str] = {}) -> tuple[int, int, str]:
    """The largest resident set of a pmuctl command in KiB, its exit status and its stderr."""
    pmuctl = str(Path(sys.executable).with_name("pmuctl"))
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _MEASURE, pmuctl, *argv],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    peak, status = map(int, ran.stdout.split())
    return peak, status, ran.stderr


@contextmanager
def flooded(directory: Path, kind: str, count: int = 256) -> Iterator[None]:
    """So many control sockets in a directory that answer with 1 MiB of that kind."""
    directory.mkdir(exist_ok=True)
    with subprocess.Popen(
        [sys.executable, flood.__file__, str(directory), str(count), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:
        try:
            assert server.stdout is not None
            assert b"listen" in server.stdout.readline()
            yield
        finally:
            server.kill()


@pytest.mark.parametrize("kind", ["objects", "known"])
@pytest.mark.parametrize(
    "command", ["vm list", "vm list --json", "affinity check", "doctor", "host snapshot {tree}"]
)
def test_answers_of_1_mib_take_no_memory(tmp_path: Path, command: str, kind: str) -> None:
    words = command.format(tree=tmp_path / "tree").split()
    with flooded(tmp_path / "run", kind):
        peak, _, said = measure(*words, environ={"PMUCTL_RUNTIME_DIR": str(tmp_path / "run")})
    assert peak < MOST
    if command == "vm list":
        assert "its answer was left out\n  why: the VMs answer with more than 8192 KiB" in said


@pytest.mark.parametrize("kind", ["lists", "texts"])
def test_one_answer_takes_no_memory(tmp_path: Path, kind: str) -> None:
    with flooded(tmp_path / "run", kind, count=1):
        environ = {"PMUCTL_RUNTIME_DIR": str(tmp_path / "run")}
        peak, _, _ = measure("vm", "show", "flood0", environ=environ)
    assert peak < MOST


def test_answers_of_many_looks_take_no_memory(tmp_path: Path) -> None:
    """Each look has room for those that answer with much, which then answer no more."""
    with flooded(tmp_path / "run", "turns"):
        environ = {"PMUCTL_RUNTIME_DIR": str(tmp_path / "run")}
        words = ("monitor", "--interval", "0.1", "--timeout", "12")
        peak, status, _ = measure(*words, environ=environ)
    assert status == 0
    assert peak < MOST // 2


@pytest.mark.parametrize(
    "command",
    ["vm list --json", "vm show flood0", "doctor", "monitor --interval 0.1 --timeout 2"],
)
def test_records_beside_dead_sockets_take_no_memory(tmp_path: Path, command: str) -> None:
    """Each is of the same living process, and so of a VM whose supervisor has ended."""
    directory = tmp_path / "run"
    directory.mkdir()
    began = time.monotonic()
    for number in range(256):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(directory / f"flood{number}.sock"))
        record = replace(RECORD, name=f"flood{number}")
        text = json.dumps(start_record.FORM.format(record)).encode()
        (directory / f"flood{number}.sock.json").write_bytes(text)
    peak, status, said = measure(*command.split(), environ={"PMUCTL_RUNTIME_DIR": str(directory)})
    assert peak < MOST
    assert time.monotonic() - began < PATIENCE / 3
    if command == "vm list --json":
        assert (status, "its start record was left out" in said) == (0, True)


def test_completion_of_a_captured_trees_cpus_takes_no_memory(tmp_path: Path) -> None:
    cpus = ",".join(f"{cpu}-{cpu + 63}" for cpu in range(0, 1600, 64))
    for number in range(3000):
        write_file(tmp_path, f"{PATH_EVENT_SOURCE}/p{number}/cpus", cpus)
    peak, _, _ = measure("__complete", "cpus", f"--sysroot={tmp_path}")
    assert peak < MOST // 2


def test_a_server_under_test_takes_no_memory(tmp_path: Path) -> None:
    with flooded(tmp_path / "run", "objects", count=1):
        words = ("conformance", str(tmp_path / "run/flood0.sock"), "--deadline", "0.5")
        peak, status, _ = measure(*words)
    assert status == 1
    assert peak < MOST


REFUSED = {
    "texts": "characters of events, formats and caps",
    "links": "characters of events, formats and caps",
    "names": "names of a directory",
    "cpus": "CPUs of PMUs",
    "masks": "CPUs of threads",
}
"""What a tree has too many of, by the kinds of trees that are not read as a whole."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_tree_takes_no_memory(tmp_path: Path, kind: str) -> None:
    tree = str(make_huge_tree(tmp_path / "tree", kind))
    commands = ["pmu list", "vm list", f"host snapshot {tmp_path / 'copy'}"]
    if kind == "masks":  # processes are not read for PMUs
        commands = ["vm list", "pmu list", "affinity check --json"]
    if kind == "known":
        commands += ["vm list --json", "affinity check --json"]
    # what is refused is refused by the reader that all commands have
    for command in commands[:: 2 if kind in REFUSED else 1]:
        peak, status, said = measure(*command.split(), "--sysroot", tree)
        assert peak < MOST, command
        if command == ("vm list" if kind == "masks" else "pmu list"):
            assert (status, "larger than any machine" in said) == (
                (9, True) if kind in REFUSED else (0, False)
            )
            assert REFUSED.get(kind, "") in said
