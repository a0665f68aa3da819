# SPDX-License-Identifier: Apache-2.0
"""KVM's event filter: the rules of the kernel, and the shortest way to say what is wanted.

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
    """What a rule does with its events."""

    ALLOW = "allow"
    DENY = "deny"

    def opposite(self) -> "Action":
        """ALLOW for DENY and the other way round."""
        return Action.DENY if self is Action.ALLOW else Action.ALLOW

    def kernel_value(self) -> int:
        """The number of kvm_pmu_event_filter.action."""
        return KVM_PMU_EVENT_ALLOW if self is Action.ALLOW else KVM_PMU_EVENT_DENY


@value
class FilterRange:
    """One KVM_ARM_VCPU_PMU_V3_FILTER call: the events [base, base + nevents)."""

    base: int
    nevents: int
    action: Action

    def events(self) -> EventSet:
        """The events it names."""
        return EventSet.of_ranges([(self.base, self.nevents)])


@value
class EventFilter:
    """What a guest may count: a default for all events, and the exceptions from it."""

    default: Action
    exceptions: EventSet = NO_EVENTS

    @classmethod
    def compile(cls, default: Action, rules: Iterable[tuple[Action, EventSet]]) -> Self:
        """The filter that these rules make of the default; a later rule wins."""
        exceptions = NO_EVENTS
        for action, events in rules:
            exceptions = exceptions - events if action is default else exceptions | events
        return cls(default, exceptions)

    def allowed(self, bits: int = WIDEST_BITS) -> EventSet:
        """The events of a space of so many bits that the guest may count."""
        space = EventSet.space(bits)
        if self.default is Action.DENY:
            return self.exceptions & space
        return space - self.exceptions

    def ranges(self) -> tuple[FilterRange, ...]:
        """The fewest calls that make this of a VM that has no filter yet.

        All have the opposite action of the default: the first call fixes the default as the
        opposite of its own action, and later calls cannot change it. To deny all is the call for
        no event, (0, 0, ALLOW); to allow all needs no call.
        """
        action = self.default.opposite()
        if not self.exceptions:
            return (FilterRange(0, 0, action),) if self.default is Action.DENY else ()
        return _ranges(self.exceptions, action)

    def __str__(self) -> str:
        return self.words()

    def words(self, names: Mapping[str, int] | None = None) -> str:
        """The filter as `vm set` takes it; `names` maps the names of the PMU's events to codes."""
        if not self.exceptions:
            return f"default {self.default}"
        events = format_events(self.exceptions, names)
        return f"default {self.default} {self.default.opposite()} {events}"


def _ranges(events: EventSet, action: Action) -> tuple[FilterRange, ...]:
    return tuple(
        FilterRange(base + done, min(nevents - done, NEVENTS_MAX), action)
        for base, nevents in events.runs()
        for done in range(0, nevents, NEVENTS_MAX)
    )


def difference(standing: EventSet, wanted: EventSet) -> tuple[FilterRange, ...]:
    """The calls that turn a standing filter, given by what it allows, into another.

    They name only the events that change: none is allowed on the way that is not wanted.
    """
    return _ranges(standing - wanted, Action.DENY) + _ranges(wanted - standing, Action.ALLOW)


def kernel_allows(
    ranges: Iterable[FilterRange], *, bits: int = WIDEST_BITS, standing: EventSet | None = None
) -> EventSet | None:
    """What KVM lets a guest count after these calls, in order; None while there is no filter.

    The first call of a VM sets everything outside it to the opposite of its action; each call
    then allows or denies its own range. Raises ValueError for a range past the event space, as
    the kernel answers EINVAL.
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
