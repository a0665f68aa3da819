# SPDX-License-Identifier: Apache-2.0
"""The README's first terminal session is what the demonstration prints on a real kernel, and its
second what pmuctl says of a host like the one in the text."""

import io
import re
import shlex
from pathlib import Path

import pytest

from pmuctl.cli.main import main
from pmuctl.model.cpuset import CpuSet
from tests.cli.conftest import Machine, machine  # noqa: F401
from tests.fakes.vmm import FakeVm, fake_vmm
from tests.lab.demo import show
from tests.lab.machine import boot

README = Path(__file__).parents[1] / "README.md"


def shape(text: str) -> list[str]:
    """Lines with every time, number and run of spaces made the same: they differ each time."""
    text = re.sub(r"\b\d{4}-\d\d-\d\dT[\d:.+-]+", "TIME", text)
    lines = (re.sub(r" +", " ", re.sub(r"\b\d+\b", "N", line)) for line in text.splitlines())
    return [line.rstrip() for line in lines]


def sessions() -> list[str]:
    return re.findall(r"```console\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.lab
def test_the_session_in_the_readme_is_the_one_that_is_printed() -> None:
    first, _ = sessions()
    told: list[str] = []
    with boot("newest", "two") as lab:
        show(lab, told.append)
    session = "".join(told)
    assert shape(session) == shape(first)
    without, with_pmuctl = session.split("# The same VM again")
    assert all(int(n) == 0 for n in re.findall(r"cycle counter (\d+)", without))
    assert all(int(n) > 0 for n in re.findall(r"cycle counter (\d+)", with_pmuctl))


def test_the_session_of_a_host_that_is_looked_after(machine: Machine) -> None:  # noqa: F811
    """web1 has the PMU of CPUs 2-3, and a thread that somebody let go elsewhere."""
    fake_vmm(machine.proc, 5120, ("qemu-system-aarch64", "-name", "db1"))
    vm = machine.start(FakeVm("web1"))
    machine.threads = vm.threads
    vm.threads.masks |= dict.fromkeys((5121, 5122), CpuSet.parse("0-1"))
    assert machine.run("vm", "set", "web1", "pmu", "armv8_cortex_a72").status == 0
    assert machine.run("vm", "release", "web1").status == 0
    vm.initialise()
    vm.run()
    vm.threads.masks[1002] = CpuSet.parse("0-3")
    _, second = sessions()
    said = ""
    for words in re.findall(r"^\$ pmuctl (.*)$", second, re.MULTILINE):
        out = io.StringIO()
        status = main(shlex.split(words), machine.env(out, out))
        said += f"$ pmuctl {words}\n{out.getvalue()}"
        said += f"(exit status {status})\n\n" if status else "\n"
    assert shape(said.rstrip("\n")) == shape(second.rstrip("\n")), said
