# SPDX-License-Identifier: Apache-2.0
"""Asking one VM over its control socket, as far as its peer can be believed."""

from typing import Any

from pmuctl.control.client.client import Client
from pmuctl.control.client.peer_auth import PeerCred
from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.errors import DeniedError, PmuctlError, UnreachableError
from pmuctl.manage.inventory.replies import (
    CapturedEntry,
    NoReply,
    Reply,
    VmReply,
    check_answer,
    vm_of,
)
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.inventory.start_records import orphan, record_of, recorded_process
from pmuctl.model.vm import Vm, VmState
from pmuctl.model.vm_ref import ProcessId


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


def ask_socket(session: Session, entry: ControlSocket, *, strictly: bool = False) -> Reply:
    """What a VM says of itself, or its record of it, or why neither does; of another machine's
    tree what was captured."""
    if isinstance(entry, CapturedEntry):
        return entry.told
    client = session.client(entry)
    try:
        with client:
            return ask_vm(client, strictly=strictly)
    except PmuctlError as error:
        if is_dead(error) and (its := orphan(entry, session.host.procs)):
            return its
        state = VmState.SILENT
        if isinstance(error, DeniedError):
            state = VmState.DENIED
        elif is_dead(error):
            state = VmState.DEAD
        peer = client.peer
        owner = peer.uid if peer and entry.owner is None else entry.owner
        process = _claimed(session, entry, peer)
        return nothing_told(session, entry, error, state=state, process=process, owner=owner)


def make_vm(session: Session, entry: ControlSocket, reply: Reply) -> Vm:
    """Return the VM of a control socket that gave this reply."""
    return vm_of(entry, reply, session.host.procs, is_own=session.is_own(entry))


def try_read(session: Session, entry: ControlSocket, *, strictly: bool = False) -> Vm:
    """The VM of a control socket, with its problem if it has one."""
    return make_vm(session, entry, ask_socket(session, entry, strictly=strictly))


def nothing_told(
    session: Session,
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
        process=recorded_process(entry, session.host.procs) or process,
        owner=entry.owner if owner is None else owner,
    )


def _claimed(session: Session, entry: ControlSocket, peer: PeerCred | None) -> ProcessId | None:
    """The process of a VM that does not answer, where that is surely who began to listen.

    Whatever else has that pid is a VM of its own, and keeps its place.
    """
    if peer is None or peer.pid <= 0 or entry.owner not in (None, peer.uid):
        return None
    try:
        since = entry.path.lstat().st_mtime  # that of bind(2): nothing is written to a socket
    except OSError:
        return None
    return peer.process(session.host.procs, since)


def is_dead(error: PmuctlError) -> bool:
    """Whether nobody listens at the control socket."""
    return isinstance(error, UnreachableError) and error.errno == "ECONNREFUSED"
