# SPDX-License-Identifier: Apache-2.0
"""VMs without a control socket: found by their processes, shown, named, and not to be changed."""

import io
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from pmuctl.cli.session import open_session
from pmuctl.manage.inventory.lookup import list_vms
from pmuctl.manage.inventory.session import Session
from tests.cli.conftest import CAPTURED, Machine
from tests.cli.processes import QEMU, debugfs, listed, with_vmm
from tests.fakes.peers import GREETING, RawClient, bad_server
from tests.fakes.vmm import FakeVm, fake_proc, fake_vmm
from tests.skips import only_root

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
UUID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def host(machine: Machine) -> Machine:
    """A host with a QEMU that is named, as pid 5120, and whose vCPU threads are 5121 and 5122."""
    return with_vmm(machine, 5120, QEMU, "-name", "guest=db1,debug-threads=on", "-uuid", UUID)


def shown(machine: Machine, name: str) -> dict[str, Any]:
    ran = machine.run("vm", "show", name, "-J")
    assert ran.status == 0, ran
    found: dict[str, Any] = json.loads(ran.stdout)["vm"]
    return found


def test_it_is_listed_beside_those_with_a_socket(host: Machine) -> None:
    host.start(FakeVm())
    with_vmm(host, 6000, "vmm", vcpus={0: "2-3"}, comm="vmm")
    ran = host.run("vm", "list")
    assert (ran.status, ran.stderr) == (0, "")
    assert [line.split() for line in ran.lines] == [
        ["NAME", "STATE", "PID", "VCPUS", "PMU", "FILTER", "WINDOW", "ALIGNED"],
        ["db1", "running", "5120", "2", A53, "or", f"{A72}?", "?", "sealed", "no"],
        ["web1", "waiting", str(os.getpid()), "2", "-", "-", "open", "-"],
        ["pid/6000", "running", "6000", "1", A53, "or", f"{A72}?", "?", "sealed", "?"],
    ]
    document = json.loads(host.run("vm", "list", "-J").stdout)
    assert [(its["pmu"], its["candidates"]) for its in document["vms"]] == [
        (None, [A53, A72]),
        (None, []),
        (None, [A53, A72]),
    ]
    assert (document["unreadable"], document["partial"]) == (0, False)


def test_a_vm_with_a_socket_is_its_process_and_listed_once(machine: Machine) -> None:
    machine.start(FakeVm())
    pid = os.getpid()
    with_vmm(machine, pid, QEMU, "-name", "other")
    assert [its["name"] for its in listed(machine)] == ["web1"]
    vcpus = shown(machine, "web1")["vcpu_list"]
    assert [(its["tid"], its["evidence"]) for its in vcpus] == [(1001, "socket"), (1002, "socket")]
    # a thread that the socket names is taken if it is the process's own
    (machine.proc / str(pid) / "task/1002").rmdir()
    vcpus = shown(machine, "web1")["vcpu_list"]
    assert [(its["tid"], its["evidence"]) for its in vcpus] == [
        (1001, "socket"),
        (pid + 2, "name"),
    ]


def test_all_that_is_known_of_it(host: Machine) -> None:
    its = shown(host, "db1")
    assert (its["vmm"], its["uuid"], its["source"]) == ("qemu", UUID, "process")
    assert its["owner"] == os.geteuid()
    assert (its["state"], its["window"], its["sealed_by"]) == (
        *("running", "sealed", "a vCPU has run"),
    )
    assert its["socket"] is its["filter"] is its["counters"] is its["pmu_origin"] is None
    assert its["vcpu_list"] == [
        {"vcpu": n, "tid": 5121 + n, "initialised": None, "has_run": True, "evidence": "name"}
        for n in range(2)
    ]
    assert its["means"] == (
        f"vCPUs 0-1 may run outside its PMU, on CPUs 2-3 if that is {A53} or CPUs 0-1 if that is "
        f"{A72}: the guest's counters stop there silently"
    )


@pytest.mark.parametrize("name", ["db1", f"uuid/{UUID.upper()}", "pid/5120"])
def test_it_is_named_as_any_other(host: Machine, name: str) -> None:
    host.start(FakeVm())
    assert shown(host, name)["pid"] == 5120
    assert [its["pid"] for its in listed(host, name)] == [5120]


@pytest.mark.parametrize("words", [("set", "db1", "pmu", A72), ("release", "db1")])
def test_it_takes_no_settings(host: Machine, words: tuple[str, ...]) -> None:
    for options in ((), ("--dry-run",)):
        ran = host.run("vm", *words, *options)
        assert (ran.status, ran.stdout) == (7, "")
        assert "it has no control socket" in ran.stderr
        assert "KVM takes PMU settings only from the process that made the VM" in ran.stderr
        assert "fix: start the VM with pmuctl run" in ran.stderr


