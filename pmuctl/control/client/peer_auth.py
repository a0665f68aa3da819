# SPDX-License-Identifier: Apache-2.0
"""Authentication of the peer of a control socket: the process whose VM the socket controls.

The server is part of the VMM, or it is the VMM's supervisor (pmuctl run), which has no VM itself
and names the VMM's process in `query-pmu`. A peer can claim anything, so the claim is checked.
"""

from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.errors import NOTHING_CHANGED, DeniedError, NoVmError, RefusedError, command
from pmuctl.host.procfs import ProcessFacts, Procfs
from pmuctl.model.vm_ref import ProcessId
from pmuctl.value import value

CLOCK_SECONDS = 1.0
"""How far the times of a process and a file may differ: the former is counted in clock ticks."""


@value
class PeerCred:
    """The credentials of a listening peer, as of its listen(2) (SO_PEERCRED, unix(7)).

    `started` is the start time (clock ticks since boot) of the process that has the pid now.
    """

    pid: int
    uid: int
    gid: int
    started: int | None

    def process(self, procs: Procfs, since: float) -> ProcessId | None:
        """Return the process that has the pid now, or None if another process began to listen.

        It is the same process if it had started by `since` (seconds since the epoch) and runs as
        the same user, or root began to listen. A socket outlives the process that made it as long
        as another one has it open, and the kernel gives a free pid to a new process.
        """
        if self.started is None or (self.uid != 0 and procs.uid(self.pid) != self.uid):
            return None
        began = procs.wall_time(self.started)
        is_same = began is not None and began <= since + CLOCK_SECONDS
        return ProcessId(self.pid, self.started) if is_same else None


@value(kw_only=True)
class AuthenticatedVmm:
    """The process of a VMM, as far as the peer of its control socket is authenticated.

    `uid` is the user it runs as; `started` and the pid together identify it. `has_vm` is None if
    this user may not read that, and False only for a supervised process that has no VM yet. Only
    `threads` can be the threads of its vCPUs.
    """

    pid: int
    uid: int
    started: int | None
    has_vm: bool | None
    is_supervised: bool = False
    threads: frozenset[int] = frozenset()

    @property
    def process(self) -> ProcessId | None:
        """The pid and start time of the process; None if the start time is not known."""
        return None if self.started is None else ProcessId(self.pid, self.started)


def authenticate(
    entry: ControlSocket, peer: PeerCred, pid: int, procs: Procfs, *, strictly: bool
) -> AuthenticatedVmm:
    """Return the process that has the VM, if the peer names it as `pid`.

    A peer that has a VM open is the VMM, whatever pid it names: in a container it knows itself by
    another one. Another process is accepted as the VMM only if it runs as the peer's user, or if
    the peer runs as root. If this user may not read whether the process has a VM, or if a
    supervised process has no VM yet, queries are still allowed but changes (`strictly`) are not.
    Raise RefusedError, NoVmError or DeniedError if the peer is not authenticated.
    """
    facts = procs.read_facts(peer.pid)
    if facts.started != peer.started:  # its pid is another process's by now
        facts = ProcessFacts(pid=peer.pid)
    # the process that began to listen may have ended; a peer that began as root is accepted under
    # any user, because a VMM may drop root
    is_gone = facts.uid is None and facts.started is None
    if peer.uid not in (0, facts.uid) and not is_gone:
        whose = "several users'" if facts.uid is None else f"uid {facts.uid}"
        raise not_authenticated(
            entry, f"uid {peer.uid} began to listen there, process {peer.pid} is {whose}"
        )
    if pid != peer.pid and not facts.has_vm:
        return _authenticate_supervised(entry, peer, pid, procs, strictly=strictly)
    if facts.has_vm is False:
        raise _make_no_vm_error(entry, f"process {peer.pid} that listens there has no VM open")
    if facts.has_vm is None and strictly:
        raise _make_denied_error(entry, peer.pid)
    # a peer in a container knows its threads by other ids, which here may be other threads'
    is_near = procs.shares_pids(peer.pid)
    return AuthenticatedVmm(
        pid=peer.pid,
        uid=peer.uid,
        started=peer.started,
        has_vm=facts.has_vm,
        threads=facts.threads if is_near else frozenset(),
    )


def not_authenticated(entry: ControlSocket, why: str) -> RefusedError:
    """Return the error for a peer that is not authenticated."""
    return RefusedError(
        "its control socket is not believed",
        subject=_describe_socket(entry),
        why=why,
        fix=f"look at who made {entry.path}",
    )


def _authenticate_supervised(
    entry: ControlSocket, peer: PeerCred, pid: int, procs: Procfs, *, strictly: bool
) -> AuthenticatedVmm:
    vmm = procs.read_facts(pid)
    if vmm.started is None:
        raise _make_no_vm_error(
            entry, f"there is no process {vmm.pid}, which process {peer.pid} speaks for"
        )
    if not procs.shares_pids(peer.pid):
        raise not_authenticated(
            entry,
            f"process {peer.pid} speaks for process {vmm.pid}, which is another one here if it is "
            "in another pid namespace",
        )
    if vmm.uid is None or peer.uid not in (0, vmm.uid):
        whose = "several users'" if vmm.uid is None else f"uid {vmm.uid}"
        raise not_authenticated(
            entry,
            f"process {peer.pid} of uid {peer.uid} speaks for process {vmm.pid}, which is {whose}",
        )
    if vmm.has_vm is False and strictly:
        raise NoVmError(
            "its VM is not there to be changed",
            subject=_describe_socket(entry),
            why=f"process {vmm.pid} has no VM open: not yet, or no more",
            now=NOTHING_CHANGED,
            fix=command("vm", "wait", _format_vm_ref(entry, vmm.pid), "--for", "open"),
        )
    if vmm.has_vm is None and strictly:
        raise _make_denied_error(entry, vmm.pid)
    return AuthenticatedVmm(
        pid=vmm.pid,
        uid=vmm.uid,
        started=vmm.started,
        has_vm=vmm.has_vm,
        is_supervised=True,
        threads=vmm.threads,
    )


def _describe_socket(entry: ControlSocket) -> str:
    return entry.name or str(entry.path)


def _format_vm_ref(entry: ControlSocket, pid: int) -> str:
    """Return an unambiguous reference to a VM: a user can take any name in his own directory."""
    return entry.name if entry.name and entry.speaks_for is None else f"pid/{pid}"


def _make_no_vm_error(entry: ControlSocket, why: str) -> NoVmError:
    return NoVmError(
        "its control socket is not believed",
        subject=_describe_socket(entry),
        why=why,
        fix=f"look at who made {entry.path}",
    )


def _make_denied_error(entry: ControlSocket, pid: int) -> DeniedError:
    return DeniedError(
        "it cannot be checked that a VMM listens at its control socket",
        subject=_describe_socket(entry),
        why=f"/proc/{pid}/fd may not be read by this user",
        fix="run pmuctl as root or as the user of the VM",
    )
