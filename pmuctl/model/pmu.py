# SPDX-License-Identifier: Apache-2.0
"""CPU PMUs, core models and other event sources of a host."""

from collections.abc import Mapping

from pmuctl.model.cpuset import CpuSet
from pmuctl.value import value


@value(kw_only=True)
class CoreModel:
    """One kind of CPU core, from MIDR_EL1 (Arm ARM D24.2.106).

    `name` is None if pmuctl's table does not have the implementer and part number; `others` are
    further names of a core that has one. Two models are the same only if both numbers are.
    """

    implementer: int
    part: int
    name: str | None
    others: tuple[str, ...] = ()

    @property
    def midr(self) -> str:
        """The implementer and part number, such as "0x41:0xd0b"; it tells all models apart."""
        return f"{self.implementer:#04x}:{self.part:#05x}"

    def __str__(self) -> str:
        return self.name or self.midr


@value(kw_only=True)
class Pmu:
    """One CPU PMU: an arm_pmu device of the kernel.

    `type` is the perf type number of this boot (perf_event_attr.type); it is never stable. `cores`
    are the core models of its online CPUs, empty if none could be read. `events` maps names to
    codes, `formats` and `caps` map the names of sysfs files to their texts. A field that could not
    be read is None. `counters` (the number of programmable counters) and `event_bits` (the width
    of the event space) are what KVM gives a guest with this PMU; only probes tell them, not sysfs.
    """

    name: str
    path: str
    type: int | None
    cpus: CpuSet | None
    online: CpuSet | None
    cores: tuple[CoreModel, ...]
    events: Mapping[str, int]
    formats: Mapping[str, str]
    caps: Mapping[str, str]
    counters: int | None = None
    event_bits: int | None = None


@value(kw_only=True)
class OtherPmu:
    """An event source that is no CPU PMU, so no VM can use it.

    `cpumask` holds the CPUs on which its events are opened: uncore PMUs have one, software event
    sources do not.
    """

    name: str
    type: int | None
    cpumask: CpuSet | None


def format_code(event: int) -> str:
    """Return an event number as pmuctl prints it: 0x and at least four hexadecimal digits."""
    return f"0x{event:04x}"
