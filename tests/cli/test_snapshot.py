# SPDX-License-Identifier: Apache-2.0
"""`host snapshot` of a host with VMs: its tree tells of them what the host itself does.

What a tree cannot have is named here: where pmuctl itself has put vCPUs, and whether this user
may use KVM there. What control sockets tell is in test_snapshot_sockets.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from pmuctl.host.kvm.cache import to_captured
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.procfs import Procfs
from pmuctl.host.runtime_dirs import PATH_CAPTURED
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import DefaultPmu, KvmCaps
from tests.cli.conftest import Machine
from tests.fakes.vmm import fake_vmm

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
QEMU = ("qemu-system-aarch64", "-name", "db1")
SECRET = "22 1 8:1 /home/alice/secret /mnt rw - ext4 /dev/sda1 rw\n"
V2 = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = "31 23 0:27 / /sys/fs/cgroup/cpu\\040set rw - cgroup cgroup rw,cpuset\n"
COMMANDS = (
    ("vm", "list", "-O"),
    ("vm", "show", "db1", "-O"),
    ("vm", "show", "pid/6000", "-O"),
    ("vm", "vcpus", "-O"),
    ("affinity", "check", "-O"),
    ("doctor",),
    ("pmu", "list", "-O"),
    ("pmu", "cpus", "-O"),
)
KNOWN = KvmCaps(
    has_vpmu=True,
    attributes=frozenset(range(4)),
    counters={10: 6, 11: 4},
    event_bits=16,
    default=DefaultPmu.ONE,
    default_pmu=10,
)


@pytest.fixture
def host(machine: Machine) -> Machine:
    """A host whose KVM gives all VMs the PMU of CPUs 0-1, with a QEMU and another VMM."""
    machine.proc = machine.root / "proc"
    fake_vmm(machine.proc, 5120, QEMU, vcpus={0: "2-3", 1: "0-3"})
    fake_vmm(machine.proc, 6000, ("lkvm", "run"), vcpus={0: "0-1"})
    fake_vmm(machine.proc, 7000, ("secret", "password"), vcpus={})
    (machine.proc / "7000/fd/9").unlink()
    (machine.proc / "self").symlink_to("7000")
    for status in machine.proc.glob("*/task/*/status"):
        mask = status.read_text().partition("list:\t")[2]
        machine.masks[int(status.parent.name)] = CpuSet.parse(mask)
    write(machine, "sys/kernel/debug/kvm/5120-9/vcpu0/pid", "5122\n")
    write(machine, "sys/kernel/debug/kvm/5120-9/vcpu1/pid", "5121\n")
    write(machine, "proc/pmuctl-unreadable", "0\n")
    write(machine, PATH_CAPTURED, to_captured(KNOWN, scan_pmus(Sysfs(machine.root))))
    return machine


def write(machine: Machine, path: str, text: str) -> None:
    (machine.root / path).parent.mkdir(parents=True, exist_ok=True)
    (machine.root / path).write_text(text)


def confine(machine: Machine, cpus: str, *, version: int) -> str:
    """Put the QEMU's threads into a cpuset below one that allows no more; the latter's path."""
    write(machine, "proc/self/mountinfo", SECRET + (V2 if version == 2 else V1))
    root = "sys/fs/cgroup" if version == 2 else "sys/fs/cgroup/cpu set"
    effective = "cpus.effective" if version == 2 else "effective_cpus"
    for group, its, has in ("", "0-3", "0-3"), ("/m", cpus, cpus), ("/m/vm", "0-3", cpus):
        write(machine, f"{root}{group}/cpuset.cpus", f"{its}\n")
        write(machine, f"{root}{group}/cpuset.{effective}", f"{has}\n")
        write(machine, f"{root}{group}/cgroup.procs", "5120\n")
    line = "0::/m/vm\n" if version == 2 else "3:cpuset:/m/vm\n0::/x\n"
    for tid in range(5120, 5124):
        write(machine, f"proc/5120/task/{tid}/cgroup", line)
    return f"/{root}/m"


def told(machine: Machine, *words: str) -> tuple[int, Any, str]:
    ran = machine.run(*words, "-J")
    return ran.status, json.loads(ran.stdout), ran.stderr


@pytest.mark.parametrize("version", [2, 1])
def test_a_snapshot_tells_of_vms_what_the_host_tells(
    host: Machine, tmp_path: Path, version: int
) -> None:
    group = confine(host, "2-3", version=version)
    out, again = tmp_path / "out", tmp_path / "again"
    assert host.run("host", "snapshot", str(out)).status == 0
    assert host.run("host", "snapshot", str(again), "--sysroot", str(out)).status == 0
    for words in COMMANDS:
        live = told(host, *words)
        if words == ("doctor",):
            # where this user's control sockets are is asked of this machine only
            rows = live[1]["findings"]
            live[1]["findings"] = [its for its in rows if its["id"] != "host.runtime-dir"]
        for tree in (host.root, out, again):
            assert told(host, *words, "--sysroot", str(tree)) == live, words
    checked = told(host, "affinity", "check", "db1", "--sysroot", str(out))[1]["vcpus"]
    assert checked[1]["blocker"] == (f"the cpuset cgroup (v{version}) {group} allows only 2-3")
    listed = told(host, "vm", "list", "--sysroot", str(out))[1]["vms"]
    assert (listed[0]["pmu"], listed[0]["candidates"]) == (A53, [])


def test_doctor_answers_what_was_captured_of_kvm(host: Machine, tmp_path: Path) -> None:
    def seen() -> dict[str, str]:
        rows = told(host, "doctor", "--sysroot", str(tmp_path / "out"))[1]["findings"]
        return {its["id"]: its["result"] for its in rows}

    confine(host, "2-3", version=2)
    assert host.run("host", "snapshot", str(tmp_path / "out")).status == 0
    found = seen()
    assert {found[f"host.{its}"] for its in ("vpmu", "attributes", "debugfs")} == {"PASS"}
    assert found["vm.blocked"] == "FAIL"
    assert found.keys().isdisjoint({"host.kvm", "host.runtime-dir", "vm.socket"})
    (tmp_path / "out" / PATH_CAPTURED).unlink()
    assert seen().keys().isdisjoint({"host.vpmu", "host.attributes"})


def test_processes_that_could_not_be_looked_at_want_another_snapshot(
    host: Machine, tmp_path: Path
) -> None:
    host.unreadable = {7000}
    assert host.run("host", "snapshot", str(tmp_path / "out")).status == 0
    rows = told(host, "doctor", "--sysroot", str(tmp_path / "out"))[1]["findings"]
    (its,) = [row for row in rows if row["id"] == "host.processes"]
    assert (its["result"], its["fix"]) == ("WARN", "sudo pmuctl host snapshot DIR")


def test_processes_that_were_hidden_want_another_snapshot(
    host: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Procfs, "count_hidden", lambda _procs, _pids: (0, True))
    assert host.run("host", "snapshot", str(tmp_path / "out")).status == 0
    monkeypatch.undo()
    out, again = tmp_path / "out", tmp_path / "again"
    assert host.run("host", "snapshot", str(again), "--sysroot", str(out)).status == 0
    for tree in (out, again):
        rows = told(host, "doctor", "--sysroot", str(tree))[1]["findings"]
        (its,) = [row for row in rows if row["id"] == "host.processes"]
        assert (its["result"], its["fix"]) == ("WARN", "sudo pmuctl host snapshot DIR")
        assert told(host, "vm", "list", "--sysroot", str(tree))[1]["partial"] is True


def test_only_what_is_needed_is_captured(host: Machine, tmp_path: Path) -> None:
    confine(host, "2-3", version=2)
    out = tmp_path / "out"
    assert host.run("host", "snapshot", str(out)).status == 0
    assert (out / "proc/self/mountinfo").read_text() == V2
    assert not (out / "proc/7000").exists()
    assert {path.name for path in (out / "sys/fs/cgroup").rglob("*") if path.is_file()} == {
        *("cpuset.cpus", "cpuset.cpus.effective"),
    }
    for path in out.rglob("*"):
        assert path.is_symlink() or path.is_dir() or b"secret" not in path.read_bytes()


@pytest.mark.parametrize(
    "mount",
    [
        "30 23 0:26 / /sys/fs/../fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "30 23 0:26 / /../../etc rw - cgroup2 cgroup2 rw\n",
        "30 23 0:26 / /link rw - cgroup2 cgroup2 rw\n",
        "30 23 0:26 / sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "30 23 0:26 / / rw - cgroup2 cgroup2 rw\n",
        f"30 23 0:26 / /{'x' * 300} rw - cgroup2 cgroup2 rw\n",
        "30 23 0:26 / /sys/devices/platform/pmu-1 rw - cpuset none rw\n",
        "30 23 0:26 / /proc/5120 rw - cpuset none rw,noprefix\n",
    ],
)
def test_a_hostile_mount_leads_nowhere(host: Machine, tmp_path: Path, mount: str) -> None:
    confine(host, "2-3", version=2)
    (host.root / "link").symlink_to("sys/fs/cgroup")
    write(host, "proc/self/mountinfo", mount)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(host.root)}
    ran = host.run("host", "snapshot", str(tmp_path / "out"), "--sysroot", str(host.root))
    assert ran.status == 0, ran
    after = {path for path in tmp_path.rglob("*") if not path.is_relative_to(host.root)}
    assert all(path.is_relative_to(tmp_path / "out") for path in after - before)
    assert not list((tmp_path / "out").rglob("cpuset.*"))
    assert host.run("affinity", "check", "--sysroot", str(tmp_path / "out")).status == 1


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "{}", '{"key": null}', "[" * 100_000),
        '{"key": {"format": 1, "boot_id": null, "pmus": [10, 11]}}',
        '{"key": {"format": 1, "boot_id": null, "pmus": [10, 11]}, "probed": {"has_vpmu": true}}',
        to_captured(KNOWN, []),
        " " * 100_000 + "{}",
    ],
)
def test_probes_of_a_tree_that_are_none(host: Machine, text: str) -> None:
    write(host, PATH_CAPTURED, text)
    rows = told(host, "vm", "list", "--sysroot", str(host.root))[1]["vms"]
    assert [its["pmu"] for its in rows] == [None, None]


@pytest.mark.parametrize("bits", [-1, 1 << 40, True, "16", [1], 1.5])
def test_probes_with_odd_numbers_are_none(host: Machine, bits: object) -> None:
    document = json.loads((host.root / PATH_CAPTURED).read_text())
    for key, value in ("event_bits", bits), ("event_bits_of", {"10": bits}):
        odd = {**document, "probed": {**document["probed"], key: value}}
        write(host, PATH_CAPTURED, json.dumps(odd))
        rows = told(host, "pmu", "list", "-O", "--sysroot", str(host.root))[1]["pmus"]
        assert [its["counters"] for its in rows] == [None, None]


def test_check_is_of_one_machine(host: Machine) -> None:
    words = ("affinity", "check", "--sysroot", str(host.root), "--socket", "/x.sock")
    assert host.run(*words).status == 2
