# SPDX-License-Identifier: Apache-2.0
"""The event filter: any spelling becomes the shortest list, with the kernel's own result."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmuctl.model.event import EventSet
from pmuctl.model.event_filter import Action, EventFilter, FilterRange, difference, kernel_allows

ALLOW, DENY = Action.ALLOW, Action.DENY
ALL16, ALL10 = EventSet.space(16), EventSet.space(10)

# few runs near the borders of the spaces and of nevents, so that they meet and overlap often
edges = st.sampled_from([0, 1, 2, 0x10, 0x11, 0x3FE, 0x3FF, 0x400, 0x4000, 0xFFFD, 0xFFFE, 0xFFFF])


@st.composite
def event_sets(draw: st.DrawFn, bits: int = 16) -> EventSet:
    spans = draw(st.lists(st.tuples(edges, edges), max_size=5))
    runs = [(min(span), max(span) - min(span) + 1) for span in spans]
    return EventSet.of_ranges(runs) & EventSet.space(bits)


actions = st.sampled_from(Action)
filters = st.builds(EventFilter, actions, event_sets())
rule_lists = st.lists(st.tuples(actions, event_sets()), max_size=6)


def test_first_allow_denies_the_rest() -> None:
    assert kernel_allows([FilterRange(0x11, 1, ALLOW)]) == EventSet.of_ranges([(0x11, 1)])


def test_first_deny_allows_the_rest() -> None:
    assert kernel_allows([FilterRange(0x11, 1, DENY)]) == ALL16 - EventSet.of_ranges([(0x11, 1)])


def test_a_range_of_no_events_fixes_the_default_only() -> None:
    assert kernel_allows([FilterRange(0, 0, ALLOW)]) == EventSet()
    assert kernel_allows([FilterRange(0, 0, DENY)]) == ALL16


def test_the_opposite_action_does_not_restore_the_default() -> None:
    calls = [FilterRange(0x11, 1, ALLOW), FilterRange(0x11, 1, DENY)]
    assert kernel_allows(calls) == EventSet()


def test_no_call_is_no_filter() -> None:
    assert kernel_allows([]) is None


def test_a_range_past_the_event_space_is_refused() -> None:
    with pytest.raises(ValueError, match="past the event space"):
        kernel_allows([FilterRange(0x3FF, 2, ALLOW)], bits=10)
    with pytest.raises(ValueError, match="past the event space"):
        kernel_allows([FilterRange(0xFFFF, 2, ALLOW)], bits=16)


def test_deny_all_is_one_call_for_no_event() -> None:
    assert EventFilter(DENY).ranges() == (FilterRange(0, 0, ALLOW),)


def test_allow_all_needs_no_call() -> None:
    assert EventFilter(ALLOW).ranges() == ()


def test_all_65536_events_need_two_ranges() -> None:
    ranges = EventFilter(DENY, ALL16).ranges()
    assert [(r.base, r.nevents) for r in ranges] == [(0, 0xFFFF), (0xFFFF, 1)]


def test_a_later_rule_wins() -> None:
    events = EventSet.of_ranges([(0x10, 4)])
    one = EventSet.of_ranges([(0x11, 1)])
    its = EventFilter.compile(DENY, [(ALLOW, events), (DENY, one)])
    assert its.exceptions.runs() == [(0x10, 1), (0x12, 2)]
    assert EventFilter.compile(ALLOW, [(DENY, events), (ALLOW, events)]).exceptions == EventSet()


def _spell(default: Action, rules: list[tuple[Action, EventSet]], bits: int) -> EventSet:
    """What a list of rules means, one event at a time at the places that matter."""
    allowed = ALL16 if default is ALLOW else EventSet()
    for action, events in rules:
        allowed = allowed | events if action is ALLOW else allowed - events
    return allowed & EventSet.space(bits)


@given(actions, rule_lists)
def test_any_spelling_gives_the_wanted_bitmap_on_the_kernels_rules(
    default: Action, rules: list[tuple[Action, EventSet]]
) -> None:
    ranges = EventFilter.compile(default, rules).ranges()
    allowed = kernel_allows(ranges, bits=16)
    assert (ALL16 if allowed is None else allowed) == _spell(default, rules, 16)


@given(actions, st.lists(st.tuples(actions, event_sets(10)), max_size=6))
def test_the_same_in_the_10_bit_space(
    default: Action, rules: list[tuple[Action, EventSet]]
) -> None:
    ranges = EventFilter.compile(default, rules).ranges()
    allowed = kernel_allows(ranges, bits=10)
    assert (ALL10 if allowed is None else allowed) == _spell(default, rules, 10)


@given(filters)
def test_ranges_are_disjoint_of_one_action_and_fit_a_u16(its: EventFilter) -> None:
    ranges = its.ranges()
    assert {r.action for r in ranges} <= {its.default.opposite()}
    assert all(0 <= r.base <= 0xFFFF and r.nevents <= 0xFFFF for r in ranges)
    assert sum(r.nevents for r in ranges) == len(its.exceptions)


@given(filters)
def test_no_list_of_that_action_is_shorter(its: EventFilter) -> None:
    # no range may name an event that is no exception, so each range lies within one run and a
    # run of more than 65,535 events needs two
    least = sum(-(-nevents // 0xFFFF) for _, nevents in its.exceptions.runs())
    must_say_default = its.default is DENY and not its.exceptions
    assert len(its.ranges()) == least + must_say_default


@given(st.integers(0, 0xFFFF), st.integers(1, 6))
def test_brute_force_finds_no_shorter_list(mask: int, bits: int) -> None:
    """Over spaces of up to 64 events: the fewest intervals that cover exactly these bits."""
    wanted = EventSet(mask & ((1 << (1 << bits)) - 1))
    starts = sum(
        1
        for event in range(1 << bits)
        if event in wanted and (event == 0 or event - 1 not in wanted)
    )
    assert len(EventFilter(ALLOW, wanted).ranges()) == starts


@given(event_sets(), event_sets())
def test_the_difference_leads_from_any_filter_to_any_other(
    standing: EventSet, wanted: EventSet
) -> None:
    calls = difference(standing, wanted)
    assert (kernel_allows(calls, standing=standing)) == wanted
    touched = EventSet()
    for call in calls:
        touched |= call.events()
    assert touched == (standing - wanted) | (wanted - standing)


def test_no_difference_is_no_call() -> None:
    assert difference(ALL16, ALL16) == ()


@given(event_sets())
def test_runs_and_ranges_are_inverse(events: EventSet) -> None:
    assert EventSet.of_ranges(events.runs()) == events
