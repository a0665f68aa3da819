# SPDX-License-Identifier: Apache-2.0
"""The record of a VM that pmuctl run started: what its supervisor leaves for others to read.

It lies beside the control socket and outlives the supervisor: it tells why a start was refused,
and what was set of a VM that goes on after its supervisor was killed.
"""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pmuctl.control.protocol.messages import (
    FILTER,
    NAME,
    PERF_TYPE,
    PMU_NAME,
    filter_from,
    filter_message,
)
from pmuctl.control.protocol.schema import LIST_MAX, Int, List, Maybe, Nullable, Obj, Str
from pmuctl.host import json_store
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import WIDEST_BITS, EventSet
from pmuctl.model.event_filter import EventFilter
from pmuctl.model.settings_change import SettingsChange
from pmuctl.model.vm_ref import ProcessId
from pmuctl.value import replace, value

FORMAT = 1
SIZE_LIMIT = 2 << 20
"""Bytes of a record: a filter of 32768 ranges has the most."""
COMMAND_CHARS = 1 << 16
"""Characters of a command line that are kept, its words' ends counted."""
TEXT_CHARS = 1000
CHANGES_KEPT = 32
STEPS_KEPT = 32


@value(kw_only=True)
class Problem:
    """Why a start was refused or failed: the texts of the error and its exit status."""

    message: str
    why: str | None = None
    fix: str | None = None
    status: int


@value(kw_only=True)
class Record:
    """One start of a VM under a supervisor.

    `pid` is the VMM's process, `start` when that began in clock ticks since boot
    (Procfs.start_time), `supervisor` the supervisor's pid and `began` the time of the start in
    seconds since the epoch. `pmu` is a perf type and its PMU's name, `derived` the same of the one
    that KVM was seen to choose by itself, `cpus` what the threads of vCPUs were narrowed to,
    `stops` how often its threads were stopped until its vCPUs ran, None before that.
    """

    name: str
    pid: int
    start: int
    supervisor: int
    command: tuple[str, ...]
    began: int
    pmu: tuple[int, str] | None = None
    derived: tuple[int, str] | None = None
    filter: EventFilter | None = None
    cpus: CpuSet | None = None
    applied: tuple[SettingsChange, ...] = ()
    problem: Problem | None = None
    stops: int | None = None

    @property
    def process(self) -> ProcessId:
        """The VMM's process."""
        return ProcessId(self.pid, self.start)


_PID = Int(least=1, most=0x7FFFFFFF)
_WHEN = Int(most=253402300799)
"""Seconds since the epoch, until the year 10000: more cannot be shown as a date."""
_TEXT = Str(most=TEXT_CHARS)
_PMU = Nullable(Obj({"type": PERF_TYPE, "name": PMU_NAME}))
FORM = Obj(
    {
        "format": Int(least=FORMAT, most=FORMAT),
        "name": NAME,
        "pid": _PID,
        "start": Int(),
        "supervisor": _PID,
        "command": List(Str(most=COMMAND_CHARS)),
        "began": _WHEN,
        "pmu": _PMU,
        "derived": Maybe(_PMU),  # older records have none
        "filter": Nullable(Obj(FILTER)),
        "cpus": Nullable(Str(most=1 << 18)),
        "applied": List(
            Obj({"when": _WHEN, "by": _TEXT, "steps": List(_TEXT, most=STEPS_KEPT + 1)}),
            most=CHANGES_KEPT,
        ),
        "problem": Nullable(
            Obj(
                {
                    "message": _TEXT,
                    "why": Nullable(_TEXT),
                    "fix": Nullable(_TEXT),
                    "status": Int(most=255),
                }
            )
        ),
        "stops": Nullable(Int()),
    },
    is_open=True,
)
"""What a record is as JSON; `from_json` checks more."""


def write_record(path: Path, record: Record) -> None:
    """Put the record at `path`, whole or not at all; no link is followed.

    What is very long in it is cut: the command, texts, steps, all changes but the last ones.
    Raises OSError where it cannot be written, also where another user may write to the directory.
    """
    document = to_json(_cut(record))
    owners = {0, os.geteuid()}
    json_store.save(path.parent, path.name, document, owners=owners, limit=SIZE_LIMIT)


