# SPDX-License-Identifier: Apache-2.0
"""Sequences of calls on a fresh VM, in words: read here, made by `driver`, foretold by `oracle`.

A VM is `VCPUS FEATURE GIC PLACE`: how many vCPUs, with the feature `pmu`, `strict` or `none`, the
GIC `none`, `created` or `ready`, and the place their threads are at: `A` is the first CPU of the
first PMU, `B` of the second, `-` a CPU that no PMU covers. A step is one of

    set V ATTR [VALUE…]   KVM_SET_DEVICE_ATTR on vCPU V; VALUE is a number, a PMU `A` or `B`,
                          BASE+NEVENTS ACTION [pad] for FILTER, or an address, `null` or `bad`
    get V ATTR [null]     KVM_GET_DEVICE_ATTR
    has V ATTR            KVM_HAS_DEVICE_ATTR
    run V                 KVM_RUN that returns at once
    counters V            KVM_GET_ONE_REG of PMCR_EL0: its N
    guest V               KVM_RUN to the end of a round of the reference VMM's guest
    gic create, gic init  the next state of the GIC
    at PLACE              the vCPU threads go there
    child STEP            the step as another process makes it, which inherited the VM
    thread STEP           the step as another thread makes it
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_FILTER,
    KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ,
    KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
    KVM_ARM_VCPU_PMU_V3_SET_PMU,
    KVM_PMU_EVENT_ALLOW,
    KVM_PMU_EVENT_DENY,
)

TABLE = Path(__file__).parent / "kvm-pmu-sequences.tsv"
NULL, BAD = 0, 8
"""Addresses that nothing is mapped at."""

ATTRIBUTES: Mapping[str, int] = {
    "IRQ": KVM_ARM_VCPU_PMU_V3_IRQ,
    "INIT": KVM_ARM_VCPU_PMU_V3_INIT,
    "FILTER": KVM_ARM_VCPU_PMU_V3_FILTER,
    "SET_PMU": KVM_ARM_VCPU_PMU_V3_SET_PMU,
    "SET_NR_COUNTERS": KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS,
}
ACTIONS: Mapping[str, int] = {"allow": KVM_PMU_EVENT_ALLOW, "deny": KVM_PMU_EVENT_DENY}
PLACES = "ABC-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """What a sequence begins with."""

    vcpus: int
    feature: str
    gic: str
    place: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `VCPUS FEATURE GIC PLACE`; raises ValueError."""
        vcpus, feature, gic, place = text.split()
        if feature not in ("pmu", "strict", "none") or gic not in ("none", "created", "ready"):
            raise ValueError(text)
        if place not in PLACES:
            raise ValueError(text)
        return cls(vcpus=int(vcpus), feature=feature, gic=gic, place=place)

    def __str__(self) -> str:
        return f"{self.vcpus} {self.feature} {self.gic} {self.place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A fresh VM and the steps made on it, one after the other."""

    vm: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A struct kvm_pmu_event_filter, bad ones included."""

    base: int
    nevents: int
    action: int
    pad: bytes = bytes(3)


Value = int | Filter | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a letter stands for on a host: a CPU, and the perf type of its PMU."""

    cpu: int
    pmu: int | None


def parse_attr(word: str) -> int:
    """An attribute by name or number."""
    return ATTRIBUTES[word] if word in ATTRIBUTES else int(word, 0)


def parse_value(words: Sequence[str], places: Mapping[str, Place]) -> Value:
    """What a `set` step sends: None for an address that nothing is mapped at.

    Raises KeyError for a place the host has not got, ValueError for other words.
    """
    match list(words):
        case [("null" | "bad")]:
            return None
        case []:
            return 0
        case [letter] if letter in PLACES:
            return places[letter].pmu
        case [number]:
            return int(number, 0)
        case [events, action, *rest] if rest in ([], ["pad"]):
            base, _, nevents = events.partition("+")
            return Filter(
                base=int(base, 0),
                nevents=int(nevents, 0),
                action=ACTIONS[action] if action in ACTIONS else int(action, 0),
                pad=b"\1\2\3" if rest else bytes(3),
            )
    raise ValueError(" ".join(words))


def pack(value: int | Filter) -> bytes:
    """The value as it lies in memory."""
    if isinstance(value, Filter):
        return struct.pack("=HHB", value.base, value.nevents, value.action) + value.pad
    return struct.pack("=I", value & 0xFFFFFFFF)


def is_address(words: Sequence[str]) -> int | None:
    """The address that a `set` or `get` step names itself."""
    return {"null": NULL, "bad": BAD}.get(words[-1]) if words else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One step of the table: what it gives by kernel, and the measured case it repeats."""

    step: str
    expected: Mapping[str, str]
    case: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The steps of the table on one fresh VM."""

    vm: str
    rows: tuple[Row, ...]

    def script(self) -> Script:
        """Without what is expected."""
        return Script(vm=self.vm, steps=tuple(row.step for row in self.rows))


def read_table(path: Path = TABLE) -> list[Group]:
    """The groups of the table; a row that names a VM begins one."""
    header, *lines = (line.split("\t") for line in path.read_text("utf-8").splitlines())
    kernels = header[2:-1]
    groups: list[tuple[str, list[Row]]] = []
    for vm, step, *results, case in lines:
        if vm:
            groups.append((vm, []))
        expected = dict(zip(kernels, results, strict=True))
        groups[-1][1].append(Row(step=step, expected=expected, case=case))
    return [Group(vm=vm, rows=tuple(rows)) for vm, rows in groups]


def read_measured(path: Path) -> dict[str, dict[str, str]]:
    """A table of measured results: by case, by kernel series."""
    header, *lines = (line.split("\t") for line in path.read_text("utf-8").splitlines())
    return {case: dict(zip(header[1:], results, strict=True)) for case, *results in lines}


def to_json(scripts: Sequence[Script]) -> str:
    """For the driver's standard input."""
    return json.dumps([[its.vm, *its.steps] for its in scripts])


def from_json(text: str) -> list[Script]:
    """The inverse of `to_json`."""
    lists: list[list[Any]] = json.loads(text)
    return [Script(vm=vm, steps=tuple(steps)) for vm, *steps in lists]


def is_default_of_maker(kernel: str) -> bool:
    """Whether a vCPU gets the PMU of the CPU it was made on, or all get the first one: measured,
    as seen in what a guest counts."""
    case = "no SET_PMU; vCPU made on cpu2, IRQ+INIT on cpu0"
    rows = [row for group in read_table() for row in group.rows if row.case == case]
    series = kernel if kernel in rows[0].expected else [*rows[0].expected][-1]
    on_a, on_b = (row.expected[series].split()[0] for row in rows if row.step == "guest 0")
    assert {on_a, on_b} == {"counts", "stands-still"}
    return on_b == "counts"
