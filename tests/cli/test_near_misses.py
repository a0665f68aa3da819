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
from pmuctl.host.kvm.cache import to_captured
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.runtime_dirs import PATH_CAPTURED
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import KvmCaps
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
    "list vm": "vm list",
    "list pmus": "pmu list",
    "show vm web1": "vm show web1",
    f"set vm web1 pmu {A72}": f"vm set web1 pmu {A72}",
    "affinity web1 2-3": "affinity set web1 2-3",
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
    "vcpupin web1 0": "vm vcpus web1",
    "vcpupin web1": "vm vcpus web1",
    "vm vcpupin web1 --vcpu 1": "vm vcpus",
    "pin 2-3 web1": "affinity set web1 2-3",
    "affinity 2-3 web1": "affinity set web1 2-3",
    f"vm set-pmu web1 {A72}": f"vm set web1 pmu {A72}",
    "version now": "--version",
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
    "affinity set 2-3 web1": "affinity set web1 2-3",
    "affinity set 2-3 web1 --vcpu 0": "affinity set web1 2-3 --vcpu 0",
    "affinity set 0xc web1": "affinity set web1 2-3",
    "affinity set -pc 2-3 web1": "affinity set web1 2-3",
    "affinity set -cp 2-3 web1": "affinity set web1 2-3",
    "affinity set -p 0xc web1": "affinity set web1 2-3",
    "affinity set -p c web1": "affinity set web1 2-3",
    "affinity set -p 2 web1": "affinity set web1 1",
    "affinity set --pid 2 web1": "affinity set web1 1",
    "affinity set -pc 2 web1": "affinity set web1 2",
    "affinity set -p --cpu-list 2 web1": "affinity set web1 2",
    "affinity set web1 -p 3": "affinity set web1 0-1",
    "affinity set web1 -p -c 2-3": "affinity set web1 2-3",
    "vm set web1 filter default deny cycles": f"vm set web1 pmu {A72} filter default deny allow "
    "cpu_cycles",
    "vm set web1 filter none": f"vm set web1 pmu {A72} filter default allow",
    "doctor --fix": "doctor",
    "doctor web1 --repair": "doctor web1",
    "doctor --all": "doctor",
    "vm show WEB1": "vm show web1",
    "vm release Web1": "vm release web1",
    f"vm set WEB1 pmu {A72}": f"vm set web1 pmu {A72}",
    "affinity set WEB1 2-3": "affinity set web1 2-3",
    "doctor WEB1": "doctor web1",
    "vm lst": "vm list",
    "lst": "vm list",
    "dctor web1": "doctor web1",
    "vm shwo web1": "vm show web1",
    "vm relase web1 --dry-run": "vm release web1 --dry-run",
    "pmu lits -n": "pmu list -n",
    "help vm lst": "help vm list",
    "vm web1 show": "vm show web1",
    "affinity web1 set 2-3": "affinity set web1 2-3",
    "monitor --vm web1 --timeout 0": "monitor web1 --timeout 0",
    "vm show --vm=web1": "vm show web1",
    "vm list --domain web1": "vm list web1",
    "vm vcpus -a": "vm vcpus",
    "vm wait web1 open --timeout 0": "vm wait web1 --for open --timeout 0",
    "vm unset web1 affinity": "vm set web1 affinity none",
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


PAIRS = ("0:2 1:3", "0=2 1=3", "0=2:1=3", "0:2,1:3", "0=2,1=3", "0@2 1@3", "0:2, 1:3")


@pytest.mark.parametrize("words", PAIRS)
def test_cpus_of_each_vcpu_are_a_command_each(machine: Machine, words: str) -> None:
    machine.start(FakeVm())
    ran = machine.run("affinity", "set", "web1", *words.split())
    assert (ran.status, ran.stdout) == (2, "")
    lines = "pmuctl affinity set web1 2 --vcpu 0 && pmuctl affinity set web1 3 --vcpu 1"
    assert ran.stderr.splitlines()[-1] == f"  fix: {lines}"
    for line in lines.split(" && "):
        assert machine.run(*line.split()[1:]).status == 0


