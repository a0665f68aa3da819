# SPDX-License-Identifier: Apache-2.0
"""Immutable values: classes whose instances are their fields, made in little time.

Nothing is compiled and `dataclasses` is not imported, which loads a part of the compiler:
120 classes of values are what most commands of pmuctl spend their start on otherwise.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from operator import attrgetter
from typing import Any, Never, TypeVar, dataclass_transform, overload

T = TypeVar("T")

_MISSING: Any = object()


class _Field:
    """What `field()` says of a field."""

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


def field(
    *,
    default: Any = _MISSING,
    default_factory: Callable[[], Any] | None = None,
    compare: bool = True,
    repr: bool = True,
) -> Any:
    """Describe a field that needs more than a default, as dataclasses.field() does.

    `compare` is whether equality and hash take it into account, `repr` whether it is shown.
    """
    return _Field(default, default_factory, in_eq=compare, in_repr=repr)


@overload
def value(cls: type[T], /) -> type[T]: ...
@overload
def value(*, kw_only: bool = False) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[Any] | None = None, /, *, kw_only: bool = False) -> Any:
    """Make a class of immutable values: `dataclass(frozen=True, slots=True)` for its users.

    The annotated names of the class are the fields, after those of a base that is such a class.
    With `kw_only` its own fields are given by name only. `__post_init__` is called where there
    is one. What the class defines itself, such as `__eq__`, stays.
    """
    if cls is None:
        return lambda cls: _make_value(cls, kw_only=kw_only)
    return _make_value(cls, kw_only=kw_only)


def replace(instance: T, /, **changes: Any) -> T:
    """Return the same value with other fields; raises TypeError for a field that it has not."""
    kind: Any = type(instance)
    kept = {name: getattr(instance, name) for name in kind.__fields__ if name not in changes}
    return kind(**kept, **changes)  # type: ignore[no-any-return]


def field_defaults(cls: type[Any]) -> Mapping[str, Any]:
    """Return the default of each field of a class of values that has one."""
    fields: Mapping[str, _Field] = cls.__fields__
    defaults = {name: its.default for name, its in fields.items()}
    return {name: default for name, default in defaults.items() if default is not _MISSING}


def _make_value(cls: type[Any], *, kw_only: bool) -> type[Any]:
    namespace = dict(cls.__dict__)
    own = {name: _read_field(namespace.pop(name, _MISSING)) for name in cls.__annotations__}
    fields: dict[str, _Field] = {**getattr(cls, "__fields__", {}), **own}
    positional = (*getattr(cls, "__match_args__", ()), *(() if kw_only else own))
    for name in ("__dict__", "__weakref__"):
        namespace.pop(name, None)
    namespace |= {
        "__slots__": tuple(own),
        "__fields__": fields,
        "__match_args__": positional,
        "__setattr__": _refuse_change,
        "__delattr__": _refuse_change,
    }
    namespace.setdefault("__repr__", _show)
    # a class has its slots from the start, or not at all: it is made once more
    made: Any = type(cls)(cls.__name__, cls.__bases__, namespace)  # type: ignore[misc]
    _correct_super(cls, made)
    setters = {name: getattr(made, name).__set__ for name in fields}
    if "__init__" not in namespace:
        made.__init__ = _make_init(made, fields, setters, positional)
    if "__eq__" not in namespace:
        made.__eq__, made.__hash__ = _make_eq(fields)
    return made  # type: ignore[no-any-return]


def _correct_super(cls: type[Any], made: type[Any]) -> None:
    """Tell methods that call super() of the class that was made in place of theirs."""
    for method in vars(made).values():
        if "__class__" in getattr(getattr(method, "__code__", None), "co_freevars", ()):
            for cell in method.__closure__:
                with suppress(ValueError):  # a cell that nothing has been put into
                    if cell.cell_contents is cls:
                        cell.cell_contents = made


def _read_field(default: Any) -> _Field:
    return (
        default if isinstance(default, _Field) else _Field(default, None, in_eq=True, in_repr=True)
    )


def _make_init(
    cls: type[Any],
    fields: Mapping[str, _Field],
    setters: Mapping[str, Callable[[Any, Any], None]],
    positional: tuple[str, ...],
) -> Any:
    in_order = tuple(setters[name] for name in positional)
    is_plain = len(positional) == len(fields)
    post = getattr(cls, "__post_init__", None)
    described = tuple(
        (name, setters[name], its.default, its.default_factory) for name, its in fields.items()
    )

    def init(self: Any, /, *args: Any, **given: Any) -> None:
        if args:
            if len(args) > len(positional):
                raise TypeError(f"{cls.__name__}() takes {len(positional)} positional arguments")
            if is_plain and len(args) == len(in_order) and not given and post is None:
                for set_field, argument in zip(in_order, args, strict=True):
                    set_field(self, argument)
                return
            for name, argument in zip(positional, args, strict=False):
                if name in given:
                    raise TypeError(f"{cls.__name__}() got {name!r} twice")
                given[name] = argument
        for name, set_field, default, factory in described:
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
        if post is not None:
            post(self)

    return init


def _make_eq(fields: Mapping[str, _Field]) -> tuple[Any, Any]:
    names = [name for name, its in fields.items() if its.in_eq]
    # of no name there is nothing to get, and all such values are equal
    compared: Callable[[Any], Any] = attrgetter(*names) if names else type

    def equals(self: Any, other: object) -> Any:
        if type(other) is not type(self):
            return NotImplemented
        return compared(self) == compared(other)

    def hash_value(self: Any) -> int:
        return hash(compared(self))

    return equals, hash_value


def _show(self: Any) -> str:
    fields: Mapping[str, _Field] = type(self).__fields__
    shown = [f"{name}={getattr(self, name)!r}" for name, its in fields.items() if its.in_repr]
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse_change(self: Any, name: str, *_: object) -> Never:
    raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")
