# SPDX-License-Identifier: Apache-2.0
"""`host snapshot`: what it writes is what --sysroot reads, and it writes nowhere else."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pmuctl.host.snapshot_files import Captured, scan_captured, write_capture
from pmuctl.host.sysfs import Sysfs
from tests.conftest import DUMPS

NAMES = sorted(str(path.relative_to(DUMPS))[:-4] for path in DUMPS.rglob("*.txt"))
Dump = Callable[[str], Path]
EVENT_SOURCE = "sys/bus/event_source/devices"


def tree(root: Path) -> dict[str, str | bytes]:
    """All that is below a directory: the targets of links and the bytes of files."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_capture_of_a_capture_is_the_same(dump: Dump, tmp_path: Path, name: str) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    count = write_capture(scan_captured(Sysfs(dump(name))), first)
    assert write_capture(scan_captured(Sysfs(first)), second) == count
    assert tree(first) == tree(second)
    assert len(tree(first)) == count


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_captured_that_is_not_there(dump: Dump, name: str, tmp_path: Path) -> None:
    root = dump(name)
    write_capture(scan_captured(Sysfs(root)), tmp_path / "out")
    original = tree(root)
    for path, content in tree(tmp_path / "out").items():
        if isinstance(content, bytes):
            assert original[path] == content


def test_every_path_is_below_the_root(tmp_path: Path) -> None:
    """A link to the root makes the root's own files those of an event source."""
    root = tmp_path / "root"
    devices = root / EVENT_SOURCE
    devices.mkdir(parents=True)
    for name, target in {
        "root": "/",
        "up": "../../../../../../..",
        "here": ".",
        "events": "../../../../events",
        "self": "self",
        "outside": str(tmp_path / "secret"),
    }.items():
        (devices / name).symlink_to(target)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/type").write_text("outside\n")
    (root / "type").write_text("8\n")
    (root / "events").mkdir()
    (root / "events/a").write_text("event=0x11\n")
    files = list(scan_captured(Sysfs(root)))
    assert {its.path for its in files if not its.is_link} >= {"type", "events/a"}
    for its in files:
        assert not its.path.startswith("/")
        assert ".." not in its.path.split("/")
        assert "outside" not in its.text
        if its.is_link:
            end = os.path.normpath(f"/{EVENT_SOURCE}/{its.text}")
            assert os.path.relpath(end, f"/{EVENT_SOURCE}") == os.path.normpath(its.text)


def test_odd_names_and_bytes_come_through(tmp_path: Path) -> None:
    base = tmp_path / "root" / EVENT_SOURCE / "pmu"
    (base / "events").mkdir(parents=True)
    (base / "type").write_bytes(b"\xff\x00\x1b")
    (base / "events" / "\udcff\x1b").write_bytes(b"event=0x11\n")
    (base / "events" / "dir").mkdir()
    os.mkfifo(base / "cpus")
    write_capture(scan_captured(Sysfs(tmp_path / "root")), tmp_path / "out")
    assert tree(tmp_path / "out") == {
        f"{EVENT_SOURCE}/pmu/type": b"\xff\x00\x1b",
        f"{EVENT_SOURCE}/pmu/events/\udcff\x1b": b"event=0x11\n",
    }


@pytest.mark.parametrize("name", ["cpu\u0663", "cpu123456", "cpux", "cpu", "cpufreq"])
def test_only_cpus_are_captured_as_cpus(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "root/sys/devices/system/cpu" / name
    folder.mkdir(parents=True)
    (folder / "online").write_text("1\n")
    assert list(scan_captured(Sysfs(tmp_path / "root"))) == []


FILES = [
    Captured(path="sys/a/type", text="8\n"),
    Captured(path="sys/b", text="a", is_link=True),
]


def test_a_capture_is_laid_out_below_a_new_directory(tmp_path: Path) -> None:
    assert write_capture(FILES, tmp_path / "not/there/yet") == 2
    assert tree(tmp_path / "not/there/yet") == {"sys/a/type": b"8\n", "sys/b": "a"}


def test_an_empty_directory_will_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert write_capture(FILES, tmp_path / "empty") == 2


def test_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine\n")
    (tmp_path / "file").write_text("mine\n")
    before = tree(tmp_path)
    for name, why in ("full", "not empty"), ("file", "exists"), ("file/below", "Not a directory"):
        with pytest.raises(OSError, match=why):
            write_capture(FILES, tmp_path / name)
    assert tree(tmp_path) == before


def test_the_document_of_a_dump_can_be_made_from_a_capture(dump: Dump, tmp_path: Path) -> None:
    """A bug report is a dump: the lines of tests/dumps say no more than a capture holds."""
    root = dump("acpi-numbered")
    files = {its.path: its for its in scan_captured(Sysfs(root))}
    for line in (DUMPS / "acpi-numbered.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        path, kind, value = line.split("\t")
        if not path.endswith("/subsystem"):
            its = files[path.lstrip("/")]
            assert (its.is_link, its.text) == (kind == "link", json.loads(value))
