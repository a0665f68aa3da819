# SPDX-License-Identifier: Apache-2.0
"""VMs that pmuctl run started: behind a supervisor's socket, without one, and refused ones."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from pmuctl.control.runtime.start_record import Problem, Record, write_record
from pmuctl.errors import PinnedError
from pmuctl.host.procfs import Procfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.settings_change import SettingsChange
from pmuctl.value import replace
from tests.cli.conftest import Machine
from tests.cli.supervisor import RECORD, START, VMM, dead_socket
from tests.fakes.peers import EVIL, answering, bad_server, query
from tests.fakes.vmm import KernelThreads, SupervisedVm, fake_proc, fake_vmm
from tests.skips import only_root, only_users, skip

A72 = "armv8_cortex_a72"
ME = os.geteuid()
as_root = only_root("only root can give files away")


@pytest.fixture
def host(machine: Machine) -> Machine:
    """The machine where this process has no VM, and supervises the process VMM, which has one."""
    machine.runtime.mkdir()
    machine.runtime.chmod(0o755)
    fake_proc(machine.proc, os.getpid(), holds_kvm=False)
    fake_proc(machine.proc, VMM, tids=[1001, 1002], uid=ME, start=START)
    return machine


def recorded(host: Machine, record: Record = RECORD) -> Path:
    path = host.runtime / f"{record.name}.sock.json"
    write_record(path, record)
    return path


def supervised(host: Machine, *, is_made: bool = True) -> SupervisedVm:
    vm = SupervisedVm(VMM)
    vm.is_made = is_made
    host.start(vm)
    return vm


def shown(host: Machine, name: str = "web1") -> dict[str, Any]:
    ran = host.run("vm", "show", name, "-J")
    assert (ran.status, ran.stderr) == (0, "")
    vm = json.loads(ran.stdout)["vm"]
    assert isinstance(vm, dict)
    return vm


def reached(host: Machine, state: str) -> bool:
    ran = host.run("vm", "wait", "web1", "--for", state, "--timeout", "0")
    assert ran.status in (0, 1)
    return ran.status == 0


# With its supervisor


def test_a_held_vm_whose_threads_are_pinned_elsewhere_is_refused_with_the_command_that_mends_it(
    host: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = supervised(host)

    def refuse(vcpu: int, attr: int, payload: bytes) -> None:
        raise PinnedError(
            "thread 1001 may not run on any of the CPUs 2-3", why="it is pinned to 0"
        )

    monkeypatch.setattr(vm, "set_attr", refuse)
    ran = host.run("vm", "set", "web1", "pmu", A72)
    assert ran.status == 9
    assert ran.stderr.splitlines() == [
        "error: web1: thread 1001 may not run on any of the CPUs 2-3",
        "  why: it is pinned to 0",
        "  now: nothing was changed",
        f"  fix: taskset -acp 2-3 {VMM}",
    ]


def test_a_supervised_vm_is_shown_as_any_other(host: Machine) -> None:
    vm = supervised(host)
    its = shown(host)
    assert (its["pid"], its["owner"], its["state"]) == (VMM, ME, "waiting")
    assert [vcpu["tid"] for vcpu in its["vcpu_list"]] == [None, None]
    assert its["command"] is its["applied_by"] is its["applied_at"] is None
    assert host.run("vm", "set", "web1", "pmu", A72).status == 0
    assert host.run("vm", "release", "web1").status == 0
    assert shown(host)["state"] == "starting"
    vm.initialise()
    vm.run()
    its = shown(host)
    assert (its["state"], its["pmu"], its["pmu_origin"]) == ("running", A72, "applied")
    assert [vcpu["tid"] for vcpu in its["vcpu_list"]] == [1001, 1002]
    rows = json.loads(host.run("vm", "vcpus", "-J").stdout)["vcpus"]
    assert [row["tid"] for row in rows] == [1001, 1002]


@pytest.mark.parametrize(
    ("command", "means"),
    [
        ("qemu-system-aarch64\0", "counters stop there"),
        ("lkvm\0run\0--pmu\0", "KVM_RUN fails there"),
    ],
)
def test_what_a_vmm_sets_by_itself_its_supervisor_does_not_see(
    host: Machine, command: str, means: str
) -> None:
    (host.proc / str(VMM) / "cmdline").write_text(command)
    vm = supervised(host)
    assert host.run("vm", "release", "web1").status == 0
    vm.initialise()
    vm.run()
    its = shown(host)
    assert (its["pmu"], len(its["candidates"])) == (None, 2)
    assert its["means"].startswith("vCPUs 0-1 may run outside its PMU, on CPUs 2-3 if that is ")
    assert means in its["means"]


@pytest.fixture
def dead(host: Machine) -> Machine:
    """A VM of kvmtool with its PMU, whose vCPU 1 has run, and has ended since."""
    (host.proc / str(VMM) / "cmdline").write_text("lkvm\0run\0--pmu\0")
    vm = supervised(host)
    host.threads = KernelThreads(vm.threads.masks)
    assert host.run("vm", "set", "web1", "pmu", A72).status == 0
    assert host.run("vm", "release", "web1").status == 0
    vm.initialise()
    vm.run()
    host.threads.masks |= dict.fromkeys((1001, 1002), CpuSet.parse("2-3"))
    assert host.run("affinity", "check").status == 0
    shutil.rmtree(host.proc / str(VMM) / "task" / "1002")
    return host


def test_a_vcpu_whose_thread_has_ended_is_told_to_be_dead(dead: Machine) -> None:
    its = shown(dead)
    assert (its["state"], its["aligned"]) == ("running", False)
    assert its["means"].startswith(
        "vCPU 1 is dead: it has run, and its thread has ended, as kvmtool has it where KVM_RUN "
    )
    ran = dead.run("vm", "list")
    assert ran.status == 0
    assert "warning: web1: vCPU 1 is dead\n" in ran.stderr
    ran = dead.run("affinity", "check")
    assert ran.status == 1
    assert "warning: web1: vCPU 1 is dead\n" in ran.stderr
    rows = json.loads(dead.run("affinity", "check", "-J", "-o", "aligned").stdout)["vcpus"]
    assert [row["aligned"] for row in rows] == [True, False]
    found = json.loads(dead.run("doctor", "web1", "-J").stdout)["findings"]
    (row,) = [row for row in found if row["result"] != "PASS"]
    assert (row["id"], row["result"]) == ("vm.vcpus", "FAIL")
    assert row["fix"].startswith("end web1 and start it anew; pmuctl monitor --repair ")


def test_living_vcpus_are_placed_beside_a_dead_one(dead: Machine) -> None:
    assert dead.threads is not None
    dead.threads.masks[1001] = CpuSet.parse("0-3")
    assert dead.run("affinity", "align", "web1").status == 0
    assert dead.threads.masks[1001] == CpuSet.parse("2-3")
    ran = dead.run("affinity", "set", "web1", "2", "--vcpu", "1")
    assert ran.status != 0
    assert ran.stderr.startswith("error: web1: vCPU 1 is dead\n")
    assert dead.run("affinity", "set", "web1", "2").status == 0


def test_it_is_named_by_the_process_of_its_vmm(host: Machine) -> None:
    supervised(host)
    assert shown(host, f"pid/{VMM}")["name"] == "web1"
    assert host.run("vm", "show", f"pid/{os.getpid()}").status == 4
    assert host.run("vm", "set", f"pid/{VMM}", "pmu", A72).status == 0


def test_its_record_tells_of_its_start(host: Machine) -> None:
    supervised(host)
    recorded(host)
    its = shown(host)
    assert its["command"] == list(RECORD.command)
    assert (its["applied_by"], its["applied_at"]) == ("uid 0, pid 9", 1_700_000_009)
    assert "qemu-system-aarch64 -append 'a b'\n" in host.run("vm", "show", "web1").stdout


@pytest.mark.parametrize("other", [{"pid": 5}, {"start": START + 1}, {"name": "web2"}])
def test_the_record_of_another_start_is_passed_over(host: Machine, other: dict[str, Any]) -> None:
    supervised(host)
    record = replace(RECORD, **other)
    write_record(host.runtime / "web1.sock.json", record)
    assert shown(host)["command"] is None


def test_before_its_vmm_has_made_the_vm_it_is_starting(host: Machine) -> None:
    fake_proc(host.proc, VMM, holds_kvm=False)
    supervised(host, is_made=False)
    its = shown(host)
    assert (its["state"], its["window"], its["vcpus"]) == ("starting", None, 0)
    assert not any(reached(host, state) for state in ("open", "sealed", "running", "stopped"))
    for words in (("set", "web1", "pmu", A72), ("release", "web1")):
        ran = host.run("vm", *words)
        assert ran.status == 9
        assert f"process {VMM} has no VM open: not yet" in ran.stderr
        assert "  now: nothing was changed\n  fix: pmuctl vm wait web1 --for open" in ran.stderr


def test_before_its_vmm_is_held_nothing_can_be_set(host: Machine) -> None:
    vm = supervised(host, is_made=False)
    assert shown(host)["window"] is None
    for dry in ((), ("--dry-run",)):
        ran = host.run("vm", "set", "web1", "pmu", A72, *dry)
        assert (ran.status, ran.stdout) == (9, "")
        assert ran.stderr.splitlines() == [
            "error: web1: the VM has no vCPU yet",
            "  why: pmuctl run holds its VMM at the first call for its PMU, not reached yet",
            "  now: nothing was changed",
            "  fix: pmuctl vm wait web1 --for open",
        ]
    assert vm.calls == []


def test_nothing_is_believed_of_a_vm_that_is_not_made(host: Machine) -> None:
    fake_proc(host.proc, VMM, holds_kvm=False)
    vcpus = [{"index": 0, "tid": 1001, "initialised": True, "has-run": True}]
    answers = {"query-pmu": query(pid=VMM, vcpus=vcpus)}
    with bad_server(host.runtime / "web1.sock", answering(answers)):
        its = shown(host)
    assert (its["state"], its["vcpu_list"]) == ("starting", [])


def test_counters_are_refused_for_the_true_reason(host: Machine) -> None:
    vm = supervised(host)
    ran = host.run("vm", "set", "web1", "pmu", A72, "counters", "2")
    assert (ran.status, ran.stdout) == (7, "")
    assert "PMCR_EL0" in ran.stderr
    assert "this kernel" not in ran.stderr
    assert "pmuctl-protocol(7)" in ran.stderr
    assert vm.calls == []


def test_once_it_is_sealed_the_fix_is_a_new_start(host: Machine) -> None:
    supervised(host)
    host.servers["web1"].seal("pmuctl run has set it")
    ran = host.run("vm", "set", "web1", "pmu", A72)
    assert ran.status == 5
    assert "pmuctl run has set it" in ran.stderr
    assert "fix: choose it when web1 is started again: pmuctl run" in ran.stderr


@only_users("root's supervisor may speak for any process")
def test_another_users_process_is_nobodys_vm(host: Machine) -> None:
    fake_proc(host.proc, VMM, uid=ME + 1)
    supervised(host)
    assert host.run("vm", "show", "web1").status == 9


def test_a_process_that_has_gone_is_a_problem_and_no_vm(host: Machine) -> None:
    (host.proc / str(VMM) / "stat").unlink()
    supervised(host)
    ran = host.run("vm", "show", "web1")
    assert ran.status == 9
    assert f"there is no process {VMM}" in ran.stderr
    assert host.run("vm", "list", "--format", "name").stdout == "web1\n"
    assert not reached(host, "stopped")


# Without its supervisor


def test_a_vm_whose_supervisor_ended_goes_on_as_recorded(host: Machine) -> None:
    recorded(host)
    dead_socket(host)
    its = shown(host)
    assert {key: its[key] for key in ("state", "pid", "owner", "window", "sealed_by")} == {
        "state": "orphaned",
        "pid": VMM,
        "owner": ME,
        "window": "sealed",
        "sealed_by": "its supervisor is gone",
    }
    assert (its["pmu"], its["pmu_type"], its["pmu_origin"]) == (A72, 11, "recorded")
    assert (its["rules"], its["filter_origin"]) == ("default deny allow cpu_cycles", "recorded")
    assert its["command"] == list(RECORD.command)
    assert its["applied_by"] == "uid 0, pid 9"
    assert its["vcpus"] is its["vmm"] is its["attributes"] is its["event_bits"] is None
    assert shown(host, f"pid/{VMM}")["name"] == "web1"


def test_what_kvm_had_chosen_is_still_known(host: Machine) -> None:
    """Where its supervisor had seen it; it is no PMU that was set, and is not judged as one."""
    fake_vmm(host.proc, VMM, RECORD.command, masks="0-3", uid=ME, start=START)
    host.masks = dict.fromkeys(range(VMM, VMM + 4), CpuSet.parse("0-3"))
    its_own = replace(RECORD, pmu=None, filter=None, derived=(11, A72), applied=())
    recorded(host, its_own)
    dead_socket(host)
    its = shown(host)
    assert (its["state"], its["pmu"], its["pmu_type"]) == ("orphaned", A72, 11)
    assert (its["pmu_origin"], its["candidates"], its["aligned"]) == ("derived", [], False)
    assert "counters stop there silently" in its["means"]
    recorded(host, replace(its_own, derived=None))
    its = shown(host)
    assert (its["pmu"], its["candidates"]) == (None, ["armv8_cortex_a53", A72])
    # what was set is what holds
    recorded(host, replace(its_own, pmu=(10, "armv8_cortex_a53")))
    assert shown(host)["pmu_origin"] == "recorded"


def test_it_is_listed_with_a_warning(host: Machine) -> None:
    recorded(host)
    dead_socket(host)
    ran = host.run("vm", "list")
    assert ran.status == 0
    assert ran.lines[1].split() == [
        *("web1", "orphaned", str(VMM), "?", A72, "1", "allowed", "sealed", "?")
    ]
    assert ran.stderr.startswith("warning: web1: its supervisor has ended")
    assert "KVM_CREATE_VCPU gives ENOSYS" in ran.stderr
    assert "start it anew" in ran.stderr
    ran = host.run("vm", "vcpus")
    assert (ran.status, ran.lines[1:]) == (0, [])
    assert host.run("vm", "vcpus", "web1").status == 3


@pytest.mark.parametrize(
    "words",
    [("pmu", A72), ("counters", "2"), ("filter", "default", "deny"), ("pmu", A72, "--dry-run")],
)
def test_it_takes_no_settings(host: Machine, words: tuple[str, ...]) -> None:
    recorded(host)
    dead_socket(host)
    ran = host.run("vm", "set", "web1", *words)
    assert (ran.status, ran.stdout) == (5, "")
    assert "its supervisor is gone" in ran.stderr
    assert "nothing was changed" in ran.stderr
    assert "pmuctl run" in ran.stderr


def test_it_has_been_released(host: Machine) -> None:
    recorded(host)
    dead_socket(host)
    for options in ((), ("--dry-run",)):
        ran = host.run("vm", "release", "web1", *options)
        assert (ran.status, ran.stdout.split()) == (0, ["web1", "window", "unchanged", "sealed"])


def test_what_is_reached_of_it(host: Machine) -> None:
    recorded(host)
    dead_socket(host)
    states = ("open", "sealed", "running", "stopped", "aligned")
    assert [state for state in states if reached(host, state)] == ["sealed"]
    (host.proc / str(VMM) / "stat").unlink()
    assert [state for state in states if reached(host, state)] == ["stopped"]


def test_of_a_socket_by_its_path_the_record_beside_it_counts(host: Machine) -> None:
    recorded(host)
    dead_socket(host)
    words = ("--socket", str(host.runtime / "web1.sock"))
    assert host.run("vm", "list", *words, "--format", "name").stdout == "web1\n"
    assert host.run("vm", "show", "web1", *words).status == 0
    ran = host.run("vm", "show", "web2", *words)
    assert ran.status == 4
    assert "is named web1" in ran.stderr


@pytest.mark.parametrize(
    "kind",
    ["gone", "pid reused", "another name", "mode", "link", "fifo", "no json", "huge"],
)
def test_a_dead_socket_is_dead_without_a_record_to_believe(host: Machine, kind: str) -> None:
    path = recorded(host)
    dead_socket(host)
    match kind:
        case "gone":
            (host.proc / str(VMM) / "stat").unlink()
        case "pid reused":
            fake_proc(host.proc, VMM, start=START + 1)
        case "another name":
            write_record(path, replace(RECORD, name="web2"))
        case "mode":
            path.chmod(0o666)
        case "link":
            path.symlink_to(path.rename(path.with_name("other")))
        case "fifo":
            path.unlink()
            os.mkfifo(path)
        case "no json":
            path.write_text(path.read_text()[:-9])
        case _:
            path.write_text(" " * (3 << 20))
    ran = host.run("vm", "list", "web1", "-o", "STATE,PID", "-n")
    assert ran.stdout.split() == ["dead", "?"]
    ran = host.run("vm", "show", "web1")
    assert ran.status == 3
    assert "dead" in ran.stderr
    assert host.run("vm", "set", "web1", "pmu", A72).status == 3


@as_root
def test_the_process_of_another_user_than_the_directorys_is_no_orphan(host: Machine) -> None:
    recorded(host)
    dead_socket(host)
    os.chown(host.runtime, 4321, 4321)
    assert host.run("vm", "list", "web1", "-o", "STATE", "-n").stdout == "dead\n"
    fake_proc(host.proc, VMM, uid=4321)
    assert shown(host)["owner"] == 4321
    os.chown(host.runtime / "web1.sock.json", 4322, 4322)
    assert host.run("vm", "list", "web1", "-o", "STATE", "-n").stdout == "dead\n"


@as_root
def test_in_roots_directory_a_vmm_may_be_any_users(host: Machine) -> None:
    recorded(host)
    dead_socket(host)
    fake_proc(host.proc, VMM, uid=107)
    assert shown(host)["owner"] == 107


def test_no_word_of_a_record_steers_the_terminal(host: Machine) -> None:
    applied = (SettingsChange(1, EVIL, (EVIL,)),)
    recorded(host, replace(RECORD, command=(EVIL,), applied=applied, pmu=(11, EVIL)))
    dead_socket(host)
    for words in (("list",), ("list", "-O"), ("show", "web1")):
        ran = host.run("vm", *words)
        assert ran.status == 0
        for text in (ran.stdout, ran.stderr):
            assert not {"\x1b", "\x07", "\u202e"} & set(text)
            assert "\nweb9" not in text


# After a start that was refused, or made no VM

REFUSED = Problem(message="KVM has no such PMU", why="ENXIO", fix="pmuctl pmu list", status=4)


def test_a_name_without_a_vm_tells_why_its_last_start_was_refused(host: Machine) -> None:
    recorded(host, replace(RECORD, problem=REFUSED))
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(RECORD.began))
    for words in (("show", "web1"), ("list", "web1"), ("set", "web1", "pmu", A72)):
        ran = host.run("vm", *words)
        assert (ran.status, ran.stdout) == (4, "")
        assert ran.stderr.splitlines() == [
            "error: web1: there is no such VM",
            f"  why: its last start, {when}: KVM has no such PMU: ENXIO",
            "  fix: pmuctl pmu list",
        ]
    assert "refused" not in host.run("vm", "list").stderr
    assert reached(host, "stopped")
    ran = host.run("vm", "wait", "web1", "--for", "running", "--timeout", "0")
    assert ran.status == 1
    assert ran.stderr.startswith(f"web1: not running after 0 s: its last start, {when}: KVM has")


UNMADE = Problem(
    message="no KVM VM was made",
    why="it ended without one",
    now="the settings reached no VM",
    fix="give QEMU -accel kvm",
    status=0,
)


def test_a_command_that_made_no_vm_is_told_while_it_goes_on(host: Machine) -> None:
    fake_proc(host.proc, VMM, holds_kvm=False)
    supervised(host, is_made=False)
    recorded(host, replace(RECORD, problem=UNMADE, start=host_start(host)))
    its = shown(host)
    assert (its["state"], its["problem"]) == (
        "starting",
        "no KVM VM was made: it ended without one",
    )
    found = made(host)
    assert (found["subject"], found["result"], found["fix"]) == ("web1", "WARN", UNMADE.fix)


def test_a_command_that_ended_without_a_vm_is_told_by_show_and_doctor(host: Machine) -> None:
    assert made(host) is None
    path = recorded(host, replace(RECORD, problem=UNMADE, start=START + 1))
    ran = host.run("vm", "show", "web1")
    assert ran.status == 4
    assert ran.stderr.splitlines()[1].endswith(": no KVM VM was made: it ended without one")
    assert ran.stderr.splitlines()[2:] == [f"  now: {UNMADE.now}", f"  fix: {UNMADE.fix}"]
    found = made(host)
    assert (found["subject"], found["result"], found["fix"]) == ("web1", "WARN", UNMADE.fix)
    assert found["why"].startswith("no KVM VM was made by its last start, ")
    path.unlink()
    assert made(host) is None


def host_start(host: Machine) -> int:
    start = Procfs(host.proc).start_time(VMM)
    assert start is not None
    return start


def made(host: Machine) -> Any:
    """The finding of doctor's vm.made, None without one."""
    rows = json.loads(host.run("doctor", "-J", uid=ME).stdout)["findings"]
    return next((row for row in rows if row["id"] == "vm.made"), None)


