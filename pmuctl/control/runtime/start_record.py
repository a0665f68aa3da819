# SPDX-License-Identifier: Apache-2.0
"""The record of one start of a VM by pmuctl run, which the VM's supervisor writes.

The file is beside the control socket and outlives the supervisor: it says why a start was refused,
and what was set for a VM that runs on after its supervisor was killed.
"""

import os
from collections.abc import Callable, Collection, Mapping
from operator import itemgetter
from pathlib import Path

from pmuctl.control.protocol.messages import (
    FILTER,
    NAME,
    PERF_TYPE,
    PMU_NAME,
    filter_from,
    filter_message,
)
from pmuctl.host import json_store
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import WIDEST_BITS, EventSet
from pmuctl.model.event_filter import EventFilter
from pmuctl.model.settings_change import SettingsChange
from pmuctl.model.vm_ref import ProcessId
from pmuctl.schema import LIST_MAX, Constant, Int, List, Maybe, Nullable, Obj, Str, Struct
from pmuctl.value import replace, value

FORMAT = 1
SIZE_LIMIT = 2 << 20
"""Bytes of a record: one with a filter of 32768 ranges is the longest."""
COMMAND_CHARS = 1 << 16
"""Characters of a command line to keep, with one more for the end of each argument."""
TEXT_CHARS = 1000
CHANGES_KEPT = 32
STEPS_KEPT = 32


@value(kw_only=True)
class Problem:
    """The reason why a start was refused or failed: the texts of the error.

    `status` is the exit status that the VMM was given; 0 if it was left alone, because it made no
    VM that could get the settings.
    """

    message: str
    why: str | None = None
    now: str | None = None
    fix: str | None = None
    status: int


@value(kw_only=True)
class Record:
    """One start of a VM under a supervisor.

    `pid` is the VMM's process, `start` its start time in clock ticks since boot
    (Procfs.start_time), `supervisor` the supervisor's pid, and `began` the time of this start in
    seconds since the epoch. `pmu` is a perf type and the name of its PMU, `derived` the same for
    the PMU that KVM was seen to choose by itself. `cpus` are the CPUs that the vCPU threads were
    confined to, and `stops` counts how often threads were stopped until the vCPUs ran (None
    before that).
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


def _parse_filter(message: Mapping[str, object]) -> EventFilter:
    event_filter = filter_from(message)
    if event_filter.exceptions - EventSet.space(WIDEST_BITS):
        raise ValueError("record.filter: names events past 0xffff")
    return event_filter


_PID = Int(least=1, most=0x7FFFFFFF)
_WHEN = Int(most=253402300799)
"""Seconds since the epoch until the year 10000: later ones cannot be shown as a date."""
_TEXT = Str(most=TEXT_CHARS)
_PMU = Obj(
    {"type": PERF_TYPE, "name": PMU_NAME},
    make=itemgetter("type", "name"),
    unmake=lambda pmu: {"type": pmu[0], "name": pmu[1]},
)
_CHANGE = Struct(
    {"when": _WHEN, "by": _TEXT, "steps": List(_TEXT, most=STEPS_KEPT + 1, make=tuple)},
    cls=SettingsChange,
)
_PROBLEM = Struct(
    {
        "message": _TEXT,
        "why": Nullable(_TEXT),
        "now": Maybe(Nullable(_TEXT)),  # older records have none
        "fix": Nullable(_TEXT),
        "status": Int(most=255),
    },
    cls=Problem,
)
FORM = Struct(
    {
        "format": Constant(FORMAT),
        "name": NAME,
        "pid": _PID,
        "start": Int(),
        "supervisor": _PID,
        "command": List(Str(most=COMMAND_CHARS), make=tuple),
        "began": _WHEN,
        "pmu": Nullable(_PMU),
        "derived": Maybe(Nullable(_PMU)),  # older records have none
        "filter": Nullable(Obj(FILTER, make=_parse_filter, unmake=filter_message)),
        "cpus": Nullable(Str(most=1 << 18, make=CpuSet.parse, unmake=str)),
        "applied": List(_CHANGE, most=CHANGES_KEPT, make=tuple),
        "problem": Nullable(_PROBLEM),
        "stops": Nullable(Int()),
    },
    is_open=True,
    cls=Record,
)
"""The form of a record as JSON."""


def write_record(path: Path, record: Record) -> None:
    """Write the record to `path`, whole or not at all; no link is followed.

    A long command, texts and steps are cut, and only the last changes are kept. Raise OSError if
    the record cannot be written, also if another user may write to the directory.
    """
    document = FORM.format(_cut_record(record))
    owners = {0, os.geteuid()}
    json_store.save(path.parent, path.name, document, owners=owners, limit=SIZE_LIMIT)


def remove_record(path: Path) -> None:
    """Remove the record, if there is one; raise OSError if that is not permitted."""
    json_store.remove(path.parent, path.name)


def read_record(
    path: Path, owners: Collection[int], spend: Callable[[int], None] | None = None
) -> Record | None:
    """Return the record at `path`; None if there is none, or none that can be trusted.

    One of `owners` must own the directory and the file, and nobody else may write to them, as
    `json_store.load` requires, which also tells of `spend`.
    """
    record: Record | None = json_store.load(
        path.parent, path.name, FORM, owners=owners, limit=SIZE_LIMIT, spend=spend
    )
    return record


def _cut_record(record: Record) -> Record:
    """Return the record cut to its limits: a long command line must not make it unreadable."""
    problem = record.problem
    return replace(
        record,
        command=_cut_command(record.command),
        applied=tuple(
            SettingsChange(change.when, cut_text(change.by), _cut_steps(change.steps))
            for change in record.applied[-CHANGES_KEPT:]
        ),
        problem=problem
        and replace(
            problem,
            message=cut_text(problem.message),
            why=problem.why and cut_text(problem.why),
            now=problem.now and cut_text(problem.now),
            fix=problem.fix and cut_text(problem.fix),
        ),
    )


def cut_text(text: str, most: int = TEXT_CHARS) -> str:
    """Return a text as valid UTF-8, cut to at most so many characters."""
    # half a surrogate pair, as in an argument that is not UTF-8, cannot be encoded
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
    kept = tuple(map(cut_text, steps[:STEPS_KEPT]))
    more = len(steps) - len(kept)
    return (*kept, f"… and {more} more") if more else kept
