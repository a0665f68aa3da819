# SPDX-License-Identifier: Apache-2.0
"""What is no bug of pmuctl never ends it as one (70): shortages, odd paths, odd environments."""

import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pmuctl.host.procfs import Procfs
from tests.cli.conftest import Machine
from tests.cli.processes import QEMU, with_vmm

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


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_too_few_descriptors_are_no_bug(tmp_path: Path, words: tuple[str, ...]) -> None:
    for limit in (3, 4, 5, 6, 7, 8, 10, 12, 32):
        for old in tmp_path.glob("tree*"):
            subprocess.run(["rm", "-r", str(old)], check=True)
        done = subprocess.run(
            [*PMUCTL, *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PMUCTL_RUNTIME_DIR": str(tmp_path / "run")},
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (limit, limit)),
            timeout=60,
        )
        assert done.returncode != 70, (limit, done)


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
