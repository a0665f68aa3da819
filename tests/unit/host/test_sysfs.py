# SPDX-License-Identifier: Apache-2.0
"""Reading through a root: what a captured tree may hold, and that nothing outside it is read."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmuctl.host.sysfs import LINK_LIMIT, TEXT_LIMIT, Sysfs, parse_number
from pmuctl.model.cpuset import CpuSet
from tests.skips import only_users

SHARED_TREE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty root with a secret beside it, which no path may reach."""
    (tmp_path / "secret").write_text("outside\n")
    root = tmp_path / "root"
    root.mkdir()
    return root


def test_a_file_is_read(root: Path) -> None:
    (root / "a").mkdir()
    (root / "a/text").write_text("8\n")
    sysfs = Sysfs(root)
    assert sysfs.read_text("a/text") == "8\n"
    assert sysfs.read_text("/a/text") == "8\n"
    assert sysfs.read_int("a/text") == 8
    assert sysfs.read_cpuset("a/text") == CpuSet.of([8])
    assert sysfs.entries("a") == ["text"]
    assert sysfs.resolve("a/text") == "/a/text"


@pytest.mark.parametrize("path", ["nothing", "a/b/c", "dir", "", ".", "..", "nul\0", "x" * 300])
def test_what_is_no_file_reads_as_none(root: Path, path: str) -> None:
    (root / "dir").mkdir()
    sysfs = Sysfs(root)
    assert sysfs.read_text(path) is None
    assert sysfs.read_int(path) is None
    assert sysfs.read_cpuset(path) is None


def test_entries_of_what_is_no_directory_are_none(root: Path) -> None:
    (root / "file").touch()
    assert Sysfs(root).entries("file") == []
    assert Sysfs(root).entries("nothing") == []
    assert Sysfs(root / "nothing").entries("") == []


def test_a_read_error_is_none() -> None:
    # like power/autosuspend_delay_ms: there, regular, readable by its mode, and EIO
    assert "mem" in Sysfs().entries("proc/self")
    assert Sysfs().read_text("proc/self/mem") is None


@only_users("root may read everything")
def test_a_file_without_permission_is_none(root: Path) -> None:
    (root / "file").touch(mode=0)
    assert Sysfs(root).read_text("file") is None


def test_only_the_true_root_is_live(root: Path) -> None:
    assert Sysfs().is_live
    assert not Sysfs(root).is_live
    (root / "link").symlink_to("/")
    assert Sysfs(root / "link").is_live


def test_a_live_path_is_followed() -> None:
    assert Sysfs().read_text("proc/self/comm") == Path("/proc/self/comm").read_text()
    assert Sysfs().resolve("proc/self") == f"/proc/{os.getpid()}"
    assert Sysfs().resolve("proc/nothing") is None


@pytest.mark.parametrize(
    "target",
    ["/secret", "../secret", "../../../../secret", "/../secret", "d/../../secret", "up/secret"],
)
def test_links_stay_inside_the_root(root: Path, target: str) -> None:
    (root / "d").mkdir()
    (root / "up").symlink_to("..")
    (root / "link").symlink_to(target)
    sysfs = Sysfs(root)
    assert sysfs.read_text("link") is None
    (root / "secret").write_text("inside\n")
    assert sysfs.read_text("link") == "inside\n"
    assert sysfs.resolve("link") == "/secret"


def test_a_climbing_path_stays_inside_the_root(root: Path) -> None:
    assert Sysfs(root).read_text("../secret") is None
    assert Sysfs(root).entries("../..") == Sysfs(root).entries("")


def test_an_absolute_link_names_a_place_in_the_root(root: Path) -> None:
    (root / "etc").symlink_to("/etc")
    (root / "host").symlink_to(root.parent)
    sysfs = Sysfs(root)
    assert sysfs.read_text("etc/passwd") is None
    assert sysfs.entries("etc") == []
    assert sysfs.read_text("host/secret") is None
    assert sysfs.resolve("etc") is None


def test_an_absolute_link_starts_at_the_root_again(root: Path) -> None:
    (root / "a/b").mkdir(parents=True)
    (root / "a/text").write_text("wrong\n")
    (root / "text").write_text("right\n")
    (root / "a/b/link").symlink_to("/text")
    assert Sysfs(root).read_text("a/b/link") == "right\n"
    assert Sysfs(root).resolve("a/b/link") == "/text"


def test_relative_links_lead_as_on_the_machine(root: Path) -> None:
    (root / "sys/bus/devices").mkdir(parents=True)
    (root / "sys/devices/pmu").mkdir(parents=True)
    (root / "sys/devices/pmu/type").write_text("8\n")
    (root / "sys/bus/devices/pmu").symlink_to("../../devices/pmu")
    sysfs = Sysfs(root)
    assert sysfs.read_int("sys/bus/devices/pmu/type") == 8
    assert sysfs.entries("sys/bus/devices/pmu") == ["type"]
    assert sysfs.resolve("sys/bus/devices/pmu") == "/sys/devices/pmu"