def test_two_of_a_name_are_ambiguous(host: Machine) -> None:
    with_vmm(host, 6000, QEMU, "-name", "db1")
    assert [its["pid"] for its in listed(host, "db1")] == [5120, 6000]
    for words in (("show", "db1"), ("set", "db1", "pmu", A72), ("release", "db1")):
        ran = host.run("vm", *words)
        assert (ran.status, ran.stdout) == (2, "")
        assert "two VMs hold this name" in ran.stderr
        assert "pid/5120, pid/6000" in ran.stderr
    assert shown(host, "pid/6000")["pid"] == 6000


def test_a_name_that_a_socket_has_too_is_ambiguous(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    with_vmm(machine, 6000, QEMU, "-name", "web1")
    for words in (("show", "web1"), ("set", "web1", "pmu", A72), ("release", "web1")):
        ran = machine.run("vm", *words)
        assert (ran.status, ran.stdout) == (2, "")
        assert "pid/6000" in ran.stderr
    assert vm.calls == []
    assert machine.run("vm", "set", f"pid/{os.getpid()}", "pmu", A72).status == 0


def test_another_users_vm_takes_nobodys_name(machine: Machine) -> None:
    machine.start(FakeVm())
    with_vmm(machine, 6000, QEMU, "-name", "web1", uid=1234)
    assert shown(machine, "web1")["pid"] == os.getpid()
    assert machine.run("vm", "set", "web1", "pmu", A72).status == 0
    with_vmm(machine, 6001, QEMU, "-name", "db1", uid=1234)
    with_vmm(machine, 6002, QEMU, "-name", "db1", uid=0)
    assert shown(machine, "db1")["pid"] == 6002


def test_a_setuid_programs_vm_is_nobodys(machine: Machine) -> None:
    with_vmm(machine, 6000, QEMU, "-name", "web1")
    (machine.proc / "6000/status").write_text("Uid:\t1001\t0\t0\t0\n")
    assert listed(machine)[0]["owner"] is None
    ran = machine.run("affinity", "set", "web1", "1")
    assert (ran.status, "process 6000 is several users'," in ran.stderr) == (2, True)
    assert machine.run("affinity", "set", "pid/6000", "1").status == 0
    # it stands in the way of no other of this name
    with_vmm(machine, 6001, QEMU, "-name", "web1")
    assert machine.run("affinity", "set", "web1", "1", "-J").status == 0
    assert shown(machine, "web1")["pid"] == 6001


def test_what_is_not_found_is_told_with_what_is(host: Machine) -> None:
    ran = host.run("vm", "show", "db2")
    assert (ran.status, ran.stdout) == (4, "")
    assert "similar names: db1" in ran.stderr
    assert host.run("vm", "list", "nothing").status == 4


def test_what_is_near_is_told_once_and_is_something_else(host: Machine) -> None:
    host.start(FakeVm("db3"))
    with_vmm(host, os.getpid(), QEMU, "-name", "db3")
    with_vmm(host, 6000, "pmuctl", ran=0)  # a scratch VM, which is no VM to name
    ran = host.run("vm", "show", "db2")
    names = ran.stderr.partition("similar names: ")[2].splitlines()[0]
    assert sorted(names.split(", ")) == ["db1", "db3"]
    why = host.run("vm", "show", "pid/6000").stderr
    assert "there is no such VM" in why
    assert "pid/6000" not in why.partition("why:")[2]


@pytest.mark.parametrize("format", ["json", "jsonl", "csv", "tsv", "raw", "table"])
def test_a_name_that_is_not_utf8_is_text_in_every_format(machine: Machine, format: str) -> None:
    with_vmm(machine, 6000, QEMU, "-name", "web\udcff")
    for words in (("vm", "list", "-O"), ("vm", "show", "web\udcff"), ("vm", "show", "no\udcff")):
        ran = machine.run(*words, "--format", format)
        for text in ran.stdout, ran.stderr:
            assert "udcff" not in text
            text.encode()
        escape = "\\x5cxff" if format == "raw" and ran.stdout else "\\xff"
        assert escape in ran.stdout + ran.stderr
    assert "udcff" not in machine.run("doctor", "-J").stdout


@pytest.mark.parametrize(
    ("name", "shown"), [("  ", "pid/6000"), ("\u3164", "pid/6000"), ("a\u3164", "a\\u3164")]
)
def test_a_name_that_nobody_sees_is_not_shown_as_nothing(
    machine: Machine, name: str, shown: str
) -> None:
    with_vmm(machine, 6000, QEMU, "-name", name)
    assert machine.run("vm", "list").lines[1].split()[0] == shown


def test_a_named_socket_is_the_only_vm(host: Machine, tmp_path: Path) -> None:
    host.start(FakeVm(), tmp_path / "its.sock")
    assert [its["name"] for its in listed(host, "--socket", str(tmp_path / "its.sock"))] == [
        "web1"
    ]


@pytest.mark.parametrize(
    ("how", "state", "window"),
    [
        ({}, "running", "sealed"),
        ({"ran": 0}, "starting", None),
        ({"vcpus": {}}, "starting", None),
        ({"state": "T"}, "paused", "sealed"),
        ({"state": "T", "ran": 0}, "starting", None),
    ],
)
def test_states(machine: Machine, how: dict[str, Any], state: str, window: str | None) -> None:
    with_vmm(machine, 6000, "vmm", **how)
    (its,) = listed(machine)
    assert (its["state"], its["window"]) == (state, window)


def test_a_vm_without_a_pmu_has_none(machine: Machine) -> None:
    with_vmm(machine, 6000, QEMU, "-cpu", "host,pmu=off")
    (its,) = listed(machine)
    assert (its["window"], its["pmu"], its["candidates"], its["aligned"]) == (
        "none",
        None,
        [],
        None,
    )
    assert machine.run("vm", "list").lines[1].split()[4:] == ["-", "?", "none", "-"]


def test_kvmtool_sets_a_pmu_by_itself(machine: Machine) -> None:
    with_vmm(machine, 6000, "lkvm", "run", "--pmu", "--name", "k1")
    (its,) = listed(machine)
    assert its["means"] == (
        f"vCPUs 0-1 may run outside its PMU, on CPUs 2-3 if that is {A53} or CPUs 0-1 if that is "
        f"{A72}: KVM_RUN fails there with KVM_EXIT_FAIL_ENTRY: kvmtool ends that vCPU's thread, "
        "and with vCPU 0 the VM"
    )


def test_on_a_host_of_one_pmu_that_is_the_vms(machine: Machine, dump: Any) -> None:
    machine.root = dump("one-pmu")
    with_vmm(machine, 6000, QEMU)
    (its,) = listed(machine)
    assert (its["pmu"], its["pmu_origin"], its["aligned"]) == ("armv8_pmuv3", "derived", True)
    assert its["means"] == "no vCPU can leave armv8_pmuv3 (0-3)"


def test_vcpus_with_the_pmus_they_can_have(machine: Machine) -> None:
    with_vmm(machine, 6000, QEMU, "-name", "db1", vcpus={0: "2-3", 1: "0-3"})
    ran = machine.run("vm", "vcpus", "-o", "+EVIDENCE")
    assert [line.split() for line in ran.lines[1:]] == [
        *(
            ["db1", "0", "6001", "1", "2-3", "0-1", "or", "2-3?", "?", "name"],
            ["db1", "1", "6002", "2", "0-3", "0-1", "or", "2-3?", "no", "name"],
        )
    ]
    rows = json.loads(machine.run("vm", "vcpus", "-J").stdout)["vcpus"]
    assert [row["pmu_cpus"] for row in rows] == [None, None]


def test_waiting_for_one(host: Machine) -> None:
    for state, status in (("running", 0), ("sealed", 0), ("aligned", 1), ("stopped", 1)):
        words = ("vm", "wait", "db1", "--for", state, "--timeout", "0")
        assert host.run(*words).status == status, state
    fake_proc(host.proc, 5120, holds_kvm=False)
    assert host.run("vm", "wait", "db1", "--for", "stopped", "--timeout", "0").status == 0


# Evidence


def kvm_run(machine: Machine, pid: int, tid: int, fd: int) -> None:
    path = machine.proc / str(pid) / "task" / str(tid) / "syscall"
    path.write_text(f"29 {fd:#x} 0xae80 0x0 0x0 0x0 0x0 0xffff 0xffff\n")


def evidence(machine: Machine) -> list[tuple[int | None, str | None]]:
    (its,) = listed(machine)
    return [(vcpu["tid"], vcpu["evidence"]) for vcpu in its["vcpu_list"]]


def test_the_best_evidence_is_taken(machine: Machine) -> None:
    with_vmm(machine, 6000, QEMU, vcpus={0: "0-3", 1: "0-3", 2: "0-3"})
    assert evidence(machine) == [(6001, "name"), (6002, "name"), (6003, "name")]
    kvm_run(machine, 6000, 6003, 21)
    kvm_run(machine, 6000, 6002, 22)
    assert evidence(machine) == [(6001, "name"), (6003, "kvm-run"), (6002, "kvm-run")]
    debugfs(machine, 6000, 9, {1: 6002})
    assert evidence(machine)[:2] == [(6001, "name"), (6002, "debugfs")]


def test_a_vm_that_ran_for_less_than_a_tick_has_run_if_kvm_says_so(machine: Machine) -> None:
    with_vmm(machine, 6000, QEMU, ran=0)
    with_vmm(machine, 7000, QEMU, ran=0)
    for pid, count in ((6000, 12), (7000, 0)):
        exits = machine.root / f"sys/kernel/debug/kvm/{pid}-9/exits"
        exits.parent.mkdir(parents=True)
        exits.write_text(f"{count}\n")
    seen = {its["pid"]: (its["state"], its["window"]) for its in listed(machine)}
    assert seen == {6000: ("running", "sealed"), 7000: ("starting", None)}


def test_without_evidence_nothing_is_said(machine: Machine) -> None:
    with_vmm(machine, 6000, "vmm", has_names=False)
    assert evidence(machine) == [(None, None), (None, None)]
    # that a thread of it was in a guest is known all the same
    assert [its["state"] for its in listed(machine)] == ["running"]
    assert machine.run("vm", "vcpus").lines[1].split()[2:5] == ["?", "?", "?"]


def test_evidence_of_other_processes_is_none(machine: Machine) -> None:
    with_vmm(machine, 6000, QEMU, has_names=False)
    debugfs(machine, 6000, 9, {0: 1, 1: 6002})
    debugfs(machine, 7000, 9, {0: 6001})
    kvm_run(machine, 6000, 6001, 9)
    assert evidence(machine) == [(None, None), (6002, "debugfs")]


def test_the_maker_of_a_vm_can_be_another_thread(machine: Machine) -> None:
    with_vmm(machine, 6000, QEMU, has_names=False)
    debugfs(machine, 6001, 9, {0: 6001, 1: 6002})
    assert evidence(machine) == [(6001, "debugfs"), (6002, "debugfs")]


def test_two_vms_of_a_process_are_two_where_they_can_be_told_apart(machine: Machine) -> None:
    with_vmm(machine, 6000, QEMU, "-name", "db1", has_names=False)
    (machine.proc / "6000/fd/10").symlink_to("anon_inode:kvm-vm")
    assert [its["name"] for its in listed(machine)] == ["db1"]
    debugfs(machine, 6000, 9, {0: 6001})
    debugfs(machine, 6000, 10, {1: 6002})
    assert [(its["name"], its["vcpus"]) for its in listed(machine)] == [
        *(("pid/6000/9", 1), ("pid/6000/10", 1))
    ]
    assert machine.run("vm", "show", "pid/6000").status == 2
    assert shown(machine, "pid/6000/10")["vcpu_list"][0]["vcpu"] == 1


def with_monitors(machine: Machine, paths: list[Path]) -> Session:
    """A QEMU, this very process, with these monitors of its own."""
    words = [word for path in paths for word in ("-qmp", f"unix:{path},server=on")]
    with_vmm(machine, os.getpid(), QEMU, *words, uid=os.geteuid())
    its = machine.proc / str(os.getpid())
    (its / "root").symlink_to("/")
    (its / "net").symlink_to("/proc/self/net")
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing
            if (link := os.readlink(f"/proc/self/fd/{fd}")).startswith("socket:"):
                (its / "fd" / f"1000{fd}").symlink_to(link)
    return open_session(machine.env(io.StringIO(), io.StringIO()))


def test_no_command_line_keeps_anybody_waiting(machine: Machine, tmp_path: Path) -> None:
    paths = [tmp_path / str(n) for n in range(60)]
    with ExitStack() as stack:
        for path in paths:
            mute = stack.enter_context(socket.socket(socket.AF_UNIX))
            mute.bind(str(path))
            mute.listen()
        begin = time.monotonic()
        assert len(list_vms(with_monitors(machine, paths)).vms) == 1
        assert time.monotonic() - begin < 10  # 0.5 s, not 30


def test_no_more_than_four_monitors_of_a_process_are_tried(
    machine: Machine, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "q"))
        mute.listen()
        mute.settimeout(0)
        gone = [tmp_path / str(n) for n in range(4)]
        assert len(list_vms(with_monitors(machine, [*gone, tmp_path / "q"])).vms) == 1
        with pytest.raises(BlockingIOError):
            mute.accept()


