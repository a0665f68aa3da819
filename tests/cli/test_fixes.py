# SPDX-License-Identifier: Apache-2.0
"""Every `fix` that is a command leads somewhere from the state that printed it."""

import json
import os
import shlex
from collections.abc import Callable, Iterator

import pytest

from pmuctl.cli.app import root
from pmuctl.cli.command_line import is_parsed
from pmuctl.errors import ExitStatus
from pmuctl.model.cpuset import CpuSet
from tests.cli.conftest import Machine, Ran
from tests.fakes.vmm import FakeVm, KernelThreads, SupervisedVm, fake_proc, fake_vmm

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
VMM = 4121
TIDS = (1001, 1002)


def make_vm(machine: Machine, vm: FakeVm, pid: int) -> FakeVm:
    machine.threads = KernelThreads(vm.threads.masks)
    if pid != os.getpid():
        machine.runtime.mkdir(mode=0o755)
        fake_proc(machine.proc, os.getpid(), holds_kvm=False)
    fake_proc(machine.proc, pid, tids=TIDS, uid=os.geteuid(), start=777)
    vm.threads = machine.threads
    return machine.start(vm)


def be_open(machine: Machine) -> str:
    return make_vm(machine, FakeVm(), os.getpid()).name


def be_set(machine: Machine) -> str:
    name = be_open(machine)
    assert machine.run("vm", "set", name, "pmu", A72).status == 0
    return name


def be_held(machine: Machine) -> str:
    vm = SupervisedVm(VMM)
    vm.is_made = True
    return make_vm(machine, vm, VMM).name


def be_held_with_a_pmu(machine: Machine) -> str:
    name = be_held(machine)
    assert machine.run("vm", "set", name, "pmu", A72).status == 0
    return name


def be_sealed(machine: Machine) -> str:
    name = be_set(machine)
    return run_on(machine, name)


def be_derived(machine: Machine) -> str:
    return run_on(machine, be_open(machine))


def run_on(machine: Machine, name: str) -> str:
    machine.servers[name].seal("it was released")
    vm = machine.vms[-1]
    vm.initialise()
    vm.run()
    return name


def be_misplaced(machine: Machine) -> str:
    name = be_sealed(machine)
    assert machine.threads is not None
    machine.threads.masks[1001] = CpuSet.parse("0-1")
    machine.threads.masks[1002] = CpuSet.parse("0-3")
    return name


def be_pinned_elsewhere(machine: Machine) -> str:
    name = be_open(machine)
    assert machine.threads is not None
    machine.threads.masks.update(dict.fromkeys(TIDS, CpuSet.parse("0")))
    assert machine.run("vm", "set", name, "pmu", A53).status == 0
    return run_on(machine, name)


def be_offline(machine: Machine) -> str:
    """The big cores, of the PMU that would be suggested else, are offline."""
    name = be_derived(machine)
    (machine.root / "sys/devices/system/cpu/online").write_text("0-1\n")
    return name


def be_without_vpmu(machine: Machine) -> str:
    return make_vm(machine, FakeVm(has_pmu=False), os.getpid()).name


def be_of_one_kind(machine: Machine) -> str:
    (machine.root / "sys/bus/event_source/devices" / A72).unlink()
    return be_derived(machine)


def be_without_a_socket(machine: Machine) -> str:
    machine.threads = KernelThreads({5121: CpuSet.parse("0-3")})
    fake_vmm(
        machine.proc, 5120, ("qemu-system-aarch64", "-name", "db 1's"), vcpus={0: "0-3"}, ran=9
    )
    return "pid/5120"


def be_starting(machine: Machine) -> str:
    fake_vmm(machine.proc, 5120, ("qemu-system-aarch64", "-name", "db1"), vcpus={}, ran=0)
    return "pid/5120"


STATES: tuple[Callable[[Machine], str], ...] = (
    be_open,
    be_set,
    be_held,
    be_held_with_a_pmu,
    be_sealed,
    be_derived,
    be_misplaced,
    be_pinned_elsewhere,
    be_offline,
    be_without_vpmu,
    be_of_one_kind,
    be_without_a_socket,
    be_starting,
)
COMMANDS = (
    "affinity set {} 0-3",
    "affinity set {} 1-2",
    "affinity set {} 3",
    "affinity align {}",
    "affinity check {}",
    "vm set {} affinity 1-2",
    "vm set {} affinity auto",
    "vm set {} counters 2",
    "vm set {} filter default deny allow 0x11",
    "vm set {} pmu armv8_cortex_a53",
    "vm set {} pmu armv8_cortex_a53 affinity 1-3",
    "doctor {}",
    "doctor",
)


def iter_fixes(ran: Ran) -> Iterator[str]:
    """The fixes of an error, of warnings, and of doctor's findings."""
    for line in ran.stderr.splitlines():
        if line.startswith("  fix: "):
            yield line.removeprefix("  fix: ")
    if ran.stdout.startswith("{"):
        for finding in json.loads(ran.stdout).get("findings", ()):
            if finding["fix"]:
                yield finding["fix"]


