# SPDX-License-Identifier: Apache-2.0
"""Classes of values are, for their users, what dataclass(frozen=True, slots=True) makes."""

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, ClassVar

import pytest

from pmuctl.value import field, field_defaults, replace, value


@value
class Point:
    """Fields with and without defaults."""

    x: int
    y: int = 0


@value(kw_only=True)
class Named(Point):
    """Two more, by name only."""

    name: str = "p"
    tags: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class DataclassPoint:
    x: int
    y: int = 0


@dataclass(frozen=True, slots=True)
class DataclassNamed(DataclassPoint):
    name: str = dataclass_field(default="p", kw_only=True)
    tags: Mapping[str, int] = dataclass_field(
        default_factory=dict, compare=False, repr=False, kw_only=True
    )


TWINS = [(Point, DataclassPoint), (Named, DataclassNamed)]

GIVEN: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}),
    ((1, 2), {}),
    ((1,), {"y": 2}),
    ((), {"x": 1, "y": 2}),
    ((), {"y": 2}),
    ((), {}),
    ((1, 2, 3), {}),
    ((1,), {"x": 2}),
    ((1, 2), {"x": 2}),
    ((1,), {"z": 3}),
    ((1, 2), {"name": "q", "tags": {"a": 1}}),
    ((1, 2, "q"), {}),
]


@pytest.mark.parametrize(("made", "model"), TWINS)
@pytest.mark.parametrize(("args", "words"), GIVEN)
def test_it_takes_and_shows_what_a_dataclass_does(
    made: type[Any], model: type[Any], args: tuple[Any, ...], words: dict[str, Any]
) -> None:
    try:
        wanted = model(*args, **words)
    except TypeError:
        with pytest.raises(TypeError, match=made.__name__):
            made(*args, **words)
        return
    found = made(*args, **words)
    assert repr(found) == repr(wanted).removeprefix("Dataclass")
    assert hash(found) == hash(made(*args, **words))
    assert found == made(*args, **words)
    assert made.__match_args__ == model.__match_args__
    with pytest.raises(AttributeError, match="x cannot be changed"):
        found.x = 7
    with pytest.raises(AttributeError, match="x cannot be changed"):
        del found.x
    assert not hasattr(found, "__dict__")


def test_values_are_equal_if_what_is_compared_is() -> None:
    assert Point(1, 2) == Point(1, 2)
    assert Point(1, 2) != Point(1, 3)
    assert Named(1, tags={"a": 1}) == Named(1)
    assert Named(1) != Point(1)
    assert {Point(1), Point(1), Point(2)} == {Point(1), Point(2)}


def test_values_without_fields_are_equal_if_of_one_class() -> None:
    @value
    class Nothing:
        """No field."""

    @value
    class Other:
        """None, either."""

    other: object = Other()
    assert Nothing() == Nothing()
    assert Nothing() != other
    assert hash(Nothing()) == hash(Nothing())


def test_each_value_has_a_default_of_its_own_from_a_factory() -> None:
    assert Named(1).tags is not Named(1).tags


def test_replace_makes_another_one() -> None:
    before = Named(1, name="q", tags={"a": 1})
    assert replace(before, x=2) == Named(2, name="q")
    assert replace(before, x=2).tags is before.tags
    assert before.x == 1
    with pytest.raises(TypeError, match="'z'"):
        replace(before, z=1)  # type: ignore[call-arg]


@value
class Base:
    """One of each kind of function that can be called by super()."""

    x: int

    def method(self) -> str:
        return "method"

    @property
    def attribute(self) -> str:
        return "attribute"

    @classmethod
    def make(cls) -> str:
        return "make"


def test_a_method_can_call_super() -> None:
    @value
    class Derived(Base):
        """It adds to the base."""

        def method(self) -> str:
            return super().method() + "!"

    assert Derived(1).method() == "method!"


def test_a_property_can_call_super() -> None:
    @value
    class Derived(Base):
        """It adds to the base."""

        @property
        def attribute(self) -> str:
            return super().attribute + "!"

    assert Derived(1).attribute == "attribute!"


def test_a_class_method_can_call_super() -> None:
    @value
    class Derived(Base):
        """It adds to the base."""

        @classmethod
        def make(cls) -> str:
            return super().make() + "!"

    assert Derived.make() == "make!"


def test_its_name_is_that_of_the_class_as_written() -> None:
    class Outer:
        @value
        class Inner:
            """A class in a class."""

    assert Outer.Inner.__qualname__.endswith("Outer.Inner")


def test_match_takes_it_apart() -> None:
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)
        case _:
            pytest.fail("it does not match")


def test_post_init_can_refuse_it_and_be_overridden() -> None:
    @value
    class Positive:
        """A number above 0."""

        number: int = 1

        def __post_init__(self) -> None:
            if self.number <= 0:
                raise ValueError(self.number)

    @value
    class Number(Positive):
        """Any number."""

        def __post_init__(self) -> None:
            pass

    assert Positive(2).number == 2
    with pytest.raises(ValueError, match="0"):
        Positive(0)
    with pytest.raises(ValueError, match="0"):
        Positive(number=0)
    assert Number(0).number == 0


def test_what_a_class_defines_itself_stays() -> None:
    @value
    class Own:
        """One that makes, shows and compares itself."""

        x: int

        def __init__(self, x: int) -> None:
            object.__setattr__(self, "x", 2 * x)

        def __repr__(self) -> str:
            return f"own {self.x}"

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own)

        def __hash__(self) -> int:
            return 0

    assert repr(Own(1)) == "own 2"
    assert Own(1) == Own(2)
    assert hash(Own(1)) == 0


def test_defaults_are_told() -> None:
    assert field_defaults(Named) == {"y": 0, "name": "p"}


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("class X:\n x: list = []", "share the default of x"),
        ("class X:\n x: int = 0\n y: int", "y has no default"),
        ("class X(Point):\n z: int", "z has no default"),
        ("class X(Point):\n x: int = 3", "x is a field of the base"),
        ("class X(Point, Other):\n pass", "two bases"),
        ("class X:\n x: int\n def __eq__(self, other): return True", "of __eq__ and __hash__"),
        ("class X:\n x: int\n def __hash__(self): return 1", "of __eq__ and __hash__"),
        ("class X:\n x: bytearray = bytearray()", "share the default of x"),
        ("class X:\n x: ClassVar[int] = 0", "x is no field"),
    ],
)
def test_what_would_not_be_what_it_says_is_refused(body: str, fault: str) -> None:
    @value
    class Other:
        """Another base."""

    with pytest.raises(TypeError, match=fault):
        exec(
            f"@value\n{body}",
            {"value": value, "Point": Point, "Other": Other, "ClassVar": ClassVar},
        )