@pytest.mark.parametrize(("kind", "is_asked"), [("tmpfs", True), ("fuse.sshfs", False)])
def test_a_monitor_on_a_file_system_that_may_never_answer_is_left_alone(
    machine: Machine, tmp_path: Path, kind: str, *, is_asked: bool
) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "q"))
        mute.listen()
        mute.settimeout(0)
        session = with_monitors(machine, [tmp_path / "q"])
        line = f"30 1 0:30 / {tmp_path} rw - {kind} none rw\n"
        (machine.proc / str(os.getpid()) / "mountinfo").write_text(line)
        assert len(list_vms(session).vms) == 1
        if is_asked:
            mute.accept()[0].close()
        with pytest.raises(BlockingIOError):
            mute.accept()


def test_all_monitors_together_are_waited_for_no_longer(machine: Machine) -> None:
    words = [word for n in range(4) for word in ("-qmp", f"unix:/q{n},server=on")]
    table = "Num RefCount Protocol Flags Type St Inode Path\n"
    for n in range(4):
        table += f"0: 00000002 00000000 00010000 0001 01 7 /q{n}\n"
        table += f"0: 00000002 00000000 00000000 0001 03 1 /q{n}\n"
    for pid in range(6000, 9000, 12):
        with_vmm(machine, pid, QEMU, *words, vcpus={0: "0-3"})
        (machine.proc / str(pid) / "fd/70").symlink_to("socket:[7]")
        # somebody is connected to each: that costs a tenth of a second
        (machine.proc / str(pid) / "net").mkdir()
        (machine.proc / str(pid) / "net/unix").write_text(table)
    reach = open_session(machine.env(io.StringIO(), io.StringIO()))
    assert len(list_vms(reach).vms) == 250
    first = len(reach.monitor_answers)
    assert 0 < first < 250
    # who looks again goes on where it stopped
    list_vms(reach)
    assert first < len(reach.monitor_answers) <= 250


