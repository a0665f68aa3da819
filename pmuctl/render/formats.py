# SPDX-License-Identifier: Apache-2.0
"""Output formats: the same columns as a table, JSON, JSON lines, CSV, TSV, raw words or names."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, TextIO, TypeVar

from pmuctl.render.columns import Column, as_object
from pmuctl.render.table import write_record, write_table
from pmuctl.render.text import to_json
from pmuctl.value import value

Row = TypeVar("Row")

SCHEMA = 1
"""Schema version: increased if a JSON key is removed or changes its type, not if one is added."""


class Format(StrEnum):
    """An output format."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"
    RAW = "raw"
    NAME = "name"

    @property
    def is_json(self) -> bool:
        """Whether errors are written as JSON, too."""
        return self in (Format.JSON, Format.JSONL)


@value(kw_only=True)
class Layout:
    """The layout of a table: whether it has headings, the width of the terminal, colours.

    `width` is in characters. If it is None, the output is not a terminal: nothing is cut off.
    """

    headings: bool = True
    width: int | None = None
    colour: bool = False


def write_document(command: str, body: Mapping[str, Any], out: TextIO) -> None:
    """Write the one JSON object of a command, `{"pmuctl": {...}, ...}`, on one line."""
    head = {"pmuctl": {"schema": SCHEMA, "command": command}}
    out.write(to_json(head | dict(body)) + "\n")


def write_list_document(
    command: str,
    key: str,
    objects: Iterable[Mapping[str, Any]],
    more: Mapping[str, Any],
    out: TextIO,
) -> None:
    """Write the document with a list as its member `key`, then `more`: one object at a time.

    A peer of another user may fill an object with all that its answer may hold.
    """
    head = to_json({"pmuctl": {"schema": SCHEMA, "command": command}})
    out.write(f"{head[:-1]}, {to_json(key)}: [")
    for number, item in enumerate(objects):
        out.write((", " if number else "") + to_json(item))
    out.write("]")
    for name, member in more.items():
        out.write(f", {to_json(name)}: {to_json(member)}")
    out.write("}\n")


def write_rows(
    columns: Sequence[Column[Row]],
    rows: Sequence[Row],
    out: TextIO,
    *,
    format: Format,
    layout: Layout,
) -> None:
    """Write rows in any format but JSON, whose document holds more than the rows."""
    if format is Format.TABLE:
        write_table(
            columns,
            rows,
            out,
            headings=layout.headings,
            width=layout.width,
            colour=layout.colour,
        )
        return
    if format is Format.JSONL:
        for row in rows:
            out.write(to_json(as_object(columns, row)) + "\n")
        return
    if format is Format.NAME:
        for row in rows:
            out.write(columns[0].text(row) + "\n")
        return
    write_line = _LINES[format]
    if layout.headings:
        write_line([column.name for column in columns], out)
    for row in rows:
        write_line([column.field(row) for column in columns], out)


def write_one(
    columns: Sequence[Column[Row]], row: Row, out: TextIO, *, format: Format, layout: Layout
) -> None:
    """Write one row in full, in any format but JSON."""
    if format is Format.TABLE:
        write_record(columns, row, out, width=layout.width, colour=layout.colour)
    else:
        write_rows(columns, [row], out, format=format, layout=layout)


def _write_csv(texts: Sequence[str], out: TextIO) -> None:
    import csv

    csv.writer(out, lineterminator="\n").writerow(texts)


def _write_tsv(texts: Sequence[str], out: TextIO) -> None:
    # printable() has escaped the tabs, so a text contains none
    out.write("\t".join(texts) + "\n")


def _write_raw(texts: Sequence[str], out: TextIO) -> None:
    words = (text.replace("\\", "\\x5c").replace(" ", "\\x20") for text in texts)
    out.write(" ".join(words) + "\n")


_LINES: Mapping[Format, Callable[[Sequence[str], TextIO], None]] = {
    Format.CSV: _write_csv,
    Format.TSV: _write_tsv,
    Format.RAW: _write_raw,
}
