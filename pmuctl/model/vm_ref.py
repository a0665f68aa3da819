# SPDX-License-Identifier: Apache-2.0
"""Identifiers of processes and VMs, and users' references to VMs.

A pid or a file descriptor alone identifies nothing, because it is reused; a name is for display.
"""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from pmuctl.errors import UsageError
from pmuctl.value import value

UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_PID = re.compile(r"(0|[1-9][0-9]{0,9})(?:/(0|[1-9][0-9]{0,9}))?")


@value
class ProcessId:
    """A process: its pid, and its start time in clock ticks since boot (Procfs.start_time)."""

    pid: int
    started: int


@value
class VmId:
    """A VM: its process, and the lowest file descriptor of the VM in that process.

    `fd` is None if it is not known which of the process's VMs it is, or if it is not made yet.
    """

    process: ProcessId
    fd: int | None = None

    def may_be(self, other: "VmId") -> bool:
        """Return whether both can be the same VM, as far as is known."""
        return self.process == other.process and (
            self.fd == other.fd or self.fd is None or other.fd is None
        )


@value
class ByName:
    """The VM of this name, which any process can claim."""

    name: str

    def __str__(self) -> str:
        return self.name


@value
class ByUuid:
    """The VM of this UUID, whose case does not matter; any process can claim it, too."""

    uuid: str

    def __str__(self) -> str:
        return f"uuid/{self.uuid}"


@value
class ByPid:
    """The VM of this process; `fd` is its descriptor if the process has several VMs."""

    pid: int
    fd: int | None = None

    def __str__(self) -> str:
        return f"pid/{self.pid}" if self.fd is None else f"pid/{self.pid}/{self.fd}"


@value
class ByGlob:
    """The VMs whose names match a glob, or the VM that is called exactly so."""

    glob: str

    def matches(self, name: str) -> bool:
        """Return whether a VM of this name is meant."""
        return name == self.glob or fnmatchcase(name, self.glob)

    def __str__(self) -> str:
        return self.glob


VmRef = ByName | ByUuid | ByPid | ByGlob
"""A user's reference to a VM; to several, if it is a glob."""


def parse_refs(texts: Iterable[str]) -> list[VmRef]:
    """Parse the references of a command that takes several VMs: those of `parse_ref`, and globs.

    Raise what `parse_ref` raises.
    """
    return [
        ByGlob(text) if is_glob(text) and "/" not in text else parse_ref(text) for text in texts
    ]


def is_glob(text: str) -> bool:
    """Return whether a text has a character that is special in a glob."""
    return any(char in text for char in "*?[")


def parse_ref(text: str) -> VmRef:
    """Parse NAME, uuid/UUID, pid/PID or pid/PID/FD; raise UsageError for anything else."""
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
    if match := _PID.fullmatch(rest):
        return ByPid(int(match[1]), None if match[2] is None else int(match[2]))
    raise UsageError(f"{text}: {rest} is not a process id", fix="write it as pid/4121")
