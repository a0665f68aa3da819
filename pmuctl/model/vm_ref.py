# SPDX-License-Identifier: Apache-2.0
"""What names a process, and a VM, for good: pids and descriptors are given anew, and names are
for show."""

import re

from pmuctl.errors import UsageError
from pmuctl.value import value

UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_PID = re.compile(r"(0|[1-9][0-9]{0,9})(?:/(0|[1-9][0-9]{0,9}))?")


@value
class ProcessId:
    """A process: its pid, and when it `started`, in clock ticks since boot (Procfs.start_time)."""

    pid: int
    started: int


@value
class VmId:
    """A VM: its process, and the lowest descriptor that has it there.

    `fd` is None where it is not known which of the process's VMs it is, or has not been made yet.
    """

    process: ProcessId
    fd: int | None = None

    def may_be(self, other: "VmId") -> bool:
        """Whether both can be the same VM, for all that is known."""
        return self.process == other.process and (
            self.fd == other.fd or self.fd is None or other.fd is None
        )


@value
class ByName:
    """The VM of this name, which anybody can take."""

    name: str

    def __str__(self) -> str:
        return self.name


@value
class ByUuid:
    """The VM of this UUID, in which case does not matter; anybody can take it, too."""

    uuid: str

    def __str__(self) -> str:
        return f"uuid/{self.uuid}"


@value
class ByPid:
    """The VM of this process, the one of descriptor `fd` where several are meant apart."""

    pid: int
    fd: int | None = None

    def __str__(self) -> str:
        return f"pid/{self.pid}" if self.fd is None else f"pid/{self.pid}/{self.fd}"


VmRef = ByName | ByUuid | ByPid
"""What somebody calls a VM."""


def parse_ref(text: str) -> VmRef:
    """NAME, uuid/UUID, pid/PID or pid/PID/FD; raises UsageError for what is none of them."""
    kind, slash, rest = text.partition("/")
    if not slash:
        return ByName(text)
    if kind not in ("pid", "uuid") or not rest:
        raise UsageError(f"{text}: not a VM", why="a VM is NAME, uuid/UUID or pid/PID")
    if kind == "uuid":
        if not UUID.fullmatch(rest):
            raise UsageError(
                f"{text}: {rest} is not a UUID",
                fix="write it as uuid/6695eb01-f6a4-8304-79aa-97f2502e193f",
            )
        return ByUuid(rest)
    if its := _PID.fullmatch(rest):
        return ByPid(int(its[1]), None if its[2] is None else int(its[2]))
    raise UsageError(f"{text}: {rest} is not a process id", fix="write it as pid/4121")
