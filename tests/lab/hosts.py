# SPDX-License-Identifier: Apache-2.0
"""The arm64 hosts the lab can be: which kernel they run, which PMU covers which CPUs."""

from dataclasses import dataclass

from tests.lab.cpulist import parse_cpus

# The oldest and the newest kernel, and with --all-kernels long-term ones between them.
KERNELS: tuple[str, ...] = ("6.1", "newest")
ALL_KERNELS: tuple[str, ...] = ("6.1", "6.12", "6.18", "newest")


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


# Pointer authentication and SVE cost a multiple of the time under TCG.
CPU_MODEL = "max,pauth=off,sve=off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine of the lab; without clusters it keeps the PMU QEMU describes, if any."""

    cpus: int
    clusters: tuple[Cluster, ...] = ()
    model: str = CPU_MODEL


def _host(*clusters: str, model: str = CPU_MODEL) -> Host:
    return Host(cpus=4, clusters=tuple(Cluster.parse(text) for text in clusters), model=model)


_TWO = ("arm,cortex-a53-pmu=0-1", "arm,cortex-a72-pmu=2-3")


HOSTS = {
    "one": _host(),
    "two": _host(*_TWO),
    "three": _host("arm,cortex-a55-pmu=0-1", "arm,cortex-a78-pmu=2", "arm,cortex-x1-pmu=3"),
    # a PMU that does not cover every CPU: CPU 3 has none
    "gap": _host("arm,cortex-a53-pmu=0-1", "arm,cortex-a72-pmu=2"),
    "none": _host(model=f"{CPU_MODEL},pmu=off"),
    # PMUv3 for Armv8.0, whose event numbers have 10 bits, and a hypervisor without VHE
    "a72": _host(*_TWO, model="cortex-a72"),
}
