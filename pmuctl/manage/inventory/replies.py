# SPDX-License-Identifier: Apache-2.0
"""What came of asking a control socket, and the VM that is made of it: live, or of a capture."""

from collections.abc import Mapping, Sequence
from typing import Any

from pmuctl.control.client.peer_auth import ProcessFacts
from pmuctl.control.protocol.messages import filter_from
from pmuctl.control.runtime.sockets import ControlSocket
from pmuctl.control.runtime.start_record import Record
from pmuctl.errors import PmuctlError, RefusedError, UnreachableError
from pmuctl.host.procfs import Procfs
from pmuctl.model.event import WIDEST_BITS, EventSet
from pmuctl.model.kvm_caps import DERIVED
from pmuctl.model.vm import Evidence, Vm, VmPmu, VmState, VmVcpu, Window
from pmuctl.model.vm_ref import ProcessId, VmId
from pmuctl.model.vmm_identity import identify
from pmuctl.value import field, replace, value

RECORDED = "recorded"
"""Who says so: the record, while there is nobody to ask."""
SUPERVISOR_IS_GONE = "its supervisor is gone"


@value(kw_only=True)
class VmReply:
    """A VM's answer to `query-pmu`, checked by `check_answer`, and whose it is believed to be.

    `record` is that of the same start under a supervisor, None where there is none.
    """

    message: Mapping[str, Any]
    vmm: ProcessFacts
    record: Record | None = None


@value(kw_only=True)
class RecordedVm:
    """Nobody listens, and the process of the record goes on without its supervisor, as `uid`."""

    record: Record
    uid: int


@value(kw_only=True)
class NoReply:
    """Nothing was told: why, and what the socket itself tells of its VM's process and user."""

    problem: PmuctlError
    state: VmState
    process: ProcessId | None = None
    owner: int | None = None


Reply = VmReply | RecordedVm | NoReply


@value(kw_only=True)
class CapturedEntry(ControlSocket):
    """A control socket of another machine, and what it told there: it is not there to be asked.

    Its `owner` is None where it was root's or that of who made the capture.
    """

    told: Reply = field(
        compare=False
    )  # no answer can be hashed, and its path tells it from others


def check_answer(entry: ControlSocket, message: Mapping[str, Any]) -> None:
    """What the table of messages cannot say of an answer to `query-pmu`.

    Raises RefusedError for another name than the socket has, and for events past 0xffff.
    """
    if entry.name not in (None, message["name"]):
        raise RefusedError(
            "its control socket answers for another VM",
            subject=entry.name,
            why=f"it calls itself {message['name']}",
            fix=f"look at who made {entry.path}",
        )
    its = message["filter"]
    if its and filter_from(its).exceptions - EventSet.space(WIDEST_BITS):
        raise RefusedError(
            "its answer to query-pmu is wrong",
            subject=entry.name or str(entry.path),
            why="its filter names events past 0xffff",
            fix=f"look at what listens at {entry.path}",
        )


def vm_of(entry: ControlSocket, told: Reply, procs: Procfs, *, is_own: bool) -> Vm:
    """The VM of a control socket; `procs` are those of its machine, `is_own` is as in Vm."""
    match told:
        case VmReply():
            vm = _answered(entry, told, procs)
        case RecordedVm():
            vm = _orphaned(entry, told)
        case NoReply():
            vm = _untold(entry, told)
    return replace(vm, is_own=is_own)


def _answered(entry: ControlSocket, told: VmReply, procs: Procfs) -> Vm:
    answer, vmm = told.message, told.vmm
    threads = vmm.threads(procs)
    # of a supervised process that has no VM yet nothing is true of one
    is_made = vmm.has_vm is not False
    window = Window(answer["window"])
    vcpus = tuple(
        VmVcpu(
            index=its["index"],
            tid=its["tid"] if its["tid"] in threads else None,
            initialised=its["initialised"],
            has_run=its["has-run"],
            evidence=Evidence.SOCKET if its["tid"] in threads else None,
        )
        for its in (answer["vcpus"] if is_made else ())
    )
    pmu, counters, its_filter = answer["pmu"], answer["counters"], answer["filter"]
    vm = Vm(
        name=answer["name"],
        socket=str(entry.path),
        state=_state(answer, vcpus) if is_made else VmState.STARTING,
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
        filter=its_filter and filter_from(its_filter),
        filter_origin=its_filter and its_filter["origin"],
        vcpus=vcpus,
        supervised=vmm.is_supervised,
    )
    if vmm.is_supervised:
        # what a VMM sets by itself its supervisor does not see
        identity = identify(procs.command_line(vmm.pid), procs.comm(vmm.pid, vmm.pid))
        vm = replace(vm, identity=identity)
    if told.record is not None:
        vm = replace(vm, command=told.record.command, applied=told.record.applied)
    return vm


def _state(answer: Mapping[str, Any], vcpus: Sequence[VmVcpu]) -> VmState:
    if any(vcpu.has_run for vcpu in vcpus):
        return VmState.RUNNING
    # a peer that does not say whether it waits has still its window to say so
    waits = answer.get("waiting", answer["window"] == Window.OPEN)
    return VmState.WAITING if waits else VmState.STARTING


def _orphaned(entry: ControlSocket, told: RecordedVm) -> Vm:
    record = told.record
    pmu, origin = (record.pmu, RECORDED) if record.pmu else (record.derived, DERIVED)
    return Vm(
        name=record.name,
        socket=str(entry.path),
        state=VmState.ORPHANED,
        id=VmId(record.process),
        owner=told.uid,
        window=Window.SEALED,
        by=SUPERVISOR_IS_GONE,
        pmu=pmu and VmPmu(name=pmu[1], type=pmu[0], origin=origin),
        filter=record.filter,
        filter_origin=RECORDED if record.filter else None,
        supervised=True,
        command=record.command,
        applied=record.applied,
        problem=UnreachableError(
            "its supervisor has ended, the VM goes on without it",
            subject=record.name,
            why=f"process {record.pid} can make no further vCPU (KVM_CREATE_VCPU gives ENOSYS); "
            "nothing else of the VM is touched",
            fix=f"end {record.name} and start it anew to have it supervised again",
        ),
    )


def _untold(entry: ControlSocket, told: NoReply) -> Vm:
    return Vm(
        name=entry.name or str(entry.path),
        socket=str(entry.path),
        state=told.state,
        id=VmId(told.process) if told.process else None,
        owner=told.owner,
        problem=told.problem,
    )