def remove_record(path: Path) -> None:
    """Remove the record, if there is one; raises OSError where that is not permitted."""
    json_store.remove(path.parent, path.name)


def read_record(path: Path, owners: Collection[int]) -> Record | None:
    """The record at `path`; None where there is none that can be believed.

    Directory and file must be of one of `owners` and writable by nobody else, as
    `json_store.load` asks.
    """
    document = json_store.load(path.parent, path.name, owners=owners, limit=SIZE_LIMIT)
    try:
        return from_json(document)
    except ValueError:
        return None


def to_json(record: Record) -> dict[str, object]:
    """As it stands in the file."""
    problem = record.problem
    return {
        "format": FORMAT,
        "name": record.name,
        "pid": record.pid,
        "start": record.start,
        "supervisor": record.supervisor,
        "command": list(record.command),
        "began": record.began,
        "pmu": _pmu_member(record.pmu),
        "derived": _pmu_member(record.derived),
        "filter": record.filter and filter_message(record.filter),
        "cpus": None if record.cpus is None else str(record.cpus),
        "applied": [
            {"when": its.when, "by": its.by, "steps": list(its.steps)} for its in record.applied
        ],
        "problem": problem
        and {
            "message": problem.message,
            "why": problem.why,
            "fix": problem.fix,
            "status": problem.status,
        },
        "stops": record.stops,
    }


def from_json(document: object) -> Record:
    """The inverse of `to_json`; raises ValueError for anything else."""
    FORM.check(document, "record")
    its: Any = document
    event_filter = its["filter"] and filter_from(its["filter"])
    if event_filter and event_filter.exceptions - EventSet.space(WIDEST_BITS):
        raise ValueError("record.filter: names events past 0xffff")
    return Record(
        name=its["name"],
        pid=its["pid"],
        start=its["start"],
        supervisor=its["supervisor"],
        command=tuple(its["command"]),
        began=its["began"],
        pmu=_pmu_of(its["pmu"]),
        derived=_pmu_of(its.get("derived")),
        filter=event_filter,
        cpus=None if its["cpus"] is None else CpuSet.parse(its["cpus"]),
        applied=tuple(
            SettingsChange(one["when"], one["by"], tuple(one["steps"])) for one in its["applied"]
        ),
        problem=its["problem"] and Problem(**its["problem"]),
        stops=its["stops"],
    )


def _pmu_member(pmu: tuple[int, str] | None) -> dict[str, object] | None:
    return None if pmu is None else {"type": pmu[0], "name": pmu[1]}


def _pmu_of(member: Any) -> tuple[int, str] | None:
    return None if member is None else (member["type"], member["name"])


def _cut(record: Record) -> Record:
    """The record with what may be in a file; nobody's command line is to make it unreadable."""
    problem = record.problem
    return replace(
        record,
        command=_cut_command(record.command),
        applied=tuple(
            SettingsChange(its.when, cut_text(its.by), _cut_steps(its.steps))
            for its in record.applied[-CHANGES_KEPT:]
        ),
        problem=problem
        and replace(
            problem,
            message=cut_text(problem.message),
            why=problem.why and cut_text(problem.why),
            fix=problem.fix and cut_text(problem.fix),
        ),
    )


def cut_text(text: str, most: int = TEXT_CHARS) -> str:
    """A text as others can read it, of at most so many characters."""
    # half a surrogate pair, as in an argument that is not UTF-8, is no text to others
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= most else text[: most - 1] + "…"


def _cut_command(command: tuple[str, ...]) -> tuple[str, ...]:
    words: list[str] = []
    left = COMMAND_CHARS
    for word in command:
        words.append(cut_text(word, left))
        left -= len(words[-1]) + 1
        if left <= 0 or len(words) == LIST_MAX:
            break
    return tuple(words)


def _cut_steps(steps: tuple[str, ...]) -> tuple[str, ...]:
    told = tuple(map(cut_text, steps[:STEPS_KEPT]))
    more = len(steps) - len(told)
    return (*told, f"… and {more} more") if more else told
