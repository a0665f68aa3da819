# SPDX-License-Identifier: Apache-2.0
"""The README: its commands are real, and its second session is what pmuctl says of such a host.

The first one is held by tests/lab/test_readme.py.
"""

import io
import re
import shlex

from pmuctl.cli.main import main
from pmuctl.model.cpuset import CpuSet
from tests.cli.conftest import Machine, machine  # noqa: F401
from tests.command_tree import parse_words
from tests.fakes.vmm import FakeVm, fake_vmm
from tests.lab.__main__ import parser
from tests.lab.layers import all_layers
from tests.sessions import README, read_sessions, shape


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
    _, second = read_sessions()
    said = ""
    for words in re.findall(r"^\$ pmuctl (.*)$", second, re.MULTILINE):
        out = io.StringIO()
        status = main(shlex.split(words), machine.env(out, out))
        said += f"$ pmuctl {words}\n{out.getvalue()}"
        said += f"(exit status {status})\n\n" if status else "\n"
    assert shape(said.rstrip("\n")) == shape(second.rstrip("\n")), said


def read_commands() -> list[str]:
    """Return the shell command lines of the README that call pmuctl, but for the sessions."""
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    blocks += re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = (re.sub(r"\s+(?:#|>\S|2>).*$", "", line.strip()) for line in lines)
    return [line for line in found if line.startswith("pmuctl ")]


def test_the_commands_of_the_readme_are_those_of_pmuctl() -> None:
    commands = read_commands()
    assert {shlex.split(line)[1] for line in commands} >= {"pmu", "run", "vm", "doctor", "monitor"}
    for line in commands:
        parse_words(shlex.split(line)[1:])


def test_the_layers_that_the_readme_names_are_those_of_the_lab() -> None:
    (line,) = re.findall(r"tests/lab/run (.*--layer.*)", README.read_text(encoding="utf-8"))
    args = parser().parse_args(shlex.split(line))
    assert set(args.layer) <= set(all_layers("newest"))


def test_the_readme_tells_early_what_it_is_and_explains_its_words() -> None:
    text = README.read_text(encoding="utf-8")
    first = text.split("\n\n")[1]
    assert len(first.splitlines()) == 2
    start, _, rest = text.partition("## Quick start")
    assert max(map(len, re.findall(r"```text\n(.*?)```", start, re.DOTALL)[0].splitlines())) < 80
    for word in ("window", "sealed", "hold", "derived", "aligned"):
        assert f"| {word} |" in rest
