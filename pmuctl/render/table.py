# SPDX-License-Identifier: Apache-2.0
"""Tables and records as text: fitted to a terminal, or plain lines of full width.

Not by rich's Table: its import takes the time of two more starts of Python, it gives a long name
no line of its own, and it wraps commands, which are copied from here.
"""

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
SHORT_TEXT = 4
"""Characters that are left at least of a text that is cut."""
PROSE = 40
"""Characters that long names leave to wrapped prose."""
BELOW = " " * 4
"""What precedes prose that stands below its heading."""
NARROWEST = 24
"""Characters that prose beside a heading needs; with less room it stands below it."""


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
    first column or numbers; prose in the last column is wrapped instead. A text of the first
    column that is too long for its place has a line of its own, as in df(1). If that is not
    enough, or `width` is None, nothing is cut off.
    """
    lines = [[column.text(row) for column in columns] for row in rows]
    widths = _measure(columns, lines)
    if width is not None:
        widths = _fit_widths(columns, widths, width - len(indent))

    def format_cell(column: Column[Row], text: str, size: int) -> str:
        shown = _shorten(text, size)
        blank = " " * (size - count_cells(shown))
        mark = column.marks.get(text) if colour else None
        if mark is not None:
            shown = COLOURS[mark] + shown + NORMAL
        return blank + shown if column.is_number else shown + blank

    def format_line(texts: Sequence[str]) -> str:
        start, first = indent, texts[0]
        if count_cells(first) > widths[0]:
            start, first = f"{indent}{first}\n{indent}", ""
        cells = list(map(format_cell, columns, [first, *texts[1:]], widths))
        if columns[-1].is_prose and count_cells(texts[-1]) > widths[-1] >= NARROWEST:
            beside = sum(widths[:-1]) + len(GAP) * len(cells[:-1])
            below = "\n" + indent + " " * beside
            cells[-1] = below.join(_break_lines(texts[-1], widths[-1]))
        return start + GAP.join(cells).rstrip()

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
    """Return a text that takes at most `size` columns of a terminal, with `…` if it was cut.

    A path or a numbered name loses its middle: its end tells one file or PMU from another.
    """
    if count_cells(text) <= size:
        return text
    if text.isascii():
        is_name = " " not in text and (text[-1].isdigit() or "/" in text)
        end = (size - 1) // 2 if is_name else 0
        return text[: size - 1 - end] + "…" + text[len(text) - end :]
    from rich.cells import set_cell_size

    return set_cell_size(text, size - 1).rstrip() + "…"


def _fit_widths(columns: Sequence[Column[Row]], widths: Sequence[int], width: int) -> list[int]:
    """Return column widths that fit a line of `width`, or nearly the given ones if none do."""
    room = width - len(GAP) * (len(columns) - 1)
    fitted = list(widths)
    # a shortened name cannot be typed, and a shortened number is another number
    least = [
        width if number == 0 or column.is_number else min(width, SHORT_TEXT)
        for number, (column, width) in enumerate(zip(columns, widths, strict=True))
    ]
    # longer names have a line of their own, so they need not take room from the others
    wanted = min(widths[-1], PROSE) if columns[-1].is_prose else widths[-1]
    beside, shortest = room - sum([*widths[1:-1], wanted]), min(widths[0], SHORT_NAME)
    if len(columns) > 1 and shortest <= beside < widths[0]:
        fitted[0] = beside
    elif sum(least) > room:
        fitted[0] = max(len(columns[0].name), min(room - sum(least[1:]), shortest))
    least[0] = fitted[0]
    if sum(least) > room:
        return list(widths)
    while sum(fitted) > room:
        spare = [width if width > low else 0 for width, low in zip(fitted, least, strict=True)]
        fitted[spare.index(max(spare))] -= 1
    return fitted


def wrap(text: str, first: str, width: int | None) -> str:
    """Return `first` and a text, wrapped with its later lines below its beginning.

    With little room beside `first` all of the text is below it. A command stays on one line,
    because it is copied from there; so does everything if `width` is None.
    """
    if width is None or is_command(text):
        return first + text
    indent = count_cells(first)
    if width - indent < NARROWEST <= width and indent:
        first, indent = f"{first.rstrip()}\n{BELOW}", len(BELOW)
    return first + ("\n" + " " * indent).join(_break_lines(text, width - indent))


def _break_lines(text: str, room: int) -> Iterator[str]:
    """Yield the lines of a text: it is broken at spaces, and in long words after commas."""
    line = ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if count_cells(joined) <= room:
            line = joined
            continue
        if line:
            yield line
        line, *rest = word.split(",") if count_cells(word) > room else (word,)
        for item in rest:
            if count_cells(line) + 1 + count_cells(item) < room:
                line += f",{item}"
            else:
                yield f"{line},"
                line = item
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
