# SPDX-License-Identifier: Apache-2.0
"""Tables as text: fitted to a terminal by rich, plain full-width lines elsewhere."""

from collections.abc import Sequence
from typing import Literal, TextIO, TypeVar

from pmuctl.render.columns import Column

Row = TypeVar("Row")

BOLD, NORMAL = "\x1b[1m", "\x1b[0m"
HEIGHT = 25
"""Lines of a terminal: nothing depends on it, but rich asks for a size whole or not at all."""


def write_table(
    columns: Sequence[Column[Row]],
    rows: Sequence[Row],
    out: TextIO,
    *,
    headings: bool = True,
    width: int | None = None,
    colour: bool = False,
    indent: str = "",
) -> None:
    """Write one line a row under a line of headings; `colour` makes the headings bold.

    Texts are shortened to the `width` of a terminal, the widest first, the first column and
    numbers never; where that is not enough, and without a width, nothing is cut off.
    """
    lines = [[column.text(row) for column in columns] for row in rows]
    names = [column.name for column in columns]
    widths = [max(map(len, texts)) for texts in zip(names, *lines, strict=True)]
    if width is not None and _write_fitted(
        columns, lines, out, width=width, headings=headings, colour=colour, indent=indent
    ):
        return

    def join(texts: Sequence[str]) -> str:
        cells = [
            text.rjust(its) if column.is_number else text.ljust(its)
            for column, text, its in zip(columns, texts, widths, strict=True)
        ]
        return (indent + "  ".join(cells)).rstrip()

    if headings:
        line = join(names)
        out.write((BOLD + line + NORMAL if colour else line) + "\n")
    for texts in lines:
        out.write(join(texts) + "\n")


def _shrink(columns: Sequence[Column[Row]], widths: Sequence[int], room: int) -> list[int] | None:
    """Column widths that add up to no more than `room`, None where that cannot be."""
    fitted = list(widths)
    # a name that is cut off cannot be typed, and half a number is another one
    least = [
        width if number == 0 or column.is_number else min(width, len(column.name))
        for number, (column, width) in enumerate(zip(columns, widths, strict=True))
    ]
    while sum(fitted) > room:
        spare = [width if width > low else 0 for width, low in zip(fitted, least, strict=True)]
        if not any(spare):
            return None
        widest = spare.index(max(spare))
        fitted[widest] -= 1
    return fitted


def _write_fitted(
    columns: Sequence[Column[Row]],
    lines: Sequence[Sequence[str]],
    out: TextIO,
    *,
    width: int,
    headings: bool,
    colour: bool,
    indent: str,
) -> bool:
    """Write a table whose texts are shortened to fit; False where even that is too wide."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console(
        file=out,
        highlight=False,
        markup=False,
        emoji=False,
        color_system="standard" if colour else None,
        force_terminal=colour,
        width=width,
        height=HEIGHT,
    )
    names = [column.name for column in columns]
    widths = [max(map(cell_len, texts)) for texts in zip(names, *lines, strict=True)]
    fitted = _shrink(columns, widths, width - len(indent) - 2 * (len(columns) - 1))
    if fitted is None:
        return False
    table = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=headings, header_style="bold"
    )
    for column, its in zip(columns, fitted, strict=True):
        justify: Literal["left", "right"] = "right" if column.is_number else "left"
        table.add_column(Text(column.name), justify=justify, width=its)
    for line in lines:
        table.add_row(*(Text(text, no_wrap=True, overflow="ellipsis") for text in line))
    console.print(Padding(table, (0, 0, 0, len(indent)), expand=False), crop=False)
    return True


def write_record(columns: Sequence[Column[Row]], row: Row, out: TextIO) -> None:
    """Write one row in full: a line a column, and lists of rows as tables of their own."""
    width = max(len(column.name) for column in columns)
    for column in columns:
        value = column.value(row)
        if column.nested and isinstance(value, Sequence):
            continue
        out.write(f"{column.name:{width}}  {column.text(row)}\n")
    for column in columns:
        value = column.value(row)
        if column.nested and isinstance(value, Sequence) and value:
            out.write(f"{column.name}\n")
            usual = [its for its in column.nested if its.shown]
            write_table(usual, value, out, indent="  ")