def test_a_refusal_without_a_fix_has_one(host: Machine) -> None:
    problem = replace(REFUSED, why=None, fix=None)
    recorded(host, replace(RECORD, problem=problem))
    ran = host.run("vm", "show", "web1")
    assert ran.stderr.splitlines()[1].endswith(": KVM has no such PMU")
    assert ran.stderr.splitlines()[2] == "  fix: start it anew with pmuctl run"


@pytest.mark.parametrize("kind", ["no problem", "another name", "mode", "uid", "pid/1"])
def test_any_other_name_is_only_not_found(host: Machine, kind: str) -> None:
    name = "web1"
    path = recorded(host, replace(RECORD, problem=REFUSED))
    match kind:
        case "no problem":
            recorded(host)
        case "another name":
            write_record(path, replace(RECORD, problem=REFUSED, name="web2"))
        case "mode":
            path.chmod(0o666)
        case "uid":
            if ME != 0:
                skip("only root can give files away", runs="as root")
            os.chown(path, 4321, 4321)
        case _:
            name = kind
    ran = host.run("vm", "show", name)
    assert ran.status == 4
    assert "refused" not in ran.stderr


def test_no_word_of_a_refusal_in_a_record_steers_the_terminal(host: Machine) -> None:
    problem = Problem(message=EVIL, why=EVIL, fix=EVIL, status=9)
    recorded(host, replace(RECORD, problem=problem))
    ran = host.run("vm", "show", "web1")
    assert ran.status == 4
    assert len(ran.stderr.splitlines()) == 3
    assert not {"\x1b", "\x07", "\u202e"} & set(ran.stderr)
