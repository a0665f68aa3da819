# SPDX-License-Identifier: Apache-2.0
"""Columns of the events of `pmuctl monitor`, and their output line by line as they happen."""

from collections.abc import Sequence
from typing import TextIO

from pmuctl.manage.diagnosis.monitor import Event
from pmuctl.model.host_diff import ChangeKind
from pmuctl.render.columns import Column
from pmuctl.render.formats import Format, Layout, write_rows
from pmuctl.render.table import GAP, count_cells, wrap

EVENT_COLUMNS: Sequence[Column[Event]] = (
    Column(name="TIME", help="when it was seen", value=lambda event: event.time),
    Column(name="EVENT", help="what has happened", value=lambda event: event.change.kind),
    Column(name="VM", help="the VM", value=lambda event: event.change.vm),
    Column(name="WHAT", help="the change, in words", value=lambda event: event.change.what),
    Column(
        name="PID",
        help="the process of its VMM",
        value=lambda event: event.change.pid,
        is_number=True,
        shown=False,
        in_json=True,
    ),
    Column(
        name="VCPU",
        help="the vCPU",
        value=lambda event: event.change.vcpu,
        is_number=True,
        shown=False,
        in_json=True,
    ),
    Column(
        name="TID",
        help="its thread",
        value=lambda event: event.change.tid,
        is_number=True,
        shown=False,
        in_json=True,
    ),
    Column(
        name="PMU",
        help="the PMU",
        value=lambda event: event.change.pmu,
        shown=False,
        in_json=True,
    ),
    Column(
        name="CPUS",
        help="the CPUs",
        value=lambda event: event.change.cpus,
        shown=False,
        in_json=True,
    ),
)

_WIDTHS = {
    "TIME": len("2026-01-02T03:04:05.678+00:00"),
    "EVENT": max(map(len, ChangeKind)),
    "VM": 12,
    "PID": 7,
    "VCPU": 4,
    "TID": 7,
    "PMU": 18,
    "CPUS": 5,
}
"""Fixed column widths: later rows are not known yet. A longer text pushes the rest of its line."""


def write_head(
    columns: Sequence[Column[Event]], out: TextIO, *, format: Format, width: int | None = None
) -> None:
    """Write the header line, if the format has one."""
    if format is Format.TABLE:
        _write_line(columns, [column.name for column in columns], out, width=width)
    else:
        write_rows(columns, [], out, format=format, layout=Layout())


def write_event(
    columns: Sequence[Column[Event]],
    event: Event,
    out: TextIO,
    *,
    format: Format,
    width: int | None = None,
) -> None:
    """Write one event as one line, and flush it.

    On a terminal of `width` characters the time is that of the day, and the last text is wrapped
    below itself, or below a name that leaves no room beside it.
    """
    if format is Format.TABLE:
        texts = [column.text(event) for column in columns]
        if width is not None:
            texts = [
                text[11:19] if column.name == "TIME" else text
                for column, text in zip(columns, texts, strict=True)
            ]
        _write_line(columns, texts, out, width=width)
    else:
        write_rows(columns, [event], out, format=format, layout=_BARE)
    out.flush()


_BARE = Layout(headings=False)


def _write_line(
    columns: Sequence[Column[Event]],
    texts: Sequence[str],
    out: TextIO,
    *,
    width: int | None = None,
) -> None:
    sizes = _WIDTHS if width is None else {**_WIDTHS, "TIME": len("03:04:05")}
    cells = [
        text + " " * (sizes.get(column.name, 0) - count_cells(text)) + GAP
        for column, text in zip(columns, texts, strict=True)
    ]
    out.write(wrap(texts[-1], "".join(cells[:-1]), width).rstrip() + "\n")
