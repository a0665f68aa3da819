# SPDX-License-Identifier: Apache-2.0
"""KVM's event filter: the rules of the kernel, and the fewest calls that set a filter.

Source: Documentation/virt/kvm/devices/vcpu.rst, 1.3 KVM_ARM_VCPU_PMU_V3_FILTER, and
kvm_arm_pmu_v3_set_attr() in arch/arm64/kvm/pmu-emul.c.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Self

from pmuctl.model.event import NO_EVENTS, WIDEST_BITS, EventSet, format_events
from pmuctl.uapi.kvm_arm64 import KVM_PMU_EVENT_ALLOW, KVM_PMU_EVENT_DENY
from pmuctl.value import value

NEVENTS_MAX = 0xFFFF
"""kvm_pmu_event_filter.nevents is a u16: all 65,536 events need two ranges."""


class Action(StrEnum):
    """The effect of a rule on its events."""

    ALLOW = "allow"
    DENY = "deny"

    def opposite(self) -> "Action":
        """Return ALLOW for DENY, and DENY for ALLOW."""
        return Action.DENY if self is Action.ALLOW else Action.ALLOW

    def kernel_value(self) -> int:
        """Return the number of kvm_pmu_event_filter.action."""
        return KVM_PMU_EVENT_ALLOW if self is Action.ALLOW else KVM_PMU_EVENT_DENY


@value
class FilterRange:
    """One KVM_ARM_VCPU_PMU_V3_FILTER call: the events [base, base + nevents)."""

    base: int
    nevents: int
    action: Action

    def events(self) -> EventSet:
        """Return the events of the range."""
        return EventSet.of_ranges([(self.base, self.nevents)])


@value
class EventFilter:
    """The events a guest may count: a default for all events, and the exceptions to it."""

    default: Action
    exceptions: EventSet = NO_EVENTS

    @classmethod
    def compile(cls, default: Action, rules: Iterable[tuple[Action, EventSet]]) -> Self:
        """Return the filter that these rules make of the default; a later rule wins."""
        exceptions = NO_EVENTS
        for action, events in rules:
            exceptions = exceptions - events if action is default else exceptions | events
        return cls(default, exceptions)

    def allowed(self, bits: int = WIDEST_BITS) -> EventSet:
        """Return the events that the guest may count, of an event space `bits` wide."""
        space = EventSet.space(bits)
        if self.default is Action.DENY:
            return self.exceptions & space
        return space - self.exceptions

    def ranges(self) -> tuple[FilterRange, ...]:
        """Return the fewest calls that set this filter on a VM that has no filter yet.

        All calls have the opposite action of the default: the first call fixes the default as the
        opposite of its own action, and later calls cannot change it. To deny all events takes one
        call for no event, (0, 0, ALLOW); to allow all events takes no call.
        """
        action = self.default.opposite()
        if not self.exceptions:
            return (FilterRange(0, 0, action),) if self.default is Action.DENY else ()
        return _split_ranges(self.exceptions, action)

    def __str__(self) -> str:
        return self.describe()

    def describe(self, names: Mapping[str, int] | None = None) -> str:
        """Return the filter as `vm set` takes it; `names` maps the PMU's events to codes."""
        if not self.exceptions:
            return f"default {self.default}"
        events = format_events(self.exceptions, names)
        return f"default {self.default} {self.default.opposite()} {events}"


def _split_ranges(events: EventSet, action: Action) -> tuple[FilterRange, ...]:
    """Return the fewest calls that name exactly these events, each of at most NEVENTS_MAX."""
    return tuple(
        FilterRange(base + done, min(nevents - done, NEVENTS_MAX), action)
        for base, nevents in events.runs()
        for done in range(0, nevents, NEVENTS_MAX)
    )


def difference(standing: EventSet, wanted: EventSet) -> tuple[FilterRange, ...]:
    """Return the calls that turn a standing filter into another; each is given by what it allows.

    The calls name only the events that change, so no unwanted event is allowed in between.
    """
    return _split_ranges(standing - wanted, Action.DENY) + _split_ranges(
        wanted - standing, Action.ALLOW
    )


def kernel_allows(
    ranges: Iterable[FilterRange], *, bits: int = WIDEST_BITS, standing: EventSet | None = None
) -> EventSet | None:
    """Return what KVM lets a guest count after these calls, in order; None if there is no filter.

    The first call of a VM sets everything outside its range to the opposite of its action; each
    call then allows or denies its own range. `standing` is what the filter allowed before, `bits`
    the width of the event space. Raise ValueError for a range past the event space, for which the
    kernel gives EINVAL.
    """
    space = EventSet.space(bits)
    for call in ranges:
        if call.base + call.nevents > 1 << bits:
            raise ValueError(f"range past the event space: {call}")
        if standing is None:
            standing = NO_EVENTS if call.action is Action.ALLOW else space
        if call.action is Action.ALLOW:
            standing |= call.events()
        else:
            standing -= call.events()
    return standing
