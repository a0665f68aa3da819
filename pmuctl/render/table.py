# SPDX-License-Identifier: Apache-2.0
"""Tables as text: rich on a terminal, plain full-width lines elsewhere."""

from collections.abc import Sequence
from typing import TextIO, TypeVar

from pmuctl.render.columns import Column, cell

Row = TypeVar("Row")


def write_table(
    columns: Sequence[Column[Row]], rows: Sequence[Row], out: TextIO, *, indent: str = ""
) -> None:
    """Write headings and rows, one line a row; nothing is cut off where `out` is no terminal."""
    lines = [[cell(column.value(row)) for column in columns] for row in rows]
    if out.isatty():
        _write_rich(columns, lines, out, indent)
        return
    names = [column.name for column in columns]
    widths = [max(map(len, texts)) for texts in zip(names, *lines, strict=True)]
    for texts in [names, *lines]:
        cells = [
            text.rjust(width) if column.is_number else text.ljust(width)
            for column, text, width in zip(columns, texts, widths, strict=True)
        ]
        out.write((indent + "  ".join(cells)).rstrip() + "\n")


def _write_rich(
    columns: Sequence[Column[Row]], lines: Sequence[Sequence[str]], out: TextIO, indent: str
) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        # a name that is cut off cannot be typed
        table.add_column(
            column.name,
            justify="right" if column.is_number else "left",
            no_wrap=number == 0 or column.is_number,
            overflow="fold",
        )
    for texts in lines:
        table.add_row(*(Text(text) for text in texts))
    Console(file=out, highlight=False, markup=False, emoji=False).print(
        Padding(table, (0, 0, 0, len(indent)))
    )


def write_record(fields: Sequence[tuple[str, object]], out: TextIO) -> None:
    """Write one thing in full: a line a field, `Name:   value`."""
    width = max(len(name) for name, _ in fields) + 1
    for name, value in fields:
        out.write(f"{name + ':':{width}}  {cell(value)}\n")
