# SPDX-License-Identifier: Apache-2.0
"""Sets of host CPUs, in the notation of the kernel's cpulist files."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Self

from pmuctl.value import value

CPU_LIMIT = 1 << 16
"""CPU numbers are below this: far above any NR_CPUS, and it bounds the cost of hostile text."""

_MASK = re.compile(r"(?:0[xX])?[0-9a-fA-F]{1,64}")
_PART = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


@value
class CpuSet:
    """A set of CPU numbers. `str()` and `parse()` are each other's inverse.

    Bit n of `mask` is CPU n: threads have masks of their own, and a set of int for each of them
    would take a thousand times as much.
    """

    mask: int = 0

    def __init__(self, mask: int = 0) -> None:
        # `value` would make one that takes twice the time, and a listing makes thousands of sets
        object.__setattr__(self, "mask", mask)

    @classmethod
    def of(cls, cpus: Iterable[int]) -> Self:
        """Return the set of these CPU numbers, which are bounded by whoever read them."""
        mask = 0
        for cpu in cpus:
            mask |= 1 << cpu
        return cls(mask)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a cpulist such as "0-3,8" (Documentation/core-api/printk-formats.rst, %*pbl).

        White space around the list is ignored, and an empty list is the empty set, as in sysfs.
        Raise ValueError for anything else.
        """
        text = text.strip(" \t\n")
        mask = 0
        for part in text.split(",") if text else ():
            match = _PART.fullmatch(part)
            if not match:
                raise ValueError(f"not a CPU list: {text!r}")
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last or last >= CPU_LIMIT:
                raise ValueError(f"not a range of CPUs: {part!r}")
            mask |= ((1 << (last - first + 1)) - 1) << first
        return cls(mask)

    @classmethod
    def parse_mask(cls, text: str) -> Self:
        """Parse a mask as taskset(1) takes it: hexadecimal, with 0x or without.

        Raise ValueError for anything else, and for more than 64 digits.
        """
        if not _MASK.fullmatch(text):
            raise ValueError(f"not a mask of CPUs: {text!r}")
        return cls(int(text, 16))

    def __str__(self) -> str:
        return ",".join(
            str(first) if first == last else f"{first}-{last}" for first, last in self._find_runs()
        )

    def _find_runs(self) -> list[tuple[int, int]]:
        """Return the maximal runs of consecutive CPUs, as (first, last), in rising order."""
        digits = bin(self.mask)[:1:-1]
        return [(run.start(), run.end() - 1) for run in re.finditer("1+", digits)]

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(range(first, last + 1) for first, last in self._find_runs())

    def __len__(self) -> int:
        return self.mask.bit_count()

    def __bool__(self) -> bool:
        return bool(self.mask)

    def __contains__(self, cpu: int) -> bool:
        return cpu >= 0 and bool(self.mask >> cpu & 1)

    def __and__(self, other: "CpuSet") -> "CpuSet":
        return CpuSet(self.mask & other.mask)

    def __or__(self, other: "CpuSet") -> "CpuSet":
        return CpuSet(self.mask | other.mask)

    def __sub__(self, other: "CpuSet") -> "CpuSet":
        return CpuSet(self.mask & ~other.mask)

    def __le__(self, other: "CpuSet") -> bool:
        return not self.mask & ~other.mask
