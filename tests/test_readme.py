# SPDX-License-Identifier: Apache-2.0
"""The README's second terminal session is what pmuctl says of a host like the one in the text.

The first one is held by tests/lab/test_readme.py.
"""

import io
import re
import shlex

from pmuctl.cli.main import main
from pmuctl.model.cpuset import CpuSet
from tests.cli.conftest import Machine, machine  # noqa: F401
from tests.fakes.vmm import FakeVm, fake_vmm
from tests.sessions import read_sessions, shape


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
