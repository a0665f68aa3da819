# SPDX-License-Identifier: Apache-2.0
"""`pmuctl host` and `pmu cpus` on captured machines."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pmuctl.cli.main import main
from pmuctl.host.kvm.access import Kvm, KvmAccess
from pmuctl.host.kvm.cache import to_captured
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.runtime_dirs import PATH_CAPTURED
from pmuctl.host.sysfs import Sysfs
from pmuctl.manage.host_info import HostReport, explain_unknown
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import KvmCaps
from tests.cli.conftest import Machine, Ran
from tests.conftest import DUMPS
from tests.skips import skip

NAMES = sorted(str(path.relative_to(DUMPS))[:-4] for path in DUMPS.rglob("*.txt"))
Dump = Callable[[str], Path]


@pytest.mark.parametrize("name", NAMES)
def test_a_snapshot_shows_what_the_machine_shows(
    machine: Machine, dump: Dump, tmp_path: Path, name: str
) -> None:
    root = machine.root if name == machine.root.name else dump(name)
    out = tmp_path / "snapshot"
    ran = machine.run("host", "snapshot", str(out), "--sysroot", str(root))
    assert (ran.status, ran.stdout) == (0, "")
    assert f"--sysroot {out}" in ran.stderr
    pmus = [pmu.name for pmu in scan_pmus(Sysfs(root))]
    for words in (
        ("host", "info"),
        ("pmu", "list", "-O"),
        ("pmu", "list", "-J", "-O"),
        ("pmu", "cpus"),
        ("pmu", "show", "software"),
        *(("pmu", "show", its) for its in pmus),
    ):
        before = machine.run(*words, "--sysroot", str(root))
        after = machine.run(*words, "--sysroot", str(out))
        # a fix names the tree it is for
        stderr = after.stderr.replace(str(out), str(root))
        assert Ran(after.status, after.stdout, stderr) == before


def test_a_snapshot_is_of_this_machine_by_default(machine: Machine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert machine.run("host", "snapshot", str(out), "-q").stderr == ""
    listed = machine.run("pmu", "list")
    machine.root = out
    assert machine.run("pmu", "list") == listed


def test_a_snapshot_needs_a_new_or_empty_directory(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine\n")
    (tmp_path / "file").write_text("mine\n")
    for name, why in {
        "full": "not empty",
        "file": "File exists",
        "file/below": "Not a directory",
        "x" * 300: "too long",
    }.items():
        ran = machine.run("host", "snapshot", str(tmp_path / name))
        assert (ran.status, ran.stdout) == (9, "")
        assert "the capture could not be written" in ran.stderr
        assert why in ran.stderr
        assert "fix: name a new or empty directory" in ran.stderr
        assert (tmp_path / "file").read_text() == (tmp_path / "full/mine").read_text() == "mine\n"


def test_where_nobody_may_write_is_a_matter_of_permission(
    machine: Machine, tmp_path: Path
) -> None:
    if os.geteuid() == 0:
        target = Path("/sys/pmuctl-snapshot")  # EPERM for root, too
        if os.statvfs("/sys").f_flag & os.ST_RDONLY:
            skip(
                "/sys is read-only, and root may write everywhere else",
                runs="as an ordinary user, or where /sys may be written to",
            )
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        target = tmp_path / "closed/tree"
    ran = machine.run("host", "snapshot", str(target))
    assert (ran.status, ran.stdout) == (6, "")
    assert str(target) in ran.stderr


def test_a_snapshot_is_written_only_where_nobody_else_can(
    machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o775)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name, status, why in ("shared", 6, "others may write to it"), ("link", 9, "symbolic link"):
        ran = machine.run("host", "snapshot", str(tmp_path / name))
        assert (ran.status, ran.stdout) == (status, "")
        assert why in ran.stderr
        assert "fix: name a new or empty directory of your own" in ran.stderr
        assert list((tmp_path / name).iterdir()) == []


def test_a_snapshot_says_what_is_missing(machine: Machine) -> None:
    assert machine.run("host", "snapshot").status == 2
    assert machine.run("host", "snapshot", "a", "b").status == 2


def test_a_hostile_tree_writes_nothing_outside_the_snapshot(
    machine: Machine, dump: Dump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = dump("odd/hostile")
    monkeypatch.chdir(tmp_path)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(root)}
    ran = machine.run("host", "snapshot", "out", "--sysroot", str(root))
    assert ran.status == 0
    after = {path for path in tmp_path.rglob("*") if not path.is_relative_to(root)}
    out = tmp_path / "out"
    assert all(path.is_relative_to(out) for path in after - before)
    assert (out / "type").read_text() == "3\n"
    assert not any(
        os.path.realpath(path).startswith("/etc") for path in after - before if path.is_symlink()
    )


def test_host_info_of_a_captured_tree_leaves_open_what_only_kvm_knows(machine: Machine) -> None:
    host = json.loads(machine.run("host", "info", "-J").stdout)["host"]
    assert host["pmus"] == ["armv8_cortex_a53", "armv8_cortex_a72"]
    assert host["cpus"] == host["online"] == [0, 1, 2, 3]
    told = {"kernel", "cpus", "online", "pmus", "core_list"}
    assert {host[key] for key in host.keys() - told} == {None}
    assert machine.run("host", "info", "-o", "pmus,cpus").lines == [
        "PMUS  armv8_cortex_a53,armv8_cortex_a72",
        "CPUS  0-3",
    ]


def test_host_info_says_once_why_it_does_not_know_and_what_to_type(
    machine: Machine, dump: Callable[[str], Path]
) -> None:
    ran = machine.run("host", "info")
    why = "what KVM does is not known: no probe of KVM was captured; on that host: sudo pmuctl"
    assert ran.stderr == f"{why} host snapshot DIR\n"
    for words in ("-J", "-q", "-o cpus,pmus", "--format csv"):
        assert machine.run("host", "info", *words.split()).stderr == ""
    captured = machine.root / PATH_CAPTURED
    captured.parent.mkdir(parents=True, exist_ok=True)
    found = KvmCaps(has_vpmu=True, counters={10: 6, 11: 4}, event_bits=16, attributes=frozenset())
    captured.write_text(to_captured(found, scan_pmus(Sysfs(machine.root))))
    ran = machine.run("host", "info")
    assert ran.stderr == (
        "KVM and KVM-MODE are not captured; to see them, on that host: pmuctl host info\n"
    )


@pytest.mark.parametrize(
    ("access", "why"),
    [
        (KvmAccess.DENIED, "this user may not open /dev/kvm; as root: sudo pmuctl host info"),
        (KvmAccess.MISSING, "there is no /dev/kvm"),
    ],
)
def test_why_kvm_was_not_asked_is_told_by_what_may_be_done(access: KvmAccess, why: str) -> None:
    report = HostReport(
        kernel=None,
        kvm=access,
        mode=None,
        present=CpuSet(),
        online=None,
        cores={},
        pmus=(),
        are_pmus_complete=True,
        probed=None,
    )
    assert explain_unknown(report, is_live=True) == f"what KVM does is not known: {why}"


def test_a_capability_that_is_none_is_a_usage_error(machine: Machine) -> None:
    ran = machine.run("host", "capabilities", "SET_NOTHING")
    assert ran.status == 2
    assert "SET_PMU" in ran.stderr


@pytest.mark.parametrize(
    ("access", "caps", "status", "why"),
    [
        (KvmAccess.MISSING, KvmCaps(has_vpmu=None), 7, "no /dev/kvm"),
        (KvmAccess.DENIED, KvmCaps(has_vpmu=None), 6, "may not be opened by this user"),
        (KvmAccess.USABLE, KvmCaps(has_vpmu=False), 7, "guests can have no PMU here"),
    ],
)
def test_capabilities_without_a_vpmu_are_unsupported(
    machine: Machine, access: KvmAccess, caps: KvmCaps, status: int, why: str
) -> None:
    kvm = Kvm(access=lambda: access, group=lambda: None, probe=lambda _: caps)
    for words in ((), ("SET_PMU",), ("kvm_arm_vcpu_pmu_v3_filter",)):
        out, err = io.StringIO(), io.StringIO()
        argv = ("host", "capabilities", *words)
        assert (main(argv, machine.env(out, err, kvm=kvm)), out.getvalue()) == (status, "")
        assert why in err.getvalue()


def test_pmu_cpus_shows_those_that_are_named(machine: Machine) -> None:
    rows = json.loads(machine.run("pmu", "cpus", "2,0", "-J").stdout)["cpus"]
    assert [(row["cpu"], row["pmu"]) for row in rows] == [
        (0, "armv8_cortex_a53"),
        (2, "armv8_cortex_a72"),
    ]


@pytest.mark.parametrize(
    ("text", "status", "told"),
    [
        ("4", 4, "there is no CPU 4"),
        ("0-9", 4, "there is no CPU 4-9"),
        ("", 2, "not a list of CPUs"),
        ("x", 2, "not a list of CPUs"),
        ("3-1", 2, "not a list of CPUs"),
        ("0-65536", 2, "not a list of CPUs"),
    ],
)
def test_pmu_cpus_refuses_what_is_no_cpu(
    machine: Machine, text: str, status: int, told: str
) -> None:
    ran = machine.run("pmu", "cpus", text)
    assert (ran.status, ran.stdout) == (status, "")
    assert told in ran.stderr


def test_a_cpu_without_a_pmu_says_so(machine: Machine) -> None:
    cpus = machine.root / "sys/devices/platform/pmu-1/armv8_cortex_a72/cpus"
    cpus.write_text("2\n")
    rows = json.loads(machine.run("pmu", "cpus", "-J").stdout)["cpus"]
    assert [row["pmu"] for row in rows] == ["armv8_cortex_a53"] * 2 + ["armv8_cortex_a72", None]
    assert machine.run("pmu", "cpus", "3", "-n").lines[0].split()[1] == "-"
