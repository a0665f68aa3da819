# SPDX-License-Identifier: Apache-2.0
"""Sets of host CPUs, in the notation of the kernel's cpulist files."""

import re
from collections.abc import Iterable, Iterator
from typing import Self

from pmuctl.value import value

CPU_LIMIT = 1 << 16
"""CPU numbers are below this: far above any NR_CPUS, and it bounds the cost of hostile text."""

_PART = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


@value
class CpuSet:
    """A set of CPU numbers. `str()` and `parse()` are each other's inverse."""

    cpus: frozenset[int] = frozenset()

    def __init__(self, cpus: frozenset[int] = frozenset()) -> None:
        # `value` would make one that takes twice the time, and a listing makes thousands of sets
        object.__setattr__(self, "cpus", cpus)

    @classmethod
    def of(cls, cpus: Iterable[int]) -> Self:
        """Return the set of these CPU numbers."""
        return cls(frozenset(cpus))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a cpulist such as "0-3,8" (Documentation/core-api/printk-formats.rst, %*pbl).

        White space around the list is ignored, and an empty list is the empty set, as in sysfs.
        Raise ValueError for anything else.
        """
        text = text.strip(" \t\n")
        ranges: list[tuple[int, int]] = []
        for part in text.split(",") if text else ():
            match = _PART.fullmatch(part)
            if not match:
                raise ValueError(f"not a CPU list: {text!r}")
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last or last >= CPU_LIMIT:
                raise ValueError(f"not a range of CPUs: {part!r}")
            ranges.append((first, last))
        cpus: set[int] = set()
        end = 0
        # adding a CPU more than once would let 64 KiB of "0-65535," take many seconds
        for first, last in sorted(ranges):
            cpus.update(range(max(first, end), last + 1))
            end = max(end, last + 1)
        return cls(frozenset(cpus))

    def __str__(self) -> str:
        return ",".join(
            str(first) if first == last else f"{first}-{last}" for first, last in self._find_runs()
        )

    def _find_runs(self) -> list[tuple[int, int]]:
        """Return the maximal runs of consecutive CPUs, as (first, last), in rising order."""
        runs: list[tuple[int, int]] = []
        for cpu in self:
            if runs and runs[-1][1] == cpu - 1:
                runs[-1] = (runs[-1][0], cpu)
            else:
                runs.append((cpu, cpu))
        return runs

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.cpus))

    def __len__(self) -> int:
        return len(self.cpus)

    def __contains__(self, cpu: int) -> bool:
        return cpu in self.cpus

    def __and__(self, other: "CpuSet") -> "CpuSet":
        return CpuSet(self.cpus & other.cpus)

    def __or__(self, other: "CpuSet") -> "CpuSet":
        return CpuSet(self.cpus | other.cpus)

    def __sub__(self, other: "CpuSet") -> "CpuSet":
        return CpuSet(self.cpus - other.cpus)

    def __le__(self, other: "CpuSet") -> bool:
        return self.cpus <= other.cpus
