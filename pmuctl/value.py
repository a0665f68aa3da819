# SPDX-License-Identifier: Apache-2.0
"""Immutable values: classes whose instances are no more than their fields.

They behave as `dataclass(frozen=True, slots=True)`. But nothing is compiled for them, and
`dataclasses`, which loads a part of Python's compiler, is not imported: most commands of pmuctl
make some eighty such classes, and would spend more time on that than on anything else.
"""

from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Never,
    TypeVar,
    dataclass_transform,
    get_origin,
    overload,
)

T = TypeVar("T")

_MISSING: Any = object()


class _Field:
    """The description of a field: its default, and where it counts."""

    __slots__ = ("default", "default_factory", "in_eq", "in_repr")

    def __init__(
        self,
        default: Any,
        default_factory: Callable[[], Any] | None,
        *,
        in_eq: bool,
        in_repr: bool,
    ) -> None:
        self.default = default
        self.default_factory = default_factory
        self.in_eq = in_eq
        self.in_repr = in_repr

    @property
    def is_required(self) -> bool:
        """Whether an argument has to be given."""
        return self.default is _MISSING and self.default_factory is None


def field(
    *,
    default: Any = _MISSING,
    default_factory: Callable[[], Any] | None = None,
    compare: bool = True,
    repr: bool = True,
) -> Any:
    """Describe a field that needs more than a default, as dataclasses.field() does.

    `compare` is whether equality and hash take the field into account, `repr` whether repr()
    shows it.
    """
    return _Field(default, default_factory, in_eq=compare, in_repr=repr)


@overload
def value(cls: type[T], /) -> type[T]: ...
@overload
def value(*, kw_only: bool = False) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[Any] | None = None, /, *, kw_only: bool = False) -> Any:
    """Make a class of immutable values.

    The annotated names of the class are its fields, after the fields of a base that is such a
    class. With `kw_only` its own fields are given by name only. `__post_init__` is called if there
    is one. A class that defines `__init__`, `__repr__` or both of `__eq__` and `__hash__` keeps
    them.

    A class derived from a class of values has to be one, too: it can have no other attributes.
    Values cannot be copied or pickled. Raise TypeError if the class cannot be made as written.
    """
    if cls is None:
        return lambda cls: _make_value(cls, kw_only=kw_only)
    return _make_value(cls, kw_only=kw_only)


def field_defaults(cls: type[Any]) -> Mapping[str, Any]:
    """Return the default of each field of a class of values that has one."""
    fields: Mapping[str, _Field] = cls.__fields__
    defaults = {name: described.default for name, described in fields.items()}
    return {name: default for name, default in defaults.items() if default is not _MISSING}


if TYPE_CHECKING:
    from dataclasses import replace as replace  # type checkers know its rules for fields
else:

    def replace(instance, /, **changes):
        """Return a copy with other fields; raise TypeError for a field that it does not have."""
        cls = type(instance)
        kept = {name: getattr(instance, name) for name in cls.__fields__ if name not in changes}
        return cls(**kept, **changes)


def _make_value(cls: type[Any], *, kw_only: bool) -> type[Any]:
    namespace = dict(cls.__dict__)
    own = {name: _read_field(namespace.pop(name, _MISSING)) for name in cls.__annotations__}
    inherited: dict[str, _Field] = getattr(cls, "__fields__", {})
    fields = {**inherited, **own}
    positional = (*getattr(cls, "__match_args__", ()), *(() if kw_only else own))
    for fault in _find_faults(cls, own, inherited, positional):
        raise TypeError(f"{cls.__qualname__}: {fault}")
    for name in ("__dict__", "__weakref__"):
        namespace.pop(name, None)
    namespace |= {
        "__qualname__": cls.__qualname__,
        "__slots__": tuple(own),
        "__fields__": fields,
        "__match_args__": positional,
        "__setattr__": _refuse_change,
        "__delattr__": _refuse_change,
    }
    namespace.setdefault("__repr__", _format_value)
    # slots cannot be added to a class later, so the class is made once more
    made: Any = type(cls)(cls.__name__, cls.__bases__, namespace)  # type: ignore[misc]
    _repoint_super(cls, made)
    if "__init__" not in namespace:
        made.__init__ = _make_init(made, fields, positional)
    if "__eq__" not in namespace:
        made.__eq__, made.__hash__ = _make_eq(fields)
    return made  # type: ignore[no-any-return]


