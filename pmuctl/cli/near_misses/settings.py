# SPDX-License-Identifier: Apache-2.0
"""The settings of `vm set` and filters, as users of other tools write them, in pmuctl's words."""

from collections.abc import Sequence

from pmuctl.cli.options import KEYS
from pmuctl.model.event_filter import Action
from pmuctl.model.event_notations import translate_event

_KEYS = {
    **{key: key for key in KEYS},
    **dict.fromkeys(("pmus", "select-pmu"), "pmu"),
    **dict.fromkeys(("counter", "num-counters", "nr-counters", "vcounters"), "counters"),
    **dict.fromkeys(("cpu", "cpus", "cpuset", "cpu-list", "pin", "vcpupin"), "affinity"),
    **dict.fromkeys(("filters", "event", "events", "kvm-pmu-filter", "pmu-filter"), "filter"),
}
_ACTIONS = {
    **{action.value: action for action in Action},
    **dict.fromkeys(("accept", "permit", "pass", "allowed", "yes", "a"), Action.ALLOW),
    **dict.fromkeys(("block", "drop", "reject", "forbid", "denied", "no", "d"), Action.DENY),
}
_ALL = ("all", "any", "*", "everything")
_NO_FILTER = ("none", "off", "no", "clear", "disable", "disabled")
_AFFINITIES = {
    **dict.fromkeys(("auto", "pmu", "default", "yes", "on"), "auto"),
    **dict.fromkeys(("none", "off", "no"), "none"),
}


def correct_settings(words: Sequence[str]) -> list[str] | None:
    """Return KEY VALUE pairs for words such as `pmu=P`, `--pmu P` or `PMU P`, the filter last.

    Return None if it is not clear what is meant.
    """
    rest = [part for word in words for part in word.split()]
    found: list[str] = []
    rules: list[str] = []
    while rest:
        word = rest.pop(0)
        bare, equals, after = word.lstrip("-").partition("=")
        if equals:
            rest.insert(0, after)
        key = _KEYS.get(_fold(bare))
        if key is None and bare.lower() in (*_ACTIONS, "default"):
            key, rest = "filter", [bare, *rest]
        if key is None or not rest:
            return None
        if key == "filter":
            end = next((i for i, other in enumerate(rest) if _is_key(other)), len(rest))
            rules += rest[:end]
            rest = rest[end:]
        else:
            value = rest.pop(0)
            found += [key, correct_value(key, value)]
    if not rules:
        return found
    corrected = correct_filter(rules)
    return None if corrected is None else [*found, "filter", *corrected]


def correct_filter(words: Sequence[str]) -> list[str] | None:
    """Return `default ACTION [ACTION EVENTS]…` for a filter written otherwise.

    Return None if it is not clear what is meant.
    """
    parts = [part for word in words for part in word.replace("=", " ").split()]
    lower = [part.lower() for part in parts]
    if len(parts) == 1 and lower[0] in _NO_FILTER:
        return ["default", "allow"]
    if lower[:1] == ["default"]:
        default = _ACTIONS.get(lower[1]) if len(lower) > 1 else None
        rest = parts[2:]
    else:
        default, rest = _infer_default(lower), parts
    if default is None:
        return None
    if len(rest) == 2 and rest[1].lower() in _ALL and rest[0].lower() in _ACTIONS:
        return ["default", _ACTIONS[rest[0].lower()].value]
    action = _other(default)
    rules: list[tuple[Action, list[str]]] = []
    for part in rest:
        if part.lower() in _ACTIONS:
            action = _ACTIONS[part.lower()]
            rules.append((action, []))
        else:
            if not rules:
                rules.append((action, []))
            rules[-1][1].extend(filter(None, part.split(",")))
    if not all(events for _, events in rules):
        return None
    lists = [(action.value, ",".join(map(_translate, events))) for action, events in rules]
    return ["default", default.value, *(word for pair in lists for word in pair)]


def find_unquoted_filter(first: str, words: Sequence[str]) -> list[str] | None:
    """Return the words of a filter of `pmuctl run` that was not quoted; None if it is not clear.

    `first` is the value of --filter; `words` follow it, and end with the command line of a VMM.
    """
    rest, taken = [*words], [first]
    if first.lower() == "default" and rest and rest[0].lower() in _ACTIONS:
        taken.append(rest.pop(0))
    elif first.lower() in _ACTIONS and len(rest) > 1:
        taken.append(rest.pop(0))
    else:
        return None
    while len(rest) > 1 and (rest[0].lower() in _ACTIONS or taken[-1].endswith(",")):
        count = 1 if taken[-1].endswith(",") else 2
        taken, rest = [*taken, *rest[:count]], rest[count:]
    is_whole = rest[:1] == ["--"] or "--" not in rest
    return taken if is_whole and rest else None


def _infer_default(lower: Sequence[str]) -> Action | None:
    """Return what a filter without a default leaves for the events that it does not name."""
    action = _ACTIONS.get(lower[0]) if lower else None
    return None if action is None else _other(action)


def _other(action: Action) -> Action:
    return Action.DENY if action is Action.ALLOW else Action.ALLOW


def _translate(event: str) -> str:
    return next(iter(translate_event(event)), event)


def correct_value(key: str, value: str) -> str:
    """Return the value of a setting, `auto` or `none` in place of other words for these."""
    if key == "affinity":
        return _AFFINITIES.get(value.lower(), value)
    return value


def _is_key(word: str) -> bool:
    return _KEYS.get(_fold(word.lstrip("-").partition("=")[0])) in KEYS[:3]


def _fold(word: str) -> str:
    return word.lower().replace("_", "-")
