# SPDX-License-Identifier: Apache-2.0
"""PMUv3 event numbers, sets of them, and their text notation."""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Self

from pmuctl.errors import NotFoundError, PmuctlError, UsageError, WrongWordError
from pmuctl.model.pmu import format_code
from pmuctl.value import value

WIDEST_BITS = 16
"""The width of event numbers: 16 bits in PMUv3 for Armv8.1 and later, 10 bits in Armv8.0."""

FEW = 8
"""The largest number of event names that an error lists."""

_CODE = re.compile(r"0[xX]([0-9a-fA-F]{1,8})")


@value
class EventSet:
    """A set of event numbers, stored as KVM stores its filter: bit n of `mask` is event n."""

    mask: int = 0

    def __init__(self, mask: int = 0) -> None:
        # `value` would make one that takes twice the time, and a filter makes thousands of sets
        object.__setattr__(self, "mask", mask)

    @classmethod
    def of_ranges(cls, ranges: Iterable[tuple[int, int]]) -> Self:
        """Return the union of (base, nevents) ranges."""
        mask = 0
        for base, nevents in ranges:
            mask |= ((1 << nevents) - 1) << base
        return cls(mask)

    @classmethod
    def space(cls, bits: int) -> Self:
        """Return the set of all events of an event space, `bits` wide."""
        return cls((1 << (1 << bits)) - 1)

    def runs(self) -> list[tuple[int, int]]:
        """Return the maximal runs of consecutive events, as (base, nevents), in rising order."""
        digits = bin(self.mask)[:1:-1]
        return [(run.start(), len(run[0])) for run in re.finditer("1+", digits)]

    def __contains__(self, event: int) -> bool:
        return bool(self.mask >> event & 1)

    def __bool__(self) -> bool:
        return bool(self.mask)

    def __or__(self, other: "EventSet") -> "EventSet":
        return EventSet(self.mask | other.mask)

    def __and__(self, other: "EventSet") -> "EventSet":
        return EventSet(self.mask & other.mask)

    def __sub__(self, other: "EventSet") -> "EventSet":
        return EventSet(self.mask & ~other.mask)

    def __len__(self) -> int:
        return self.mask.bit_count()

    def __str__(self) -> str:
        return format_events(self)


NO_EVENTS = EventSet()


def format_events(events: EventSet, names: Mapping[str, int] | None = None) -> str:
    """Return a set in the notation of `parse_events`; single events are named if they have a name.

    `names` maps names to codes, as for `parse_events`.
    """
    named = {code: name for name, code in (names or {}).items()}
    parts = []
    for base, nevents in events.runs():
        codes = range(base, base + nevents)
        if nevents > 1 and not all(code in named for code in codes):
            parts.append(f"{format_code(base)}-{format_code(codes[-1])}")
        else:
            parts += [named.get(code) or format_code(code) for code in codes]
    return ",".join(parts)


def parse_events(text: str, names: Mapping[str, int], *, bits: int = WIDEST_BITS) -> EventSet:
    """Parse a comma list of event names, 0x codes, ranges of codes and globs over the names.

    `names` maps the names of the PMU's events to codes; `bits` is the width of its event space.
    Raise NotFoundError for a name or glob that matches no event, UsageError for a code past the
    event space and for anything else that is no event.
    """
    mask = 0
    for word in text.split(","):
        mask |= _parse_word(word.strip(), names, bits).mask
    return EventSet(mask)


def _parse_word(word: str, names: Mapping[str, int], bits: int) -> EventSet:
    if not word:
        raise UsageError("an event is missing", fix="write names or codes, cpu_cycles,0x0008")
    if word in names:
        return EventSet.of_ranges([(names[word], 1)])
    if "*" in word or "?" in word or "[" in word:
        found = [names[name] for name in names if fnmatch.fnmatchcase(name, word)]
        if not found:
            raise _make_unknown_event_error(word, names)
        return EventSet.of_ranges((code, 1) for code in found)
    first, dash, last = word.partition("-")
    if _CODE.fullmatch(first) and (not dash or _CODE.fullmatch(last)):
        return _make_event_range(word, _parse_code(first), _parse_code(last or first), bits)
    raise _explain_wrong_event(word, names, bits)


def _parse_code(text: str) -> int:
    return int(text, 16)


def _explain_wrong_event(word: str, names: Mapping[str, int], bits: int) -> PmuctlError:
    """Return the error for a word that is no event, with what it stands for if that is clear."""
    # imported here, because only wrong words need it
    from pmuctl.model.event_notations import PERF_SOFTWARE_EVENTS, translate_event

    right = [text for text in translate_event(word, names) if _is_event(text, names, bits)]
    if word.lower() in ("all", "any"):
        right = [f"{format_code(0)}-{format_code((1 << bits) - 1)}"]
    if not right:
        if word.lower() in PERF_SOFTWARE_EVENTS:
            why = "it is a software event of perf: PMUs, and so filters, have hardware events only"
            return UsageError(f"{word}: not an event of a PMU", why=why, fix="leave it out")
        if "-" in word and word[0].isdigit():
            fix = "write a range as 0x10-0x1f, names one by one"
            return UsageError(f"{word}: not a range of events", fix=fix)
        return _make_unknown_event_error(word, names)
    by_code = {code: name for name, code in names.items()}
    meanings = [
        f"{text} ({name})" if (name := by_code.get(_code_of(text))) else text for text in right
    ]
    if word.isdigit():
        why = f"an event code needs 0x: {' in hexadecimal, '.join(meanings)}"
        why += " in decimal" if len(right) > 1 else ""
    else:
        why = f"here it is {meanings[0]}"
    return WrongWordError(f"{word}: not an event", words=(word,), right=(right[0],), why=why)


def _is_event(text: str, names: Mapping[str, int], bits: int) -> bool:
    try:
        return bool(_parse_word(text, names, bits))
    except PmuctlError:
        return False


def _code_of(text: str) -> int:
    """Return the number that a text is, -1 for a name or a range."""
    return int(text, 16) if _CODE.fullmatch(text) else -1


def _make_event_range(word: str, first: int, last: int, bits: int) -> EventSet:
    if last < first:
        right = f"{format_code(last)}-{format_code(first)}"
        message = f"{word}: the range ends before it begins"
        raise WrongWordError(message, words=(word,), right=(right,), why=None)
    if last >> bits:
        raise UsageError(
            f"{word}: past the event space of this PMU",
            why=f"its event numbers have {bits} bits, 0x0000-{format_code((1 << bits) - 1)}",
            errno="EINVAL",
        )
    return EventSet.of_ranges([(first, last - first + 1)])


def _make_unknown_event_error(word: str, names: Mapping[str, int]) -> NotFoundError:
    from difflib import get_close_matches  # it is costly to load, and only wrong words need it

    near = get_close_matches(word.lower(), names, n=3, cutoff=0.6)
    few = list(names) if len(names) <= FEW else []
    hint = f"similar: {', '.join(near)}" if near else f"they are {', '.join(few)}" if few else ""
    return NotFoundError(
        f"{word}: no such event on this PMU",
        why=f"it has {len(names)} named events" + (f"; {hint}" if hint else ""),
        fix="write its code (0x and hexadecimal digits), or a name that pmuctl pmu show lists",
    )
