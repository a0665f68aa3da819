# SPDX-License-Identifier: Apache-2.0
"""The host's CPUs: which are present and online, and the core model of each."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pmuctl.host.sysfs import PATH_CPU, PATH_CPU_MIDR, PATH_CPU_ONLINE, Sysfs
from pmuctl.model.cpuset import CPU_LIMIT, CpuSet
from pmuctl.model.pmu import CoreModel

_CPU_NAME = re.compile(r"cpu(0|[1-9][0-9]{0,4})")


@cache
def core_names() -> Mapping[tuple[int, int], tuple[str, ...]]:
    """Return (implementer, part number) → the names of the core model, from data/cores.tsv.

    The first name is the one that is shown, as the vendor writes it.
    """
    table = Path(__file__).parents[1] / "data" / "cores.tsv"
    rows = [
        line.split("\t")
        for line in table.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    return {
        (int(implementer, 16), int(part, 16)): tuple(names)
        for implementer, part, *names in rows[1:]
    }


def decode_midr(midr: int) -> CoreModel:
    """Return the core model in a MIDR_EL1 value: implementer [31:24], part number [15:4].

    Variant [23:20], architecture [19:16] and revision [3:0] do not tell models apart
    (Arm ARM, MIDR_EL1).
    """
    implementer, part = midr >> 24 & 0xFF, midr >> 4 & 0xFFF
    names = core_names().get((implementer, part), ())
    return CoreModel(
        implementer=implementer,
        part=part,
        name=names[0] if names else None,
        others=names[1:],
    )


def read_online(sysfs: Sysfs) -> CpuSet | None:
    """Return the online CPUs, None if they cannot be read."""
    return sysfs.read_cpuset(PATH_CPU_ONLINE)


def read_core(sysfs: Sysfs, cpu: int) -> CoreModel | None:
    """Return the core model of one CPU.

    Return None while the CPU is offline, as the kernel then removes the file
    (cpuid_cpu_offline(), arch/arm64/kernel/cpuinfo.c), and if the bits above 31, which are RES0,
    are not zero.
    """
    midr = sysfs.read_int(PATH_CPU_MIDR.format(cpu=cpu))
    return None if midr is None or not 0 <= midr < 1 << 32 else decode_midr(midr)


def scan_present(sysfs: Sysfs) -> CpuSet:
    """Return the CPUs that have a directory in sysfs, online or not."""
    matches = (_CPU_NAME.fullmatch(name) for name in sysfs.entries(PATH_CPU))
    cpus = (int(match[1]) for match in matches if match)
    return CpuSet.of(cpu for cpu in cpus if cpu < CPU_LIMIT)


def scan_cores(
    sysfs: Sysfs, cpus: CpuSet, *, present: CpuSet | None = None
) -> tuple[CoreModel, ...]:
    """Return the distinct core models of these CPUs, in the order of the CPUs.

    `present` are those that `scan_present` has found, if it was called before.
    """
    # a hostile list may name 65536 CPUs: read only those that are present
    there = scan_present(sysfs) if present is None else present
    cores = (read_core(sysfs, cpu) for cpu in cpus & there)
    return tuple(dict.fromkeys(core for core in cores if core is not None))
