# SPDX-License-Identifier: Apache-2.0
"""Replies from control sockets, and the Vm built from one, live or captured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pmuctl.control.client.peer_auth import AuthenticatedVmm
from pmuctl.control.protocol.messages import filter_from
from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.control.runtime.start_record import Record
from pmuctl.errors import PmuctlError, RefusedError, UnreachableError
from pmuctl.host.procfs import Procfs
from pmuctl.manage.inventory.program import identify_program, read_program
from pmuctl.model.event import WIDEST_BITS, EventSet
from pmuctl.model.kvm_caps import DERIVED
from pmuctl.model.vm import Evidence, Vm, VmPmu, VmState, VmVcpu, Window
from pmuctl.model.vm_ref import ProcessId, VmId
from pmuctl.value import field, replace, value

RECORDED = "recorded"
"""The origin of a setting that is read from the start record, because nobody can be queried."""
SUPERVISOR_IS_GONE = "its supervisor is gone"


@value(kw_only=True)
class VmReply:
    """A VM's answer to `query-pmu`, checked by `check_answer`, and its authenticated process.

    `record` is the start record of the same start under a supervisor; None if there is none.
    """

    message: Mapping[str, Any]
    vmm: AuthenticatedVmm
    record: Record | None = None


@value(kw_only=True)
class RecordedVm:
    """An orphaned VM: nobody listens, but the process of its record still runs, as `uid`."""

    record: Record
    uid: int


@value(kw_only=True)
class NoReply:
    """The reason why there is no reply, and the VM's process and user as the socket shows them.

    `owner` is that user; None if it is not known.
    """

    problem: PmuctlError
    state: VmState
    process: ProcessId | None = None
    owner: int | None = None


Reply = VmReply | RecordedVm | NoReply


@value(kw_only=True)
class CapturedSocket(ControlSocket):
    """A control socket of another machine, and its captured reply; it cannot be queried.

    `speaks_for` is None if only root or the user who made the capture can have made it. `read`
    parses the reply, which takes ten times the memory of its text: one is held at a time.
    """

    # the path alone tells sockets apart
    read: Callable[[], Reply] = field(compare=False)


def check_answer(socket: ControlSocket, message: Mapping[str, Any]) -> None:
    """Check what the schema of messages cannot express of an answer to `query-pmu`.

    Raise RefusedError for another name than the socket has, and for events past 0xffff.
    """
    if socket.name not in (None, message["name"]):
        raise RefusedError(
            "its control socket answers for another VM",
            subject=socket.name,
            why=f"it calls itself {message['name']}",
            fix=f"look at who made {socket.path}",
        )
    event_filter = message["filter"]
    if event_filter and filter_from(event_filter).exceptions - EventSet.space(WIDEST_BITS):
        raise RefusedError(
            "its answer to query-pmu is wrong",
            subject=socket.name or str(socket.path),
            why="its filter names events past 0xffff",
            fix=f"look at what listens at {socket.path}",
        )


def vm_of(socket: ControlSocket, reply: Reply, procs: Procfs, *, is_own: bool) -> Vm:
    """Return the VM of a control socket that gave this reply.

    `procs` are the processes of the socket's machine, `is_own` is as in Vm.
    """
    match reply:
        case VmReply():
            vm = _make_answered_vm(socket, reply, procs)
        case RecordedVm():
            vm = _make_orphaned_vm(socket, reply)
        case NoReply():
            vm = _make_unanswered_vm(socket, reply)
    return replace(vm, is_own=is_own)


def _make_answered_vm(socket: ControlSocket, reply: VmReply, procs: Procfs) -> Vm:
    answer, vmm, threads = reply.message, reply.vmm, reply.vmm.threads
    # a supervised process answers before it has made its VM: nothing it says is true of one yet
    is_made = vmm.has_vm is not False
    window = Window(answer["window"])
    vcpus = tuple(
        VmVcpu(
            index=vcpu["index"],
            tid=vcpu["tid"] if vcpu["tid"] in threads else None,
            initialised=vcpu["initialised"],
            has_run=vcpu["has-run"],
            evidence=Evidence.SOCKET if vcpu["tid"] in threads else None,
            # a supervisor has seen the thread run; a VMM may number its threads as it likes
            is_dead=vmm.is_supervised
            and vcpu["has-run"]
            and vcpu["tid"] is not None
            and bool(threads)
            and vcpu["tid"] not in threads,
        )
        for vcpu in (answer["vcpus"] if is_made else ())
    )
    pmu, counters, event_filter = answer["pmu"], answer["counters"], answer["filter"]
    vm = Vm(
        name=answer["name"],
        socket=str(socket.path),
        state=_get_state(answer, vcpus) if is_made else VmState.STARTING,
        uuid=answer["uuid"],
        vmm=answer["vmm"],
        id=VmId(vmm.process) if vmm.process else None,
        owner=vmm.uid,
        window=None if window is Window.OPEN and not vcpus else window,
        since=answer["since"],
        by=answer["by"],
        attributes=tuple(answer["attributes"]),
        event_bits=answer.get("event-bits"),
        pmu=pmu and VmPmu(name=pmu["name"], type=pmu["type"], origin=pmu["origin"]),
        counters=counters and counters["value"],
        counters_origin=counters and counters["origin"],
        filter=event_filter and filter_from(event_filter),
        filter_origin=event_filter and event_filter["origin"],
        vcpus=vcpus,
        supervised=vmm.is_supervised,
    )
    if vmm.is_supervised:
        # a supervisor does not see the PMU settings that the VMM makes by itself
        program = read_program(procs, vmm.pid)
        vm = replace(vm, identity=identify_program(procs, vmm.pid, *program))
    if reply.record is not None:
        record = reply.record
        unmade = make_problem_error(record) if not vcpus else None
        vm = replace(
            vm,
            command=record.command,
            applied=record.applied,
            confined_to=record.cpus,
            unmade=unmade,
        )
    return vm


def make_problem_error(record: Record) -> PmuctlError | None:
    """Return what a record says of a start that failed; None if it says nothing."""
    problem = record.problem
    if problem is None:
        return None
    return RefusedError(
        problem.message, subject=record.name, why=problem.why, now=problem.now, fix=problem.fix
    )


def _get_state(answer: Mapping[str, Any], vcpus: Sequence[VmVcpu]) -> VmState:
    if any(vcpu.has_run for vcpu in vcpus):
        return VmState.RUNNING
    # a peer that does not report `waiting` still reports its window
    waits = answer.get("waiting", answer["window"] == Window.OPEN)
    return VmState.WAITING if waits else VmState.STARTING


def _make_orphaned_vm(socket: ControlSocket, reply: RecordedVm) -> Vm:
    record = reply.record
    pmu, origin = (record.pmu, RECORDED) if record.pmu else (record.derived, DERIVED)
    return Vm(
        name=record.name,
        socket=str(socket.path),
        state=VmState.ORPHANED,
        id=VmId(record.process),
        owner=reply.uid,
        window=Window.SEALED,
        by=SUPERVISOR_IS_GONE,
        pmu=pmu and VmPmu(name=pmu[1], type=pmu[0], origin=origin),
        filter=record.filter,
        filter_origin=RECORDED if record.filter else None,
        supervised=True,
        command=record.command,
        applied=record.applied,
        confined_to=record.cpus,
        problem=UnreachableError(
            "its supervisor has ended, the VM goes on without it",
            subject=record.name,
            why=f"process {record.pid} can make no further vCPU (KVM_CREATE_VCPU gives ENOSYS); "
            "nothing else of the VM is touched",
            fix=f"end {record.name} and start it anew to have it supervised again",
        ),
    )


def _make_unanswered_vm(socket: ControlSocket, reply: NoReply) -> Vm:
    return Vm(
        name=socket.name or str(socket.path),
        socket=str(socket.path),
        state=reply.state,
        id=VmId(reply.process) if reply.process else None,
        owner=reply.owner,
        problem=reply.problem,
    )
