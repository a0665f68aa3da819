# SPDX-License-Identifier: Apache-2.0
"""CPU lists as users write them, and what words of other tools mean as one."""

import re
from collections.abc import Callable, Sequence

from pmuctl.errors import NotFoundError, UsageError, WrongWordError
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.pmu import Pmu
from pmuctl.model.pmu_selector import is_selector, select_pmu, suggest_selector


def parse_cpus(text: str, pmus: Sequence[Pmu], present: CpuSet) -> CpuSet:
    """Parse a user's CPU list: `0-3,8`, `^5` to leave one out, `all`, `pmu/NAME`.

    Words apply from left to right; a list that begins with `^` starts from all CPUs. Raise
    UsageError if the text is no such list, and what `select_pmu` raises.
    """
    cpus = present if text.startswith("^") else CpuSet()
    for word in text.split(","):
        kind, slash, rest = word.partition("/")
        try:
            if word == "all":
                cpus |= present
            elif slash and kind == "pmu":
                cpus |= select_pmu(rest, pmus).cpus or CpuSet()
            elif word.startswith("^"):
                cpus -= _parse_cpu_range(word[1:])
            else:
                cpus |= _parse_cpu_range(word)
        except ValueError:
            if right := _suggest_cpus(word, pmus, present):
                raise WrongWordError(
                    f"{word}: not a list of CPUs", words=(word,), right=(right,), why=None
                ) from None
            raise UsageError(
                f"{word or repr(word)}: not a list of CPUs",
                fix="write 0-3,8, ^5 to leave one out, all or pmu/NAME",
            ) from None
    return cpus


_SPAN = re.compile(r"([0-9]{1,5})(?:-|:|\.\.)([0-9]{1,5})(?::([1-9][0-9]{0,4}))?")
_CPU = re.compile(r"cpus?[/=]?([0-9,-]+)", re.IGNORECASE)
_WITHOUT = re.compile(r"[!~-]([0-9]{1,5}(?:-[0-9]{1,5})?)")


def _parse_cpus_or_empty(text: str, parse: Callable[[str], CpuSet] = CpuSet.parse) -> CpuSet:
    try:
        return parse(text)
    except ValueError:
        return CpuSet()


def _suggest_cpus(word: str, pmus: Sequence[Pmu], present: CpuSet) -> str | None:
    """Return what a word of taskset, virsh or QEMU means as a CPU list; None if that is not clear.

    It may be a mask (0x3), a span (2..3, 3-2, 0-6:2), cpu2, !2, or a PMU without `pmu/`.
    """
    if word.lower() in ("all", "any", "*", "online"):
        return "all"
    cpus = CpuSet()
    if word[:2] in ("0x", "0X"):
        cpus = _parse_cpus_or_empty(word, CpuSet.parse_mask)
    elif match := _SPAN.fullmatch(word):
        first, last = sorted((int(match[1]), int(match[2])))
        cpus = CpuSet.of(range(first, last + 1, int(match[3] or 1)))
    elif match := _CPU.fullmatch(word):
        cpus = _parse_cpus_or_empty(match[1])
    elif match := _WITHOUT.fullmatch(word):
        return f"^{match[1]}"
    if cpus:
        return str(cpus) if cpus <= present else None
    selected = word if is_selector(word, pmus) else suggest_selector(word, pmus)
    return f"pmu/{selected}" if selected else None


def check_present(cpus: CpuSet, present: CpuSet) -> None:
    """Raise NotFoundError for a CPU that this host does not have, as for a missing PMU."""
    if absent := cpus - present:
        raise NotFoundError(
            f"there is no CPU {absent}", why=f"there are {present}", fix="pmuctl pmu cpus"
        )


def _parse_cpu_range(word: str) -> CpuSet:
    if not word:
        raise ValueError("no CPU")
    return CpuSet.parse(word)
