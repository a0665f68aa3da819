# SPDX-License-Identifier: Apache-2.0
"""The forms of JSON documents: messages of the control socket, files, and the launch spec.

A form is a tree of kinds. It checks a document, parses it into the value that it stands for, and
formats that value as a document again.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pmuctl.value import field, value

LIST_MAX = 4096

_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")

Row = dict[str, object]
"""The description of one value in `query-schema`: see describe() of each kind."""


class SchemaError(ValueError):
    """A document does not have the form that the table requires."""


def _keep_value(value: Any) -> Any:
    return value


@value
class Kind(ABC):
    """A type of JSON value; what its methods do is said here for all kinds."""

    @abstractmethod
    def check(self, value: object, where: str) -> None:
        """Raise SchemaError, naming `where`, unless the value has this type and range."""

    @abstractmethod
    def describe(self, path: str) -> Iterator[Row]:
        """Yield a row for the value at `path` of a message, then a row for each value inside it.

        A row is plain data: `path`, `type`, `required`, `null`, and the bounds of the type.
        """

    def parse(self, value: Any) -> Any:
        """Return the Python value of a checked JSON value; raise ValueError if there is none."""
        return value

    def format(self, value: Any) -> Any:
        """Return the JSON value of a Python value; the inverse of `parse`."""
        return value

    def select(self, value: Any) -> Any:
        """Return a checked value without the members of objects that are not known here."""
        return value

    def read(self, value: object, where: str) -> Any:
        """Check a JSON value and parse it; raise ValueError."""
        self.check(value, where)
        return self.parse(value)


@value(kw_only=True)
class Convertible(Kind):
    """A kind whose values Python has as another type: `make` makes it, and `unmake` undoes that.

    Of a list or an object, they convert what has the Python values of its elements.
    """

    make: Callable[[Any], Any] = _keep_value
    unmake: Callable[[Any], Any] = _keep_value

    def parse(self, value: Any) -> Any:
        return self.make(value)

    def format(self, value: Any) -> Any:
        return self.unmake(value)


def _describe_field(path: str, type: str, **bounds: object) -> Row:
    """Return the row of a value that is required and not null."""
    return {"path": path, "type": type, "required": True, "null": False, **bounds}


@value
class AnyValue(Kind):
    """Any JSON value."""

    def check(self, value: object, where: str) -> None:
        pass

    def describe(self, path: str) -> Iterator[Row]:
        yield _describe_field(path, "any")


@value
class Int(Convertible):
    """An integer from `least` to `most`."""

    least: int = 0
    most: int = (1 << 63) - 1

    def check(self, value: object, where: str) -> None:
        # in Python the true of JSON is an int
        if not isinstance(value, int) or isinstance(value, bool):
            raise SchemaError(f"{where}: a whole number is expected")
        if not self.least <= value <= self.most:
            raise SchemaError(f"{where}: must be {self.least}-{self.most}")

    def describe(self, path: str) -> Iterator[Row]:
        yield _describe_field(path, "integer", least=self.least, most=self.most)


@value
class Bool(Convertible):
    """true or false."""

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, bool):
            raise SchemaError(f"{where}: true or false is expected")

    def describe(self, path: str) -> Iterator[Row]:
        yield _describe_field(path, "boolean")


@value
class Str(Convertible):
    """A string of at most `most` characters; if given, one of `words`, or matching `form`."""

    most: int = 4096
    words: tuple[str, ...] = ()
    form: re.Pattern[str] | None = None

    def check(self, value: object, where: str) -> None:
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
        row = _describe_field(path, "string", most=self.most)
        if self.words:
            row["words"] = list(self.words)
        if self.form:
            row["form"] = self.form.pattern
        yield row


@value
class List(Convertible):
    """A list of `least` to `most` values of one kind."""

    of: Kind
    least: int = 0
    most: int = LIST_MAX

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, list):
            raise SchemaError(f"{where}: a list is expected")
        if not self.least <= len(value) <= self.most:
            raise SchemaError(f"{where}: must have {self.least}-{self.most} elements")
        for index, item in enumerate(value):
            self.of.check(item, f"{where}[{index}]")

    def select(self, value: Any) -> Any:
        return [*map(self.of.select, value)]

    def parse(self, value: Any) -> Any:
        return self.make([*map(self.of.parse, value)])

    def format(self, value: Any) -> Any:
        return [*map(self.of.format, self.unmake(value))]

    def describe(self, path: str) -> Iterator[Row]:
        yield _describe_field(path, "list", least=self.least, most=self.most)
        yield from self.of.describe(f"{path}[]")


@value
class Tuple(Convertible):
    """A list with exactly one value of each of these kinds, in this order."""

    of: tuple[Kind, ...]

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, list) or len(value) != len(self.of):
            raise SchemaError(f"{where}: a list of {len(self.of)} is expected")
        for index, (kind, item) in enumerate(zip(self.of, value, strict=True)):
            kind.check(item, f"{where}[{index}]")

    def select(self, value: Any) -> Any:
        return [kind.select(item) for kind, item in zip(self.of, value, strict=True)]

    def parse(self, value: Any) -> Any:
        return self.make([kind.parse(item) for kind, item in zip(self.of, value, strict=True)])

    def format(self, value: Any) -> Any:
        items = self.unmake(value)
        return [kind.format(item) for kind, item in zip(self.of, items, strict=True)]

    def describe(self, path: str) -> Iterator[Row]:
        yield _describe_field(path, "list", least=len(self.of), most=len(self.of))
        for index, kind in enumerate(self.of):
            yield from kind.describe(f"{path}[{index}]")


@value
class Nullable(Kind):
    """A value of this kind, or null."""

    of: Kind

    def check(self, value: object, where: str) -> None:
        if value is not None:
            self.of.check(value, where)

    def select(self, value: Any) -> Any:
        return None if value is None else self.of.select(value)

    def parse(self, value: Any) -> Any:
        return None if value is None else self.of.parse(value)

    def format(self, value: Any) -> Any:
        return None if value is None else self.of.format(value)

    def describe(self, path: str) -> Iterator[Row]:
        first, *inner = self.of.describe(path)
        yield from (first | {"null": True}, *inner)


@value
class Maybe:
    """A member of an object that may be missing."""

    of: Kind


def _find_kind(member: Kind | Maybe) -> Kind:
    return member.of if isinstance(member, Maybe) else member


@value
class Obj(Convertible):
    """An object with these members; if it is open, later versions may add others."""

    members: Mapping[str, Kind | Maybe]
    is_open: bool = False

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise SchemaError(f"{where}: an object is expected")
        for name, member in self.members.items():
            if name in value:
                _find_kind(member).check(value[name], f"{where}.{name}")
            elif not isinstance(member, Maybe):
                raise SchemaError(f"{where}.{name}: is missing")
        if not self.is_open and (unknown := sorted(set(value) - set(self.members))):
            raise SchemaError(f"{where}.{unknown[0]:.64}: is not known here")

    def select(self, value: Any) -> Any:
        return {
            name: _find_kind(member).select(value[name])
            for name, member in self.members.items()
            if name in value
        }

    def parse(self, value: Any) -> Any:
        return self.make({**value, **self._parse_members(value)})

    def format(self, value: Any) -> Any:
        values = self.unmake(value)
        return {
            name: _find_kind(self.members[name]).format(item) if name in self.members else item
            for name, item in values.items()
        }

    def _parse_members(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """Return the Python values of the members that are known here."""
        return {
            name: _find_kind(member).parse(value[name])
            for name, member in self.members.items()
            if name in value
        }

    def describe(self, path: str) -> Iterator[Row]:
        yield _describe_field(path, "object", open=self.is_open)
        for name, member in self.members.items():
            member_path = f"{path}.{name}" if path else name
            first, *inner = _find_kind(member).describe(member_path)
            yield from (first | {"required": not isinstance(member, Maybe)}, *inner)


@value
class NumberMap(Kind):
    """An object with numbers for names, which are int in Python, and values of one kind."""

    of: Kind

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise SchemaError(f"{where}: an object is expected")
        for name, item in value.items():
            if not _NUMBER.fullmatch(name):
                raise SchemaError(f"{where}: {name:.64} is no number")
            self.of.check(item, f"{where}.{name}")

    def select(self, value: Any) -> Any:
        return {name: self.of.select(item) for name, item in value.items()}

    def parse(self, value: Any) -> Any:
        return {int(name): self.of.parse(item) for name, item in value.items()}

    def format(self, value: Any) -> Any:
        return {str(number): self.of.format(item) for number, item in value.items()}

    def describe(self, path: str) -> Iterator[Row]:
        yield _describe_field(path, "object", open=True)
        yield from self.of.describe(f"{path}.*")


@value
class Constant(Kind):
    """A member of a Struct that is the same number in every document, and no field."""

    number: int

    def check(self, value: object, where: str) -> None:
        Int(self.number, self.number).check(value, where)

    def describe(self, path: str) -> Iterator[Row]:
        return Int(self.number, self.number).describe(path)


@value(kw_only=True)
class Struct(Obj):
    """An object whose members are the fields of a class, from which it is made.

    The member "event-bits" is the field `event_bits`; `fields` maps each member with another
    name to its field. A field whose member is missing has its default.
    """

    cls: Callable[..., Any]
    fields: Mapping[str, str] = field(default_factory=dict)

    def parse(self, value: Any) -> Any:
        given = self._parse_members(value)
        names = [name for name in given if not isinstance(self.members[name], Constant)]
        return self.cls(**{self._name_field(name): given[name] for name in names})

    def format(self, value: Any) -> dict[str, Any]:
        return {
            name: member.number
            if isinstance(member, Constant)
            else _find_kind(member).format(getattr(value, self._name_field(name)))
            for name, member in self.members.items()
        }

    def _name_field(self, member: str) -> str:
        return self.fields.get(member, member.replace("-", "_"))