def test_a_monitors_words_are_checked_as_those_of_a_command_line(
    machine: Machine, tmp_path: Path
) -> None:
    def script(client: RawClient) -> None:
        client.send(GREETING)
        says = {"query-name": {"name": "pid/6000"}, "query-uuid": {"UUID": "x\x1b[31m"}}
        while True:
            request = client.read()
            answer = {"return": says.get(request["execute"], {}), "id": request.get("id")}
            client.send(json.dumps(answer).encode())

    with_vmm(machine, 6000, QEMU, "-name", "web1")
    with bad_server(tmp_path / "q", script):
        vms = list_vms(with_monitors(machine, [tmp_path / "q"])).vms
    found = {vm.pid: (vm.name, vm.uuid) for vm in vms}
    assert found == {6000: ("web1", None), os.getpid(): (f"pid/{os.getpid()}", None)}
    assert shown(machine, "pid/6000")["name"] == "web1"


def test_a_monitor_is_asked_once_by_whoever_looks_again(machine: Machine, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "q"))
        mute.listen()
        mute.settimeout(0)
        reach = with_monitors(machine, [tmp_path / "q"])
        for _ in range(3):
            assert len(list_vms(reach).vms) == 1
        mute.accept()[0].close()
        with pytest.raises(BlockingIOError):
            mute.accept()
        # with other vCPUs it is asked what threads they have
        fds = machine.proc / str(os.getpid()) / "fd"
        (fds / "30").symlink_to("anon_inode:kvm-vcpu:2")
        assert len(list_vms(reach).vms) == 1
        mute.accept()[0].close()