def test_link_loops_end(root: Path) -> None:
    (root / "self").symlink_to("self")
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a/x")
    (root / "here").symlink_to(".")
    sysfs = Sysfs(root)
    for path in "self", "self/x", "a", "b":
        assert sysfs.read_text(path) is None
        assert sysfs.entries(path) == []
        assert sysfs.resolve(path) is None
    assert sysfs.entries("/".join(["here"] * LINK_LIMIT)) == ["a", "b", "here", "self"]
    assert sysfs.entries("/".join(["here"] * (LINK_LIMIT + 1))) == []


def test_no_descriptor_is_left_open(root: Path) -> None:
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_text("x")
    (root / "a/up").symlink_to("/a/b/../b")
    (root / "a/loop").symlink_to("b/../loop")
    sysfs = Sysfs(root)
    before = set(os.listdir("/proc/self/fd"))
    for path in "a/b/file", "a/up/file", "a/up/nothing", "a/loop", "a/b/file/x", "a/b":
        sysfs.read_text(path)
        sysfs.entries(path)
        sysfs.resolve(path)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_fifos_sockets_and_devices_are_not_opened(root: Path) -> None:
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        # relative: a socket's path has 107 bytes at most
        directory = os.open(root, os.O_RDONLY)
        unix.bind(f"/proc/self/fd/{directory}/socket")
        os.close(directory)
    names = ["fifo", "socket"]
    if os.geteuid() == 0:
        os.mknod(root / "zero", 0o600 | 0o020000, os.makedev(1, 5))
        names.append("zero")
    for name in names:
        assert Sysfs(root).read_text(name) is None
        assert Sysfs(root).entries(name) == []


def test_looking_at_a_fifo_does_not_open_it(root: Path) -> None:
    os.mkfifo(root / "fifo")
    # blocks until somebody opens the other end
    writer = Thread(target=lambda: os.close(os.open(root / "fifo", os.O_WRONLY)))
    writer.start()
    try:
        writer.join(0.1)
        assert Sysfs(root).read_text("fifo") is None
        writer.join(0.1)
        assert writer.is_alive()
    finally:
        reader = os.open(root / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        writer.join()
        os.close(reader)


def test_a_live_fifo_does_not_hang(root: Path) -> None:
    os.mkfifo(root / "fifo")
    assert Sysfs().read_text(str(root / "fifo").lstrip("/")) is None
    assert Sysfs().read_text("dev/zero") is None


def test_a_text_past_the_limit_is_not_cut_but_none(root: Path) -> None:
    (root / "full").write_bytes(b"x" * TEXT_LIMIT)
    (root / "over").write_bytes(b"x" * (TEXT_LIMIT + 1))
    with open(root / "huge", "wb") as huge:
        huge.truncate(1 << 40)
    sysfs = Sysfs(root)
    assert sysfs.read_text("full") == "x" * TEXT_LIMIT
    assert sysfs.read_text("over") is None
    assert sysfs.read_text("huge") is None
    assert sysfs.read_text("full", limit=10) is None


@SHARED_TREE
@given(st.binary(max_size=100))
def test_any_bytes_survive(root: Path, data: bytes) -> None:
    (root / "file").write_bytes(data)
    sysfs = Sysfs(root)
    text = sysfs.read_text("file")
    assert text is not None
    assert text.encode(errors="surrogateescape") == data
    sysfs.read_int("file")
    sysfs.read_cpuset("file")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("11", 11),
        ("-1", -1),
        ("0x0011", 0x11),
        ("0xFFFFFFFFFFFFFFFF", 2**64 - 1),
        ("", None),
        ("011", None),
        ("1_000", None),
        ("٣", None),
        ("+1", None),
        ("0x", None),
        ("-0x1", None),
        ("1e3", None),
        ("0b1", None),
        ("8 9", None),
        ("9" * 40, None),
        ("0x1" + "0" * 16, None),
    ],
)
def test_a_number_is_read_strictly(text: str, number: int | None) -> None:
    assert parse_number(text) == number


def test_a_captured_machine_reads_like_a_live_one(dump: Callable[[str], Path]) -> None:
    sysfs = Sysfs(dump("rk3588-like"))
    assert not sysfs.is_live
    assert sysfs.read_cpuset("sys/devices/system/cpu/online") == CpuSet.of(range(7))
    assert sysfs.entries("sys/bus/event_source/devices") == [
        "arm_cmn_0",
        "armv8_cortex_a55",
        "armv8_cortex_a76",
        "software",
    ]
