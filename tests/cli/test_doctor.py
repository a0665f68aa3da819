# SPDX-License-Identifier: Apache-2.0
"""`pmuctl doctor`: the findings of a host and its VMs, and what messages mean."""

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pmuctl.cli.main import main
from pmuctl.host.kvm.access import Kvm, KvmAccess
from pmuctl.host.mounts import PATH_MOUNTS
from pmuctl.host.sysfs import TEXT_LIMIT, Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import DefaultPmu, KvmCaps
from tests.cli.conftest import Machine
from tests.cli.host_cpus import put_cpuset, put_online
from tests.fakes.vmm import FakeVm, KernelThreads, fake_vmm

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"


def findings(machine: Machine, *words: str, status: int = 0) -> dict[str, dict[str, Any]]:
    """The findings by id and, where that is of another subject, by id and subject."""
    ran = machine.run("doctor", *words, "-J", uid=os.getuid())
    assert ran.status == status, ran
    rows = json.loads(ran.stdout)["findings"]
    return {**{f"{its['id']} {its['subject']}": its for its in rows}}


@pytest.fixture
def host(machine: Machine) -> Machine:
    """A host with a VM that has run on CPUs 2-3, where its PMU is."""
    vm = machine.start(FakeVm("web1"))
    machine.threads = KernelThreads(vm.threads.masks)
    assert machine.run("vm", "set", "web1", "pmu", A72).status == 0
    assert machine.run("vm", "release", "web1").status == 0
    vm.initialise()
    vm.run()
    set_mask(machine, "2-3")
    return machine


def set_mask(machine: Machine, mask: str, *tids: int) -> None:
    assert machine.threads is not None
    for tid in tids or (1001, 1002):
        machine.threads.masks[tid] = CpuSet.parse(mask)


def test_a_host_and_a_vm_that_are_well(host: Machine) -> None:
    found = findings(host)
    assert {its["result"] for its in found.values()} == {"PASS"}
    assert list(found) == [
        *("host.pmus host", f"host.pmu-online {A53}", f"host.pmu-online {A72}"),
        *(f"host.runtime-dir {host.runtime}", "host.processes host"),
        *("vm.socket web1", "vm.window web1", "vm.pmu-online web1", "vm.aligned web1"),
    ]


def test_only_the_vms_that_are_named(host: Machine) -> None:
    found = findings(host, "web1")
    assert {its["subject"] for its in found.values()} == {"web1"}
    ran = host.run("doctor", "nothing")
    assert (ran.status, ran.stdout) == (4, "")


def test_a_widened_mask_is_a_fail_that_names_the_spin(host: Machine) -> None:
    set_mask(host, "0-3", 1002)
    its = findings(host, status=1)["vm.aligned web1"]
    assert (its["result"], its["fix"]) == ("FAIL", "pmuctl affinity align web1")
    assert "vCPU 1 may run on CPUs 0-1" in its["why"]
    assert "KVM_EXIT_FAIL_ENTRY" in its["why"]
    assert "QEMU spins at 100 %" in its["why"]
    assert host.run(*its["fix"].split()[1:]).status == 0
    assert findings(host)["vm.aligned web1"]["result"] == "PASS"


def test_a_default_pmu_is_a_warning(machine: Machine) -> None:
    fake_vmm(machine.proc, 5120, ("qemu-system-aarch64", "-name", "db1"))
    machine.masks = dict.fromkeys(range(5120, 5124), CpuSet.parse("0-3"))
    its = findings(machine)["vm.aligned db1"]
    assert its["result"] == "WARN"
    assert "counters stop there silently" in its["why"]


def test_a_cpuset_in_the_way(host: Machine) -> None:
    path = put_cpuset(host, "0-1", 1001, 1002)
    set_mask(host, "0-1")
    found = findings(host, "web1", status=1)
    assert f"{path} allows only 0-1" in found["vm.blocked web1"]["why"]
    assert found["vm.blocked web1"]["fix"] == f"echo 0-3 >{path}/cpuset.cpus"
    fix = f"echo 0-3 >{path}/cpuset.cpus && pmuctl affinity align web1"
    assert found["vm.aligned web1"]["fix"] == fix


def test_the_last_cpu_of_its_pmu(host: Machine) -> None:
    put_online(host, "0-1")
    found = findings(host, status=1)
    assert found["vm.pmu-online web1"]["result"] == "FAIL"
    assert found[f"host.pmu-online {A72}"]["result"] == "WARN"
    its = found["vm.aligned web1"]
    assert its["result"] == "FAIL"
    online = "echo 1 >/sys/devices/system/cpu/cpu2/online && "
    assert its["fix"] == f"{online}pmuctl affinity align web1"
    assert "vm.blocked web1" not in found


