# SPDX-License-Identifier: Apache-2.0
"""The arm64 hosts the lab can be: which PMU covers which CPUs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """One PMU, by its device tree name, and the CPUs it covers."""

    compatible: str
    cpus: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Cluster":
        """From COMPATIBLE=CPULIST, as in `arm,cortex-a53-pmu=0-1,4`."""
        compatible, _, cpus = text.partition("=")
        return cls(compatible=compatible, cpus=parse_cpus(cpus))


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine of the lab; without clusters it keeps the one PMU QEMU describes."""

    cpus: int
    clusters: tuple[Cluster, ...] = ()


def parse_cpus(text: str) -> tuple[int, ...]:
    """The CPUs of a list such as `0-1,4`."""
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)


def _host(*clusters: str) -> Host:
    return Host(cpus=4, clusters=tuple(Cluster.parse(text) for text in clusters))


HOSTS = {
    "one": _host(),
    "two": _host("arm,cortex-a53-pmu=0-1", "arm,cortex-a72-pmu=2-3"),
    "three": _host("arm,cortex-a55-pmu=0-1", "arm,cortex-a78-pmu=2", "arm,cortex-x1-pmu=3"),
    # a PMU that does not cover every CPU: CPU 3 has none
    "gap": _host("arm,cortex-a53-pmu=0-1", "arm,cortex-a72-pmu=2"),
}
