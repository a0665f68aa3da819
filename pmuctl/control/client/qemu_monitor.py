# SPDX-License-Identifier: Apache-2.0
"""A look at a QEMU through a monitor of its own that nobody holds (QEMU's docs/interop/qmp-spec).

Its socket is one that a process names on its command line: none is connected to but one of the
process's own user, and nothing is believed of it, nor sent to it, before the kernel has told that
this very process listens there.
"""

import os
import socket
import stat
import struct
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from pmuctl.control.protocol import qmp_codec
from pmuctl.control.protocol.qmp_codec import WireError
from pmuctl.value import field, value

DEADLINE = 0.5
"""Seconds for all monitors of one process: one that somebody holds lets others wait, and does not
say so."""
PATIENCE, AGAIN = 0.1, 0.01
"""Seconds of it to wait where somebody has the monitor, and between two looks: whoever only looks,
as pmuctl does, is gone by then."""
TABLE_LIMIT = 1 << 23
"""Bytes that are read of the table of sockets: some 80,000 of them."""

SS_WAITS, SS_CONNECTED = b"02", b"03"
"""The states SS_CONNECTING and SS_CONNECTED there (include/uapi/linux/net.h)."""
SO_ACCEPTCON = b"00010000"
"""The flags there of a socket that listens (unix_seq_show())."""

MANAGERS = ("libvirtd", "virtqemud")
"""Parents whose monitors are left alone, as their thread names."""

_COMMANDS = ("query-name", "query-uuid", "query-status", "query-cpus-fast")


@value(kw_only=True)
class QemuMonitor:
    """What a QEMU says: its name, UUID and run state ("running", "paused", ...), and the thread
    of each vCPU by its number. What it did not say is None."""

    name: str | None = None
    uuid: str | None = None
    status: str | None = None
    threads: Mapping[int, int] = field(default_factory=dict)


def may_query(path: str, parent: str) -> bool:
    """Whether a monitor may be asked: none that libvirt has made, by its path or its parent."""
    return "libvirt" not in path.split("/") and parent not in MANAGERS


def query_qemu(
    path: str,
    process: Path,
    *,
    pid: int,
    uid: int | None,
    until: float,
    patience: float = PATIENCE,
) -> QemuMonitor | None:
    """What the QEMU that listens at `path` says of itself; None where it says nothing in time.

    `process` is its directory in /proc, below which the path is looked up as QEMU sees it. It must
    be a socket of QEMU's own user `uid`, at which one of its own descriptors listens, for to
    connect to another one, such as a service that starts when somebody does, would already be an
    act; where it is not process `pid` that listens there after all, the connection is closed at
    once. It is an act as well to connect where somebody is connected: QEMU
    takes one client at a time, lets few others wait, and keeps those that have left meanwhile in
    the queue. `until` is a moment of the monotonic clock.
    """
    if time.monotonic() >= until:
        return None
    if not _wait_free(path, process, min(until, time.monotonic() + patience)):
        return None
    inside = process / ("root" if path.startswith("/") else "cwd") / path.lstrip("/")
    try:
        fd = os.open(inside, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        its = os.fstat(fd)
        if not stat.S_ISSOCK(its.st_mode) or uid is None or its.st_uid != uid:
            return None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(max(until - time.monotonic(), 0))
            # by descriptor: what was looked at is what is connected to, whatever the path's length
            peer.connect(f"/proc/self/fd/{fd}")
            ucred = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            if struct.unpack("3i", ucred)[0] != pid:
                return None
            return _ask(peer, until)
    except (OSError, EOFError, WireError):
        return None
    finally:
        os.close(fd)


def _wait_free(path: str, process: Path, until: float) -> bool:
    """Whether a process listens at a socket, and nobody is connected to it any more, nor waits to
    be."""
    while True:
        rows = _sockets(process, path)
        if not _listens(process, {row[5] for row in rows if row[2] == SO_ACCEPTCON}):
            return False
        if not any(row[4] in (SS_CONNECTED, SS_WAITS) for row in rows):
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(AGAIN)


def _sockets(process: Path, path: str) -> list[list[bytes]]:
    """The sockets that were bound to a path in a process's network namespace, as rows of fields.

    From /proc/PID/net/unix (proc_pid_net(5), unix_seq_show()): an accepted connection, and one
    that waits, has the listener's path as it was bound. None where that cannot be read.
    """
    try:
        with open(process / "net/unix", "rb") as file:
            lines = file.read(TABLE_LIMIT).split(b"\n")
    except OSError:
        return []
    rows = (line.split(b" ", 1)[-1].split(None, 6) for line in lines[1:])
    return [row for row in rows if len(row) == 7 and os.fsdecode(row[6]) == path]


def _listens(process: Path, inodes: Collection[bytes]) -> bool:
    """Whether a process has one of these sockets open (proc_pid_fd(5))."""
    wanted = {f"socket:[{os.fsdecode(inode)}]" for inode in inodes}
    with suppress(OSError):
        for fd in os.listdir(process / "fd") if wanted else ():
            with suppress(OSError):
                if os.readlink(process / "fd" / fd) in wanted:
                    return True
    return False


def _ask(peer: socket.socket, until: float) -> QemuMonitor | None:
    decoder = qmp_codec.Decoder()
    if "QMP" not in _next(peer, decoder, until):
        return None
    requests = [{"execute": "qmp_capabilities"}]
    requests += [{"execute": name, "id": name} for name in _COMMANDS]
    peer.sendall(b"".join(qmp_codec.encode(dict(its)) for its in requests), socket.MSG_NOSIGNAL)
    answers: dict[object, object] = {}
    while len(answers) < len(_COMMANDS):
        message = _next(peer, decoder, until)
        tag = message.get("id")
        if isinstance(tag, str) and tag in _COMMANDS:
            answers[tag] = message.get("return")  # None where it does not know the command
    return QemuMonitor(
        name=_text(answers["query-name"], "name"),
        uuid=_text(answers["query-uuid"], "UUID"),
        status=_text(answers["query-status"], "status"),
        threads=dict(_threads(answers["query-cpus-fast"])),
    )


def _next(peer: socket.socket, decoder: qmp_codec.Decoder, until: float) -> qmp_codec.Message:
    while (message := decoder.next()) is None:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        peer.settimeout(left)
        data = peer.recv(1 << 16)
        if not data:
            raise EOFError
        decoder.feed(data)
    return message


def _text(answer: object, key: str) -> str | None:
    value = answer.get(key) if isinstance(answer, dict) else None
    return qmp_codec.peer_text(value) or None


def _threads(answer: object) -> Iterable[tuple[int, int]]:
    for cpu in answer if isinstance(answer, list) else ():
        if isinstance(cpu, dict):
            index, tid = cpu.get("cpu-index"), cpu.get("thread-id")
            if type(index) is int and type(tid) is int and index >= 0 and tid > 0:
                yield index, tid