def _find_faults(
    cls: type[Any],
    own: Mapping[str, _Field],
    inherited: Mapping[str, _Field],
    positional: tuple[str, ...],
) -> Iterator[str]:
    """Yield each reason to refuse the class; dataclasses refuse it as well, or support it."""
    if sum("__fields__" in vars(base) for base in cls.__bases__) > 1:
        yield "two bases are classes of values"
    if ("__eq__" in vars(cls)) != (vars(cls).get("__hash__") is not None):
        yield "of __eq__ and __hash__ one is defined"
    had_default = False
    for name, described in {**inherited, **own}.items():
        if name in own and name in inherited:
            yield f"{name} is a field of the base"
        if get_origin(cls.__annotations__.get(name)) is ClassVar:
            yield f"{name} is no field"
        if type(described.default).__hash__ is None:
            yield f"all values would share the default of {name}: use default_factory"
        if name in positional:
            if had_default and described.is_required:
                yield f"{name} has no default, a field before it has"
            had_default = had_default or not described.is_required


def _read_field(default: Any) -> _Field:
    return (
        default if isinstance(default, _Field) else _Field(default, None, in_eq=True, in_repr=True)
    )


def _repoint_super(cls: type[Any], made: type[Any]) -> None:
    """Make super() in methods, properties and class methods refer to the class made anew."""
    for member in vars(made).values():
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if "__class__" in getattr(getattr(function, "__code__", None), "co_freevars", ()):
            at = function.__code__.co_freevars.index("__class__")
            function.__closure__[at].cell_contents = made


def _make_init(cls: type[Any], fields: Mapping[str, _Field], positional: tuple[str, ...]) -> Any:
    setters = {name: getattr(cls, name).__set__ for name in fields}
    in_order = tuple(setters[name] for name in positional)
    by_name = tuple(
        (name, setters[name], described.default, described.default_factory)
        for name, described in fields.items()
    )
    has_post_init = hasattr(cls, "__post_init__")
    is_plain = len(positional) == len(fields) and not has_post_init

    def init(self: Any, /, *args: Any, **given: Any) -> None:
        if args:
            if is_plain and len(args) == len(in_order) and not given:
                for set_field, argument in zip(in_order, args, strict=True):
                    set_field(self, argument)
                return
            if len(args) > len(positional):
                raise TypeError(f"{cls.__name__}() takes {len(positional)} positional arguments")
            for name, argument in zip(positional, args, strict=False):
                if name in given:
                    raise TypeError(f"{cls.__name__}() got {name!r} twice")
                given[name] = argument
        for name, set_field, default, factory in by_name:
            if name in given:
                set_field(self, given.pop(name))
            elif factory is not None:
                set_field(self, factory())
            elif default is not _MISSING:
                set_field(self, default)
            else:
                raise TypeError(f"{cls.__name__}() is not given {name!r}")
        if given:
            raise TypeError(f"{cls.__name__}() has no {', '.join(map(repr, given))}")
        if has_post_init:
            self.__post_init__()

    return init


def _make_eq(fields: Mapping[str, _Field]) -> tuple[Any, Any]:
    names = [name for name, described in fields.items() if described.in_eq]
    # attrgetter needs at least one name; without one, all values of the class are equal
    read: Callable[[Any], Any] = attrgetter(*names) if names else type

    def equals(self: Any, other: object) -> Any:
        if type(other) is not type(self):
            return NotImplemented
        return read(self) == read(other)

    def hash_value(self: Any) -> int:
        return hash(read(self))

    return equals, hash_value


def _format_value(self: Any) -> str:
    fields: Mapping[str, _Field] = self.__fields__
    shown = [
        f"{name}={getattr(self, name)!r}"
        for name, described in fields.items()
        if described.in_repr
    ]
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse_change(self: Any, name: str, *_: object) -> Never:
    raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")
