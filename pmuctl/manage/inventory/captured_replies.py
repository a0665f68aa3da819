# SPDX-License-Identifier: Apache-2.0
"""Captured replies of control sockets: one file for each socket of a captured tree.

A captured tree is hostile input. Its files pass the same checks as a live peer's answer and a
record; their words are shown and never followed, and no socket is queried.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pmuctl.control.client.peer_auth import AuthenticatedVmm
from pmuctl.control.protocol.messages import COMMANDS, NAME
from pmuctl.control.runtime import start_record
from pmuctl.control.runtime.socket_files import SUFFIX
from pmuctl.control.runtime.sockets import ControlSocket, SocketScan
from pmuctl.errors import PmuctlError, RefusedError, class_of
from pmuctl.host.host import Host
from pmuctl.host.json_store import VALUES_MAX, has_too_many_values
from pmuctl.host.procfs import Procfs
from pmuctl.host.resource_errors import Allowance
from pmuctl.host.runtime_dirs import LEFT_OUT, PATH_REPLIES
from pmuctl.host.snapshot_files import Captured
from pmuctl.manage.inventory.replies import (
    CapturedSocket,
    NoReply,
    RecordedVm,
    Reply,
    VmReply,
    check_answer,
)
from pmuctl.model.vm import VmState
from pmuctl.model.vm_ref import ProcessId
from pmuctl.schema import Bool, Constant, Int, Maybe, Nullable, Obj, Str, Struct
from pmuctl.value import replace

FORMAT = 1
SIZE_LIMIT = 4 << 20
"""Bytes of a file: an answer has at most MESSAGE_MAX and a record 2 MiB; spaces may be added."""
REPLIES_MAX = 16 << 20
"""Characters of all files: those of 1,000 VMs of 8 vCPUs have 3 Mi."""
PATH_CHARS = 4 * 4096
"""Characters of a path: PATH_MAX bytes, of which each can need four."""
FIX = "sudo pmuctl host snapshot DIR"
"""The fix for a VM that the user who made the capture might not query, on its machine."""

_FILE = re.compile(r"[0-9]{1,5}\.json")
_COUNT = re.compile(r"[0-9]{1,9}\n?")
_PATH = re.compile(r"/(?:[^\0]*/)?[^/\0]+")
_UID = Int(most=0xFFFFFFFF)
_PID = Int(least=1, most=0x7FFFFFFF)
_VMM = Struct(
    {
        "pid": _PID,
        "uid": _UID,
        "start": Nullable(Int()),
        "has-vm": Nullable(Bool()),
        "supervised": Bool(),
    },
    is_open=True,
    cls=AuthenticatedVmm,
    fields={"start": "started", "supervised": "is_supervised"},
)
_PROCESS = Struct(
    {"pid": _PID, "start": Int()}, is_open=True, cls=ProcessId, fields={"start": "started"}
)
_NO_REPLY = Obj(
    {
        "state": Str(words=(VmState.DEAD, VmState.DENIED, VmState.SILENT)),
        "status": Int(most=255),
        "message": Str(),
        "why": Nullable(Str()),
        "errno": Nullable(Str(most=32)),
        "process": Nullable(_PROCESS),
        "owner": Nullable(_UID),
    },
    is_open=True,
)
_FORM = Obj(
    {
        "format": Constant(FORMAT),
        "name": NAME,
        "path": Str(form=_PATH),
        "owner": Nullable(_UID),
        "vmm": Maybe(_VMM),
        "answer": Maybe(COMMANDS["query-pmu"].result),
        "uid": Maybe(_UID),
        "record": Maybe(start_record.FORM),
        "untold": Maybe(_NO_REPLY),
    },
    is_open=True,
)
"""A VM that answered has `vmm`, `answer` and perhaps `record`, an orphaned one `uid` and `record`;
`untold` is why another one gave no reply."""


def capture_replies(texts: Iterable[str], left_out: int) -> Iterator[Captured]:
    """Yield the files of sockets, as `read_captured_sockets` reads them, with these texts.

    `left_out` is how many sockets were not queried.
    """
    for number, text in enumerate(texts):
        yield Captured(path=f"{PATH_REPLIES}/{number}.json", text=text)
    if left_out:
        yield Captured(path=f"{PATH_REPLIES}/{LEFT_OUT}", text=f"{left_out}\n")


def read_captured_sockets(host: Host) -> SocketScan:
    """Return the control sockets of a captured tree; raise RefusedError for a broken file."""
    sysfs = host.sysfs
    found: dict[Path, ControlSocket] = {}
    left = Allowance(REPLIES_MAX, "characters of replies")
    for name in filter(_FILE.fullmatch, sysfs.entries(PATH_REPLIES)):
        text = sysfs.read_text(f"{PATH_REPLIES}/{name}", limit=SIZE_LIMIT)
        try:
            if text is None:
                raise ValueError(f"it is no file of at most {SIZE_LIMIT >> 20} MiB to be read")
            left.take(len(text), f"{PATH_REPLIES}/{name}")
            socket = from_text(text, host.procs)
            if socket.path in found:
                raise ValueError(f"{socket.path} stands in another file, too")
            found[socket.path] = socket
        except (ValueError, RecursionError) as error:
            why = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
            raise RefusedError(
                "it is not what pmuctl host snapshot writes",
                subject=str(sysfs.root / PATH_REPLIES / name),
                why=why,
                fix="capture the machine anew, or remove the file: that VM is not managed then",
            ) from None
    sockets = sorted(found.values(), key=lambda socket: (socket.name or "", str(socket.path)))
    count = sysfs.read_text(f"{PATH_REPLIES}/{LEFT_OUT}", limit=16) or ""
    return SocketScan(sockets, int(count) if _COUNT.fullmatch(count) else 0)


def to_text(socket: ControlSocket, reply: Reply) -> str:
    """Return the text of the file of a socket and its reply.

    `speaks_for` of the socket is to be None if only root or the user who makes the capture can
    have made it.
    """
    document: dict[str, object] = {
        "format": FORMAT,
        "name": socket.name,
        "path": start_record.cut_text(str(socket.path.absolute()), PATH_CHARS),
        "owner": socket.speaks_for,
    }
    match reply:
        case VmReply(message=message, vmm=vmm):
            document["vmm"] = _VMM.format(vmm)
            document["answer"] = message
            if reply.record:
                document["record"] = start_record.FORM.format(reply.record)
        case RecordedVm():
            document["uid"] = reply.uid
            document["record"] = start_record.FORM.format(reply.record)
        case NoReply(problem=problem, process=process):
            document["untold"] = {
                "state": reply.state,
                "status": int(problem.status),
                "message": start_record.cut_text(problem.message),
                "why": problem.why and start_record.cut_text(problem.why),
                "errno": problem.errno,
                "process": process and _PROCESS.format(process),
                "owner": reply.owner,
            }
    return json.dumps(document, ensure_ascii=False) + "\n"


def from_text(text: str, procs: Procfs) -> CapturedSocket:
    """Parse the text of a file; the inverse of `to_text`.

    The threads of a VMM are read from `procs`, the processes of the same capture; the `fix` of a
    problem is made here. Raise ValueError or RecursionError for any other text.
    """
    if has_too_many_values(text):
        raise ValueError(f"it has more than {VALUES_MAX} values")
    document: Any = json.loads(text)
    _FORM.check(document, "file")
    document = _FORM.select(document)
    path = Path(document["path"])
    if path.name != document["name"] + SUFFIX:
        raise ValueError("file.path: is not a socket of that name")
    socket = ControlSocket(name=document["name"], path=path, speaks_for=document["owner"])
    _parse_reply(socket, document, procs)
    # what is not known here is not kept
    known = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return CapturedSocket(
        name=socket.name,
        path=path,
        speaks_for=socket.speaks_for,
        read=lambda: _parse_reply(socket, json.loads(known), procs),
    )


def _parse_reply(socket: ControlSocket, document: Mapping[str, Any], procs: Procfs) -> Reply:
    if "answer" in document and "vmm" in document:
        return _parse_vm_reply(socket, document, procs)
    if "record" in document and "uid" in document:
        return RecordedVm(record=_parse_record(document, socket.name), uid=document["uid"])
    if "untold" in document:
        return _parse_no_reply(document["untold"], socket.name)
    raise ValueError("file: has neither answer nor record nor why there is none")


def _parse_vm_reply(socket: ControlSocket, document: Mapping[str, Any], procs: Procfs) -> VmReply:
    answer, vmm = document["answer"], _VMM.parse(document["vmm"])
    try:
        check_answer(socket, answer)
    except PmuctlError as error:
        raise ValueError(f"file.answer: {error.why}") from None
    now = procs.read_facts(vmm.pid)
    if now.started == vmm.started:
        vmm = replace(vmm, threads=now.threads)
    if "record" not in document:
        return VmReply(message=answer, vmm=vmm)
    record = _parse_record(document, socket.name)
    if record.process != vmm.process:
        raise ValueError("file.record: is of another process")
    return VmReply(message=answer, vmm=vmm, record=record)


def _parse_record(document: Mapping[str, Any], name: str | None) -> start_record.Record:
    record: start_record.Record = start_record.FORM.parse(document["record"])
    if record.name != name:
        raise ValueError("file.record: is of another VM")
    return record


def _parse_no_reply(document: Mapping[str, Any], name: str | None) -> NoReply:
    cls = class_of(document["status"]) or RefusedError
    state = VmState(document["state"])
    problem = cls(
        document["message"],
        subject=name,
        why=document["why"],
        # another user can capture more only of a VM that denied this one
        fix=FIX if state is VmState.DENIED else None,
        errno=document["errno"],
    )
    process = document["process"] and _PROCESS.parse(document["process"])
    return NoReply(problem=problem, state=state, process=process, owner=document["owner"])
