# SPDX-License-Identifier: Apache-2.0
"""Tables as text: fitted to a terminal by rich, or plain lines of full width."""

from collections.abc import Sequence
from typing import Literal, TextIO, TypeVar

from pmuctl.render.columns import Column

Row = TypeVar("Row")

BOLD, NORMAL = "\x1b[1m", "\x1b[0m"
HEIGHT = 25
"""Lines of a terminal: the output does not depend on it, but rich takes both sizes or neither."""


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
    """Write a header line and one line for each row; `colour` makes the headings bold.

    Texts are shortened to fit a terminal of `width` characters, the widest first, but never the
    first column or numbers. If that is not enough, or `width` is None, nothing is cut off.
    """
    lines = [[column.text(row) for column in columns] for row in rows]
    names = [column.name for column in columns]
    widths = [max(map(_count_cells, texts)) for texts in zip(names, *lines, strict=True)]
    if width is not None and _write_fitted(
        columns, lines, out, width=width, headings=headings, colour=colour, indent=indent
    ):
        return

    def format_line(texts: Sequence[str]) -> str:
        blanks = (
            " " * (size - _count_cells(text)) for text, size in zip(texts, widths, strict=True)
        )
        cells = [
            blank + text if column.is_number else text + blank
            for column, text, blank in zip(columns, texts, blanks, strict=True)
        ]
        return (indent + "  ".join(cells)).rstrip()

    if headings:
        line = format_line(names)
        out.write((BOLD + line + NORMAL if colour else line) + "\n")
    for texts in lines:
        out.write(format_line(texts) + "\n")


def _count_cells(text: str) -> int:
    """Return how many columns of a terminal a text takes: a Chinese letter takes two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # imported here, because few names need it

    return cell_len(text)


def _fit_widths(
    columns: Sequence[Column[Row]], widths: Sequence[int], room: int
) -> list[int] | None:
    """Return column widths that add up to at most `room`, or None if that is impossible.

    rich can fit columns itself, but it widens those that it made narrower than their `min_width`
    without narrowing others for it: the end of the line, be it a number, is cut off unmarked.
    """
    fitted = list(widths)
    # a shortened name cannot be typed, and a shortened number is another number
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
    """Write a table whose texts are shortened to fit. Return False if even that is too wide."""
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
    fitted = _fit_widths(columns, widths, width - len(indent) - 2 * (len(columns) - 1))
    if fitted is None:
        return False
    table = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=headings, header_style="bold"
    )
    for column, size in zip(columns, fitted, strict=True):
        justify: Literal["left", "right"] = "right" if column.is_number else "left"
        table.add_column(Text(column.name), justify=justify, width=size)
    for line in lines:
        table.add_row(*(Text(text, no_wrap=True, overflow="ellipsis") for text in line))
    console.print(Padding(table, (0, 0, 0, len(indent)), expand=False), crop=False)
    return True


def write_record(columns: Sequence[Column[Row]], row: Row, out: TextIO) -> None:
    """Write one row in full: one line for each column, then each list of rows as a table."""
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
            defaults = [nested for nested in column.nested if nested.shown]
            write_table(defaults, value, out, indent="  ")