@pytest.mark.parametrize(
    ("words", "vcpus", "has_pmus", "why"),
    [
        (("-cpu", "host,pmu=off"), {0: "0-3"}, True, "it has no PMU: its VMM made it without one"),
        ((), {0: "0-3"}, False, "it has no PMU: this host has no CPU PMU"),
        ((), {}, True, "it has no PMU yet: none of its vCPUs is made"),
    ],
)
def test_why_no_check_applies(
    machine: Machine, words: tuple[str, ...], vcpus: dict[int, str], *, has_pmus: bool, why: str
) -> None:
    argv = ("qemu-system-aarch64", "-name", "db1", *words)
    fake_vmm(machine.proc, 5120, argv, vcpus=vcpus)
    machine.masks = dict.fromkeys(range(5120, 5124), CpuSet.parse("0-3"))
    if not has_pmus:
        for name in (A53, A72):
            (machine.root / "sys/bus/event_source/devices" / name).unlink()
    ran = machine.run("doctor", "db1")
    assert (ran.status, ran.stdout) == (0, "")
    assert ran.stderr == f"nothing to check\ndb1: no check applies: {why}\n"
    assert "no check" not in machine.run("doctor").stderr


@contextmanager
def ticking(machine: Machine, tid: int, *, guest: int) -> Iterator[None]:
    """A thread that takes all of a CPU, and these clock ticks of it in its guest."""
    stat = machine.proc / str(os.getpid()) / "task" / str(tid) / "stat"
    is_over = threading.Event()

    def write(ticks: int) -> None:
        fields = ["R", *["0"] * 10, str(ticks), "0", *["0"] * 27, str(min(ticks, guest)), "0"]
        new = stat.with_name("stat.new")
        new.write_text(f"{tid} (CPU 0/KVM) {' '.join(fields)}\n")
        new.rename(stat)

    def tick() -> None:
        began = time.monotonic()
        while not is_over.wait(0.01):
            write(1 + int((time.monotonic() - began) * 100))

    write(1)
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_a_thread_that_spins_is_found(host: Machine) -> None:
    set_mask(host, "0-3", 1001)
    with ticking(host, 1001, guest=0):
        its = findings(host, "web1", status=1)["vm.spinning web1"]
    assert (its["result"], its["fix"]) == ("FAIL", "pmuctl affinity align web1")
    assert "and runs no guest" in its["why"]
    with ticking(host, 1001, guest=10**9):
        assert findings(host, "web1", status=1)["vm.spinning web1"]["result"] == "PASS"


def test_a_window_that_is_held_for_long(machine: Machine) -> None:
    machine.start(FakeVm("new1"))
    pid = os.getpid()
    fields = ["S", *["0"] * 18, "1000", *["0"] * 30]
    (machine.proc / str(pid) / "stat").write_text(f"{pid} (x) {' '.join(fields)}\n")
    (machine.proc / "uptime").write_text("70.00 100.00\n")
    assert findings(machine)["vm.window new1"]["result"] == "PASS"
    (machine.proc / "uptime").write_text("4210.00 100.00\n")
    its = findings(machine)["vm.window new1"]
    assert (its["result"], its["fix"]) == ("WARN", "pmuctl vm release new1")
    assert "70 min" in its["why"]


def test_a_dead_socket(host: Machine) -> None:
    path = host.runtime / "old1.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    its = findings(host)["vm.socket old1"]
    assert (its["result"], its["fix"]) == ("WARN", f"rm {path}")


def test_a_runtime_directory_of_all(host: Machine) -> None:
    host.runtime.chmod(0o777)
    its = findings(host)[f"host.runtime-dir {host.runtime}"]
    assert (its["result"], its["fix"]) == ("WARN", f"chmod go-w {host.runtime}")


def test_processes_that_may_not_be_read(host: Machine) -> None:
    fake_vmm(host.proc, 5120)
    host.unreadable = {5120}
    its = findings(host)["host.processes host"]
    assert its["result"] == "WARN"


