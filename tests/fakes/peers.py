# SPDX-License-Identifier: Apache-2.0
"""The far sides of the control socket: clients and servers that do as a test tells them."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pmuctl.control.protocol.qmp_codec import Decoder

PATIENCE = 10.0
"""Seconds after which a test fails where nothing comes; none waits so long when all is well."""

GREETING = b'{"QMP":{"version":{},"capabilities":[]}}\r\n'

_AS_ANOTHER_USER = """
import array, os, socket, sys
path, uid, count, fd = sys.argv[1], *map(int, sys.argv[2:])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
back = socket.socket(fileno=fd)
for _ in range(count):
    with socket.socket(socket.AF_UNIX) as its:
        its.connect(path)
        socket.send_fds(back, [b"."], [its.fileno()])
"""


class RawClient:
    """A client that may send any bytes; the context closes it."""

    def __init__(self, its_socket: socket.socket) -> None:
        its_socket.settimeout(PATIENCE)
        self.socket = its_socket
        self._decoder = Decoder()

    @classmethod
    def connect(cls, path: Path) -> "RawClient":
        """A connection whose greeting is not read yet."""
        its_socket = socket.socket(socket.AF_UNIX)
        its_socket.settimeout(PATIENCE)
        try:
            its_socket.connect(str(path))
        except BaseException:
            its_socket.close()
            raise
        return cls(its_socket)

    @classmethod
    def ready(cls, path: Path) -> "RawClient":
        """A connection after its capabilities."""
        client = cls.connect(path)
        try:
            client.begin()
        except BaseException:
            client.socket.close()
            raise
        return client

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def begin(self) -> None:
        """Read the greeting and send qmp_capabilities."""
        assert "QMP" in self.read()
        assert self.ask("qmp_capabilities")["return"] == {}

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> dict[str, Any]:
        """The next message; raises EOFError where the connection was closed."""
        while (message := self._decoder.next()) is None:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            self._decoder.feed(data)
        return message

    def reply(self) -> dict[str, Any]:
        """The next message that is no event."""
        while "event" in (message := self.read()):
            pass
        return message

    def event(self, name: str) -> dict[str, Any]:
        """The next event of that name."""
        while (message := self.read()).get("event") != name:
            pass
        return message

    def ask(self, name: str, /, **arguments: object) -> dict[str, Any]:
        """The answer to one command; `dry_run` is sent as "dry-run"."""
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.send(json.dumps({"execute": name, "arguments": named}).encode())
        return self.reply()

    def is_closed(self) -> bool:
        """Whether the server closes the connection, after whatever it still says."""
        with contextlib.suppress(EOFError):
            while True:
                self.read()
        return True


def connect_as(uid: int, path: Path, count: int = 1) -> list[RawClient]:
    """Connections that a process of another user made; only root may ask for them."""
    here, there = socket.socketpair()
    with here, there:
        argv = [sys.executable, "-I", "-S", "-c", _AS_ANOTHER_USER]
        subprocess.run(
            [*argv, str(path), str(uid), str(count), str(there.fileno())],
            pass_fds=[there.fileno()],
            check=True,
            timeout=PATIENCE,
        )
        clients = []
        for _ in range(count):
            _, fds, _, _ = socket.recv_fds(here, 1, 1)
            clients.append(RawClient(socket.socket(fileno=fds[0])))
        return clients


@contextlib.contextmanager
def bad_server(
    path: Path, script: Callable[[RawClient], None], *, clients: int = 1
) -> Iterator[None]:
    """A server at `path` that does to one client, or to so many in turn, what `script` says, and
    then closes.

    An end of the connection ends the script quietly.
    """

    def serve() -> None:
        for _ in range(clients):
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with RawClient(connection) as client, contextlib.suppress(OSError, EOFError):
                script(client)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)
            assert not thread.is_alive()


@contextlib.contextmanager
def mute(*paths: Path) -> Iterator[None]:
    """Sockets at which somebody listens and says nothing."""
    with contextlib.ExitStack() as stack:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            its = stack.enter_context(socket.socket(socket.AF_UNIX))
            its.bind(str(path))
            its.listen()
        yield


SILENCE: dict[str, Any] = {"no": "answer"}
EVIL = "evil\x1b]0;owned\x07\nweb9  running\u202e"


def query(name: str = "web1", **more: object) -> dict[str, Any]:
    """An answer to query-pmu as it should be."""
    answer: dict[str, Any] = {
        "name": name,
        "uuid": None,
        "vmm": "false",
        "pid": os.getpid(),
        "window": "open",
        "waiting": True,
        "since": None,
        "by": None,
        "attributes": ["SET_PMU", "FILTER"],
        "event-bits": 16,
        "pmu": None,
        "counters": None,
        "filter": None,
        "vcpus": [{"index": 0, "tid": 1001, "initialised": False, "has-run": False}],
    }
    return answer | more


def answering(answers: dict[str, Any]) -> Callable[[RawClient], None]:
    """A server that answers each command with what is given: a result, or an `error`."""

    def serve(client: RawClient) -> None:
        client.send(GREETING)
        while True:
            try:
                request = client.read()
            except EOFError:
                return
            answer = answers.get(request["execute"], {})
            if answer is SILENCE:
                continue
            body = answer if "error" in answer else {"return": answer}
            client.send(json.dumps({"id": request["id"], **body}).encode())

    return serve