def with_two(machine: Machine) -> None:
    """A QEMU with two VMs, of descriptors 9 and 10, each with a vCPU 0."""
    with_vmm(machine, 6000, QEMU, "-name", "db1", vcpus={0: "2-3"})
    fds = machine.proc / "6000/fd"
    (fds / "10").symlink_to("anon_inode:kvm-vm")
    (fds / "21").symlink_to("anon_inode:kvm-vcpu:0")


def test_whose_a_thread_is_of_two_vms_is_not_guessed(machine: Machine) -> None:
    with_two(machine)
    (its,) = listed(machine)
    assert (its["vcpu_list"][0]["tid"], its["state"], its["aligned"]) == (None, "running", None)
    # two descriptors of one VM, as crosvm has them: there is but one directory of it
    debugfs(machine, 6000, 9, {0: 6001})
    assert evidence(machine) == [(6001, "debugfs")]


def test_one_of_two_vms_may_have_a_socket(machine: Machine) -> None:
    machine.start(FakeVm())
    pid = os.getpid()
    with_vmm(machine, pid, QEMU, "-name", "other", has_names=False)
    (machine.proc / str(pid) / "fd/10").symlink_to("anon_inode:kvm-vm")
    debugfs(machine, pid, 9, {0: 1001, 1: 1002})
    debugfs(machine, pid, 10, {0: pid + 1})
    assert [(its["name"], its["vcpus"]) for its in listed(machine)] == [
        *(("web1", 2), (f"pid/{pid}/10", 1))
    ]
    assert shown(machine, f"pid/{pid}/10")["vcpus"] == 1