@pytest.mark.parametrize(
    ("access", "probed", "results"),
    [
        (KvmAccess.MISSING, KvmCaps(has_vpmu=None), {"host.kvm": "FAIL"}),
        (KvmAccess.DENIED, KvmCaps(has_vpmu=None), {"host.kvm": "WARN"}),
        (
            KvmAccess.USABLE,
            KvmCaps(has_vpmu=False),
            {"host.kvm": "PASS", "host.vpmu": "FAIL"},
        ),
        (
            KvmAccess.USABLE,
            KvmCaps(has_vpmu=True, attributes=frozenset({0, 1, 2, 3})),
            {"host.kvm": "PASS", "host.vpmu": "PASS", "host.attributes": "PASS"},
        ),
    ],
)
def test_kvm(
    machine: Machine, access: KvmAccess, probed: KvmCaps, results: dict[str, str], tmp_path: Path
) -> None:
    out, err = open(tmp_path / "out", "w+"), open(tmp_path / "err", "w+")
    with out, err:
        kvm = Kvm(access=lambda: access, probe=lambda _: probed)
        env = machine.env(out, err, kvm=kvm)
        status = main(["doctor", "--format", "jsonl"], env)
        out.seek(0)
        rows = [json.loads(line) for line in out]
    seen = {its["id"]: its["result"] for its in rows}
    ids = ("host.kvm", "host.vpmu", "host.attributes")
    assert {id: seen[id] for id in ids if id in seen} == results
    assert status == (1 if "FAIL" in results.values() else 0)


def test_who_may_not_open_kvm_is_told_which_group_may(machine: Machine, tmp_path: Path) -> None:
    with open(tmp_path / "out", "w+") as out, open(tmp_path / "err", "w+") as err:
        kvm = Kvm(access=lambda: KvmAccess.DENIED, group=lambda: "virt")
        env = machine.env(out, err, kvm=kvm)
        assert main(["doctor", "--format", "jsonl"], env) == 0
        out.seek(0)
        found = {its["id"]: its for its in map(json.loads, out)}
    assert found["host.kvm"]["fix"] == "usermod -aG virt USER"


def test_what_a_probe_finds_is_known_of_vms_too(machine: Machine, tmp_path: Path) -> None:
    """Also where it cannot be kept: this machine has no boot id."""
    fake_vmm(machine.proc, 5120, ("qemu-system-aarch64", "-name", "db1"))
    machine.masks = dict.fromkeys(range(5120, 5124), CpuSet.parse("0-3"))
    probed = KvmCaps(
        has_vpmu=True, counters={10: 6, 11: 6}, default=DefaultPmu.ONE, default_pmu=10
    )
    kvm = Kvm(access=lambda: KvmAccess.USABLE, probe=lambda _: probed)
    with open(tmp_path / "out", "w+") as out, open(tmp_path / "err", "w+") as err:
        env = machine.env(out, err, kvm=kvm)
        assert main(["doctor", "db1", "--format", "jsonl"], env) == 0
        out.seek(0)
        found = {its["id"]: its for its in map(json.loads, out)}
    assert found["vm.aligned"]["why"].startswith(
        f"vCPUs 0-1 may run on CPUs 2-3, outside {A53} (0-1): "
    )


