# SPDX-License-Identifier: Apache-2.0
"""Asking a QEMU's own monitor: only one that is QEMU's, that is free, and not for long."""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pmuctl.control.client.qemu_monitor import QemuMonitor, may_query, query_qemu
from tests.fakes.peers import GREETING, RawClient, bad_server

PID, UID = os.getpid(), os.geteuid()
ANSWERS: dict[str, Any] = {
    "qmp_capabilities": {},
    "query-name": {"name": "web1"},
    "query-uuid": {"UUID": "6695eb01-f6a4-8304-79aa-97f2502e193f"},
    "query-status": {"status": "running", "running": True},
    "query-cpus-fast": [
        {"cpu-index": n, "thread-id": 5121 + n, "qom-path": "/", "target": "aarch64"}
        for n in range(2)
    ],
}


def serve(client: RawClient, answers: dict[str, Any] = ANSWERS) -> None:
    client.send(GREETING)
    while True:
        request = client.read()
        name = request["execute"]
        client.send(b'{"event":"RESUME","data":{},"timestamp":{"seconds":1}}')
        error = {"error": {"class": "CommandNotFound", "desc": "x"}}
        body = {"return": answers[name]} if name in answers else error
        tag = {"id": request["id"]} if "id" in request else {}
        client.send(json.dumps(body | tag).encode())


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in /proc of a process whose root and working directory are these."""
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "root").symlink_to("/")
    (folder / "cwd").symlink_to(tmp_path)
    (folder / "net").symlink_to("/proc/self/net")
    (folder / "fd").symlink_to("/proc/self/fd")
    monkeypatch.chdir(tmp_path)  # so that sockets are bound as QEMU does, by their relative paths
    return folder


def ask(path: str, process: Path, **how: Any) -> QemuMonitor | None:
    """With patience for tests beside this one: their sockets have the same relative paths."""
    until = time.monotonic() + how.pop("deadline", 5)
    return query_qemu(
        path, process, until=until, **({"pid": PID, "uid": UID, "patience": 5} | how)
    )


def test_what_qemu_says(process: Path, tmp_path: Path) -> None:
    wanted = QemuMonitor(
        name="web1",
        uuid="6695eb01-f6a4-8304-79aa-97f2502e193f",
        status="running",
        threads={0: 5121, 1: 5122},
    )
    for path in (str(tmp_path / "q"), "q"):
        with bad_server(Path(path), serve):
            assert ask(path, process) == wanted
        (tmp_path / "q").unlink()


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("query-cpus-fast", []),
        ("query-cpus-fast", {"a": 1}),
        ("query-cpus-fast", [1, None, {}, {"cpu-index": True, "thread-id": 5}]),
        ("query-cpus-fast", [{"cpu-index": -1, "thread-id": 5}, {"cpu-index": 0, "thread-id": 0}]),
        ("query-cpus-fast", None),
    ],
)
def test_odd_answers_are_none(process: Path, tmp_path: Path, name: str, answer: object) -> None:
    with bad_server(Path("q"), lambda its: serve(its, ANSWERS | {name: answer})):
        its = ask("q", process)
    assert its is not None
    assert (its.name, its.threads) == ("web1", {})


def test_commands_that_it_does_not_know_are_passed_over(process: Path, tmp_path: Path) -> None:
    with bad_server(Path("q"), lambda its: serve(its, {"qmp_capabilities": {}})):
        assert ask("q", process) == QemuMonitor()


@pytest.mark.parametrize("first", [b"", b"(qemu) ", b'{"return":{}}', b"{" * 99, b"\xff"])
def test_what_does_not_greet_is_not_asked(process: Path, tmp_path: Path, first: bytes) -> None:
    said: list[bytes] = []

    def script(client: RawClient) -> None:
        client.send(first)
        said.append(client.socket.recv(100))

    begin = time.monotonic()
    with bad_server(Path("q"), script):
        assert ask("q", process, deadline=0.3) is None
    assert time.monotonic() - begin < 3
    assert b"".join(said) == b""


def test_a_monitor_that_somebody_holds_costs_no_more_than_the_deadline(
    process: Path, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as held:
        held.bind("q")
        held.listen()
        begin = time.monotonic()
        assert ask("q", process, deadline=0.2) is None
        assert time.monotonic() - begin < 2


def test_a_monitor_that_somebody_has_is_not_connected_to(process: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "q")
    with socket.socket(socket.AF_UNIX) as its, socket.socket(socket.AF_UNIX) as holder:
        its.bind(path)
        its.listen()
        its.settimeout(0.05)
        holder.connect(path)
        begin = time.monotonic()
        assert ask(path, process, patience=0.1) is None  # it waits to be accepted
        accepted, _ = its.accept()
        with accepted:
            assert ask(path, process, patience=0.1) is None
            assert time.monotonic() - begin < 2
            with pytest.raises(TimeoutError):
                its.accept()


def test_a_monitor_that_gets_free_in_time_is_asked(process: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "q")
    with socket.socket(socket.AF_UNIX) as its:
        its.bind(path)
        its.listen()

        def script() -> None:
            accepted, _ = its.accept()
            accepted.recv(1)
            accepted.close()
            with RawClient(its.accept()[0]) as client, suppress(OSError, EOFError):
                serve(client)

        server = threading.Thread(target=script)
        server.start()
        with socket.socket(socket.AF_UNIX) as holder:
            holder.connect(path)
            threading.Timer(0.03, partial(holder.shutdown, socket.SHUT_RDWR)).start()
            answer = ask(path, process, patience=5)
        server.join()
    assert answer is not None
    assert answer.name == "web1"


def test_what_the_process_does_not_listen_at_is_sent_nothing(
    process: Path, tmp_path: Path
) -> None:
    said: list[bytes] = []

    def script(client: RawClient) -> None:
        client.send(GREETING)
        said.append(client.socket.recv(100))

    with bad_server(Path("q"), script):
        assert ask("q", process, pid=1) is None
    assert b"".join(said) == b""


@pytest.mark.parametrize("name", ["fd", "net"])
def test_a_socket_at_which_none_of_its_descriptors_listens_is_not_connected_to(
    process: Path, name: str
) -> None:
    """So that no command line has pmuctl connect to another service of that user."""
    (process / name).unlink()
    (process / name).mkdir()
    with socket.socket(socket.AF_UNIX) as its, socket.socket(socket.AF_UNIX) as beside:
        its.bind("q")
        its.listen()
        its.settimeout(0.05)
        if name == "fd":  # a socket it has, that does not listen there
            beside.bind("p")
            beside.listen()
            for fd, link in enumerate(
                ("/dev/null", os.readlink(f"/proc/self/fd/{beside.fileno()}"))
            ):
                (process / "fd" / str(fd)).symlink_to(link)
        assert ask("q", process) is None
        with pytest.raises(TimeoutError):
            its.accept()


def test_what_is_no_socket_of_its_user_is_not_connected_to(process: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as its:
        its.bind("q")
        its.listen()
        its.settimeout(0.05)
        (tmp_path / "link").symlink_to("q")
        for path, uid in (("q", 4321), ("q", None), ("link", UID), ("file", UID), ("fifo", UID)):
            assert ask(path, process, uid=uid) is None
        assert ask("a\0b", process) is None
        assert ask("none", process) is None
        with pytest.raises(TimeoutError):
            its.accept()


def test_libvirts_monitors_are_left_alone() -> None:
    for path in (
        "/var/lib/libvirt/qemu/domain-1-a/monitor.sock",
        "/run/libvirt/qemu/x",
        "/root/.config/libvirt/qemu/lib/x",
        "/run/user/1000/libvirt/q",
    ):
        assert not may_query(path, "systemd")
    assert not may_query("/run/q", "libvirtd")
    assert not may_query("/run/q", "virtqemud")
    assert may_query("/run/q", "systemd")
    assert may_query("q", "")


def test_no_link_leads_out_of_the_root_of_a_container(process: Path, tmp_path: Path) -> None:
    """Its own root is `root`; an absolute link there means a directory of the container."""
    root = tmp_path / "root"
    (root / "inside/deep").mkdir(parents=True)
    (root / "run").symlink_to("/inside")
    (root / "inside/up").symlink_to("../../../..")
    (tmp_path / "inside").mkdir()
    for name, target in (("root", root), ("cwd", root / "inside/deep")):
        (process / name).unlink()
        (process / name).symlink_to(target)
    for path in ("/run/q", "../q", "../up/run/q", "../../../run/q", f"{'../' * 20}run/q"):
        with mapped_server(process, root / "inside/q", path):
            assert ask(path, process) is not None, path
    with mapped_server(process, tmp_path / "inside/q", "/../inside/q"):
        assert ask("/../inside/q", process) is None


@contextmanager
def mapped_server(process: Path, where: Path, path: str) -> Iterator[None]:
    """A QEMU that listens at `where`, which it calls `path`, as the kernel's table says."""
    with bad_server(where, serve):
        net = process / "net"
        net.unlink()
        net.mkdir()
        table = Path("/proc/self/net/unix").read_text()
        (net / "unix").write_text(table.replace(f" {where}\n", f" {path}\n"))
        try:
            yield
        finally:
            shutil.rmtree(net)
            net.symlink_to("/proc/self/net")
    where.unlink()
