# SPDX-License-Identifier: Apache-2.0
"""The types of the values in messages of the control socket, and their checks."""

import re
from collections.abc import Iterator, Mapping
from typing import Protocol

from pmuctl.value import value

LIST_MAX = 4096

Row = dict[str, object]
"""The description of one value in `query-schema`: see describe() of each kind."""


class SchemaError(ValueError):
    """A message does not have the form that the table requires."""


class Kind(Protocol):
    """A type of value on the wire."""

    def check(self, value: object, where: str) -> None:
        """Raise SchemaError, naming `where`, unless the value has this type and range."""

    def describe(self, path: str) -> Iterator[Row]:
        """Yield a row for the value at `path` of a message, then a row for each value inside it.

        A row is plain data: `path`, `type`, `required`, `null`, and the bounds of the type.
        """


def _describe_field(path: str, type: str, **bounds: object) -> Row:
    """Return the row of a value that is required and not null."""
    return {"path": path, "type": type, "required": True, "null": False, **bounds}


@value
class Int:
    """An integer from `least` to `most`."""

    least: int = 0
    most: int = (1 << 63) - 1

    def check(self, value: object, where: str) -> None:
        """See Kind."""
        # in Python the true of JSON is an int
        if not isinstance(value, int) or isinstance(value, bool):
            raise SchemaError(f"{where}: a whole number is expected")
        if not self.least <= value <= self.most:
            raise SchemaError(f"{where}: must be {self.least}-{self.most}")

    def describe(self, path: str) -> Iterator[Row]:
        """See Kind."""
        yield _describe_field(path, "integer", least=self.least, most=self.most)


@value
class Bool:
    """true or false."""

    def check(self, value: object, where: str) -> None:
        """See Kind."""
        if not isinstance(value, bool):
            raise SchemaError(f"{where}: true or false is expected")

    def describe(self, path: str) -> Iterator[Row]:
        """See Kind."""
        yield _describe_field(path, "boolean")


@value
class Str:
    """A string of at most `most` characters; if given, one of `words`, or matching `form`."""

    most: int = 4096
    words: tuple[str, ...] = ()
    form: re.Pattern[str] | None = None

    def check(self, value: object, where: str) -> None:
        """See Kind."""
        if not isinstance(value, str):
            raise SchemaError(f"{where}: a text is expected")
        if len(value) > self.most:
            raise SchemaError(f"{where}: longer than {self.most} characters")
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise SchemaError(f"{where}: has half a surrogate pair")
        if self.words and value not in self.words:
            raise SchemaError(f"{where}: one of {', '.join(self.words)} is expected")
        if self.form and not self.form.fullmatch(value):
            raise SchemaError(f"{where}: not of the form {self.form.pattern}")

    def describe(self, path: str) -> Iterator[Row]:
        """See Kind."""
        row = _describe_field(path, "string", most=self.most)
        if self.words:
            row["words"] = list(self.words)
        if self.form:
            row["form"] = self.form.pattern
        yield row


@value
class List:
    """A list of `least` to `most` values of one kind."""

    of: Kind
    least: int = 0
    most: int = LIST_MAX

    def check(self, value: object, where: str) -> None:
        """See Kind."""
        if not isinstance(value, list):
            raise SchemaError(f"{where}: a list is expected")
        if not self.least <= len(value) <= self.most:
            raise SchemaError(f"{where}: must have {self.least}-{self.most} elements")
        for index, item in enumerate(value):
            self.of.check(item, f"{where}[{index}]")

    def describe(self, path: str) -> Iterator[Row]:
        """See Kind."""
        yield _describe_field(path, "list", least=self.least, most=self.most)
        yield from self.of.describe(f"{path}[]")


@value
class Tuple:
    """A list with exactly one value of each of these kinds, in this order."""

    of: tuple[Kind, ...]

    def check(self, value: object, where: str) -> None:
        """See Kind."""
        if not isinstance(value, list) or len(value) != len(self.of):
            raise SchemaError(f"{where}: a list of {len(self.of)} is expected")
        for index, (kind, item) in enumerate(zip(self.of, value, strict=True)):
            kind.check(item, f"{where}[{index}]")

    def describe(self, path: str) -> Iterator[Row]:
        """See Kind."""
        yield _describe_field(path, "list", least=len(self.of), most=len(self.of))
        for index, kind in enumerate(self.of):
            yield from kind.describe(f"{path}[{index}]")


@value
class Nullable:
    """A value of this kind, or null."""

    of: Kind

    def check(self, value: object, where: str) -> None:
        """See Kind."""
        if value is not None:
            self.of.check(value, where)

    def describe(self, path: str) -> Iterator[Row]:
        """See Kind."""
        first, *inner = self.of.describe(path)
        yield from (first | {"null": True}, *inner)


@value
class Maybe:
    """A member of an object that may be missing."""

    of: Kind


@value
class Obj:
    """An object with these members; if it is open, later versions may add others."""

    members: Mapping[str, Kind | Maybe]
    is_open: bool = False

    def check(self, value: object, where: str) -> None:
        """See Kind."""
        if not isinstance(value, dict):
            raise SchemaError(f"{where}: an object is expected")
        for name, member in self.members.items():
            kind = member.of if isinstance(member, Maybe) else member
            if name in value:
                kind.check(value[name], f"{where}.{name}")
            elif not isinstance(member, Maybe):
                raise SchemaError(f"{where}.{name}: is missing")
        if not self.is_open and (unknown := sorted(set(value) - set(self.members))):
            raise SchemaError(f"{where}.{unknown[0]:.64}: is not known here")

    def describe(self, path: str) -> Iterator[Row]:
        """See Kind."""
        yield _describe_field(path, "object", open=self.is_open)
        for name, member in self.members.items():
            member_path = f"{path}.{name}" if path else name
            kind = member.of if isinstance(member, Maybe) else member
            first, *inner = kind.describe(member_path)
            yield from (first | {"required": not isinstance(member, Maybe)}, *inner)