class Counting(Sysfs):
    """It counts how often each file is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: Counter[str] = Counter()

    def read_text(self, path: str, *, limit: int = TEXT_LIMIT) -> str | None:
        self.reads[path] += 1
        return super().read_text(path, limit=limit)


def test_mounts_are_read_once_and_only_where_a_vcpu_strays(host: Machine) -> None:
    put_cpuset(host, "0-1", 1001, 1002)

    def reads() -> int:
        sysfs = Counting(host.root)
        with open(os.devnull, "w") as out:
            main(["doctor"], host.env(out, out, sysfs=sysfs))
        return sysfs.reads[PATH_MOUNTS]

    assert reads() == 0
    set_mask(host, "0-1")
    assert reads() == 1


def test_another_machines_tree(host: Machine, dump: Callable[[str], Path]) -> None:
    ran = host.run("doctor", "--sysroot", str(dump("rk3588-like")), "-o", "ID,RESULT", "-n")
    assert (ran.status, ran.stderr) == (0, "fixes are for the host that was captured\n")
    assert {tuple(line.split()) for line in ran.lines} == {
        *(("host.pmus", "PASS"), ("host.pmu-online", "PASS"), ("host.processes", "WARN")),
    }
    ran = host.run("doctor", "--sysroot", str(host.root), "--socket", "/x.sock")
    assert ran.status == 2


def test_nothing_is_changed(host: Machine) -> None:
    set_mask(host, "0-3")
    assert host.run("doctor").status == 1
    assert isinstance(host.threads, KernelThreads)
    assert host.threads.calls == []


# --- symptoms ---


def test_a_message_is_explained_in_full(machine: Machine) -> None:
    ran = machine.run("doctor", "--symptom", "[ERROR] vcpu hw run failure: 0x1")
    assert (ran.status, ran.stderr) == (0, "")
    assert [line.split()[0] for line in ran.lines] == [
        *("SYMPTOM", "SEEN", "BY", "MEANS", "CHECK", "FIX"),
    ]
    assert "KVM_EXIT_FAIL_ENTRY" in ran.stdout


def test_several_answers(machine: Machine) -> None:
    ran = machine.run("doctor", "--symptom", "qemu", "-J")
    document = json.loads(ran.stdout)
    assert [its["symptom"] for its in document["symptoms"]] == [
        *("qemu-init-vcpu", "qemu-spins", "qemu-cpu-model"),
        *("qemu-without-kvm", "proxmox-start-failed"),
    ]
    records = machine.run("doctor", "--symptom", "qemu").stdout
    assert records.count("\n\n") == 4


def test_the_likeliest_answer_on_this_host_is_the_first(
    machine: Machine, dump: Callable[[str], Path]
) -> None:
    def answers(root: Path, kernel: str) -> list[dict[str, str]]:
        (root / "proc/sys/kernel").mkdir(parents=True, exist_ok=True)
        (root / "proc/sys/kernel/osrelease").write_text(f"{kernel}\n")
        text = "qemu-kvm: kvm_init_vcpu: kvm_arch_init_vcpu failed (0): Invalid argument"
        ran = machine.run("doctor", "--sysroot", str(root), "--symptom", text, "-J")
        assert ran.status == 0
        found: list[dict[str, str]] = json.loads(ran.stdout)["symptoms"]
        return found

    big_little = answers(machine.root, "6.12.9-arm64")
    assert big_little[0]["symptom"] == "qemu-init-vcpu"
    assert big_little[0]["fix"] == f"pmuctl run --pmu {A72} -- qemu-system-aarch64 ARG..."
    vendor = answers(dump("two-pmus-6.1"), "6.1.75-vendor")
    assert vendor[0]["symptom"] == "cache-registers"
    server = answers(dump("one-pmu"), "6.12.9-arm64")
    assert server[0]["symptom"] == "qemu-cpu-model"
    assert server[-1]["symptom"] == "qemu-init-vcpu"
    old = answers(dump("rk3588-like"), "5.10.160-rockchip-rk3588")
    assert old[0]["fix"].startswith("taskset -c ")


def test_a_host_of_which_nothing_is_known_still_gets_an_answer(
    machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "empty/sys").mkdir(parents=True)
    ran = machine.run(
        *("doctor", "--sysroot", str(tmp_path / "empty")),
        *("--symptom", "kvm_init_vcpu failed", "-o", "SYMPTOM,FIX", "-n"),
    )
    assert (ran.status, ran.lines[0].split()[0]) == (0, "qemu-init-vcpu")
    assert "pmuctl run --pmu PMU -- qemu-system-aarch64 ARG..." in ran.stdout


def test_a_message_that_nobody_knows(machine: Machine) -> None:
    ran = machine.run("doctor", "--symptom", "disk full")
    assert (ran.status, ran.stdout) == (4, "")
    assert ran.stderr.startswith("error: disk full: no known symptom matches\n  why: ")
    assert ran.stderr.endswith("  fix: pmuctl doctor\n")
    log = machine.run("doctor", "--symptom", "Dec 01 host systemd[1]: a disk is full\n" * 40)
    assert (log.status, len(log.stderr.splitlines())) == (4, 3)
    assert all(len(line) < 120 for line in log.stderr.splitlines())
    assert machine.run("doctor", "--symptom", "").status == 2
    assert machine.run("doctor", "web1", "--symptom", "qemu").status == 2


@pytest.mark.parametrize("option", [(), ("--symptom",)])
def test_a_message_without_quotes_or_option_leads_to_the_option(
    machine: Machine, option: tuple[str, ...]
) -> None:
    ran = machine.run("doctor", *option, "kvm_init_vcpu", "failed")
    assert (ran.status, ran.stdout) == (2 if option else 4, "")
    assert ran.stderr.endswith("  fix: pmuctl doctor --symptom 'kvm_init_vcpu failed'\n")


def test_two_vms_of_one_name_are_two_subjects(machine: Machine) -> None:
    for pid in (5120, 6120):
        fake_vmm(machine.proc, pid, ("qemu-system-aarch64", "-name", "dup"))
    rows = json.loads(machine.run("doctor", "-J").stdout)["findings"]
    subjects = {row["subject"] for row in rows if row["id"].startswith("vm.")}
    assert subjects == {"dup (pid/5120)", "dup (pid/6120)"}
