# SPDX-License-Identifier: Apache-2.0
"""Resolution of what a user wrote for a PMU, CPUs and an event filter on this host."""

from collections.abc import Sequence

from pmuctl.errors import NotFoundError, UsageError
from pmuctl.host.cpus import read_online, scan_present
from pmuctl.host.pmus import look_for_pmus, scan_other
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpu_list import check_present, parse_cpus
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import parse_events
from pmuctl.model.event_filter import Action, EventFilter
from pmuctl.model.pmu import Pmu
from pmuctl.model.pmu_selector import select_pmu
from pmuctl.value import value

AUTO, NONE = "auto", "none"
"""The affinities that are no CPU list: the CPUs of the PMU, and masks that are left alone."""


@value(kw_only=True)
class FilterWords:
    """An inline filter as the user wrote it: its default, and (action, events) rules in order."""

    default: Action
    rules: tuple[tuple[Action, str], ...] = ()


@value(kw_only=True)
class SettingsRequest:
    """The settings that `vm set` was asked for; None for those that were not mentioned.

    `affinity` is `auto`, `none` or a CPU list as the user wrote it.
    """

    pmu: str | None = None
    counters: int | None = None
    filter: FilterWords | None = None
    affinity: str | None = None

    @property
    def is_affinity_only(self) -> bool:
        """Whether nothing is asked for that KVM has a say in."""
        return self.pmu is None and self.counters is None and self.filter is None


def format_settings(request: SettingsRequest) -> list[str]:
    """Return the words of a request, as the user would type them; the filter last."""
    words: list[str] = []
    for key in ("pmu", "counters", "affinity"):
        if (value := getattr(request, key)) is not None:
            words += [key, str(value)]
    if request.filter is not None:
        words += ["filter", "default", request.filter.default]
        words += [word for rule in request.filter.rules for word in rule]
    return words


def choose_pmu(
    text: str | None, pmus: Sequence[Pmu], names: Sequence[str], sysfs: Sysfs, *, fix: str
) -> Pmu:
    """Return the PMU that `text` names; without a text the host's, if it has only one.

    Naming a PMU turns KVM's silent default into the strict mode, so on a host with several PMUs
    nobody gets one by accident. `names` are the host's event sources. Raise what `select_pmu`
    raises, UsageError with this `fix` if a PMU must be named, and NotFoundError for a PMU whose
    perf type cannot be read.
    """
    if text is not None:
        pmu = select_pmu(text, pmus, scan_other(sysfs, names))
    elif len(pmus) == 1 and _covers_online_cpus(pmus[0], sysfs):
        pmu = pmus[0]
    else:
        have = ", ".join(pmu.name for pmu in pmus)
        if not have:
            is_complete = look_for_pmus(sysfs, names).is_complete
            have = "no CPU PMU" if is_complete else "no CPU PMU that can be seen"
        raise UsageError(
            "a PMU must be named, too",
            why=f"this host has {have}, and counters and events belong to one",
            fix=fix,
        )
    if pmu.type is None:
        raise NotFoundError(f"{pmu.name}: its perf type cannot be read", fix="pmuctl pmu list")
    return pmu


def _covers_online_cpus(pmu: Pmu, sysfs: Sysfs) -> bool:
    """Return True if all online CPUs are of this PMU; False if either is not known."""
    online = read_online(sysfs)
    return pmu.cpus is not None and online is not None and online <= pmu.cpus


def compile_filter(filter_words: FilterWords, pmu: Pmu, bits: int) -> EventFilter:
    """Return the filter for a PMU whose event numbers have this many bits.

    Raise what `parse_events` raises.
    """
    rules = [
        (action, parse_events(text, pmu.events, bits=bits)) for action, text in filter_words.rules
    ]
    return EventFilter.compile(filter_words.default, rules)


def resolve_cpus(
    text: str, pmus: Sequence[Pmu], sysfs: Sysfs, *, subject: str | None = None
) -> CpuSet:
    """Return the CPUs of this host that a CPUSET names, at least one.

    `subject` is the VM they are for. Raise UsageError for a list without a CPU, and what
    `parse_cpus` and `check_present` raise.
    """
    present = scan_present(sysfs)
    try:
        cpus = parse_cpus(text, pmus, present)
        if not cpus:
            raise UsageError(f"{text}: no CPU is left", fix="name CPUs as 0-3,8")
        check_present(cpus, present)
    except (UsageError, NotFoundError) as error:
        error.subject = error.subject or subject
        raise
    return cpus
