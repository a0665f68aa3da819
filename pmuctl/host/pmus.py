# SPDX-License-Identifier: Apache-2.0
"""The perf event sources of a host: its CPU PMUs, and the others (uncore, software …)."""

import re
from collections.abc import Iterable, Sequence, Set
from enum import StrEnum
from functools import cached_property

from pmuctl.host import udev
from pmuctl.host.cpus import read_online, scan_cores, scan_present
from pmuctl.host.resource_errors import Allowance
from pmuctl.host.sysfs import PATH_CPU, PATH_EVENT_SOURCE, Sysfs, parse_number
from pmuctl.model.cpuset import CPU_LIMIT, CpuSet
from pmuctl.model.pmu import OtherPmu, Pmu
from pmuctl.value import value

EVENT_CODE_LIMIT = 1 << 16
"""Event numbers are below this: PMEVTYPER<n>_EL0.evtCount has 16 bits since Armv8.1."""

PERF_TYPE_LIMIT = 1 << 31
"""perf_pmu_register() hands out non-negative ints (idr_alloc(), kernel/events/core.c)."""

ATTRIBUTE_LIMIT = 4096
"""Bytes: an event, format or cap is one short line."""

SOURCES_MAX = 4096
"""Event sources: a server of two sockets has up to a few hundred uncore PMUs."""

DEVICE_FILES_MAX = 256
"""Files in the directory of an event source: it has about 12."""

ATTRIBUTES_MAX = 1 << 14
"""Events, formats and caps of all CPU PMUs: one has up to 200, a machine up to 4 PMUs."""

TEXT_MAX = 4 << 20
"""Characters of all these, with their names: they have about 40 each."""

CPUS, CPUMASK = "cpus", "cpumask"
"""Files that tell what an event source is: a CPU PMU has the one, an uncore PMU the other."""

SOFTWARE = "software"
KERNEL_SOURCES = (SOFTWARE, "tracepoint", "breakpoint", "kprobe", "uprobe")
"""Event sources of the kernel itself, which are never CPU PMUs (kernel/events, kernel/trace)."""

# names of kernel attributes and PMUs have no control bytes and are no paths
_NAME = re.compile(r"(?!\.{1,2}$)[!-.0-~]{1,255}")


class Source(StrEnum):
    """Where the names of the event sources come from."""

    UDEV = "udev"
    SYSFS = "sysfs"


@value(kw_only=True)
class EventSources:
    """The names under /sys/bus/event_source/devices, and where they come from."""

    names: tuple[str, ...]
    source: Source


def rank_pmus(pmus: Iterable[Pmu], sysfs: Sysfs) -> list[Pmu]:
    """Return PMUs with the one to suggest first: of online CPUs, of big cores, of many, the last.

    Big is what the scheduler's cpu_capacity says, and where the kernel has none, big cores mostly
    have the higher numbers.
    """
    online = read_online(sysfs)

    def weigh(pmu: Pmu) -> tuple[bool, int, int]:
        cpus = pmu.cpus or CpuSet()
        usable = cpus if online is None else cpus & online
        paths = (f"{PATH_CPU}/cpu{cpu}/cpu_capacity" for cpu in (usable or cpus))
        capacity = max((sysfs.read_int(path) or 0 for path in paths), default=0)
        return bool(usable), capacity, len(usable)

    return sorted(reversed([*pmus]), key=weigh, reverse=True)


def scan_event_sources(sysfs: Sysfs) -> EventSources:
    """Return the names of all event sources: from udev on the live machine, else from sysfs.

    libudev knows no other root, so a captured tree is always walked.
    """
    names = udev.list_event_sources() if sysfs.is_live else None
    source = Source.SYSFS if names is None else Source.UDEV
    if names is None:
        names = sysfs.entries(PATH_EVENT_SOURCE)
    return EventSources(names=tuple(filter(_NAME.fullmatch, names)), source=source)