def test_a_silent_vm_has_what_its_command_line_tells(machine: Machine) -> None:
    machine.runtime.mkdir()
    with_vmm(machine, os.getpid(), QEMU, "-cpu", "host,pmu=off")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(machine.runtime / "web1.sock"))
        silent.listen()
        (its,) = listed(machine, "--deadline", "0.2")
    assert (its["state"], its["candidates"], its["aligned"]) == ("silent", [], None)


def test_what_becomes_of_the_guest_is_told_by_its_vmm(machine: Machine) -> None:
    vm = machine.start(FakeVm())
    with_vmm(machine, os.getpid(), QEMU, "-name", "web1")
    fake_proc(machine.proc, os.getpid(), tids=[1001, 1002], start=100)
    assert machine.run("vm", "set", "web1", "pmu", A72, "affinity", "none").status == 0
    assert machine.run("vm", "release", "web1").status == 0
    vm.initialise()
    vm.run()
    assert "QEMU" in shown(machine, "web1")["means"]


# What is no VM


def test_probes_of_pmuctl_are_no_vms(machine: Machine) -> None:
    argv = ("/usr/bin/python3", "/usr/bin/pmuctl", "host", "info")
    with_vmm(machine, 6000, *argv, vcpus={0: "0-3"}, ran=0, comm="pmuctl")
    ran = machine.run("vm", "list", "-J")
    assert (json.loads(ran.stdout)["vms"], json.loads(ran.stdout)["scratch"]) == ([], 1)
    assert "1 scratch VM of pmuctl's own probes" in machine.run("vm", "list").stderr
    # whoever calls itself so and runs a guest hides nothing, nor does another user
    with_vmm(machine, 6001, *argv, vcpus={0: "0-3"}, comm="pmuctl")
    with_vmm(machine, 6002, *argv, vcpus={0: "0-3"}, ran=0, comm="pmuctl", uid=1001)
    assert [its["pid"] for its in listed(machine)] == [6001, 6002]
    assert shown(machine, "pid/6002")["state"] == "starting"


def test_a_vm_of_which_only_vcpus_are_open_is_one(machine: Machine) -> None:
    with_vmm(machine, 6000, QEMU, "-name", "db1")
    (machine.proc / "6000/fd/9").unlink()
    (its,) = listed(machine)
    assert (its["name"], its["vcpus"], its["state"]) == ("db1", 2, "running")
    # as one with a socket it is listed once
    machine.start(FakeVm())
    with_vmm(machine, os.getpid(), QEMU, has_names=False)
    (machine.proc / str(os.getpid()) / "fd/9").unlink()
    assert [its["name"] for its in listed(machine)] == ["db1", "web1"]
    assert machine.run("vm", "set", "web1", "pmu", A72).status == 0


def test_a_vm_whose_first_thread_has_no_descriptors_is_found_by_another(machine: Machine) -> None:
    with_vmm(machine, 6000, QEMU, "-name", "db1")
    folder = machine.proc / "6000"
    (folder / "fd").rename(folder / "task/6002/fd")
    for empty in (folder / "fd", folder / "task/6001/fd"):
        empty.mkdir()
    (its,) = listed(machine)
    assert (its["name"], its["vcpus"], its["vcpu_list"][0]["tid"]) == ("db1", 2, 6001)


def test_a_vm_of_a_thread_with_descriptors_of_its_own_is_one_that_kvm_tells_of(
    machine: Machine,
) -> None:
    with_vmm(machine, 6000, QEMU, "-name", "db1")
    folder = machine.proc / "6000"
    (folder / "fd").rename(folder / "task/6002/fd")
    (folder / "fd").mkdir()
    (folder / "fd/0").symlink_to("/dev/null")
    assert listed(machine) == []
    debugfs(machine, 6002, 9, {0: 6001})
    (machine.proc / "6002").mkdir()
    (machine.proc / "6002/status").write_text("Name:\tx\nTgid:\t6000\n")
    (its,) = listed(machine)
    assert (its["name"], its["vcpus"], its["vcpu_list"][0]["evidence"]) == ("db1", 2, "debugfs")


@pytest.mark.parametrize(
    "link",
    [
        "anon_inode:kvm-vcpu:",
        "anon_inode:kvm-vcpu-stats:0",
        "anon_inode:kvm-vm-stats",
        "anon_inode:kvm-vm (deleted)",
        "/tmp/anon_inode:kvm-vm",
        "anon_inode:[kvm-vm]",
    ],
)
def test_other_descriptors_are_no_vm(machine: Machine, link: str) -> None:
    fake_proc(machine.proc, 6000, holds_kvm=False, tids=[6000], start=1)
    (machine.proc / "6000/fd/4").symlink_to(link)
    assert listed(machine) == []


