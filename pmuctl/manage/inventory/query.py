# SPDX-License-Identifier: Apache-2.0
"""Asking one VM over its control socket, as far as its peer can be believed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pmuctl.control.client.client import Client, socket_at
from pmuctl.control.client.peer_auth import PeerCred
from pmuctl.control.runtime.sockets import ControlSocket, SocketScan, scan_sockets
from pmuctl.errors import DeniedError, PmuctlError, UnreachableError
from pmuctl.host.procfs import Procfs
from pmuctl.host.sysfs import Sysfs
from pmuctl.manage.inventory.processes import Answers, Scene
from pmuctl.manage.inventory.replies import (
    CapturedEntry,
    NoReply,
    Reply,
    VmReply,
    check_answer,
    vm_of,
)
from pmuctl.manage.inventory.start_records import orphan, record_of, recorded_process
from pmuctl.model.vm import Vm, VmState
from pmuctl.model.vm_ref import ProcessId
from pmuctl.value import field, value

NOBODY = -1
"""What no user's number is."""


@value(kw_only=True)
class Session:
    """How this user's VMs are reached: where to look, and how long to wait (seconds).

    `sysfs` is the machine that `procs` are of; where that is not this one (`is_live`), no VM is
    asked: what its control sockets told was captured. `trace` is told every request as it is sent.
    `answers` are what QEMUs' own monitors have said: whoever looks again does not ask again.
    """

    environ: Mapping[str, str]
    uid: int
    deadline: float
    socket: Path | None = None
    procs: Procfs = field(default_factory=Procfs)
    sysfs: Sysfs = field(default_factory=Sysfs)
    is_live: bool = True
    trace: Callable[[str], None] = field(default=lambda _: None)
    answers: Answers = field(default_factory=dict)

    def sockets(self) -> SocketScan:
        """The sockets to look at: the one that was named, or all there are.

        Raises RefusedError for what is no capture of them in another machine's tree.
        """
        if not self.is_live:
            from pmuctl.manage.inventory.captured_replies import read_told

            return read_told(self.sysfs)
        if self.socket is not None:
            return SocketScan([socket_at(self.socket)])
        return scan_sockets(self.environ, self.uid)

    @property
    def scene(self) -> Scene:
        """Where VMs are found by their processes."""
        return Scene(
            procs=self.procs,
            sysfs=self.sysfs,
            is_live=self.is_live,
            uid=self.uid,
            answers=self.answers,
        )

    @property
    def user(self) -> int:
        """Whose VMs go before others'; in another machine's tree those of NOBODY who is here."""
        return self.uid if self.is_live else NOBODY

    def is_own(self, entry: ControlSocket) -> bool:
        """Whether nobody but root and this user can have made this socket, by its directory.

        Of another machine's, this user is who made the capture.
        """
        return self.socket is None and entry.owner in (None, self.user)

    def client(self, entry: ControlSocket) -> Client:
        """A connection, not yet made, to a VM's control socket.

        Raises ValueError in another machine's tree: what is here at that path is none of its.
        """
        if not self.is_live:
            raise ValueError("a captured tree has no socket to be asked")
        return Client(entry, deadline=self.deadline, procs=self.procs, trace=self.trace)

    def vm(self, entry: ControlSocket, told: Reply) -> Vm:
        """The VM of a control socket that told this."""
        return vm_of(entry, told, self.procs, is_own=self.is_own(entry))


def ask_vm(client: Client, *, strictly: bool = False) -> VmReply:
    """What a VM says of itself, as far as its peer can be believed, and its record of its start.

    With `strictly` a peer that cannot be checked is refused. Raises what Client and `check_answer`
    raise.
    """
    message: Any = client.execute("query-pmu")
    vmm = client.authenticate(message["pid"], strictly=strictly)
    entry = client.entry
    check_answer(entry, message)
    record = None
    if vmm.is_supervised and vmm.process:
        record = record_of(entry, message["name"], vmm.process)
    return VmReply(message=message, vmm=vmm, record=record)


def ask_socket(reach: Session, entry: ControlSocket, *, strictly: bool = False) -> Reply:
    """What a VM says of itself, or its record of it, or why neither does; of another machine's
    tree what was captured."""
    if isinstance(entry, CapturedEntry):
        return entry.told
    client = reach.client(entry)
    try:
        with client:
            return ask_vm(client, strictly=strictly)
    except PmuctlError as error:
        if is_dead(error) and (its := orphan(entry, reach.procs)):
            return its
        state = VmState.SILENT
        if isinstance(error, DeniedError):
            state = VmState.DENIED
        elif is_dead(error):
            state = VmState.DEAD
        peer = client.peer
        owner = peer.uid if peer and entry.owner is None else entry.owner
        process = _claimed(reach, entry, peer)
        return nothing_told(reach, entry, error, state=state, process=process, owner=owner)


def try_read(reach: Session, entry: ControlSocket, *, strictly: bool = False) -> Vm:
    """The VM of a control socket, with its problem if it has one."""
    return reach.vm(entry, ask_socket(reach, entry, strictly=strictly))


def nothing_told(
    reach: Session,
    entry: ControlSocket,
    problem: PmuctlError,
    *,
    state: VmState = VmState.SILENT,
    process: ProcessId | None = None,
    owner: int | None = None,
) -> NoReply:
    """All there is to tell of a VM whose socket has told nothing, and why it has not."""
    if problem.subject is None:
        problem.subject = entry.name or str(entry.path)
    return NoReply(
        problem=problem,
        state=state,
        process=recorded_process(entry, reach.procs) or process,
        owner=entry.owner if owner is None else owner,
    )


def _claimed(reach: Session, entry: ControlSocket, peer: PeerCred | None) -> ProcessId | None:
    """The process of a VM that does not answer, where that is surely who began to listen.

    Whatever else has that pid is a VM of its own, and keeps its place.
    """
    if peer is None or peer.pid <= 0 or entry.owner not in (None, peer.uid):
        return None
    try:
        since = entry.path.lstat().st_mtime  # that of bind(2): nothing is written to a socket
    except OSError:
        return None
    return peer.process(reach.procs, since)


def is_dead(error: PmuctlError) -> bool:
    """Whether nobody listens at the control socket."""
    return isinstance(error, UnreachableError) and error.errno == "ECONNREFUSED"