@value(kw_only=True)
class PmuScan:
    """The CPU PMUs that were seen, ordered by type and name.

    If `is_complete` is False, there may be others: event sources, or files of theirs, are hidden
    from this process or were not captured. There are none if each CPU is of a PMU that was seen.
    """

    pmus: tuple[Pmu, ...]
    is_complete: bool


def scan_pmus(sysfs: Sysfs, names: Iterable[str] | None = None) -> list[Pmu]:
    """Return the CPU PMUs among `names` (default: all event sources), ordered by type and name."""
    return list(look_for_pmus(sysfs, names).pmus)


def look_for_pmus(sysfs: Sysfs, names: Iterable[str] | None = None) -> PmuScan:
    """Return the CPU PMUs among `names` (default: all event sources), and if there may be others.

    A CPU PMU is an event source with a file `cpus`; uncore ones have `cpumask` instead, software
    ones neither (drivers/perf/arm_pmu.c).
    """
    reader = _PmuReader(sysfs)
    devices = _list_devices(sysfs, names)
    pmus = [reader.read(name) for name, files in devices if CPUS in files]
    return PmuScan(
        pmus=tuple(
            sorted(
                pmus,
                key=lambda pmu: (PERF_TYPE_LIMIT if pmu.type is None else pmu.type, pmu.name),
            )
        ),
        is_complete=_sees_all_sources(sysfs, devices) or _covers_all_cpus(reader, pmus),
    )


def _sees_all_sources(sysfs: Sysfs, devices: Sequence[tuple[str, Set[str]]]) -> bool:
    """Return whether these are all event sources, and it is known of each if it is a CPU PMU.

    Every kernel with perf has the one named software. A captured tree may lack the file `cpus` of
    a CPU PMU, which then looks like a PMU of no certain CPUs.
    """
    return any(name == SOFTWARE for name, _ in devices) and all(
        name in KERNEL_SOURCES or (files if sysfs.is_live else files & {CPUS, CPUMASK})
        for name, files in devices
    )


def _covers_all_cpus(reader: "_PmuReader", pmus: Sequence[Pmu]) -> bool:
    """Return whether each CPU is known to be of one of these PMUs, so of no other one."""
    cpus = reader.present | (reader.online or CpuSet())
    covered = CpuSet()
    for pmu in pmus:
        covered |= pmu.cpus or CpuSet()
    return bool(cpus) and cpus <= covered


def scan_pmu_types(sysfs: Sysfs) -> dict[int, str]:
    """Return the names of the CPU PMUs by perf type; for VMMs, so without udev."""
    devices = _scan_devices(sysfs, sysfs.entries(PATH_EVENT_SOURCE))
    names = [name for name, files in devices if CPUS in files]
    types = ((_read_type(sysfs, name), name) for name in names)
    return {number: name for number, name in types if number is not None}


def scan_other(sysfs: Sysfs, names: Iterable[str] | None = None) -> list[OtherPmu]:
    """Return the event sources that are no CPU PMUs (software, breakpoint, uncore …), by name."""
    cpus = _allow_cpus()
    return [
        OtherPmu(
            name=name,
            type=_read_type(sysfs, name),
            cpumask=_read_cpus(sysfs, f"{PATH_EVENT_SOURCE}/{name}/{CPUMASK}", cpus),
        )
        for name, files in _scan_devices(sysfs, names)
        if CPUS not in files
    ]


def parse_event(text: str) -> int | None:
    """Return the event number in the text of an events/NAME file: "event=0x0011" or "config=…".

    Other terms ("event=0x11,long=1") are ignored. Return None if there is not exactly one such
    term, or its value is no event number.
    """
    terms = (term.partition("=") for term in text.strip(" \n").split(","))
    values = [value for key, _, value in terms if key in ("event", "config")]
    code = parse_number(values[0]) if len(values) == 1 else None
    return None if code is None or not 0 <= code < EVENT_CODE_LIMIT else code


