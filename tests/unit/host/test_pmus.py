# SPDX-License-Identifier: Apache-2.0
"""Discovery of PMUs and core models from captured and from hostile trees."""

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmuctl.host import udev
from pmuctl.host.cpus import read_online
from pmuctl.host.pmus import (
    Source,
    parse_event,
    scan_event_sources,
    scan_other,
    scan_pmus,
)
from pmuctl.host.sysfs import PATH_CPU, PATH_EVENT_SOURCE, Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.pmu import CoreModel, OtherPmu, Pmu
from tests.unit.host.cores import A55, A76, make_cpu

Dump = Callable[[str], Path]

NAME = "armv8_cortex_a76"


def make_pmu(root: Path, **files: str | bytes) -> Path:
    """A tree with one PMU; `events__x="…"` is the file events/x."""
    base = root / PATH_EVENT_SOURCE / NAME
    for name, content in ({"type": "8\n", "cpus": "0-1\n"} | files).items():
        path = base / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return base


def only_pmu(root: Path) -> Pmu:
    """The one PMU of a tree."""
    (pmu,) = scan_pmus(Sysfs(root))
    return pmu


@pytest.mark.parametrize(
    ("name", "types", "parents"),
    [
        ("two-pmus-6.1", (8, 9), ("", "")),
        ("two-pmus-6.12", (10, 11), ("/platform/pmu-0", "/platform/pmu-1")),
        ("two-pmus-7.3", (10, 11), ("/platform/pmu-0", "/platform/pmu-1")),
    ],
)
def test_two_pmus(dump: Dump, name: str, types: tuple[int, int], parents: tuple[str, str]) -> None:
    a53, a72 = scan_pmus(Sysfs(dump(name)))
    assert (a53.name, a72.name) == ("armv8_cortex_a53", "armv8_cortex_a72")
    assert (a53.type, a72.type) == types
    assert a53.path == f"/sys/devices{parents[0]}/armv8_cortex_a53"
    assert a72.path == f"/sys/devices{parents[1]}/armv8_cortex_a72"
    assert a53.cpus == a53.online == CpuSet.parse("0-1")
    assert a72.cpus == a72.online == CpuSet.parse("2-3")
    assert a53.events == {
        "cpu_cycles": 0x11,
        "stall": 0x3C,
        "stall_backend": 0x24,
        "stall_frontend": 0x23,
    }
    assert a53.formats["event"] == "config:0-15"
    assert ("threshold" in a53.formats) == ("threshold_max" in a53.caps) == (types[0] == 10)
    assert a53.caps["slots"] == "0x00000000"


def test_the_core_is_not_guessed_from_the_name(dump: Dump) -> None:
    # QEMU's "max" CPU has a MIDR of its own, whatever the device tree calls the PMU
    for pmu in scan_pmus(Sysfs(dump("two-pmus-7.3"))):
        assert pmu.cores == (CoreModel(implementer=0, part=0x51, name=None),)
        assert [core.name for core in pmu.cores] == [None]


def test_one_pmu(dump: Dump) -> None:
    pmu = only_pmu(dump("one-pmu"))
    assert (pmu.name, pmu.type, str(pmu.cpus)) == ("armv8_pmuv3", 10, "0-3")


def test_an_offline_cpu_is_covered_but_not_online(dump: Dump) -> None:
    a55, a76 = scan_pmus(Sysfs(dump("rk3588-like")))
    assert (str(a55.cpus), str(a55.online), a55.cores) == ("0-3", "0-3", (A55,))
    assert (str(a76.cpus), str(a76.online), a76.cores) == ("4-7", "4-6", (A76,))
    assert a76.events["inst_retired"] == 8


def test_what_is_no_cpu_pmu_is_known_as_such(dump: Dump) -> None:
    assert scan_other(Sysfs(dump("rk3588-like"))) == [
        OtherPmu(name="arm_cmn_0", type=8, cpumask=CpuSet.of([0])),
        OtherPmu(name="software", type=1, cpumask=None),
    ]