def test_statistics_are_no_vcpus(machine: Machine) -> None:
    with_vmm(machine, 6000, QEMU, vcpus={0: "0-3"})
    (machine.proc / "6000/fd/70").symlink_to("anon_inode:kvm-vcpu-stats:7")
    (its,) = listed(machine)
    assert its["vcpus"] == 1


def test_what_vanishes_during_the_scan_is_not_there(host: Machine) -> None:
    with_vmm(host, 6000, QEMU, "-name", "gone")
    (host.proc / "6000/stat").unlink()
    assert [its["name"] for its in listed(host)] == ["db1"]
    (host.proc / "5120/task/5122/stat").unlink()
    (host.proc / "5120/task/5122/comm").unlink()
    assert evidence(host) == [(5121, "name"), (None, None)]


def test_a_name_that_looks_like_another_vm_is_not_shown(machine: Machine) -> None:
    with_vmm(machine, 6000, QEMU, "-name", "pid/1")
    with_vmm(machine, 6001, QEMU, "-name", "a\x1b]0;owned\x07\nb")
    ran = machine.run("vm", "list", "-o", "NAME", "-n")
    assert ran.lines == [r"a\x1b]0;owned\x07\nb", "pid/6000"]


@pytest.mark.parametrize(
    "words",
    [
        ("affinity", "set", "pid/6000", "0-1", "--vcpu", "7"),
        ("affinity", "align", "pid/6000"),
        ("vm", "set", "pid/6000", "affinity", "auto"),
        ("doctor", "pid/6000", "-J"),
    ],
)
def test_a_command_to_paste_means_the_one_process(
    machine: Machine, words: tuple[str, ...]
) -> None:
    for name in ("web1", "--all", "db1;touch $(id -u)"):
        with_vmm(machine, 6000, QEMU, "-name", name)
        ran = machine.run(*words)
        if "-J" in words:
            fixes = [its["fix"] for its in json.loads(ran.stdout)["findings"]]
        else:
            fixes = [its[7:] for its in ran.stderr.splitlines() if its.startswith("  fix: ")]
        commands = [shlex.split(its) for its in fixes if its and "pmuctl" in its]
        assert commands, ran
        assert all("pid/6000" in its and name not in its for its in commands), ran


# Who may not look


@only_root("only root can make what it may not read")
def test_processes_that_may_not_be_read_are_counted(host: Machine) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom pmuctl.host.procfs import Procfs\n"
        "os.setgroups([])\nos.setresgid(4321, 4321, 4321)\nos.setresuid(4321, 4321, 4321)\n"
        "from pmuctl.host.kvm.process_scan import KvmScanner\n"
        "its = KvmScanner(Procfs(Path(sys.argv[1]))).scan()\n"
        "print(len(its.processes), its.unreadable)"
    )
    root = host.proc
    for folder in list(root.parents)[:-2]:
        folder.chmod(folder.stat().st_mode | 0o055)
    (host.proc / "5120/fd").chmod(0o700)
    (host.proc / str(os.getpid()) / "fd").chmod(0o755)
    argv = [sys.executable, "-P", "-c", code, str(root)]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ran.stdout == "0 1\n", ran


def test_what_there_was_no_time_for_is_told(host: Machine) -> None:
    fake_proc(host.proc, 7000, uid=1234)
    host.endless.add(7000)
    ran = host.run("vm", "list", "--deadline", "1")
    assert (ran.status, "db1" in ran.stdout) == (0, True)
    why = "for 1 process of uid 1234 there was no time: VMs of theirs are not seen"
    assert ran.stderr == f"{why}; --deadline SEC waits longer\n"
    assert json.loads(host.run("vm", "list", "-J", "--deadline", "1").stdout)["unscanned"] == 1
    # a check of all VMs has not been made of those
    ran = host.run("affinity", "check", "--deadline", "1")
    assert ran.status == 64
    assert ran.stderr.count(why) == 1
    assert f"  why: {why}\n  fix: --deadline SEC waits longer\n" in ran.stderr
    assert "WARN    for 1 process" in host.run("doctor", "--deadline", "1").stdout
    ran = host.run("vm", "wait", "x", "--for", "stopped", "--timeout", "0", "--deadline", "1")
    assert (ran.status, why in ran.stderr) == (3, True)
    assert host.run("vm", "show", "pid/5120", "--deadline", "1").status == 0


def test_a_user_is_told_what_is_missing(host: Machine) -> None:
    (host.proc / "7000").mkdir()
    host.unreadable.add(7000)
    # a kernel thread has no descriptors
    fake_proc(host.proc, 2, holds_kvm=False)
    (host.proc / "2/stat").write_text(f"2 (kthreadd) S 0 0 0 0 -1 2129984 {'0 ' * 30}\n")
    host.unreadable.add(2)
    ran = host.run("vm", "list")
    assert ran.status == 0
    assert ran.stderr == "1 process cannot be read: its VMs are not listed\n"
    assert host.run("vm", "list", "-q").stderr == ""
    assert json.loads(host.run("vm", "list", "-J").stdout)["unreadable"] == 1
    assert json.loads(host.run("vm", "vcpus", "-J").stdout)["unreadable"] == 1
    assert "other users' processes may not be read" in host.run("vm", "show", "x").stderr
    assert host.run("vm", "list", "db1").stderr == ""


