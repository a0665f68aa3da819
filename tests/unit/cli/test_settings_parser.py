# SPDX-License-Identifier: Apache-2.0
"""The words of `vm set`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmuctl.cli.options import KEYS
from pmuctl.cli.settings_parser import parse_filter_option, parse_settings
from pmuctl.errors import UsageError
from pmuctl.manage.resolve import FilterWords, SettingsRequest
from pmuctl.model.event_filter import Action

ALLOW, DENY = Action.ALLOW, Action.DENY


def test_keys_in_any_order_and_the_filter_last() -> None:
    words = "counters 4 pmu a72 filter default deny allow cpu_cycles,0x8 deny 0x8".split()
    rules = ((ALLOW, "cpu_cycles,0x8"), (DENY, "0x8"))
    assert parse_settings(words) == SettingsRequest(
        pmu="a72", counters=4, filter=FilterWords(default=DENY, rules=rules)
    )


def test_a_default_alone_is_a_filter() -> None:
    request = parse_settings(["filter", "default", "allow"])
    assert request == SettingsRequest(filter=FilterWords(default=ALLOW))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "a setting is missing"),
        ("pmu", "pmu: the value is missing"),
        ("pmu a pmu b", "pmu is given twice"),
        ("pum a", "pum: not a setting"),
        ("counters two", "not a number of counters"),
        ("counters 32", "not a number of counters"),
        ("counters -1", "not a number of counters"),
        ("counters 00000000099", "not a number of counters"),
        ("counters " + "0" * 5000, "not a number of counters"),
        ("counters ٣", "not a number of counters"),
        ("filter", "the rules are missing"),
        ("filter basic", "basic: a filter cannot start with this"),
        ("filter default", "allow or deny is missing"),
        ("filter default deny allow", "the events are missing"),
        ("filter default deny allow a pmu b", "pmu: expected allow or deny"),
    ],
)
def test_what_is_wrong_is_named(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_settings(text.split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["filter", "default deny allow 0x11"], "filter default deny allow 0x11"),
        (["filter default  deny"], "filter default deny"),
        (["filter", "default", "deny allow", "0x11"], "filter default deny allow 0x11"),
    ],
)
def test_quotes_are_to_be_left_out(words: list[str], told: str) -> None:
    with pytest.raises(UsageError, match="several words in one") as caught:
        parse_settings(words)
    assert caught.value.fix == f"write {told}"


@pytest.mark.parametrize("text", ["", "basic", "default", "default deny allow", "default x"])
def test_a_filter_is_mended_in_the_grammar_of_its_command(text: str) -> None:
    form = "default allow|deny [allow EVENTS|deny EVENTS]..."
    with pytest.raises(UsageError) as caught:
        parse_settings(["filter", *text.split()])
    assert caught.value.fix == f"filter {form}"
    with pytest.raises(UsageError) as caught:
        parse_filter_option(text)
    assert caught.value.fix == f"--filter '{form}'"


@given(st.lists(st.sampled_from([*KEYS, "default", "allow", "deny", "0x11", "4", ""]) | st.text()))
def test_any_words_give_a_request_or_a_usage_error(words: list[str]) -> None:
    try:
        request = parse_settings(words)
    except UsageError:
        return
    assert request != SettingsRequest()
