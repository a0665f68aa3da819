# SPDX-License-Identifier: Apache-2.0
"""What is known of a host that makes one cause of a symptom likelier than another."""

from collections.abc import Iterator
from enum import Enum, auto

from pmuctl.model.cpuset import CpuSet
from pmuctl.value import value

EMULATED_CCSIDR = (6, 3)
"""The first Linux whose KVM gives every vCPU the same CCSIDR (7af0c2534f4c)."""
SET_PMU = (5, 18)
"""The first Linux with the attribute SET_PMU (6ee7fca2a4a0)."""

APPLE_VPMU = (6, 15)
"""The first Linux whose KVM gives guests a PMU on Apple's cores."""


class HostTrait(Enum):
    """A fact of a host that a cause depends on. A trait that is not known is not there."""

    ONE_KIND = auto()
    """all CPUs are of one kind of core"""
    SEVERAL_KINDS = auto()
    """the CPUs are of several kinds of core"""
    HOST_CCSIDR = auto()
    """its kernel shows guests the cache registers of the CPU they are on"""
    EMULATED_CCSIDR = auto()
    """its kernel gives every vCPU the same cache registers"""
    HAS_VPMU = auto()
    """its KVM can give guests a PMU"""
    NO_VPMU = auto()
    """its KVM can give no guest a PMU"""


@value(kw_only=True)
class SymptomHost:
    """What is known of a host; None, or an empty `pmus`, for what is not.

    `core_kinds` counts its kinds of core, `kernel` is major and minor version of its Linux,
    `pmus` maps the names of its CPU PMUs to their online CPUs, the one to suggest first.
    `has_set_pmu` is whether KVM has the attribute SET_PMU.
    """

    core_kinds: int | None = None
    kernel: tuple[int, int] | None = None
    has_vpmu: bool | None = None
    has_set_pmu: bool | None = None
    online: CpuSet | None = None
    pmus: tuple[tuple[str, CpuSet], ...] = ()

    @property
    def traits(self) -> frozenset[HostTrait]:
        """The traits that are known of it."""
        return frozenset(self._iter_traits())

    def _iter_traits(self) -> Iterator[HostTrait]:
        if self.core_kinds is not None:
            yield HostTrait.ONE_KIND if self.core_kinds == 1 else HostTrait.SEVERAL_KINDS
        if self.kernel is not None:
            is_emulated = self.kernel >= EMULATED_CCSIDR
            yield HostTrait.EMULATED_CCSIDR if is_emulated else HostTrait.HOST_CCSIDR
        if self.has_vpmu is not None:
            yield HostTrait.HAS_VPMU if self.has_vpmu else HostTrait.NO_VPMU
        elif self._is_apple and self.kernel is not None and self.kernel < APPLE_VPMU:
            yield HostTrait.NO_VPMU

    @property
    def _is_apple(self) -> bool:
        return bool(self.pmus) and all(name.startswith("apple_") for name, _ in self.pmus)

    @property
    def may_set_pmu(self) -> bool:
        """Whether a PMU can be set there; True if that is not known."""
        if self.has_set_pmu is not None:
            return self.has_set_pmu
        return self.kernel is None or self.kernel >= SET_PMU
