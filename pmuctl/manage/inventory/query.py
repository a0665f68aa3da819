# SPDX-License-Identifier: Apache-2.0
"""Query of one VM over its control socket, whose peer is authenticated."""

from contextlib import suppress
from typing import Any

from pmuctl.control.client.client import Client
from pmuctl.control.client.peer_auth import PeerCred
from pmuctl.control.protocol.stream import ByteBudget, OverBudgetError
from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.errors import DeniedError, PmuctlError, UnreachableError, forget_frames
from pmuctl.manage.inventory.replies import (
    CapturedSocket,
    NoReply,
    Reply,
    VmReply,
    check_answer,
    vm_of,
)
from pmuctl.manage.inventory.session import Session
from pmuctl.manage.inventory.start_records import find_orphan, record_of
from pmuctl.model.vm import Vm, VmState
from pmuctl.model.vm_ref import ProcessId


def ask_vm(client: Client, *, strictly: bool = False, budget: ByteBudget | None = None) -> VmReply:
    """Return a VM's answer to `query-pmu`, its authenticated process, and its start record.

    With `strictly`, refuse a peer that cannot be checked. A record that `budget` has no room for
    is left out. Raise what Client and `check_answer` raise.
    """
    message: Any = client.execute("query-pmu")
    vmm = client.authenticate(message["pid"], strictly=strictly)
    socket = client.control_socket
    check_answer(socket, message)
    record = None
    if vmm.is_supervised and vmm.process:
        with suppress(OverBudgetError):
            record = record_of(socket, message["name"], vmm.process, budget)
    return VmReply(message=message, vmm=vmm, record=record)


def ask_socket(
    session: Session,
    socket: ControlSocket,
    *,
    strictly: bool = False,
    budget: ByteBudget | None = None,
) -> Reply:
    """Return the reply of a control socket: the VM's answer, its start record, or why neither.

    Return the captured reply if the socket is of a captured tree. `budget` bounds the answer.
    """
    if isinstance(socket, CapturedSocket):
        return socket.read()
    client = session.client(socket, budget)
    try:
        with client:
            return ask_vm(client, strictly=strictly, budget=budget)
    except PmuctlError as error:
        forget_frames(error)
        peer = client.peer
        has_ended = has_no_listener(error) or _has_ended(session, socket, peer)
        orphan = None
        try:
            orphan = find_orphan(socket, session.host.procs, budget)
        except OverBudgetError:
            if has_ended:  # it may be an orphan
                error, has_ended = client.make_over_budget_error("its start record"), False
        if has_ended and orphan:
            return orphan
        state = VmState.SILENT
        if isinstance(error, DeniedError):
            state = VmState.DENIED
        elif has_ended:
            state = VmState.DEAD
        owner = peer.uid if peer and socket.speaks_for is None else socket.speaks_for
        process = orphan.record.process if orphan else _find_listener(session, socket, peer)
        return make_no_reply(socket, error, state=state, process=process, owner=owner)


def make_vm(session: Session, socket: ControlSocket, reply: Reply) -> Vm:
    """Return the VM of a control socket that gave this reply."""
    return vm_of(socket, reply, session.host.procs, is_own=session.is_own(socket))


def try_read(session: Session, socket: ControlSocket, *, strictly: bool = False) -> Vm:
    """Return the VM of a control socket, with its `problem` if it cannot be queried."""
    return make_vm(session, socket, ask_socket(session, socket, strictly=strictly))


def make_unread_reply(
    session: Session, socket: ControlSocket, problem: PmuctlError, budget: ByteBudget | None
) -> NoReply:
    """Return what is known of a VM whose socket was not asked: the process of its start record."""
    orphan = None
    with suppress(OverBudgetError):
        orphan = find_orphan(socket, session.host.procs, budget)
    process = orphan.record.process if orphan else None
    return make_no_reply(socket, problem, process=process)


def make_no_reply(
    socket: ControlSocket,
    problem: PmuctlError,
    *,
    state: VmState = VmState.SILENT,
    process: ProcessId | None = None,
    owner: int | None = None,
) -> NoReply:
    """Return what is known of a VM whose socket gave no reply, and why it gave none."""
    if problem.subject is None:
        problem.subject = socket.name or str(socket.path)
    return NoReply(
        problem=problem,
        state=state,
        process=process,
        owner=socket.speaks_for if owner is None else owner,
    )


def _find_listener(
    session: Session, socket: ControlSocket, peer: PeerCred | None
) -> ProcessId | None:
    """Return the process of a VM that does not answer, if it is certainly the one that listens.

    Return None if that pid may be another process by now, which may have a VM of its own.
    """
    if peer is None or peer.pid <= 0 or socket.speaks_for not in (None, peer.uid):
        return None
    try:
        since = socket.path.lstat().st_mtime  # the time of bind(2): nobody writes to a socket file
    except OSError:
        return None
    return peer.process(session.host.procs, since)


def _has_ended(session: Session, socket: ControlSocket, peer: PeerCred | None) -> bool:
    """Return whether a VM has ended while it was queried: its socket or its process is gone."""
    if peer is not None and peer.started is not None:
        if session.host.procs.is_ending(ProcessId(peer.pid, peer.started)):
            return True
    try:
        socket.path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def is_gone(vm: Vm) -> bool:
    """Return whether a VM has ended while it was queried: it had answered the connection."""
    return vm.state is VmState.DEAD and vm.problem is not None and not has_no_listener(vm.problem)


def has_no_listener(error: PmuctlError) -> bool:
    """Return True if nobody listens at the control socket (ECONNREFUSED)."""
    return isinstance(error, UnreachableError) and error.errno == "ECONNREFUSED"
