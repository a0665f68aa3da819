# SPDX-License-Identifier: Apache-2.0
"""The parser of the settings of `vm set`: KEY VALUE pairs, with the filter last."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from pmuctl.cli.near_misses.settings import (
    correct_filter,
    correct_settings,
    correct_value,
    find_unquoted_filter,
)
from pmuctl.cli.options import KEYS, SETTINGS
from pmuctl.errors import UsageError, WrongWordError
from pmuctl.manage.resolve import FilterWords, SettingsRequest
from pmuctl.model.event_filter import Action

COUNTERS_MAX = 31


class CountersRangeError(UsageError):
    """A number of counters that no PMU can have."""


def parse_settings(words: Sequence[str]) -> SettingsRequest:
    """Parse `pmu P counters N filter default deny allow EVENTS …`, each key at most once.

    Raise UsageError, which names the wrong word; WrongWordError if it is clear what is meant.
    """
    try:
        return _parse_strictly(words)
    except UsageError as error:
        right = correct_settings(words)
        if right is None or right == list(words) or not _is_parsed(right):
            raise
        raise WrongWordError(
            error.message, words=tuple(words), right=tuple(right), why=error.why
        ) from None


def _is_parsed(words: Sequence[str]) -> bool:
    try:
        _parse_strictly(words)
    except UsageError:
        return False
    return True


def _parse_strictly(words: Sequence[str]) -> SettingsRequest:
    found: dict[str, str] = {}
    event_filter: FilterWords | None = None
    rest = iter(words)
    for key in rest:
        _check_quotes(key)
        if key not in KEYS:
            near = get_close_matches(key, KEYS, n=1)
            fix = f"did you mean {near[0]}?" if near else SETTINGS
            raise UsageError(f"{key}: not a setting of a VM", fix=fix)
        if key in found or (key == "filter" and event_filter):
            raise UsageError(f"{key} is given twice", fix=SETTINGS)
        if key == "filter":
            filter_words = list(rest)
            for word in filter_words:
                _check_quotes(word)
            event_filter = _parse_filter(filter_words)
        else:
            found[key] = _take_value(key, rest)
    if not found and event_filter is None:
        raise UsageError("a setting is missing", fix=SETTINGS)
    return SettingsRequest(
        pmu=found.get("pmu"),
        counters=_parse_counters(found.get("counters")),
        filter=event_filter,
        affinity=found.get("affinity"),
    )


def _take_value(key: str, rest: Iterator[str]) -> str:
    value = next(rest, None)
    if not value:
        raise UsageError(f"{key}: the value is missing", fix=SETTINGS)
    if correct_value(key, value) != value:
        raise UsageError(f"{key} {value}: not a value of this setting", fix=SETTINGS)
    return value


def _check_quotes(word: str) -> None:
    """Raise UsageError if several words were quoted into one, as the filter of `run` must be."""
    parts = word.split()
    if len(parts) > 1 and parts[0] in (*KEYS, "default", *Action):
        unquoted = " ".join(parts)
        raise UsageError(f"{unquoted}: several words in one", fix=f"omit the quotes: {unquoted}")


def _parse_counters(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and int(text) <= COUNTERS_MAX):
        raise CountersRangeError(
            f"{text}: not a number of counters",
            why=f"PMCR_EL0.N can be 0-{COUNTERS_MAX}",
            fix="pmuctl pmu list",
        )
    return int(text)


def parse_filter_option(text: str, following: Sequence[str] = ()) -> FilterWords:
    """Parse the value of --filter, `default deny allow EVENTS …`.

    The events are not parsed here. Words that follow it on the command line are looked at if it
    lacks some. Raise as `parse_settings` does.
    """
    if unquoted := find_unquoted_filter(text, following):
        right = correct_filter(unquoted)
        if right is not None:
            raise WrongWordError(
                f"{' '.join(unquoted)}: a filter is one word for a shell",
                words=tuple(unquoted),
                right=(" ".join(right),),
                why="words that follow the options are the command line of the VMM",
            )
    try:
        return _parse_filter(text.split(), is_option=True)
    except UsageError as error:
        right = correct_filter(text.split())
        if right is None or right == text.split():
            raise
        raise WrongWordError(
            error.message, words=(text,), right=(" ".join(right),), why=error.why
        ) from None


def _parse_filter(words: Sequence[str], *, is_option: bool = False) -> FilterWords:
    """Parse all words after `filter`; raise UsageError, which names the wrong word."""
    form = "default allow|deny [allow EVENTS|deny EVENTS]..."
    fix = f"--filter '{form}'" if is_option else f"filter {form}"
    if words[:1] != ["default"]:
        what = (
            f"{words[0]}: a filter cannot start with this"
            if words
            else f"{'--' * is_option}filter: the rules are missing"
        )
        raise UsageError(what, why="a filter starts with its default", fix=fix)
    keys = () if is_option else KEYS
    default = _parse_action(words[1:2], keys, fix)
    rules = []
    for index in range(2, len(words), 2):
        action = _parse_action(words[index : index + 1], keys, fix)
        if index + 1 >= len(words):
            raise UsageError(f"{action}: the events are missing", fix=fix)
        rules.append((action, words[index + 1]))
    return FilterWords(default=default, rules=tuple(rules))


def _parse_action(word: Sequence[str], keys: Sequence[str], fix: str) -> Action:
    try:
        return Action(word[0])
    except IndexError:
        raise UsageError("default: allow or deny is missing", fix=fix) from None
    except ValueError:
        hint = (
            "the filter comes last: put other settings before it"
            if word[0] in keys
            else "a rule is allow EVENTS or deny EVENTS, and EVENTS one list without spaces"
        )
        raise UsageError(f"{word[0]}: expected allow or deny", why=hint, fix=fix) from None
