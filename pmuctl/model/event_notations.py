# SPDX-License-Identifier: Apache-2.0
"""What perf and other tools write for events, in the notation of `parse_events`."""

import re
from collections.abc import Mapping

from pmuctl.model.pmu import format_code

PERF_EVENTS: Mapping[str, tuple[str, int]] = {
    "cycles": ("cpu_cycles", 0x11),
    "cpu-cycles": ("cpu_cycles", 0x11),
    "instructions": ("inst_retired", 0x08),
    "cache-references": ("l1d_cache", 0x04),
    "cache-misses": ("l1d_cache_refill", 0x03),
    "branches": ("pc_write_retired", 0x0C),
    "branch-instructions": ("pc_write_retired", 0x0C),
    "branch-misses": ("br_mis_pred", 0x10),
    "branch-loads": ("br_pred", 0x12),
    "branch-load-misses": ("br_mis_pred", 0x10),
    "bus-cycles": ("bus_cycles", 0x1D),
    "stalled-cycles-frontend": ("stall_frontend", 0x23),
    "idle-cycles-frontend": ("stall_frontend", 0x23),
    "stalled-cycles-backend": ("stall_backend", 0x24),
    "idle-cycles-backend": ("stall_backend", 0x24),
    "l1-dcache-loads": ("l1d_cache", 0x04),
    "l1-dcache-load-misses": ("l1d_cache_refill", 0x03),
    "l1-icache-loads": ("l1i_cache", 0x14),
    "l1-icache-load-misses": ("l1i_cache_refill", 0x01),
    "dtlb-loads": ("l1d_tlb", 0x25),
    "dtlb-load-misses": ("l1d_tlb_refill", 0x05),
    "itlb-loads": ("l1i_tlb", 0x26),
    "itlb-load-misses": ("l1i_tlb_refill", 0x02),
    "llc-loads": ("ll_cache_rd", 0x36),
    "llc-load-misses": ("ll_cache_miss_rd", 0x37),
}
"""Generic event of perf, in lower case → architected event (drivers/perf/arm_pmuv3.c,
armv8_pmuv3_perf_map and armv8_pmuv3_perf_cache_map), its name in sysfs and its number."""

PERF_SOFTWARE_EVENTS = frozenset(
    "cpu-clock task-clock page-faults faults minor-faults major-faults context-switches cs "
    "cpu-migrations migrations alignment-faults emulation-faults bpf-output dummy".split()
)
"""Events that perf counts in the kernel (event_symbols_sw, tools/perf/util/parse-events.c)."""

_MODIFIERS = re.compile(r":[a-zA-Z]+")
_TERM = re.compile(r"[^/]+/([^/]+)/[a-zA-Z]*")
_NUMBER = r"(?:0[xX]|[rRxX$])?([0-9a-fA-F]{1,8})"
_RANGE = re.compile(_NUMBER + r"(?:-|:|\.\.)" + _NUMBER)
_CODE = re.compile(r"(?:(?:event|config)=(?:0x)?|[rRxX$])([0-9a-fA-F]{1,8})")
_HEXADECIMAL = re.compile(r"[0-9][0-9a-fA-F]{1,3}")


def translate_event(word: str, names: Mapping[str, int] | None = None) -> list[str]:
    """Return what a word of another notation stands for, the likeliest first.

    It may be perf's `cycles:u`, `r11` or `armv8_pmuv3_0/event=0x11/`, a number without 0x, or a
    name in other letters. `names` are those of the PMU's events, as for `parse_events`; without
    them generic names only are translated, to their usual names. Return an empty list for a word
    that is none of these.
    """
    word = _MODIFIERS.sub("", word) if not _RANGE.fullmatch(word) else word
    if match := _TERM.fullmatch(word):
        word = match[1]
    if names is not None and word in names:
        return [word]
    generic = PERF_EVENTS.get(word.lower().replace("_", "-"))
    if names is None:
        return [generic[0]] if generic else []
    folded = word.lower().replace("-", "_")
    if folded in names:
        return [folded]
    if generic:
        return [generic[0] if generic[0] in names else format_code(generic[1])]
    if match := _CODE.fullmatch(word):
        return [f"0x{match[1].lower()}"]
    if match := _RANGE.fullmatch(word):
        return [f"0x{match[1].lower()}-0x{match[2].lower()}"]
    if word.isascii() and word.isdigit() and len(word) <= 8:
        # events are mostly seen in hexadecimal: r11, event=0x11
        return list(dict.fromkeys([f"0x{word}", f"{int(word):#x}"]))
    return [f"0x{word.lower()}"] if _HEXADECIMAL.fullmatch(word) else []
