# SPDX-License-Identifier: Apache-2.0
"""What control sockets told, as a capture of their machine has it: a file for each.

A captured tree is read as hostile. What it has passes the checks of a live peer's answer and of a
record; its words are shown and never followed, and nobody is asked for more.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pmuctl.control.client.peer_auth import ProcessFacts
from pmuctl.control.protocol.messages import COMMANDS, NAME
from pmuctl.control.protocol.schema import Bool, Int, Maybe, Nullable, Obj, Str
from pmuctl.control.runtime import start_record
from pmuctl.control.runtime.sockets import SUFFIX, ControlSocket, SocketScan
from pmuctl.errors import PmuctlError, RefusedError, class_of
from pmuctl.host.runtime_dirs import LEFT_OUT, PATH_TOLD
from pmuctl.host.snapshot_files import Captured
from pmuctl.host.sysfs import Sysfs
from pmuctl.manage.inventory.replies import (
    CapturedEntry,
    NoReply,
    RecordedVm,
    Reply,
    VmReply,
    check_answer,
)
from pmuctl.model.vm import VmState
from pmuctl.model.vm_ref import ProcessId

FORMAT = 1
SIZE_LIMIT = 8 << 20
"""Bytes: an answer came in MESSAGE_MAX, and numbers in it are written anew up to four times as
long (1E15); a record has no more than its own limit."""
PATH_CHARS = 4 * 4096
"""Characters of a path, of which each byte can need four (PATH_MAX)."""
FIX = "sudo pmuctl host snapshot DIR"
"""What tells more of a VM that a user might not ask on another machine, there."""

_FILE = re.compile(r"[0-9]{1,5}\.json")
_COUNT = re.compile(r"[0-9]{1,9}\n?")
_PATH = re.compile(r"/(?:[^\0]*/)?[^/\0]+")
_UID = Int(most=0xFFFFFFFF)
_PID = Int(least=1, most=0x7FFFFFFF)
_VMM = Obj(
    {
        "pid": _PID,
        "uid": _UID,
        "start": Nullable(Int()),
        "has-vm": Nullable(Bool()),
        "supervised": Bool(),
    },
    is_open=True,
)
_UNTOLD = Obj(
    {
        "state": Str(words=(VmState.DEAD, VmState.DENIED, VmState.SILENT)),
        "status": Int(most=255),
        "message": Str(),
        "why": Nullable(Str()),
        "errno": Nullable(Str(most=32)),
        "process": Nullable(Obj({"pid": _PID, "start": Int()}, is_open=True)),
        "owner": Nullable(_UID),
    },
    is_open=True,
)
_FORM = Obj(
    {
        "format": Int(least=FORMAT, most=FORMAT),
        "name": NAME,
        "path": Str(form=_PATH),
        "owner": Nullable(_UID),
        "vmm": Maybe(_VMM),
        "answer": Maybe(COMMANDS["query-pmu"].result),
        "uid": Maybe(_UID),
        "record": Maybe(start_record.FORM),
        "untold": Maybe(_UNTOLD),
    },
    is_open=True,
)
"""With `vmm`, `answer` and perhaps `record` it has answered, with `uid` and `record` it is
orphaned; else `untold` tells why."""


def capture_told(
    sockets: Sequence[tuple[ControlSocket, Reply]], left_out: int
) -> Iterator[Captured]:
    """The files of these sockets, as `read_told` reads them.

    Their `owner` is None where nobody but root and who makes the capture can have made them.
    """
    for number, (entry, told) in enumerate(sockets):
        yield Captured(path=f"{PATH_TOLD}/{number}.json", text=to_text(entry, told))
    if left_out:
        yield Captured(path=f"{PATH_TOLD}/{LEFT_OUT}", text=f"{left_out}\n")


def read_told(sysfs: Sysfs) -> SocketScan:
    """The control sockets of a captured tree; raises RefusedError for a file that is broken."""
    found: dict[Path, ControlSocket] = {}
    for name in filter(_FILE.fullmatch, sysfs.entries(PATH_TOLD)):
        text = sysfs.read_text(f"{PATH_TOLD}/{name}", limit=SIZE_LIMIT)
        try:
            if text is None:
                raise ValueError(f"it is no file of at most {SIZE_LIMIT >> 20} MiB to be read")
            entry = from_text(text)
            if entry.path in found:
                raise ValueError(f"{entry.path} stands in another file, too")
            found[entry.path] = entry
        except (ValueError, RecursionError) as error:
            why = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
            raise RefusedError(
                "it is not what pmuctl host snapshot writes",
                subject=str(sysfs.root / PATH_TOLD / name),
                why=why,
                fix="capture the machine anew, or remove the file: that VM is not managed then",
            ) from None
    entries = sorted(found.values(), key=lambda entry: (entry.name or "", str(entry.path)))
    count = sysfs.read_text(f"{PATH_TOLD}/{LEFT_OUT}", limit=16) or ""
    return SocketScan(entries, int(count) if _COUNT.fullmatch(count) else 0)


def to_text(entry: ControlSocket, told: Reply) -> str:
    """A socket and what it told, as it stands in its file."""
    document: dict[str, object] = {
        "format": FORMAT,
        "name": entry.name,
        "path": start_record.cut_text(str(entry.path.absolute()), PATH_CHARS),
        "owner": entry.owner,
    }
    match told:
        case VmReply(message=message, vmm=vmm):
            document["vmm"] = {
                "pid": vmm.pid,
                "uid": vmm.uid,
                "start": vmm.started,
                "has-vm": vmm.has_vm,
                "supervised": vmm.is_supervised,
            }
            document["answer"] = message
            if told.record:
                document["record"] = start_record.to_json(told.record)
        case RecordedVm():
            document["uid"] = told.uid
            document["record"] = start_record.to_json(told.record)
        case NoReply(problem=problem, process=process):
            document["untold"] = {
                "state": told.state,
                "status": int(problem.status),
                "message": start_record.cut_text(problem.message),
                "why": problem.why and start_record.cut_text(problem.why),
                "errno": problem.errno,
                "process": process and {"pid": process.pid, "start": process.started},
                "owner": told.owner,
            }
    return json.dumps(document, ensure_ascii=False) + "\n"


def from_text(text: str) -> CapturedEntry:
    """The inverse of `to_text`; raises ValueError or RecursionError for anything else.

    What to do about a problem is not taken from it: such words are made here.
    """
    document: Any = json.loads(text)
    _FORM.check(document, "file")
    its: dict[str, Any] = document
    path = Path(its["path"])
    if path.name != its["name"] + SUFFIX:
        raise ValueError("file.path: is not a socket of that name")
    entry = ControlSocket(name=its["name"], path=path, owner=its["owner"])
    told: Reply
    if "answer" in its and "vmm" in its:
        told = _answered(entry, its)
    elif "record" in its and "uid" in its:
        told = RecordedVm(record=_record(its, entry.name), uid=its["uid"])
    elif "untold" in its:
        told = _untold(its["untold"], entry.name)
    else:
        raise ValueError("file: has neither answer nor record nor why there is none")
    return CapturedEntry(name=entry.name, path=path, owner=entry.owner, told=told)


def _answered(entry: ControlSocket, its: Mapping[str, Any]) -> VmReply:
    try:
        check_answer(entry, its["answer"])
    except PmuctlError as error:
        raise ValueError(f"file.answer: {error.why}") from None
    vmm = ProcessFacts(
        pid=its["vmm"]["pid"],
        uid=its["vmm"]["uid"],
        started=its["vmm"]["start"],
        has_vm=its["vmm"]["has-vm"],
        is_supervised=its["vmm"]["supervised"],
    )
    if "record" not in its:
        return VmReply(message=its["answer"], vmm=vmm)
    start = _record(its, entry.name)
    if start.process != vmm.process:
        raise ValueError("file.record: is of another process")
    return VmReply(message=its["answer"], vmm=vmm, record=start)


def _record(its: Mapping[str, Any], name: str | None) -> start_record.Record:
    found = start_record.from_json(its["record"])
    if found.name != name:
        raise ValueError("file.record: is of another VM")
    return found


def _untold(its: Mapping[str, Any], name: str | None) -> NoReply:
    cls = class_of(its["status"]) or RefusedError
    state = VmState(its["state"])
    problem = cls(
        its["message"],
        subject=name,
        why=its["why"],
        # of others nobody learns more
        fix=FIX if state is VmState.DENIED else None,
        errno=its["errno"],
    )
    process = its["process"] and ProcessId(its["process"]["pid"], its["process"]["start"])
    return NoReply(problem=problem, state=state, process=process, owner=its["owner"])
