# SPDX-License-Identifier: Apache-2.0
"""Words of perf, virsh, taskset and QEMU users: each is refused with the line to type."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pmuctl.cli.app import root
from pmuctl.cli.command_line import is_parsed
from pmuctl.model.cpuset import CpuSet
from tests.cli.conftest import Machine
from tests.command_tree import COMMAND_PATHS
from tests.fakes.vmm import FakeVm

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
ALLOW = f"vm set web1 pmu {A72} filter default deny allow"

EVENTS = {
    "11": "0x11",
    "r11": "0x11",
    "R8": "0x8",
    "x11": "0x11",
    "1b": "0x1b",
    "cycles": "cpu_cycles",
    "cycles:u": "cpu_cycles",
    "cpu-cycles": "cpu_cycles",
    "cpu/cycles/": "cpu_cycles",
    "armv8_cortex_a72/event=0x11/": "0x11",
    "armv8_cortex_a72/cpu_cycles/k": "cpu_cycles",
    "config=0x8": "0x8",
    "instructions": "0x0008",
    "instructions:uk": "0x0008",
    "cache-references": "0x0004",
    "cache-misses": "0x0003",
    "branch-misses": "0x0010",
    "bus-cycles": "0x001d",
    "CPU_CYCLES": "cpu_cycles",
    "Cpu-Cycles": "cpu_cycles",
    "0x10-1f": "0x10-0x1f",
    "0x1f-0x10": "0x0010-0x001f",
    "0x10..0x1f": "0x10-0x1f",
    "0x10:0x1f": "0x10-0x1f",
    "r10-r1f": "0x10-0x1f",
    "cpu_cycles,r8": "cpu_cycles,0x8",
}
PMUS = {
    "10": A53,
    "11": A72,
    "type=11": A72,
    "a72": A72,
    "A72": A72,
    "cortex-a72": A72,
    "Cortex-A72": A72,
    "CORE/A72": A72,
    "core=a72": A72,
    "2-3": "cpus/2-3",
    "cpu/2-3": "cpus/2-3",
    "ARMV8_CORTEX_A72": A72,
    "armv8-cortex-a72": A72,
    f"pmu/{A72}": A72,
}
CPUS = {
    "0xc": "2-3",
    "2..3": "2-3",
    "2:3": "2-3",
    "3-2": "2-3",
    "2-3:1": "2-3",
    "cpu2": "2",
    "cpus/2-3": "2-3",
    "a72": f"pmu/{A72}",
    A72: f"pmu/{A72}",
    "core/a72": f"pmu/{A72}",
}
SETTINGS = {
    f"pmu={A72}": f"pmu {A72}",
    f"PMU {A72}": f"pmu {A72}",
    f"--pmu {A72}": f"pmu {A72}",
    f"--pmu={A72}": f"pmu {A72}",
    f"pmu={A72} counters=2": f"pmu {A72} counters 2",
    f"pmu {A72} counter 2": f"pmu {A72} counters 2",
    "affinity AUTO": "affinity auto",
    "cpus 2-3": "affinity 2-3",
    "vcpupin 2-3": "affinity 2-3",
    f"filter default deny pmu {A72}": f"pmu {A72} filter default deny",
}
FILTERS = {
    "filter default deny cycles": "filter default deny allow cpu_cycles",
    "filter default deny cpu_cycles 0x8": ("filter default deny allow cpu_cycles,0x8"),
    "filter default deny allow cpu_cycles 0x8": ("filter default deny allow cpu_cycles,0x8"),
    "filter default deny allow cpu_cycles, 0x8": ("filter default deny allow cpu_cycles,0x8"),
    "filter DEFAULT DENY": "filter default deny",
    "filter default=deny": "filter default deny",
    "filter deny all": "filter default deny",
    "filter allow cycles": "filter default deny allow cpu_cycles",
    "filter deny 0x11": "filter default allow deny 0x11",
    "filter none": "filter default allow",
    "filter default block": "filter default deny",
    "filter default drop accept 0x11": "filter default deny allow 0x11",
    "allow 0x11": "filter default deny allow 0x11",
    "default deny": "filter default deny",
}
COMMANDS = {
    "list": "vm list",
    "LIST": "vm list",
    "ls": "vm list",
    "ps": "vm list",
    "vms": "vm list",
    "vm-list": "vm list",
    "list-vms": "vm list",
    "pmu-list": "pmu list",
    "pmus": "pmu list",
    "VM list": "vm list",
    "vms list": "vm list",
    "vm LIST": "vm list",
    "vm ls": "vm list",
    "show": "vm list",
    "show web1": "vm show web1",
    "info web1": "vm show web1",
    "dominfo web1": "vm show web1",
    "vm info web1": "vm show web1",
    "vm dominfo web1": "vm show web1",
    "status -n": "vm list -n",
    "vcpuinfo web1": "vm vcpus web1",
    "vcpupin web1 0 2-3": "affinity set web1 2-3 --vcpu 0",
    "pin web1 2-3": "affinity set web1 2-3",
    "vm pin web1 2-3": "affinity set web1 2-3",
    f"set web1 pmu {A72}": f"vm set web1 pmu {A72}",
    "resume web1": "vm release web1",
    "vm resume web1": "vm release web1",
    "check": "affinity check",
    "align web1": "affinity align web1",
    "affinity show web1": "affinity check web1",
    "affinity pin web1 2-3": "affinity set web1 2-3",
    "cpus": "pmu cpus",
    "cpu list": "pmu cpus",
    "vcpus ls": "vm vcpus",
    f"events {A72}": f"pmu show {A72}",
    "pmu ls": "pmu list",
    "pmu cpu": "pmu cpus",
    "nodeinfo": "host info",
    "host show": "host info",
    "help ls": "help vm list",
    "vm help set": "help vm set",
    "vm list --all": "vm list",
    "affinity set web1 --cpus 2-3": "affinity set web1 2-3",
    "affinity set web1 2-3 --vcpus 0": "affinity set web1 2-3 --vcpu 0",
    "affinity set web1 auto": "vm set web1 affinity auto",
    "affinity set web1 NONE": "vm set web1 affinity none",
    "affinity set web1 2 3": "affinity set web1 2,3",
    "vm list --no-headers": "vm list -n",
    "vm list --columns NAME,PMU": "vm list -o NAME,PMU",
    "vm list -j": "vm list -J",
    "monitor --follow --timeout 0": "monitor --timeout 0",
    "affinity set web1 --cpulist 2-3": "affinity set web1 2-3",
}
LINES = {
    **{f"{ALLOW} {shlex.quote(word)}": f"{ALLOW} {right}" for word, right in EVENTS.items()},
    **{f"vm set web1 pmu {word}": f"vm set web1 pmu {right}" for word, right in PMUS.items()},
    **{f"affinity set web1 {word}": f"affinity set web1 {cpus}" for word, cpus in CPUS.items()},
    **{f"vm set web1 {words}": f"vm set web1 {right}" for words, right in SETTINGS.items()},
    **{
        f"vm set web1 pmu {A72} {words}": f"vm set web1 pmu {A72} {right}"
        for words, right in FILTERS.items()
    },
    **COMMANDS,
}


@pytest.mark.parametrize(("typed", "line"), LINES.items(), ids=LINES)
def test_a_near_miss_is_refused_with_the_line_to_type(
    machine: Machine, typed: str, line: str
) -> None:
    vm = machine.start(FakeVm())
    if line.endswith("affinity auto") or "align" in line:
        machine.run("vm", "set", "web1", "pmu", A72)
    before = list(vm.calls)
    ran = machine.run(*shlex.split(typed))
    assert (ran.status, ran.stdout, vm.calls) == (2, "", before)
    fixes = [text for text in ran.stderr.splitlines() if text.startswith("  fix: ")]
    assert fixes == [f"  fix: pmuctl {line}"], ran.stderr
    again = machine.run(*shlex.split(line))
    assert again.status in (0, 1), again.stderr  # 1 is an answer, of `affinity check` for example


UNCLEAR = (
    "vm unset web1 filter",
    "set web1",
    "vm start",
    "create",
    "explain",
    "watch x",
    "filter",
    "version",
    "run --filter 'allow cycles' -- true",
    "run --filter 'deny all' true",
    "capabilities",
)


@pytest.mark.parametrize("typed", UNCLEAR)
def test_what_lacks_a_word_leads_to_a_command_or_its_help(machine: Machine, typed: str) -> None:
    ran = machine.run(*shlex.split(typed))
    fix = ran.stderr.partition("  fix: pmuctl ")[2]
    assert (ran.status, ran.stdout) == (2, "")
    assert is_parsed(root(), shlex.split(fix)), ran.stderr


@pytest.mark.parametrize(
    ("typed", "why", "fix"),
    [
        ("start web1", "pmuctl run starts a VM", "pmuctl run --name web1 --hold -- VMM ARG..."),
        ("vm create web1", "it knows none by name", "pmuctl run --name web1 --hold -- VMM ARG..."),
        ("stop web1", "what manages that", "pmuctl vm show web1"),
        ("vm destroy web1", "what manages that", "pmuctl vm show web1"),
        ("migrate", "controls a VM as it runs", "pmuctl vm list -o NAME,PID,VMM"),
        ("stat -e cycles true", "pmuctl counts no events", "perf stat -e cycles true"),
        ("perf list", "pmuctl counts no events", "perf list"),
    ],
)
def test_what_only_another_tool_does_is_told_with_that_tool(
    machine: Machine, typed: str, why: str, fix: str
) -> None:
    machine.start(FakeVm())
    ran = machine.run(*typed.split())
    assert (ran.status, ran.stdout) == (2, "")
    assert why in ran.stderr
    assert ran.stderr.endswith(f"  fix: {fix}\n")


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ("pmu show nosuch", "pmu list --sysroot {}"),
        ("pmu cpus 77", "pmu cpus --sysroot {}"),
        ("pmu show cpus/0-3", "pmu cpus --sysroot {}"),
        ("vm show nosuch", "vm list --sysroot {}"),
        ("pmu show a53", "pmu show armv8_cortex_a53 --sysroot {}"),
        ("pmu list -o core,nam", "pmu list -o core,NAME --sysroot {}"),
        ("pmu list -o json", "pmu list -J --sysroot {}"),
        ("pmu show", "pmu show --help"),
    ],
)
def test_a_fix_is_for_the_captured_host_that_was_read(
    machine: Machine, dump: Callable[[str], Path], words: str, fix: str
) -> None:
    tree = str(dump("two-pmus-7.3"))
    for option in (("--sysroot", tree), (f"--sysroot={tree}",)):
        ran = machine.run(*words.split(), *option)
        assert ran.status in (2, 4)
        line = ran.stderr.partition("  fix: pmuctl ")[2].replace("--sysroot=", "--sysroot ")
        assert line == fix.format(tree) + "\n", ran.stderr


@pytest.mark.parametrize(
    ("typed", "fix"),
    [
        ("run --cpus 2-3 -- true", "pmuctl run --affinity 2-3 -- true"),
        ("run --vm web1 --hold -- true", "pmuctl run --name web1 --hold -- true"),
        ("run --cpu-list=2-3 true -x", "pmuctl run --affinity 2-3 true -x"),
        ("doctor --symptom", "pmuctl doctor --help"),
        ("vm list -o", "pmuctl vm list --help"),
    ],
)
def test_an_option_of_another_name_or_without_value_leads_to_the_command(
    machine: Machine, typed: str, fix: str
) -> None:
    ran = machine.run(*typed.split())
    assert (ran.status, ran.stdout) == (2, "")
    assert ran.stderr.endswith(f"  fix: {fix}\n")


@pytest.mark.parametrize("event", ["task-clock", "page-faults", "cs"])
def test_software_events_are_told_from_those_of_a_pmu(machine: Machine, event: str) -> None:
    machine.start(FakeVm())
    ran = machine.run(*ALLOW.split(), event)
    assert (ran.status, ran.stdout) == (2, "")
    assert f"{event}: not an event of a PMU\n  why: it is a software event of perf" in ran.stderr


def test_a_name_with_a_hyphen_is_no_range(machine: Machine) -> None:
    machine.start(FakeVm())
    ran = machine.run(*ALLOW.split(), "uops-retired")
    assert ran.status == 4
    assert "uops-retired: no such event on this PMU" in ran.stderr


def test_a_number_is_offered_in_both_bases(machine: Machine) -> None:
    machine.start(FakeVm())
    ran = machine.run(*f"{ALLOW} 11".split())
    assert "0x11 (cpu_cycles) in hexadecimal, 0xb" in ran.stderr


def test_help_shows_what_the_option_shows(machine: Machine) -> None:
    for path in [(), ("vm",), *COMMAND_PATHS]:
        shown = machine.run("help", *path)
        assert (shown.status, shown.stdout) == (0, machine.run(*path, "--help").stdout)
    assert machine.run("help", "nothing").status == 2
    assert machine.run("help", "vm", "nothing").status == 2
    assert machine.run("help", "run", "vm").status == 2


def test_it_runs_as_a_module() -> None:
    words = [sys.executable, "-m", "pmuctl", "--version"]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout[:7]) == (0, "pmuctl ")


def test_a_pid_by_itself_is_no_name(machine: Machine) -> None:
    machine.start(FakeVm())
    ran = machine.run("vm", "show", str(os.getpid()))
    assert (ran.status, ran.stderr.splitlines()[-1]) == (
        2,
        f"  fix: pmuctl vm show pid/{os.getpid()}",
    )


def test_commands_that_read_and_align_take_globs(machine: Machine) -> None:
    for name in "web1", "web2", "db":
        vm = machine.start(FakeVm(name))
        machine.run("vm", "set", name, "pmu", A72)
    vm.threads.masks.update({1001: CpuSet.parse("0-3"), 1002: CpuSet.parse("0-3")})
    rows = machine.run("vm", "list", "web*", "-n", "-o", "name")
    assert [line.strip() for line in rows.lines] == ["web1", "web2"]
    assert machine.run("affinity", "check", "d?").status == 1
    aligned = machine.run("affinity", "align", "d[ab]")
    assert (aligned.status, [line.split()[0] for line in aligned.lines]) == (0, ["db", "db"])
    found = machine.run("doctor", "web*", "-o", "subject", "-n")
    assert {line.strip() for line in found.lines} == {"web1", "web2"}
    assert machine.run("affinity", "align", "x*").status == 4


@pytest.mark.parametrize(
    "words", ["vm set {} pmu core/a72", "vm release {}", "affinity set {} 2-3", "vm show {}"]
)
def test_what_takes_one_vm_takes_no_glob(machine: Machine, words: str) -> None:
    machine.start(FakeVm("web1"))
    ran = machine.run(*words.format("web*").split())
    assert (ran.status, ran.stderr.splitlines()[-1]) == (
        2,
        f"  fix: pmuctl {words.format('web1')}",
    )
    machine.start(FakeVm("web2"))
    ran = machine.run(*words.format("web*").split())
    assert (ran.status, ran.stderr.splitlines()[-1]) == (2, "  fix: pmuctl vm list 'web*'")


def test_an_empty_symptom_is_a_usage_error(machine: Machine) -> None:
    for text in "", " ":
        assert machine.run("doctor", "--symptom", text).status == 2


def test_each_vm_is_found_once(machine: Machine) -> None:
    """Its process is no VM beside it, whatever that calls it."""
    machine.start(FakeVm("web1"))
    ran = machine.run("vm", "show", "zzz")
    assert (ran.status, ran.stderr.splitlines()[1]) == (4, "  why: found: web1")
