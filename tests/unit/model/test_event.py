# SPDX-License-Identifier: Apache-2.0
"""Event words: names, codes, ranges, globs, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmuctl.errors import NotFoundError, PmuctlError, UsageError
from pmuctl.model.event import EventSet, parse_events

NAMES = {"cpu_cycles": 0x11, "inst_retired": 0x08, "l1d_cache": 0x04, "l1d_cache_refill": 0x03}


def runs(text: str, bits: int = 16) -> list[tuple[int, int]]:
    return parse_events(text, NAMES, bits=bits).runs()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu_cycles", [(0x11, 1)]),
        ("0x11", [(0x11, 1)]),
        ("0X0011", [(0x11, 1)]),
        ("cpu_cycles,0x8", [(0x08, 1), (0x11, 1)]),
        ("0x10-0x1f", [(0x10, 16)]),
        ("l1d_*", [(0x03, 2)]),
        (" cpu_cycles , 0x12", [(0x11, 2)]),
        ("0x0-0xffff", [(0, 0x10000)]),
    ],
)
def test_words_and_what_they_mean(text: str, expected: list[tuple[int, int]]) -> None:
    assert runs(text) == expected


def test_bare_digits_are_refused_with_the_code_and_the_name() -> None:
    with pytest.raises(UsageError) as error:
        runs("17")
    assert error.value.fix == "write 0x17"
    assert error.value.why == (
        "an event code needs 0x: 0x17 in hexadecimal, 0x11 (cpu_cycles) in decimal"
    )


@pytest.mark.parametrize("text", ["", "cpu_cycles,", "0x11-", "0x11-cpu", "0x20-0x10", "0xg"])
def test_what_is_no_event_is_refused(text: str) -> None:
    with pytest.raises(PmuctlError):
        runs(text)


def test_an_unknown_name_tells_near_ones() -> None:
    with pytest.raises(NotFoundError) as error:
        runs("cpu_cycle")
    assert "cpu_cycles" in (error.value.why or "")


def test_a_code_past_the_event_space_names_the_space() -> None:
    with pytest.raises(UsageError, match="past the event space") as error:
        runs("0x400", bits=10)
    assert "0x0000-0x03ff" in (error.value.why or "")
    with pytest.raises(UsageError, match="past the event space"):
        runs("0xffff-0x10000")


@given(st.text())
def test_any_text_gives_a_value_or_a_clear_error(text: str) -> None:
    try:
        events = parse_events(text, NAMES)
    except (UsageError, NotFoundError):
        return
    assert events


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(1, 0x10000)), min_size=1))
def test_a_set_reads_back_as_it_was_written(ranges: list[tuple[int, int]]) -> None:
    events = EventSet.of_ranges(ranges) & EventSet.space(16)
    assert parse_events(str(events), {}) == events