def test_apple_cores(dump: Dump) -> None:
    icestorm, firestorm = scan_pmus(Sysfs(dump("apple-m1-like")))
    assert icestorm.caps == {}
    assert icestorm.formats == {"event": "config:0-7"}
    assert icestorm.events == {"cycles": 0x02, "instructions": 0x8C}
    assert icestorm.cores == (CoreModel(implementer=0x61, part=0x22, name="Icestorm-M1"),)
    assert (firestorm.name, str(firestorm.cpus)) == ("apple_firestorm_pmu", "4-7")


def test_only_the_names_asked_for_are_read(dump: Dump) -> None:
    sysfs = Sysfs(dump("rk3588-like"))
    asked = [NAME, "software", "nothing", "../devices/software", "..", "", NAME]
    assert [pmu.name for pmu in scan_pmus(sysfs, asked)] == [NAME]
    assert [other.name for other in scan_other(sysfs, asked)] == ["software"]


def test_a_link_to_nothing_is_no_device(dump: Dump) -> None:
    sysfs = Sysfs(dump("one-pmu"))
    assert "kprobe" in scan_event_sources(sysfs).names
    assert [other.name for other in scan_other(sysfs)] == ["breakpoint", "software"]


def test_an_empty_tree_has_none(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path)
    assert scan_pmus(sysfs) == []
    assert scan_other(sysfs) == []
    assert read_online(sysfs) is None


def test_pmus_are_ordered_by_type_then_name(tmp_path: Path) -> None:
    for name, number in [("a", "10"), ("c", "9"), ("b", "9"), ("d", "?")]:
        base = tmp_path / PATH_EVENT_SOURCE / name
        base.mkdir(parents=True)
        (base / "type").write_text(number)
        (base / "cpus").touch()
    assert [pmu.name for pmu in scan_pmus(Sysfs(tmp_path))] == ["b", "c", "a", "d"]


def test_online_is_not_known_without_the_list(tmp_path: Path) -> None:
    make_pmu(tmp_path)
    make_cpu(tmp_path, 1, "0x00000000414fd0b0\n")
    make_cpu(tmp_path, 2, "0x00000000412fd050\n")
    pmu = only_pmu(tmp_path)
    assert pmu.cpus == CpuSet.of([0, 1])
    assert pmu.online is None
    assert pmu.cores == (A76,)


def test_no_cpu_online_leaves_no_core(tmp_path: Path) -> None:
    make_pmu(tmp_path)
    make_cpu(tmp_path, 1, "0x00000000414fd0b0\n")
    (tmp_path / PATH_CPU / "online").write_text("2-3\n")
    pmu = only_pmu(tmp_path)
    assert (pmu.online, pmu.cores) == (CpuSet(), ())


def test_one_pmu_may_cover_several_core_models(tmp_path: Path) -> None:
    make_pmu(tmp_path, cpus="0-3\n")
    for cpu, midr in enumerate(["0x414fd0b0", "0x412fd050", "0x413fd0b1", "0x412fd050"]):
        make_cpu(tmp_path, cpu, midr)
    assert only_pmu(tmp_path).cores == (A76, A55)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("event=0x0011\n", 0x11),
        ("event=0x4005", 0x4005),
        ("event=17", 17),
        ("config=0x11", 0x11),
        ("event=0x11,long=1", 0x11),
        ("long=1,event=0x11", 0x11),
        ("event=0xffff", 0xFFFF),
        ("event=0x10000", None),
        ("event=-1", None),
        ("event=", None),
        ("event", None),
        ("event=?", None),
        ("event=0x11,event=0x12", None),
        ("event=0x11,config=0x12", None),
        ("type=0x3,eventid=0x1", None),
        ("0x11", None),
        ("", None),
        ("event=0x11\x1b[0m", None),
        ("event=011", None),
        ("event=0x11 long=1", None),
    ],
)
def test_an_event_file_gives_its_number_or_nothing(text: str, code: int | None) -> None:
    assert parse_event(text) == code


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1" * 40, "2147483648", "8\x1b[0m", "8\n9", "\uff18", "8\0"]
)
def test_a_hostile_type_is_none(tmp_path: Path, text: str) -> None:
    make_pmu(tmp_path, type=text)
    assert only_pmu(tmp_path).type is None


