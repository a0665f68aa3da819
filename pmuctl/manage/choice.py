# SPDX-License-Identifier: Apache-2.0
"""What a user's words for a PMU and a filter stand for on this host."""

from collections.abc import Sequence
from dataclasses import dataclass

from pmuctl.errors import NotFoundError, UsageError
from pmuctl.host.cpus import read_online
from pmuctl.host.pmus import scan_other
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.event import parse_events
from pmuctl.model.filter import Action, EventFilter
from pmuctl.model.pmu import Pmu
from pmuctl.model.selector import select_pmu


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterWords:
    """An inline filter as it was written: its default, and (action, events) rules in order."""

    default: Action
    rules: tuple[tuple[Action, str], ...] = ()


def choose_pmu(
    text: str | None, pmus: Sequence[Pmu], names: Sequence[str], sysfs: Sysfs, *, fix: str
) -> Pmu:
    """The PMU that is named; else the host's, if it has only one.

    To name a PMU turns KVM's silent default into the strict mode, so where there are several
    nobody gets one by accident. `names` are the host's event sources. Raises NotFoundError, and
    UsageError with this `fix` where one must be named.
    """
    if text is not None:
        pmu = select_pmu(text, pmus, scan_other(sysfs, names))
    elif len(pmus) == 1 and _covers_all(pmus[0], sysfs):
        pmu = pmus[0]
    else:
        raise UsageError(
            "a PMU must be named, too",
            why=f"this host has {', '.join(pmu.name for pmu in pmus) or 'no CPU PMU'}, "
            "and counters and events belong to one",
            fix=fix,
        )
    if pmu.type is None:
        raise NotFoundError(f"{pmu.name}: its perf type cannot be read", fix="pmuctl pmu list")
    return pmu


def _covers_all(pmu: Pmu, sysfs: Sysfs) -> bool:
    online = read_online(sysfs)
    return pmu.cpus is not None and online is not None and online <= pmu.cpus


def compile_filter(words: FilterWords, pmu: Pmu, bits: int) -> EventFilter:
    """The filter for a PMU whose event space has so many bits; raises what `parse_events` does."""
    rules = [(action, parse_events(text, pmu.events, bits=bits)) for action, text in words.rules]
    return EventFilter.compile(words.default, rules)
