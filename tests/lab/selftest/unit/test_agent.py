# SPDX-License-Identifier: Apache-2.0
"""The lab's agent answers requests, here through a socket in place of the console."""

import errno
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import frames
from tests.lab.guest.agent import Agent

PLAIN: frames.Message = {"env": {}, "user": None, "cwd": None, "preloaded": False}


class Peer:
    """The other end of an agent's console."""

    def __init__(self, console: socket.socket) -> None:
        self._console = console
        self._splitter = frames.Splitter()
        self._messages: list[frames.Message] = []

    def send(self, **message: object) -> None:
        self._console.sendall(frames.encode(message))

    def receive(self) -> frames.Message:
        """The next message but for acknowledgements."""
        while True:
            while self._messages:
                message = self._messages.pop(0)
                if message["tell"] != "acknowledged":
                    return message
            for line in self._splitter.feed(self._console.recv(65536)):
                _, message_or_none = frames.decode(line)
                assert message_or_none is not None
                self._messages.append(message_or_none)

    def start(self, number: int, *args: str) -> None:
        self.send(do="start", id=number, args=args, **PLAIN)
        started = self.receive()
        assert (started["tell"], started["id"]) == ("started", number)

    def until_exit(self) -> tuple[int, bytes, bytes]:
        """The next exit status, with the output up to it."""
        output = {"stdout": b"", "stderr": b""}
        while (message := self.receive())["tell"] != "exit":
            output[message["tell"]] += frames.unpack(message["data"])
        return message["status"], output["stdout"], output["stderr"]


@pytest.fixture
def peer() -> Iterator[Peer]:
    near, far = socket.socketpair()
    with near, far:
        near.settimeout(20)
        agent = Agent(far.fileno())
        thread = threading.Thread(target=agent.serve)
        thread.start()
        peer = Peer(near)
        assert peer.receive() == {"tell": "ready"}
        yield peer
        near.shutdown(socket.SHUT_RDWR)
        thread.join(20)
        assert not thread.is_alive()
        agent.close()


def test_output_comes_before_the_status(peer: Peer) -> None:
    peer.start(1, "sh", "-c", "echo out; echo err >&2; exit 4")
    assert peer.until_exit() == (4, b"out\n", b"err\n")


def test_input_is_passed_and_ended(peer: Peer) -> None:
    peer.start(1, "cat")
    peer.send(do="stdin", id=1, data=frames.pack(b"some "))
    peer.send(do="stdin", id=1, data=frames.pack(b"text"))
    peer.send(do="end-stdin", id=1)
    assert peer.until_exit() == (0, b"some text", b"")


def test_input_nobody_reads_is_dropped(peer: Peer) -> None:
    peer.start(1, "sh", "-c", "exec <&-; sleep 0.2; exit 5")
    for _ in range(20):
        peer.send(do="stdin", id=1, data=frames.pack(bytes(frames.CHUNK)))
    peer.send(do="end-stdin", id=1)
    assert peer.until_exit() == (5, b"", b"")


def test_process_group_is_signalled(peer: Peer) -> None:
    peer.start(1, "sh", "-c", "sleep 1000 & wait")
    peer.send(do="kill", id=1, signal=9)
    assert peer.until_exit() == (-9, b"", b"")


def test_status_does_not_wait_for_descendants(peer: Peer) -> None:
    peer.start(1, "sh", "-c", "(sleep 0.5; echo late) & echo early")
    assert peer.until_exit() == (0, b"early\n", b"")
    assert peer.receive() == {"tell": "stdout", "id": 1, "data": frames.pack(b"late\n")}


def test_requests_for_what_has_ended_do_no_harm(peer: Peer) -> None:
    peer.start(1, "true")
    assert peer.until_exit()[0] == 0
    peer.send(do="kill", id=1, signal=15)
    peer.send(do="end-stdin", id=1)
    peer.start(2, "true")
    assert peer.until_exit()[0] == 0


def test_failure_names_its_object(peer: Peer, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    requests: list[frames.Message] = [
        {"do": "read", "path": missing},
        {"do": "start", "args": [missing], **PLAIN},
    ]
    for request in requests:
        peer.send(id=9, **request)
        message = peer.receive()
        assert (message["tell"], message["errno"], message["subject"]) == ("failed", 2, missing)


def test_file_is_written_in_pieces(peer: Peer, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for more, data in ((False, b"one "), (True, b"two")):
        packed = frames.pack(data)
        peer.send(do="write", id=3, path=str(path), mode=0o600, more=more, data=packed)
        assert peer.receive() == {"tell": "done", "id": 3}
    assert path.read_bytes() == b"one two"
    assert path.stat().st_mode & 0o777 == 0o600
    peer.send(do="read", id=4, path=str(path))
    assert frames.unpack(peer.receive()["data"]) == b"one two"
    assert peer.receive() == {"tell": "done", "id": 4}


def test_files_are_read_by_pattern(peer: Peer, tmp_path: Path) -> None:
    """What cannot be read has nothing in it, and what is not there is not told."""
    (tmp_path / "a1").write_text("one")
    (tmp_path / "a2").mkdir()
    (tmp_path / "b").write_text("two")
    peer.send(do="read-all", id=5, pattern=f"{tmp_path}/a*")
    told = frames.unpack(peer.receive()["data"])
    assert json.loads(told) == {f"{tmp_path}/a1": "one", f"{tmp_path}/a2": ""}
    assert peer.receive() == {"tell": "done", "id": 5}


def test_any_process_is_signalled_and_waited_for(peer: Peer) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        peer.send(do="wait-gone", id=6, pid=process.pid)
        peer.send(do="signal", id=7, pid=process.pid, signal=9)
        assert [peer.receive() for _ in range(2)] == [
            {"tell": "done", "id": 7},
            {"tell": "done", "id": 6},
        ]
    peer.send(do="wait-gone", id=8, pid=process.pid)
    assert peer.receive() == {"tell": "done", "id": 8}
    peer.send(do="signal", id=9, pid=process.pid, signal=9)
    assert peer.receive()["errno"] == errno.ESRCH
