# SPDX-License-Identifier: Apache-2.0
"""Whom the client believes: which process has the VM that a control socket speaks for.

The server lives in the VMM, or is the VMM's supervisor (pmuctl run), which has no VM itself and
names in `query-pmu` the process that has. A peer says what it likes, so that is checked.
"""

from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.errors import NOTHING_CHANGED, DeniedError, NoVmError, RefusedError, command
from pmuctl.host.procfs import Procfs
from pmuctl.model.vm_ref import ProcessId
from pmuctl.value import value

CLOCK_SECONDS = 1.0
"""How far the times of a process and of a file may be apart: one is told in clock ticks."""


@value
class PeerCred:
    """Who listens at the other end, by SO_PEERCRED (unix(7)): as it was when it began to.

    `started` is when the process that has its pid now started (clock ticks since boot).
    """

    pid: int
    uid: int
    gid: int
    started: int | None

    def process(self, procs: Procfs, since: float) -> ProcessId | None:
        """The process that has its pid now, where that is the one that began to listen.

        So it is where it runs as the same user, or root began, and had started by then: `since`,
        in seconds since the epoch. A socket lives on in whoever holds it, and a pid is given anew.
        """
        if self.started is None or (self.uid != 0 and procs.uid(self.pid) != self.uid):
            return None
        began = procs.wall_time(self.started)
        is_its = began is not None and began <= since + CLOCK_SECONDS
        return ProcessId(self.pid, self.started) if is_its else None


@value(kw_only=True)
class ProcessFacts:
    """The process that has a VM, as far as the control socket is believed.

    `uid` is the user it runs as; `started`, with the pid, names it for good. `has_vm` is None
    where this user may not look, and False only of a supervised process that has made none yet.
    """

    pid: int
    uid: int
    started: int | None
    has_vm: bool | None
    is_supervised: bool = False

    @property
    def process(self) -> ProcessId | None:
        """The same, None where it cannot be told since when it runs."""
        return None if self.started is None else ProcessId(self.pid, self.started)

    def threads(self, procs: Procfs) -> frozenset[int]:
        """Its thread ids: only these are believed to be its vCPUs' threads.

        None where another process has its pid by now.
        """
        threads = procs.threads(self.pid)
        return threads if procs.start_time(self.pid) == self.started else frozenset()


def authenticate(
    entry: ControlSocket, peer: PeerCred, pid: int, procs: Procfs, *, strictly: bool
) -> ProcessFacts:
    """The process that has the VM, where the peer names `pid` as that.

    A peer that has a VM open is the VMM, under whatever number it knows itself (a container's).
    Another process is believed to be its VMM only if it runs as the peer's user, or the peer is
    root's. Where this user may not look whether it has a VM, a question may still be asked, a
    change (`strictly`) not; nor where a supervised one has made none yet. Raises RefusedError,
    NoVmError or DeniedError for what is not believed.
    """
    uid = procs.uid(peer.pid)
    # who began to listen may be gone, and its pid another user's by now; root's is believed,
    # for a VMM may have begun as root
    is_gone = uid is None and procs.start_time(peer.pid) is None
    if peer.uid != 0 and uid != peer.uid and not is_gone:
        whose = "several users'" if uid is None else f"uid {uid}"
        raise not_authenticated(
            entry, f"uid {peer.uid} began to listen there, process {peer.pid} is {whose}"
        )
    has_vm = procs.holds_kvm(peer.pid)
    if pid != peer.pid and not has_vm:
        return _supervised(entry, peer, pid, procs, strictly=strictly)
    if has_vm is False:
        raise _without_vm(entry, f"process {peer.pid} that listens there has no VM open")
    if has_vm is None and strictly:
        raise _unchecked(entry, peer.pid)
    return ProcessFacts(pid=peer.pid, uid=peer.uid, started=peer.started, has_vm=has_vm)


def not_authenticated(entry: ControlSocket, why: str) -> RefusedError:
    """The refusal of a peer that is not what it should be."""
    return RefusedError(
        "its control socket is not believed",
        subject=_subject(entry),
        why=why,
        fix=f"look at who made {entry.path}",
    )


def _supervised(
    entry: ControlSocket, peer: PeerCred, pid: int, procs: Procfs, *, strictly: bool
) -> ProcessFacts:
    started, uid, has_vm = procs.start_time(pid), procs.uid(pid), procs.holds_kvm(pid)
    # the last look tells that all were at one process
    if started is None or procs.start_time(pid) != started:
        raise _without_vm(entry, f"there is no process {pid}, which process {peer.pid} speaks for")
    if uid is None or peer.uid not in (0, uid):
        whose = "several users'" if uid is None else f"uid {uid}"
        raise not_authenticated(
            entry,
            f"process {peer.pid} of uid {peer.uid} speaks for process {pid}, which is {whose}",
        )
    if has_vm is False and strictly:
        raise NoVmError(
            "its VM is not there to be changed",
            subject=_subject(entry),
            why=f"process {pid} has no VM open: not yet, or no more",
            now=NOTHING_CHANGED,
            fix=command("vm", "wait", _address(entry, pid), "--for", "open"),
        )
    if has_vm is None and strictly:
        raise _unchecked(entry, pid)
    return ProcessFacts(pid=pid, uid=uid, started=started, has_vm=has_vm, is_supervised=True)


def _subject(entry: ControlSocket) -> str:
    return entry.name or str(entry.path)


def _address(entry: ControlSocket, pid: int) -> str:
    """What means the VM of a process for sure: a user can take any name in a directory of his."""
    return entry.name if entry.name and entry.owner is None else f"pid/{pid}"


def _without_vm(entry: ControlSocket, why: str) -> NoVmError:
    return NoVmError(
        "its control socket is not believed",
        subject=_subject(entry),
        why=why,
        fix=f"look at who made {entry.path}",
    )


def _unchecked(entry: ControlSocket, pid: int) -> DeniedError:
    return DeniedError(
        "it cannot be checked that a VMM listens at its control socket",
        subject=_subject(entry),
        why=f"/proc/{pid}/fd may not be read by this user",
        fix="run pmuctl as root or as the user of the VM",
    )
