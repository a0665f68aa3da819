# SPDX-License-Identifier: Apache-2.0
"""Columns of CPU PMUs, of their events, and of CPUs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pmuctl.model.pmu import Pmu, format_code
from pmuctl.render.columns import UNKNOWN, Column, Shape, known

if TYPE_CHECKING:
    from pmuctl.manage.cpus import Cpu

CORE_SHAPE = Shape(text=str, plain=lambda core: core.name)
"""A core model; one without a name is shown as its MIDR, and is null in JSON."""

CORES_SHAPE = Shape(
    text=lambda cores: ",".join(map(str, cores)), plain=lambda cores: [core.name for core in cores]
)

EVENT_COLUMNS: Sequence[Column[tuple[str, int]]] = (
    Column(name="NAME", help="its name in sysfs", value=lambda event: event[0]),
    Column(name="CODE-HEX", help="its number", value=lambda event: format_code(event[1])),
    Column(
        name="CODE",
        help="its number in decimal",
        value=lambda event: event[1],
        is_number=True,
        shown=False,
    ),
)

PMU_COLUMNS: Sequence[Column[Pmu]] = (
    Column(name="NAME", help="its name in sysfs", value=lambda pmu: pmu.name),
    Column(
        name="TYPE",
        help="its perf type in this boot",
        value=lambda pmu: known(pmu.type),
        is_number=True,
    ),
    Column(
        name="CORE",
        help="the core models of its online CPUs, by MIDR",
        value=lambda pmu: pmu.cores or UNKNOWN,
        shape=CORES_SHAPE,
    ),
    Column(name="CPUS", help="the CPUs it counts on", value=lambda pmu: known(pmu.cpus)),
    Column(name="ONLINE", help="those that are online", value=lambda pmu: known(pmu.online)),
    Column(
        name="COUNTERS",
        help="its programmable counters, once host info has probed them",
        value=lambda pmu: known(pmu.counters),
        is_number=True,
    ),
    Column(
        name="EVENTS",
        help="how many named events it has",
        # the kernel gives every CPU PMU some
        value=lambda pmu: len(pmu.events) or UNKNOWN,
        is_number=True,
    ),
    Column(
        name="EVENT-BITS",
        help="the width of its event space, once probed",
        value=lambda pmu: known(pmu.event_bits),
        is_number=True,
        shown=False,
    ),
    Column(name="PATH", help="its path in sysfs", value=lambda pmu: pmu.path, shown=False),
    Column(
        name="MIDR",
        help="implementer and part number of its core models",
        value=lambda pmu: [core.midr for core in pmu.cores] or UNKNOWN,
        shown=False,
        in_json=True,
    ),
    Column(
        name="FORMATS", help="its format/ in sysfs", value=lambda pmu: pmu.formats, shown=False
    ),
    Column(name="CAPS", help="its caps/ in sysfs", value=lambda pmu: pmu.caps, shown=False),
    Column(
        name="EVENT-LIST",
        help="its named events",
        value=lambda pmu: list(pmu.events.items()),
        shown=False,
        nested=EVENT_COLUMNS,
    ),
)

CPU_COLUMNS: "Sequence[Column[Cpu]]" = (
    Column(name="CPU", help="its number", value=lambda cpu: cpu.number, is_number=True),
    Column(
        name="PMU",
        help="the PMU that counts on it",
        value=lambda cpu: cpu.pmu if cpu.is_pmu_known else UNKNOWN,
    ),
    Column(
        name="CORE",
        help="its core model, by MIDR",
        value=lambda cpu: known(cpu.core),
        shape=CORE_SHAPE,
    ),
    Column(
        name="CAPACITY",
        help="its capacity, 1024 the largest",
        value=lambda cpu: known(cpu.capacity),
        is_number=True,
    ),
    Column(name="ONLINE", help="whether it is online", value=lambda cpu: known(cpu.online)),
    Column(
        name="MIDR",
        help="implementer and part number of its core model",
        value=lambda cpu: known(cpu.core and cpu.core.midr),
        shown=False,
        in_json=True,
    ),
)