def iter_commands(fix: str) -> Iterator[str]:
    for part in fix.split(" && "):
        if part.removeprefix("sudo ").startswith("pmuctl "):
            yield part.removeprefix("sudo ").removeprefix("pmuctl ")


def state_of(machine: Machine) -> object:
    masks = dict(machine.threads.masks) if machine.threads else {}
    seen = machine.run("vm", "list", "-J", "-O").stdout
    files = [path.read_bytes() for path in sorted(machine.runtime.glob(".placed*"))]
    kept = [server.settings.cpus for server in machine.servers.values()]
    return masks, seen, [len(file) for file in files], kept


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("make", STATES, ids=lambda make: make.__name__)
def test_a_fix_parses_applies_and_changes_the_state_or_shows_more(
    machine: Machine, make: Callable[[Machine], str], command: str
) -> None:
    name = make(machine)
    words = command.format(name).split()
    ran = machine.run(*words, *(("-J",) if words[0] == "doctor" else ()))
    shown = ran.stdout + ran.stderr
    for fix in iter_fixes(ran):
        assert not any(f" {word} pmuctl " in fix for word in ("or", "then")), fix
        for line in iter_commands(fix):
            typed = shlex.split(line)
            assert is_parsed(root(), typed), line
            if typed[:2] == ["vm", "wait"]:
                held = make in (be_held, be_held_with_a_pmu)
                assert not (held and "running" in typed), line
                typed += ["--timeout", "0"]
            before = state_of(machine)
            then = machine.run(*typed)
            assert then.status in (ExitStatus.OK, ExitStatus.NO), (line, then)
            says_more = then.stdout + then.stderr not in shown
            assert state_of(machine) != before or says_more, line


def test_the_fix_of_a_setting_without_a_pmu_has_the_whole_request(machine: Machine) -> None:
    """It names big cores first."""
    name = be_open(machine)
    ran = machine.run("vm", "set", name, "counters", "2", "filter", "default", "deny")
    fix = f"  fix: pmuctl vm set {name} pmu {A72} counters 2 filter default deny"
    assert (ran.status, ran.stderr.splitlines()[-1]) == (2, fix)


def test_a_held_vm_gets_its_affinity_with_a_pmu(machine: Machine) -> None:
    name = be_held(machine)
    for words in ("affinity set {} 3", "vm set {} affinity 3"):
        ran = machine.run(*words.format(name).split())
        assert (ran.status, ran.stderr.splitlines()[-1]) == (
            9,
            f"  fix: pmuctl vm set {name} pmu {A72} affinity 3",
        )


def test_the_affinity_of_a_held_vm_is_set_not_unchanged(machine: Machine) -> None:
    name = be_held_with_a_pmu(machine)
    ran = machine.run("vm", "set", name, "pmu", A72, "affinity", "3")
    assert [line.split()[1:3] for line in ran.lines] == [["pmu", "unchanged"], ["affinity", "set"]]
    assert machine.servers[name].settings.cpus == CpuSet.of([3])


def test_align_gives_the_admins_narrower_pin_back(machine: Machine) -> None:
    name = be_sealed(machine)
    assert machine.run("affinity", "set", name, "3").status == 0
    assert machine.threads is not None
    machine.threads.masks.update(dict.fromkeys(TIDS, CpuSet.parse("0-3")))
    assert machine.run("affinity", "align", name).status == 0
    assert {str(mask) for mask in machine.threads.masks.values()} == {"3"}


def test_big_cores_are_suggested_by_their_capacity(machine: Machine) -> None:
    for cpu, capacity in enumerate((1024, 1024, 446, 446)):
        path = machine.root / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{capacity}\n")
    name = be_derived(machine)
    ran = machine.run("affinity", "align", name)
    assert ran.stderr.splitlines()[-1] == f"  fix: pmuctl affinity set {name} 0-1"
    ran = machine.run("doctor", "--symptom", "KVM_EXIT_FAIL_ENTRY", "-J")
    assert A53 in ran.stdout
    assert A72 not in ran.stdout


def test_offline_cpus_are_not_suggested(machine: Machine) -> None:
    ran = machine.run("affinity", "align", be_offline(machine))
    assert ran.stderr.splitlines()[-1] == "  fix: pmuctl affinity set web1 0-1"


def test_doctor_says_that_a_vm_has_no_pmu(machine: Machine) -> None:
    argv = ("qemu-system-aarch64", "-name", "db1", "-cpu", "host,pmu=off")
    fake_vmm(machine.proc, 5120, argv)
    assert "its VMM made it without one" in machine.run("doctor", "db1").stderr


def test_a_name_that_no_vm_has_is_told_once(machine: Machine) -> None:
    ran = machine.run("monitor", "deny", "web1", "deny", "--timeout", "0")
    assert ran.stderr.count("deny: no such VM yet") == 1


def test_the_help_of_monitor_lists_the_formats_it_has(machine: Machine) -> None:
    text = " ".join(machine.run("monitor", "--help").stdout.split())
    assert "Formats are table, jsonl, csv, tsv, raw and name; json would need an end." in text
