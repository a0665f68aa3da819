# SPDX-License-Identifier: Apache-2.0
"""QEMU's own monitor (QMP) of a lab: what stops the emulated host, and lets it go on."""

import json
import socket
from typing import Any

from tests.lab.errors import LabError

ANSWER_SECONDS = 60.0


class Monitor:
    """One end of a socket pair, whose other end QEMU has."""

    def __init__(self) -> None:
        self._socket, self.inner = socket.socketpair()
        self._socket.settimeout(ANSWER_SECONDS)
        self._lines = self._socket.makefile("rb")
        self._is_ready = False

    @property
    def options(self) -> list[str]:
        """QEMU's options for it; `inner` must be passed on."""
        return [
            *("-chardev", f"socket,id=qmp,fd={self.inner.fileno()}"),
            *("-mon", "chardev=qmp,mode=control"),
        ]

    def execute(self, command: str) -> None:
        """Execute a command without arguments; raises LabError if QEMU does not do it."""
        if not self._is_ready:
            self._receive()  # the greeting
            self._is_ready = True
            self.execute("qmp_capabilities")
        try:
            self._socket.sendall(json.dumps({"execute": command}).encode())
        except OSError as error:
            raise LabError(f"QEMU's monitor: {error}") from error
        while "return" not in (message := self._receive()):
            if "error" in message:
                raise LabError(f"QEMU's monitor: {command}: {message['error']}")

    def close(self) -> None:
        """Close this end."""
        self._lines.close()
        self._socket.close()

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except OSError as error:
            raise LabError(f"QEMU's monitor: {error}") from error
        if not line.endswith(b"\n"):
            raise LabError("QEMU has closed its monitor")
        message: dict[str, Any] = json.loads(line)
        return message
