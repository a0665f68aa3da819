# SPDX-License-Identifier: Apache-2.0
"""A program for arm64 Linux that counts by perf_event_open(2), as a complete ELF file."""

import struct

from tests.lab.vmm import a64
from tests.lab.workloads import asm
from tests.lab.workloads.asm import Program

# include/uapi/asm-generic/unistd.h
NR_READ = 63
NR_WRITE = 64
NR_EXIT = 93
NR_PERF_EVENT_OPEN = 241

PERF_TYPE_HARDWARE = 0
PERF_TYPE_RAW = 4
PERF_COUNT_HW_CPU_CYCLES = 0
CPU_CYCLES = 0x11

LOOPS = 1_000_000
ADDRESS = 0x400000
_HEADERS = 64 + 56
_ATTR_SIZE = 64  # PERF_ATTR_SIZE_VER0


def counter_program() -> bytes:
    """Writes two 64-bit numbers: the cycles of a loop, and its events 0x11 (raw).

    Both are counted at once, so the second has a programmable counter. A negative number is the
    errno of perf_event_open.
    """
    p = Program()
    events = ((PERF_TYPE_HARDWARE, PERF_COUNT_HW_CPU_CYCLES), (PERF_TYPE_RAW, CPU_CYCLES))
    for number, _ in enumerate(events):
        p.adr(0, f"attr {number}")
        p(*asm.movi(1, 0))  # this process
        p(*asm.movi(2, 0), 0xD1000442)  # SUB X2, X2, #1: on any CPU
        p(asm.mov(3, 2), *asm.movi(4, 0), *asm.movi(8, NR_PERF_EVENT_OPEN), asm.SVC)
        p(asm.mov(20 + number, 0))
    p(*asm.movi(5, LOOPS))
    p.place("loop")
    p(a64.subs(5, 5, 1))
    p.b_cond(1, "loop")
    for number, _ in enumerate(events):
        p.adr(1, f"value {number}")
        # if reading fails the error stays there
        p(a64.store(20 + number, 1, offset=0), asm.mov(0, 20 + number))
        p(*asm.movi(2, 8), *asm.movi(8, NR_READ), asm.SVC)
    p(*asm.movi(0, 1))
    p.adr(1, "value 0")
    p(*asm.movi(2, 16), *asm.movi(8, NR_WRITE), asm.SVC)
    p(*asm.movi(0, 0), *asm.movi(8, NR_EXIT), asm.SVC)
    p.data(b"")
    for number, (kind, config) in enumerate(events):
        p.place(f"attr {number}")
        p.data(struct.pack("<IIQ", kind, _ATTR_SIZE, config).ljust(_ATTR_SIZE, b"\0"))
    for number, _ in enumerate(events):
        p.place(f"value {number}")
        p.data(bytes(8))
    return _elf(p.code())


def _elf(code: bytes) -> bytes:
    """A static executable: one segment that may be read, written and executed."""
    size = _HEADERS + len(code)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack(
        "<HHIQQQIHHHHHH", 2, 183, 1, ADDRESS + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, ADDRESS, ADDRESS, size, size, 0x1000)
    return ident + header + segment + code
