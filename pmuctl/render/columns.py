# SPDX-License-Identifier: Apache-2.0
"""Columns as data: what a row can show, values as text and as JSON, and the choice of columns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from pmuctl.errors import UsageError, WrongWordError
from pmuctl.render.text import format_time, printable
from pmuctl.value import field, value

Row = TypeVar("Row")


class Unknown(Enum):
    """The mark of a value that is not known; None marks that there is no value."""

    UNKNOWN = "?"


UNKNOWN: Final = Unknown.UNKNOWN


class Mark(Enum):
    """What a word in a table means for the reader; a terminal shows it in a colour, too."""

    GOOD = "good"
    CAUTION = "caution"
    BAD = "bad"


NO_IS_BAD: Final = {"no": Mark.BAD, "?": Mark.CAUTION}
"""The marks of a column that says whether all is well."""


@value(kw_only=True)
class Column(Generic[Row]):
    """One column: its heading, and how to get its value from a row.

    Its JSON key is the heading in lower case, with `_` for `-`. A column that is not `shown`
    appears only if it is asked for; if it is `in_json`, it is a default column of JSON. If the
    value is a list of rows, `nested` has the columns of those rows. If the type of the value has
    a format of its own, `shape` converts it to text and to JSON. `marks` are the texts that
    deserve a look. If it `is_detail`, a record on a terminal has it only with `-O`. If it
    `is_prose`, a terminal wraps it where it is the last column. If it `is_time`, the value is in
    seconds since the epoch: a table has it as a local time (ISO 8601), other formats have that
    number, and JSON has both: the text under the key with `_iso`.
    """

    name: str
    help: str
    value: Callable[[Row], object]
    is_number: bool = False
    shown: bool = True
    in_json: bool = False
    nested: "Sequence[Column[Any]] | None" = None
    shape: "Shape | None" = None
    marks: Mapping[str, Mark] = field(default_factory=dict)
    is_time: bool = False
    is_detail: bool = False
    is_prose: bool = False

    @property
    def key(self) -> str:
        """The name of the column in JSON."""
        return self.name.lower().replace("-", "_")

    def text(self, row: Row) -> str:
        """Return the value of the row as the text of a table cell."""
        value = self.value(row)
        if self.nested and isinstance(value, Sequence):
            return ",".join(self.nested[0].text(item) for item in value) or "-"
        if self.shape and not _is_mark(value):
            return self.shape.text(value)
        if self.is_time and isinstance(value, (int, float)):
            return format_time(value)
        return cell(value)

    def field(self, row: Row) -> str:
        """Return the value of the row as text for programs, which calculate with times."""
        return cell(self.value(row)) if self.is_time else self.text(row)

    def plain(self, row: Row) -> Any:
        """Return the value of the row as JSON has it."""
        value = self.value(row)
        if self.nested and isinstance(value, Sequence):
            return [as_object(self.nested, item) for item in value]
        if self.shape and not _is_mark(value):
            return self.shape.plain(value)
        return plain(value)


@value(kw_only=True)
class Shape:
    """The format of the values of one type, as text and as JSON."""

    text: Callable[[Any], str]
    plain: Callable[[Any], Any]


def _is_mark(value: object) -> bool:
    return value is None or isinstance(value, Unknown)


def as_object(columns: Sequence[Column[Row]], row: Row) -> dict[str, Any]:
    """Return a row as a JSON object."""
    found: dict[str, Any] = {}
    for column in columns:
        found[column.key] = column.plain(row)
        if column.is_time:
            seconds = found[column.key]
            found[f"{column.key}_iso"] = None if seconds is None else format_time(seconds)
    return found


def choose(
    columns: Sequence[Column[Row]], asked: str | None, *, every: bool, as_json: bool = False
) -> Sequence[Column[Row]]:
    """Return the columns to show: those that `asked` names, or `every` one.

    `asked` is a comma-separated list of names. If it starts with `+`, they are added to the
    default columns; if it is None, only the default columns are shown. With `as_json` the
    default columns include those that are `in_json`. Raise UsageError if a name is missing or
    is not that of a column.
    """
    if every:
        return columns
    defaults = [column for column in columns if column.shown or (as_json and column.in_json)]
    if asked is None:
        return defaults
    by_name = {column.name: column for column in columns}
    chosen = list(defaults) if asked.startswith("+") else []
    for word in asked.removeprefix("+").split(","):
        name = word.strip().upper().replace("_", "-")
        if not name:
            raise UsageError("the name of a column is missing", why=_list_columns(list(by_name)))
        if name not in by_name:
            raise _make_no_column_error(word.strip(), list(by_name))
        if by_name[name] not in chosen:
            chosen.append(by_name[name])
    return chosen


def _make_no_column_error(word: str, names: Sequence[str]) -> UsageError:
    if word.lower() in ("table", "json", "jsonl", "csv", "tsv", "raw", "name"):
        right = ("-J",) if word.lower() == "json" else ("--format", word.lower())
        message = f"{word}: -o takes columns"
        return WrongWordError(message, words=("-o", word), right=right, why=None)
    message, why = f"{word}: no such column", _list_columns(names)
    if near := get_close_matches(word.upper(), names, n=1):
        return WrongWordError(message, words=(word,), right=(near[0],), why=why)
    return UsageError(message, why=why, fix="choose some of these, or -O for all")


def _list_columns(names: Sequence[str]) -> str:
    return f"the columns are {', '.join(names)}"


def cell(value: object) -> str:
    """Return a value as a table shows it: `-` if there is none, `?` if it is not known."""
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
    """Return a value as JSON has it, a set of CPUs as a list of integers.

    A value that does not exist and one that is not known are both null.
    """
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
    """Return the value, or UNKNOWN for None, which here means that it could not be read."""
    return UNKNOWN if value is None else value
