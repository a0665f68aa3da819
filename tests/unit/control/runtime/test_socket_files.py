# SPDX-License-Identifier: Apache-2.0
"""Control sockets as files: to which of them a path may lead."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmuctl.control.runtime.socket_files import open_socket_file
from tests.skips import only_root

as_root = only_root("only root can make another user's link")
ANOTHER = 1001


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "roots.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        yield path


def link(path: Path, target: str, uid: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)
    os.chown(path, uid, uid, follow_symlinks=False)
    return path


@as_root
@pytest.mark.parametrize("target", ["../roots.sock", "{place}/roots.sock"])
def test_another_users_link_leads_to_no_socket(listening: Path, target: str) -> None:
    target = target.format(place=listening.parent)
    path = link(listening.parent / "user/web1.sock", target, ANOTHER)
    link(path.with_name("roots.sock"), "web1.sock", 0)
    for name in ("web1.sock", "roots.sock"):
        with pytest.raises(PermissionError, match=f"it is a link of uid {ANOTHER}") as raised:
            open_socket_file(str(path.with_name(name)), None)
        assert raised.value.errno == errno.EPERM


@as_root
def test_another_users_link_leads_into_no_directory(listening: Path) -> None:
    path = link(listening.parent / "user/run", "..", ANOTHER)
    with pytest.raises(PermissionError, match=f"it is a link of uid {ANOTHER}"):
        open_socket_file(str(path / "roots.sock"), None)


def test_ones_own_link_is_followed(listening: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = link(listening.parent / "user/web1.sock", "../roots.sock", os.geteuid())
    monkeypatch.chdir(path.parent)
    for named in (str(path), "web1.sock", "../user/./web1.sock", f"/proc/self/root{path}"):
        fd = open_socket_file(named, None)
        assert os.path.samestat(os.fstat(fd), listening.stat())
        os.close(fd)


@as_root
@pytest.mark.parametrize("way", ["root{path}", "cwd/web1.sock", "root{place}/run/../web1.sock"])
def test_below_the_root_of_a_process_another_users_link_is_not_followed_either(
    listening: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    path = link(listening.parent / "user/web1.sock", "../roots.sock", ANOTHER)
    (path.parent / "run").mkdir()
    monkeypatch.chdir(path.parent)
    for process in ("self", "thread-self", str(os.getpid())):
        named = f"/proc/{process}/{way.format(path=path, place=path.parent)}"
        with pytest.raises(PermissionError, match=f"it is a link of uid {ANOTHER}"):
            open_socket_file(named, None)


def test_an_open_file_and_a_process_directory_are_ways_to_a_socket(
    listening: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(listening.parent)
    held = os.open(listening, os.O_PATH)
    for named in (f"/proc/self/fd/{held}", "/proc/thread-self/cwd/roots.sock"):
        fd = open_socket_file(named, None)
        assert os.path.samestat(os.fstat(fd), listening.stat())
        os.close(fd)
    os.close(held)


def test_an_absolute_path_needs_no_working_directory(
    listening: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = listening.parent / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    os.close(open_socket_file(str(listening), None))


def test_dots_after_a_directory_of_a_process_are_below_that(
    listening: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (listening.parent / "in").mkdir()
    monkeypatch.chdir(listening.parent / "in")
    held = os.open(".", os.O_PATH)
    for way in ("cwd/..", f"fd/{held}/..", "cwd/../in/.."):
        os.close(open_socket_file(f"/proc/self/{way}/roots.sock", None))
    os.close(held)
    with pytest.raises(NotADirectoryError):
        open_socket_file(f"{listening}/", None)


@as_root
def test_a_relative_path_is_followed_below_a_directory_that_may_not_be_searched(
    listening: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(listening.parent)
    closed = listening.parent.parent
    mode = closed.stat().st_mode
    listening.parent.chmod(0o755)
    closed.chmod(0o700)
    os.seteuid(ANOTHER)
    try:
        os.close(open_socket_file("roots.sock", None))
    finally:
        os.seteuid(0)
        closed.chmod(mode)


def test_links_in_a_ring_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="symbolic links") as raised:
        open_socket_file(str(tmp_path / "a"), None)
    assert raised.value.errno == errno.ELOOP
    assert len(os.listdir("/proc/self/fd")) == before
