# SPDX-License-Identifier: Apache-2.0
"""Columns as data: what a row can show, how a value reads as text and as JSON, choosing some."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from pmuctl.errors import UsageError
from pmuctl.render.text import printable
from pmuctl.value import value

Row = TypeVar("Row")


class Unknown(Enum):
    """The mark of a value that could not be known; None is the mark of none."""

    UNKNOWN = "?"


UNKNOWN: Final = Unknown.UNKNOWN


@value(kw_only=True)
class Column(Generic[Row]):
    """One column: its heading, and how to get a row's value.

    Its JSON key is the heading in lower case, with `_` for `-`. A column that is not `shown` has
    to be asked for, but for one that is always `in_json`. Where the value is itself a list of
    rows, `nested` are their columns; where it is of a type that has a form of its own, `shape`
    gives that: as text and as JSON.
    """

    name: str
    help: str
    value: Callable[[Row], object]
    is_number: bool = False
    shown: bool = True
    in_json: bool = False
    nested: "Sequence[Column[Any]] | None" = None
    shape: "Shape | None" = None

    @property
    def key(self) -> str:
        """Its name in JSON."""
        return self.name.lower().replace("-", "_")

    def text(self, row: Row) -> str:
        """Its value in a cell of a table."""
        value = self.value(row)
        if self.nested and isinstance(value, Sequence):
            return ",".join(self.nested[0].text(item) for item in value) or "-"
        if self.shape and not _is_mark(value):
            return self.shape.text(value)
        return cell(value)

    def plain(self, row: Row) -> Any:
        """Its value in JSON."""
        value = self.value(row)
        if self.nested and isinstance(value, Sequence):
            return [as_object(self.nested, item) for item in value]
        if self.shape and not _is_mark(value):
            return self.shape.plain(value)
        return plain(value)


@value(kw_only=True)
class Shape:
    """How values of one type are written."""

    text: Callable[[Any], str]
    plain: Callable[[Any], Any]


def _is_mark(value: object) -> bool:
    return value is None or isinstance(value, Unknown)


def as_object(columns: Sequence[Column[Row]], row: Row) -> dict[str, Any]:
    """A row as a JSON object."""
    return {column.key: column.plain(row) for column in columns}


def choose(
    columns: Sequence[Column[Row]], asked: str | None, *, every: bool, as_json: bool = False
) -> Sequence[Column[Row]]:
    """The columns to show: those asked for by name, `+COL` beside the usual ones, or `every` one.

    With `as_json` those that are always in JSON are usual, too. Raises UsageError for a name that
    is no column.
    """
    if every:
        return columns
    usual = [column for column in columns if column.shown or (as_json and column.in_json)]
    if asked is None:
        return usual
    by_name = {column.name: column for column in columns}
    chosen = list(usual) if asked.startswith("+") else []
    for word in asked.removeprefix("+").split(","):
        name = word.strip().upper().replace("_", "-")
        if not name:
            raise UsageError("the name of a column is missing", why=_columns_are(list(by_name)))
        if name not in by_name:
            raise _no_column(word.strip(), list(by_name))
        if by_name[name] not in chosen:
            chosen.append(by_name[name])
    return chosen


def _no_column(word: str, names: Sequence[str]) -> UsageError:
    if word.lower() in ("table", "json", "jsonl", "csv", "tsv", "raw", "name"):
        option = "-J" if word.lower() == "json" else f"--format {word.lower()}"
        return UsageError(f"{word}: -o takes columns", fix=f"did you mean {option}?")
    near = get_close_matches(word.upper(), names, n=1)
    return UsageError(
        f"{word}: no such column",
        why=_columns_are(names),
        fix=f"did you mean {near[0]}?" if near else None,
    )


def _columns_are(names: Sequence[str]) -> str:
    return f"the columns are {', '.join(names)}"


def cell(value: object) -> str:
    """A value as a table shows it: `-` for none, `?` for not known."""
    if value is None:
        return "-"
    if isinstance(value, Unknown):
        return "?"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ",".join(f"{key}={cell(item)}" for key, item in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ",".join(cell(item) for item in value) or "-"
    return printable(str(value)) or "-"


def plain(value: object) -> Any:
    """A value as JSON has it: null for none and for not known, CPUs as a list of integers."""
    if value is None or isinstance(value, Unknown):
        return None
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(item) for item in value]
    return str(value)


def known(value: object) -> object:
    """The value, where None means that it could not be read."""
    return UNKNOWN if value is None else value