@pytest.mark.parametrize(
    ("typed", "why", "fix"),
    [
        ("vm release --all", "takes one VM", "pmuctl vm list -o NAME,STATE,WINDOW"),
        (f"vm set --all pmu {A72}", "takes one VM", "pmuctl vm list -o NAME,STATE,WINDOW"),
        ("vm release web1 w2", "takes one VM", "pmuctl vm release web1 && pmuctl vm release w2"),
        ("doctor --fix", "it prints the commands that fix", "pmuctl doctor"),
        ("vm show WEB1", "did you mean web1?", "pmuctl vm show web1"),
        ("vm unset web1 pmu", "holds until the VM is started anew", "pmuctl vm show web1"),
        ("vm unset web1 filter", "as good as none", "pmuctl vm set web1 filter default allow"),
        ("unset filter web1", "as good as none", "pmuctl vm set web1 filter default allow"),
        ("emulatorpin web1 0-3", "places its other threads", "pmuctl vm show web1"),
        ("start web1", "pmuctl run starts a VM", "pmuctl run --name web1 --hold -- VMM ARG..."),
        ("vm create web1", "it knows none by name", "pmuctl run --name web1 --hold -- VMM ARG..."),
        ("stop web1", "what manages that", "pmuctl vm show web1"),
        ("vm destroy web1", "what manages that", "pmuctl vm show web1"),
        ("migrate", "controls a VM as it runs", "pmuctl vm list -o NAME,PID,VMM"),
        ("stat -e cycles true", "pmuctl counts no events", "perf stat -e cycles true"),
        ("perf list", "pmuctl counts no events", "perf list"),
    ],
)
def test_what_cannot_be_done_is_told_with_what_can(
    machine: Machine, typed: str, why: str, fix: str
) -> None:
    machine.start(FakeVm())
    ran = machine.run(*typed.split())
    assert (ran.status, ran.stdout) == (2, "")
    assert why in ran.stderr
    assert ran.stderr.endswith(f"  fix: {fix}\n")


def test_names_that_differ_only_in_case_are_not_chosen_from(machine: Machine) -> None:
    for name in "web1", "WEB1":
        machine.start(FakeVm(name))
    ran = machine.run("vm", "show", "Web1")
    assert (ran.status, ran.stderr.splitlines()[1]) == (4, "  why: similar names: WEB1, web1")


@pytest.mark.parametrize(
    ("typed", "fix"),
    [
        ("default deny -- true", "run --filter 'default deny' -- true"),
        ("default deny true -x", "run --filter 'default deny' true -x"),
        ("Default Deny true", "run --filter 'default deny' true"),
        (
            "default deny allow cycles -- true",
            "run --filter 'default deny allow cpu_cycles' -- true",
        ),
        (
            "default deny allow cycles, 0x8 deny 0x11 true",
            "run --filter 'default deny allow cpu_cycles,0x8 deny 0x11' true",
        ),
        ("deny 0x11 true", "run --filter 'default allow deny 0x11' true"),
    ],
)
def test_a_filter_without_quotes_is_told_from_the_command_of_the_vmm(
    machine: Machine, typed: str, fix: str
) -> None:
    ran = machine.run("run", "--filter", *typed.split())
    assert (ran.status, ran.stderr.splitlines()[-1]) == (2, f"  fix: pmuctl {fix}")
    first, _, rest = typed.partition(" ")
    ran = machine.run("run", f"--filter={first}", *rest.split())
    right = fix.replace("--filter '", "'--filter=")
    assert (ran.status, ran.stderr.splitlines()[-1]) == (2, f"  fix: pmuctl {right}")


@pytest.mark.parametrize("typed", ["default deny cycles -- true", "default deny", "allow true"])
def test_a_filter_that_may_end_anywhere_is_told_by_its_form(machine: Machine, typed: str) -> None:
    ran = machine.run("run", "--filter", *typed.split())
    form = "  fix: --filter 'default allow|deny [allow EVENTS|deny EVENTS]...'"
    assert (ran.status, ran.stderr.splitlines()[-1]) == (2, form)


def test_the_name_of_a_vm_leads_to_its_socket(machine: Machine) -> None:
    machine.start(FakeVm())
    ran = machine.run("conformance", "web1")
    fix = f"  fix: pmuctl conformance {machine.runtime}/web1.sock"
    assert (ran.status, ran.stderr.splitlines()[-1]) == (2, fix)
    assert machine.run("conformance", "web2").status == 4


def test_counters_are_told_by_how_many_there_are(machine: Machine) -> None:
    machine.start(FakeVm())
    ran = machine.run("vm", "set", "web1", "counters", "99")
    assert (ran.status, ran.stderr.splitlines()[1:]) == (
        2,
        ["  why: PMCR_EL0.N can be 0-31", "  fix: pmuctl pmu list"],
    )
    found = KvmCaps(has_vpmu=True, counters={10: 6, 11: 4}, event_bits=16, attributes=frozenset())
    captured = machine.root / PATH_CAPTURED
    captured.parent.mkdir(parents=True, exist_ok=True)
    captured.write_text(to_captured(found, scan_pmus(Sysfs(machine.root))))
    ran = machine.run("vm", "set", "web1", "counters", "99")
    assert ran.stderr.splitlines()[1] == f"  why: {A53} has 6, {A72} has 4"


UNCLEAR = (
    "vm unset web1 filter",
    "vm unset",
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


@pytest.mark.parametrize("words", ["-pc 2-3 {}", "-p -c 2-3 {}", "--pid {} 2-3", "-p 0xc {}"])
def test_the_process_of_taskset_is_a_vm_here(machine: Machine, words: str) -> None:
    machine.start(FakeVm())
    ran = machine.run("affinity", "set", *words.format(os.getpid()).split())
    fix = f"  fix: pmuctl affinity set pid/{os.getpid()} 2-3"
    assert (ran.status, ran.stderr.splitlines()[-1]) == (2, fix)


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
