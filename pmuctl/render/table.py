# SPDX-License-Identifier: Apache-2.0
"""Tables and records as text: fitted to a terminal, or plain lines of full width."""

from collections.abc import Iterator, Sequence
from typing import TextIO, TypeVar

from pmuctl.render.columns import Column, Mark
from pmuctl.render.text import is_command

Row = TypeVar("Row")

BOLD, NORMAL = "\x1b[1m", "\x1b[0m"
COLOURS = {Mark.GOOD: "\x1b[32m", Mark.CAUTION: "\x1b[33m", Mark.BAD: "\x1b[31m"}
GAP = "  "
SHORT_NAME = 12
"""Characters of the first column that are kept if longer names do not fit beside the others."""
NARROWEST = 20
"""Characters that prose beside a heading needs; with less room it is not wrapped."""


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
    first column or numbers. A text of the first column that is too long for its place has a line
    of its own, as in df(1). If that is not enough, or `width` is None, nothing is cut off.
    """
    lines = [[column.text(row) for column in columns] for row in rows]
    widths = _measure(columns, lines)
    if width is not None:
        widths = _fit_widths(columns, widths, width - len(indent)) or widths

    def format_cell(column: Column[Row], text: str, size: int, *, is_last: bool) -> str:
        shown = _shorten(text, size)
        blank = " " * (size - count_cells(shown))
        mark = column.marks.get(text) if colour else None
        if mark is not None:
            shown = COLOURS[mark] + shown + NORMAL
        return blank + shown if column.is_number else shown if is_last else shown + blank

    def format_line(texts: Sequence[str]) -> str:
        start, first = "", texts[0]
        if count_cells(first) > widths[0]:
            start, first = indent + first + "\n", ""
        cells = [
            format_cell(column, text, size, is_last=number == len(columns))
            for number, (column, text, size) in enumerate(
                zip(columns, [first, *texts[1:]], widths, strict=True), 1
            )
        ]
        return start + (indent + GAP.join(cells)).rstrip()

    if headings:
        line = format_line([column.name for column in columns])
        out.write((BOLD + line + NORMAL if colour else line) + "\n")
    for texts in lines:
        out.write(format_line(texts) + "\n")


def fits(columns: Sequence[Column[Row]], rows: Sequence[Row], width: int) -> bool:
    """Return whether a table of these rows fits a terminal with nothing cut off."""
    lines = [[column.text(row) for column in columns] for row in rows]
    return sum(_measure(columns, lines)) + len(GAP) * (len(columns) - 1) <= width


def _measure(columns: Sequence[Column[Row]], lines: Sequence[Sequence[str]]) -> list[int]:
    names = [column.name for column in columns]
    return [max(map(count_cells, texts)) for texts in zip(names, *lines, strict=True)]


def count_cells(text: str) -> int:
    """Return how many columns of a terminal a text takes: a Chinese letter takes two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # imported here, because few names need it

    return cell_len(text)


def _shorten(text: str, size: int) -> str:
    """Return a text that takes at most `size` columns of a terminal, with `…` if it was cut."""
    if count_cells(text) <= size:
        return text
    if text.isascii():
        return text[: size - 1] + "…"
    from rich.cells import set_cell_size

    return set_cell_size(text, size - 1).rstrip() + "…"


def _fit_widths(
    columns: Sequence[Column[Row]], widths: Sequence[int], width: int
) -> list[int] | None:
    """Return column widths that fit a line of `width`, or None if that is impossible."""
    room = width - len(GAP) * (len(columns) - 1)
    fitted = list(widths)
    # a shortened name cannot be typed, and a shortened number is another number
    least = [
        width if number == 0 or column.is_number else min(width, len(column.name))
        for number, (column, width) in enumerate(zip(columns, widths, strict=True))
    ]
    if sum(least) > room:
        # longer names have a line of their own, so they need not take room from the others
        least[0] = fitted[0] = max(len(columns[0].name), min(room - sum(least[1:]), SHORT_NAME))
    while sum(fitted) > room:
        spare = [width if width > low else 0 for width, low in zip(fitted, least, strict=True)]
        if not any(spare):
            return None
        widest = spare.index(max(spare))
        fitted[widest] -= 1
    return fitted


def wrap(text: str, first: str, width: int | None) -> str:
    """Return `first` and a text, wrapped at spaces with its later lines below its beginning.

    A command stays on one line, because it is copied from there. So does everything if `width` is
    None, or leaves too little room; a word that is too long is not broken.
    """
    indent = count_cells(first)
    if width is None or width - indent < NARROWEST or is_command(text):
        return first + text
    return first + ("\n" + " " * indent).join(_break_lines(text, width - indent))


def _break_lines(text: str, room: int) -> Iterator[str]:
    line, used = "", 0
    for number, word in enumerate(text.split(" ")):
        size = count_cells(word)
        if number and used + 1 + size > room:
            yield line
            line, used = word, size
        elif number:
            line, used = f"{line} {word}", used + 1 + size
        else:
            line, used = word, size
    yield line


def write_record(
    columns: Sequence[Column[Row]],
    row: Row,
    out: TextIO,
    *,
    width: int | None = None,
    colour: bool = False,
) -> None:
    """Write one row in full: one line for each column, then each list of rows as a table.

    Texts are wrapped to fit a terminal of `width` characters; `colour` marks some of them.
    """
    size = max(len(column.name) for column in columns)
    tables = [
        (column, value)
        for column in columns
        if column.nested and isinstance(value := column.value(row), Sequence)
    ]
    nested = {column.name for column, _ in tables}
    for column in columns:
        if column.name in nested:
            continue
        text, head = column.text(row), f"{column.name:{size}}{GAP}"
        mark = column.marks.get(text) if colour else None
        line = head + COLOURS[mark] + text + NORMAL if mark else wrap(text, head, width)
        out.write(line + "\n")
    for column, value in tables:
        if value:
            out.write(f"{column.name}\n")
            defaults = [each for each in column.nested or () if each.shown]
            write_table(defaults, value, out, indent=GAP, width=width)


def write_records(
    columns: Sequence[Column[Row]],
    rows: Sequence[Row],
    out: TextIO,
    *,
    width: int | None = None,
    colour: bool = False,
) -> None:
    """Write rows in full, one record below the other, with a blank line between them."""
    for number, row in enumerate(rows):
        if number:
            out.write("\n")
        write_record(columns, row, out, width=width, colour=colour)