def test_a_silent_socket_hides_no_vcpus(host: Machine) -> None:
    host.runtime.mkdir()
    fake_vmm(host.proc, os.getpid(), [QEMU, "-name", "web1"], vcpus={0: "0-3"})
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(host.runtime / "web1.sock"))
        silent.listen()
        vms = listed(host, "--deadline", "0.2")
    assert [(its["name"], its["state"], its["vcpus"]) for its in vms] == [
        *(("db1", "running", 2), ("web1", "silent", 1))
    ]


def test_a_silent_socket_takes_no_vms_place(host: Machine) -> None:
    # its pid has been given anew: that process is younger than the socket
    fake_vmm(host.proc, os.getpid(), [QEMU, "-name", "victim"], start=10**15)
    host.runtime.mkdir()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(host.runtime / "evil.sock"))
        silent.listen()
        vms = listed(host, "--deadline", "0.2")
        assert [its["name"] for its in listed(host, "victim", "--deadline", "0.2")] == ["victim"]
    assert [(its["name"], its["pid"], its["vcpus"]) for its in vms] == [
        *(("db1", 5120, 2), ("evil", None, None), ("victim", os.getpid(), 2))
    ]


# Another machine's


def test_a_snapshot_shows_the_vms_elsewhere(host: Machine, tmp_path: Path) -> None:
    with_vmm(host, 6000, "lkvm", "run", "--pmu", vcpus={0: "2-3"}, state="T")
    debugfs(host, 5120, 9, {0: 5122, 1: 5121})
    out = str(tmp_path / "out")
    live = [host.run("vm", *words) for words in LOOKS]
    assert host.run("host", "snapshot", out).status == 0
    host.start(FakeVm())
    for words, seen in zip(LOOKS, live, strict=True):
        ran = host.run("vm", *words, "--sysroot", out)
        told = ran.stderr.replace(f" --sysroot {out}", "")  # the fix is for the captured host
        assert (ran.status, ran.stdout, told) == (seen.status, seen.stdout, seen.stderr)
    for words in (
        ("set", "db1", "pmu", A72),
        ("release", "db1"),
        ("wait", "db1", "--for", "open"),
    ):
        ran = host.run("vm", *words, "--sysroot", out)
        assert (ran.status, ran.stdout) == (2, "")
    ran = host.run("vm", "list", "--sysroot", out, "--socket", "x")
    assert (ran.status, ran.stdout) == (2, "")


LOOKS = [
    *(
        ("list", "-o", CAPTURED),
        ("list", "-J", "-o", CAPTURED),
        ("vcpus", "-O"),
        ("vcpus", "db1", "-J"),
    ),
    *(("show", name, "-o", CAPTURED) for name in ("db1", "pid/6000", "nothing")),
]


def test_a_snapshot_of_a_snapshot_is_the_same(host: Machine, tmp_path: Path) -> None:
    debugfs(host, 5120, 9, {0: 5122, 1: 5121})
    host.unreadable.add(7000)
    (host.proc / "7000").mkdir()
    first, second = tmp_path / "first", tmp_path / "second"
    assert host.run("host", "snapshot", str(first)).status == 0
    ran = host.run("host", "snapshot", str(second), "--sysroot", str(first))
    assert ran.status == 0
    names = {its.relative_to(first) for its in first.rglob("*")}
    assert names == {its.relative_to(second) for its in second.rglob("*")}
    ran = host.run("vm", "list", "--sysroot", str(second))
    assert ran.stderr == "1 process cannot be read: its VMs are not listed\n"


def test_a_tree_without_processes_has_no_vms(machine: Machine) -> None:
    words = ("vm", "list", "--sysroot", str(machine.root))
    ran = machine.run(*words)
    missing = "not all processes of that host may be captured: it may have other VMs\n"
    assert (ran.status, ran.stdout, ran.stderr) == (0, "", f"no VM found\n{missing}")
    assert json.loads(machine.run(*words, "-J").stdout)["partial"] is True
    # the snapshot of a host on which no VM ran
    (machine.root / "proc").mkdir(exist_ok=True)
    (machine.root / "proc/pmuctl-unreadable").write_text("0\n")
    assert machine.run(*words).stderr == "no VM found\n"
    assert json.loads(machine.run(*words, "-J").stdout)["partial"] is False
