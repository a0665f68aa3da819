# SPDX-License-Identifier: Apache-2.0
"""Classes of values are, for their users, what dataclass(frozen=True, slots=True) makes."""

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import pytest

from pmuctl.value import field, field_defaults, replace, value


@value
class Point:
    """Fields with and without defaults."""

    x: int
    y: int = 0

    def moved(self) -> "Point":
        return replace(self, x=self.x + 1)


@value(kw_only=True)
class Named(Point):
    """Two more, by name only."""

    name: str = "p"
    tags: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def moved(self) -> "Named":
        return replace(super().moved(), name=f"{self.name}'")  # type: ignore[return-value]


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
    assert found == made(*args, **words) != wanted
    assert made.__match_args__ == model.__match_args__
    with pytest.raises(AttributeError, match="x cannot be changed"):
        found.x = 7
    with pytest.raises(AttributeError, match="x cannot be changed"):
        del found.x
    assert not hasattr(found, "__dict__")


def test_values_are_equal_if_what_is_compared_is() -> None:
    assert Point(1, 2) == Point(1, 2) != Point(1, 3)
    assert Named(1, tags={"a": 1}) == Named(1) != Point(1)
    assert {Point(1), Point(1), Point(2)} == {Point(1), Point(2)}


def test_a_value_without_fields_equals_every_other() -> None:
    @value
    class Nothing:
        """No field."""

    @value
    class Other:
        """None, either."""

    other: object = Other()
    assert Nothing() == Nothing() != other
    assert hash(Nothing()) == hash(Nothing())


def test_each_value_has_a_default_of_its_own_from_a_factory() -> None:
    assert Named(1).tags is not Named(1).tags


def test_replace_makes_another_one() -> None:
    before = Named(1, name="q", tags={"a": 1})
    assert replace(before, x=2) == Named(2, name="q")
    assert replace(before, x=2).tags is before.tags
    assert before.x == 1
    with pytest.raises(TypeError, match="'z'"):
        replace(before, z=1)


def test_methods_know_the_class_they_are_in() -> None:
    assert Named(1).moved() == Named(2, name="p'")


def test_match_takes_it_apart() -> None:
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)


def test_post_init_can_refuse_it() -> None:
    @value
    class Positive:
        """A number above 0."""

        number: int

        def __post_init__(self) -> None:
            if self.number <= 0:
                raise ValueError(self.number)

    assert Positive(1).number == 1
    for words in ({"number": 0}, {}):
        with pytest.raises((ValueError, TypeError)):
            Positive(**words)
    with pytest.raises(ValueError, match="0"):
        Positive(0)


def test_what_a_class_defines_itself_stays() -> None:
    @value
    class Own:
        """One that shows and compares itself."""

        x: int

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own)

        def __hash__(self) -> int:
            return 0

    assert repr(Own(1)) == "own"
    assert Own(1) == Own(2)


def test_defaults_are_told() -> None:
    assert field_defaults(Named) == {"y": 0, "name": "p"}