@pytest.mark.parametrize("text", ["x", "-1", "0-99999", "3-0", "0-1\x1b", b"\xff", "0," * 99999])
def test_hostile_cpus_are_none_and_the_pmu_stays(tmp_path: Path, text: str | bytes) -> None:
    make_pmu(tmp_path, cpus=text)
    (tmp_path / PATH_CPU).mkdir(parents=True)
    (tmp_path / PATH_CPU / "online").write_text("0-3\n")
    pmu = only_pmu(tmp_path)
    assert (pmu.cpus, pmu.online, pmu.cores) == (None, None, ())


def test_hostile_texts_are_left_out(tmp_path: Path) -> None:
    base = make_pmu(
        tmp_path,
        events__good="event=0x11\n",
        events__bad="event=\x1b]0;owned\x07",
        events__huge="event=0x11," * 100_000,
        caps__good="0x00000008\n",
        caps__bad="\x1b[2J",
        caps__bytes=b"\xff\xfe",
        caps__lines="a\nb",
        format__huge="x" * 1_000_000,
        format__event="config:0-15\n",
    )
    (base / "events/\x1b[2J").write_text("event=0x12\n")
    (base / "events/ünïcode").write_text("event=0x12\n")
    (base / "events/dir").mkdir()
    (base / "caps/loop").symlink_to("loop")
    pmu = only_pmu(tmp_path)
    assert pmu.events == {"good": 0x11}
    assert pmu.caps == {"good": "0x00000008"}
    assert pmu.formats == {"event": "config:0-15"}


def test_hostile_names_are_left_out(tmp_path: Path) -> None:
    make_pmu(tmp_path)
    for name in "\x1b[2J", "a b", "\udcff", "\u202e":
        (tmp_path / PATH_EVENT_SOURCE / name).mkdir()
        (tmp_path / PATH_EVENT_SOURCE / name / "cpus").touch()
    assert scan_event_sources(Sysfs(tmp_path)).names == (NAME,)


def test_files_where_directories_belong_are_empty(tmp_path: Path) -> None:
    base = make_pmu(tmp_path, events="x", caps="x", format="x")
    (base / "type").unlink()
    (base / "type").mkdir()
    (tmp_path / PATH_EVENT_SOURCE / "file").touch()
    pmu = only_pmu(tmp_path)
    assert (pmu.type, pmu.events, pmu.caps, pmu.formats) == (None, {}, {}, {})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.binary(max_size=30), min_size=6, max_size=6))
def test_any_bytes_are_read_or_left_out(tmp_path: Path, contents: list[bytes]) -> None:
    names = ["type", "cpus", "events__e", "format__f", "caps__c"]
    make_pmu(tmp_path, **dict(zip(names, contents, strict=False)))
    (tmp_path / PATH_CPU).mkdir(parents=True, exist_ok=True)
    (tmp_path / PATH_CPU / "online").write_bytes(contents[5])
    pmu = only_pmu(tmp_path)
    texts = [*pmu.formats.values(), *pmu.caps.values()]
    assert all(text.isprintable() and text.encode() for text in texts if text)
    assert pmu.type is None or pmu.type >= 0
    assert all(0 <= code < 1 << 16 for code in pmu.events.values())


def failing(error: Exception) -> types.ModuleType:
    """A stand-in for pyudev whose Context() fails."""
    module = types.ModuleType("pyudev")

    def context() -> None:
        raise error

    module.__dict__["Context"] = context
    return module


@pytest.mark.parametrize(
    "module",
    [
        None,
        failing(ImportError("No library named udev")),
        failing(OSError("libudev.so.1: invalid ELF header")),
        failing(AttributeError("undefined symbol: udev_new")),
    ],
)
def test_without_udev_sysfs_is_walked(
    monkeypatch: pytest.MonkeyPatch, module: types.ModuleType | None
) -> None:
    # None in sys.modules makes the import raise ImportError
    monkeypatch.setitem(sys.modules, "pyudev", module)
    assert udev.list_event_sources() is None
    assert scan_event_sources(Sysfs()).source is Source.SYSFS


def test_a_captured_tree_is_never_asked_of_udev(dump: Dump) -> None:
    assert scan_event_sources(Sysfs(dump("one-pmu"))).source is Source.SYSFS
