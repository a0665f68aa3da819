# SPDX-License-Identifier: Apache-2.0
"""Queries to a QEMU through a QMP monitor that no client uses (QEMU's docs/interop/qmp-spec).

The socket is one that a process names on its command line. pmuctl connects only to a socket of the
process's own user, and reads or sends nothing until the kernel has said that this process listens
there.
"""

import os
import stat
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from pmuctl.control.protocol import qmp_codec
from pmuctl.control.protocol.messages import VCPU_INDEX
from pmuctl.control.protocol.qmp_codec import Message, WireError
from pmuctl.control.protocol.stream import (
    ByteBudget,
    Deadline,
    MessageStream,
    OverBudgetError,
)
from pmuctl.host.sysfs import walk_path
from pmuctl.schema import LIST_MAX
from pmuctl.value import field, replace, value

DEADLINE = 0.5
"""Seconds for all monitors of one process: a monitor that has a client lets others wait without an
answer."""
PATIENCE, AGAIN = 0.1, 0.01
"""Seconds of the deadline to wait for a monitor that has a client, and seconds between two looks:
a client that only queries, as pmuctl does, has left by then."""
TABLE_LIMIT = 1 << 23
"""Bytes to read of the table of sockets: some 80,000 sockets."""

SS_WAITS, SS_CONNECTED = b"02", b"03"
"""The states SS_CONNECTING and SS_CONNECTED in that table (include/uapi/linux/net.h)."""
SO_ACCEPTCON = b"00010000"
"""The flags of a listening socket in that table (unix_seq_show())."""

MANAGERS = ("libvirtd", "virtqemud")
"""Thread names of parent processes whose monitors pmuctl does not use."""

ANSWERS_MAX = 1 << 20
"""Bytes of all answers of one monitor: some 4,000 vCPUs."""

_COMMANDS = {
    "query-name": "name",
    "query-uuid": "UUID",
    "query-status": "status",
    "query-cpus-fast": "",
}
"""The commands and the member of each answer that is a text of QemuMonitor."""


@value(kw_only=True)
class QemuMonitor:
    """The answers of a QEMU: its name, UUID and run state ("running", "paused", ...), and the
    thread id of each vCPU by the vCPU's number. A text that it did not give is None."""

    name: str | None = None
    uuid: str | None = None
    status: str | None = None
    threads: Mapping[int, int] = field(default_factory=dict)


def may_query(path: str, parent: str) -> bool:
    """Return whether pmuctl may query a monitor: not if libvirt made it.

    libvirt is recognised by the path of the socket or the name of the parent process.
    """
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
    """Return what the QEMU that listens at `path` says of itself; None without answers in time.

    `process` is its directory in /proc; the path is resolved as QEMU sees it: inside its root,
    which no link leaves, or from its working directory.
    Connecting has side effects: it may start a socket-activated service, and a QEMU serves one
    client at a time, lets few others wait, and keeps those that have left in its queue. So before
    it connects this checks that QEMU's own user `uid` owns the socket, that one of the process's
    descriptors listens on it, and that no client is connected. If another process than `pid`
    listens there after all, the connection is closed at once. `until` is a time of the monotonic
    clock, in seconds; `patience` is how many seconds to wait until no client is connected.
    """
    if time.monotonic() >= until:
        return None
    if not _wait_free(path, process, min(until, time.monotonic() + patience)):
        return None
    try:
        with walk_path(process / "root", path, cwd=process / "cwd") as (directory, _, name):
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name or ".", flags, dir_fd=directory)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISSOCK(status.st_mode) or uid is None or status.st_uid != uid:
            return None
        with closing(MessageStream(Deadline(until), ByteBudget(ANSWERS_MAX))) as stream:
            # by descriptor: the socket that was checked is the one to connect to, and its path may
            # be too long
            stream.connect(f"/proc/self/fd/{fd}", patient=False)
            if stream.peer_credentials()[0] != pid:
                return None
            return _query_stream(stream)
    except (OSError, EOFError, WireError, OverBudgetError):
        return None
    finally:
        os.close(fd)


def _wait_free(path: str, process: Path, until: float) -> bool:
    """Wait until no client is connected to a socket or waits to be.

    Return False if that takes too long, or if the process does not listen at the socket.
    """
    while True:
        rows = _scan_unix_sockets(process, path)
        if not _has_socket(process, {row[5] for row in rows if row[2] == SO_ACCEPTCON}):
            return False
        if not any(row[4] in (SS_CONNECTED, SS_WAITS) for row in rows):
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(AGAIN)


def _scan_unix_sockets(process: Path, path: str) -> list[list[bytes]]:
    """Return the sockets that were bound to a path in a process's network namespace.

    Each is a row of fields from /proc/PID/net/unix (proc_pid_net(5), unix_seq_show()). Connections
    that are accepted, or wait to be, have the path that their listener was bound to. Return an
    empty list if the table cannot be read.
    """
    try:
        with open(process / "net/unix", "rb") as file:
            lines = file.read(TABLE_LIMIT).split(b"\n")
    except OSError:
        return []
    rows = (line.split(b" ", 1)[-1].split(None, 6) for line in lines[1:])
    return [row for row in rows if len(row) == 7 and os.fsdecode(row[6]) == path]


def _has_socket(process: Path, inodes: Collection[bytes]) -> bool:
    """Return whether a process has one of these sockets open (proc_pid_fd(5))."""
    wanted = {f"socket:[{os.fsdecode(inode)}]" for inode in inodes}
    with suppress(OSError):
        for fd in os.listdir(process / "fd") if wanted else ():
            with suppress(OSError):
                if os.readlink(process / "fd" / fd) in wanted:
                    return True
    return False


def _query_stream(stream: MessageStream) -> QemuMonitor | None:
    """Return the answers to _COMMANDS; None if the peer does not greet as QMP."""
    if not stream.next_message(_is_greeting):
        return None
    requests = [{"execute": "qmp_capabilities"}]
    requests += [{"execute": name, "id": name} for name in _COMMANDS]
    stream.send(b"".join(qmp_codec.encode(dict(request)) for request in requests))
    monitor, missing = QemuMonitor(), set(_COMMANDS)
    while missing:
        tag, members = stream.next_message(_read_answer)
        if tag in missing:
            missing.remove(tag)
            monitor = replace(monitor, **members)
    return monitor


def _is_greeting(message: Message) -> bool:
    return "QMP" in message


def _read_answer(message: Message) -> tuple[str, dict[str, Any]]:
    """Return the id of an answer to one of _COMMANDS, and what it tells; else an empty id."""
    tag = message.get("id")
    if not isinstance(tag, str) or tag not in _COMMANDS:
        return "", {}
    answer = message.get("return")  # None if it does not know the command
    if tag == "query-cpus-fast":
        return tag, {"threads": dict(islice(_iter_threads(answer), LIST_MAX))}
    key = _COMMANDS[tag]
    return tag, {key.lower(): _find_text(answer, key)}


def _find_text(answer: object, key: str) -> str | None:
    text = answer.get(key) if isinstance(answer, dict) else None
    return qmp_codec.peer_text(text) or None


def _iter_threads(answer: object) -> Iterable[tuple[int, int]]:
    for cpu in answer if isinstance(answer, list) else ():
        if isinstance(cpu, dict):
            index, tid = cpu.get("cpu-index"), cpu.get("thread-id")
            if type(index) is int and type(tid) is int and tid > 0:
                if 0 <= index <= VCPU_INDEX.most:
                    yield index, tid