def _scan_devices(sysfs: Sysfs, names: Iterable[str] | None) -> list[tuple[str, Set[str]]]:
    """Return each name with its device's files; leave out those without (incomplete capture)."""
    return [(name, files) for name, files in _list_devices(sysfs, names) if files]


def _list_devices(sysfs: Sysfs, names: Iterable[str] | None) -> list[tuple[str, Set[str]]]:
    """Return each name with the files of its device that tell its kind, or any other one."""
    if names is None:
        names = scan_event_sources(sysfs).names
    listed = sorted(filter(_NAME.fullmatch, set(names)))
    sources = Allowance(SOURCES_MAX, "event sources")
    sources.take(len(listed), PATH_EVENT_SOURCE)
    devices: list[tuple[str, Set[str]]] = []
    for name in listed:
        files = sysfs.entries(f"{PATH_EVENT_SOURCE}/{name}", most=DEVICE_FILES_MAX)
        devices.append((name, {CPUS, CPUMASK}.intersection(files) or {*files[:1]}))
    return devices


def _allow_cpus() -> Allowance:
    """Return how many CPUs the lists of all PMUs may have: a CPU is one of one CPU PMU."""
    return Allowance(CPU_LIMIT, "CPUs of PMUs")


def _read_cpus(sysfs: Sysfs, path: str, allowance: Allowance) -> CpuSet | None:
    cpus = sysfs.read_cpuset(path)
    allowance.take(len(cpus or ()), path)
    return cpus


class _PmuReader:
    """A reader of the CPU PMUs of a machine, which bounds what is kept of all of them."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs
        self._cpus = _allow_cpus()
        self._files = Allowance(ATTRIBUTES_MAX, "events, formats and caps")
        self._text = Allowance(TEXT_MAX, "characters of events, formats and caps")
        self.online = read_online(sysfs)

    @cached_property
    def present(self) -> CpuSet:
        """See `scan_present`."""
        return scan_present(self._sysfs)

    def read(self, name: str) -> Pmu:
        """Return the CPU PMU of this name; raise TooLargeError."""
        base = f"{PATH_EVENT_SOURCE}/{name}"
        cpus = _read_cpus(self._sysfs, f"{base}/{CPUS}", self._cpus)
        codes = {event: parse_event(text) for event, text in self._read_texts(f"{base}/events")}
        usable = None if cpus is None or self.online is None else cpus & self.online
        # if the online CPUs are unknown, the MIDR files show them: they come and go with their CPU
        candidates = cpus if usable is None else usable
        return Pmu(
            name=name,
            path=self._sysfs.resolve(base) or f"/{base}",
            type=_read_type(self._sysfs, name),
            cpus=cpus,
            online=usable,
            cores=scan_cores(self._sysfs, candidates, present=self.present) if candidates else (),
            events={event: code for event, code in codes.items() if code is not None},
            formats=dict(self._read_texts(f"{base}/format")),
            caps=dict(self._read_texts(f"{base}/caps")),
        )

    def _read_texts(self, directory: str) -> list[tuple[str, str]]:
        """Return name and stripped text of a directory's files; leave out text not printable."""
        texts = []
        names = self._sysfs.entries(directory, most=ATTRIBUTES_MAX)
        self._files.take(len(names), directory)
        for name in filter(_NAME.fullmatch, names):
            text = self._sysfs.read_text(f"{directory}/{name}", limit=ATTRIBUTE_LIMIT)
            if text is not None and (stripped := text.strip(" \n")).isprintable():
                self._text.take(len(name) + len(stripped), directory)
                texts.append((name, stripped))
        return texts


def _read_type(sysfs: Sysfs, name: str) -> int | None:
    number = sysfs.read_int(f"{PATH_EVENT_SOURCE}/{name}/type")
    return None if number is None or not 0 <= number < PERF_TYPE_LIMIT else number
