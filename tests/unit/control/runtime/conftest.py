# SPDX-License-Identifier: Apache-2.0
"""Places for control sockets, and sockets left there."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path, for that of a socket is bounded, and open to all."""
    with tempfile.TemporaryDirectory(prefix="pmuctl-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def leave_socket(path: Path, *, uid: int | None = None) -> None:
    """What a dead server leaves behind: a socket that refuses to be connected to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as its:
        its.bind(str(path))
    if uid is not None:
        os.chown(path, uid, uid)
