# SPDX-License-Identifier: Apache-2.0
"""The forms of JSON documents: messages of the control socket, files, and the launch spec.

A form is a tree of kinds. It checks a document, parses it into the value that it stands for, and
formats that value as a document again.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pmuctl.value import field, value

LIST_MAX = 4096

Row = dict[str, object]
"""The description of one value in `query-schema`: see describe() of each kind."""


class SchemaError(ValueError):
    """A document does not have the form that the table requires."""


def _keep_value(value: Any) -> Any:
    return value


@value(kw_only=True)
class Kind:
    """A type of JSON value: `make` makes the Python value of it, and `unmake` is the inverse.

    `Kind()` itself is any value.
    """

    make: Callable[[Any], Any] = _keep_value
    unmake: Callable[[Any], Any] = _keep_value

    def check(self, value: object, where: str) -> None:
        """Raise SchemaError, naming `where`, unless the value has this type and range."""

    def parse(self, value: Any) -> Any:
        """Return the Python value of a checked JSON value; raise ValueError if `make` does."""
        return self.make(value)

    def format(self, value: Any) -> Any:
        """Return the JSON value of a Python value; the inverse of `parse`."""
        return self.unmake(value)

    def read(self, value: object, where: str) -> Any:
        """Check a JSON value and parse it; raise ValueError."""
        self.check(value, where)
        return self.parse(value)

    def describe(self, path: str) -> Iterator[Row]:
        """Yield a row for the value at `path` of a message, then a row for each value inside it.

        A row is plain data: `path`, `type`, `required`, `null`, and the bounds of the type.
        """
        yield _describe_field(path, "any")


def _describe_field(path: str, type: str, **bounds: object) -> Row:
    """Return the row of a value that is required and not null."""
    return {"path": path, "type": type, "required": True, "null": False, **bounds}


@value
class Int(Kind):
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
class Bool(Kind):
    """true or false."""

    def check(self, value: object, where: str) -> None:
        """See Kind."""
        if not isinstance(value, bool):
            raise SchemaError(f"{where}: true or false is expected")

    def describe(self, path: str) -> Iterator[Row]:
        """See Kind."""
        yield _describe_field(path, "boolean")


@value
class Str(Kind):
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
class List(Kind):
    """A list of `least` to `most` values of one kind; `make` takes their Python values."""

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

    def parse(self, value: Any) -> Any:
        """See Kind."""
        return self.make([*map(self.of.parse, value)])

    def format(self, value: Any) -> Any:
        """See Kind."""
        return [*map(self.of.format, self.unmake(value))]

    def describe(self, path: str) -> Iterator[Row]:
        """See Kind."""
        yield _describe_field(path, "list", least=self.least, most=self.most)
        yield from self.of.describe(f"{path}[]")


@value
class Tuple(Kind):
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
class Nullable(Kind):
    """A value of this kind, or null."""

    of: Kind

    def check(self, value: object, where: str) -> None:
        """See Kind."""
        if value is not None:
            self.of.check(value, where)

    def parse(self, value: Any) -> Any:
        """See Kind."""
        return None if value is None else self.of.parse(value)

    def format(self, value: Any) -> Any:
        """See Kind."""
        return None if value is None else self.of.format(value)

    def describe(self, path: str) -> Iterator[Row]:
        """See Kind."""
        first, *inner = self.of.describe(path)
        yield from (first | {"null": True}, *inner)


@value
class Maybe:
    """A member of an object that may be missing."""

    of: Kind


def _find_kind(member: Kind | Maybe) -> Kind:
    return member.of if isinstance(member, Maybe) else member


@value
class Obj(Kind):
    """An object with these members; if it is open, later versions may add others."""

    members: Mapping[str, Kind | Maybe]
    is_open: bool = False

    def check(self, value: object, where: str) -> None:
        """See Kind."""
        if not isinstance(value, dict):
            raise SchemaError(f"{where}: an object is expected")
        for name, member in self.members.items():
            if name in value:
                _find_kind(member).check(value[name], f"{where}.{name}")
            elif not isinstance(member, Maybe):
                raise SchemaError(f"{where}.{name}: is missing")
        if not self.is_open and (unknown := sorted(set(value) - set(self.members))):
            raise SchemaError(f"{where}.{unknown[0]:.64}: is not known here")

    def describe(self, path: str) -> Iterator[Row]:
        """See Kind."""
        yield _describe_field(path, "object", open=self.is_open)
        for name, member in self.members.items():
            member_path = f"{path}.{name}" if path else name
            first, *inner = _find_kind(member).describe(member_path)
            yield from (first | {"required": not isinstance(member, Maybe)}, *inner)


@value
class Constant(Kind):
    """A member of a Struct that is the same number in every document, and no field."""

    number: int

    def check(self, value: object, where: str) -> None:
        """See Kind."""
        Int(self.number, self.number).check(value, where)

    def format(self, value: Any) -> int:
        """See Kind."""
        return self.number


@value(kw_only=True)
class Struct(Obj):
    """An object whose members are the fields of a class.

    The member "event-bits" is the field `event_bits`; `fields` maps each member with
    another name to its field. A field whose member is missing has its default.
    """

    cls: Callable[..., Any]
    fields: Mapping[str, str] = field(default_factory=dict)

    def parse(self, value: Any) -> Any:
        """See Kind."""
        given = {
            self._name_field(name): _find_kind(member).parse(value[name])
            for name, member in self.members.items()
            if name in value and not isinstance(member, Constant)
        }
        return self.cls(**given)

    def format(self, value: Any) -> dict[str, Any]:
        """See Kind."""
        return {
            name: member.number
            if isinstance(member, Constant)
            else _find_kind(member).format(getattr(value, self._name_field(name)))
            for name, member in self.members.items()
        }

    def _name_field(self, member: str) -> str:
        return self.fields.get(member, member.replace("-", "_"))
