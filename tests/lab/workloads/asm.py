# SPDX-License-Identifier: Apache-2.0
"""A program put together from instructions and named places; more instructions for it."""

import struct
from collections.abc import Callable

WFI = 0xD503207F
RET = 0xD65F03C0
HVC = 0xD4000002
SVC = 0xD4000001

MPIDR_EL1 = (3, 0, 0, 0, 5)

_Late = Callable[[int, dict[str, int]], int]


class Program:
    """Code that grows instruction by instruction; places in it have names.

    What refers to a place is encoded at the end, so places may be named later.
    """

    def __init__(self) -> None:
        self._parts: list[bytes | _Late] = []
        self._places: dict[str, int] = {}
        self._size = 0

    def __call__(self, *instructions: int) -> None:
        """Add encoded instructions."""
        for instruction in instructions:
            self._add(struct.pack("<I", instruction))

    def place(self, name: str) -> None:
        """Give the next byte a name."""
        if name in self._places:
            raise ValueError(f"two places are called {name}")
        self._places[name] = self._size

    def data(self, data: bytes) -> None:
        """Add bytes, and as many zeros as it takes to go on at a multiple of 8."""
        self._add(data + bytes(-(self._size + len(data)) % 8))

    def b(self, name: str) -> None:
        """Go to a place."""
        self._late(lambda at, to: 0x14000000 | (to[name] - at) // 4 & 0x3FFFFFF)

    def bl(self, name: str) -> None:
        """Call it; it returns to X30."""
        self._late(lambda at, to: 0x94000000 | (to[name] - at) // 4 & 0x3FFFFFF)

    def b_cond(self, condition: int, name: str) -> None:
        """Go there if the last comparison says so: EQ 0, NE 1, LS 9, HI 8."""
        self._late(lambda at, to: 0x54000000 | _imm19(to[name] - at) | condition)

    def cbz(self, rt: int, name: str) -> None:
        """Go there if rt is zero."""
        self._late(lambda at, to: 0xB4000000 | _imm19(to[name] - at) | rt)

    def cbnz(self, rt: int, name: str) -> None:
        """Go there if rt is not zero."""
        self._late(lambda at, to: 0xB5000000 | _imm19(to[name] - at) | rt)

    def adr(self, rd: int, name: str) -> None:
        """rd = the address of a place within 1 MiB."""

        def encode(at: int, to: dict[str, int]) -> int:
            offset = to[name] - at
            return 0x10000000 | (offset & 3) << 29 | _imm19(offset) | rd

        self._late(encode)

    def code(self) -> bytes:
        """All of it, ready to run at any address."""
        out = b""
        for part in self._parts:
            if isinstance(part, bytes):
                out += part
            else:
                out += struct.pack("<I", part(len(out), self._places))
        return out

    def _late(self, encode: _Late) -> None:
        self._parts.append(encode)
        self._size += 4

    def _add(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)


def _imm19(offset: int) -> int:
    return (offset // 4 & 0x7FFFF) << 5


def mov(rd: int, rm: int) -> int:
    """rd = rm."""
    return 0xAA0003E0 | rm << 16 | rd


def lsr(rd: int, rn: int, shift: int) -> int:
    """rd = rn >> shift."""
    return 0xD340FC00 | shift << 16 | rn << 5 | rd


def lslv(rd: int, rn: int, rm: int) -> int:
    """rd = rn << rm."""
    return 0x9AC02000 | rm << 16 | rn << 5 | rd


def add(rd: int, rn: int, imm12: int) -> int:
    """rd = rn + imm12."""
    return 0x91000000 | imm12 << 10 | rn << 5 | rd


def cmp(rn: int, imm12: int) -> int:
    """The flags of rn - imm12."""
    return 0xF100001F | imm12 << 10 | rn << 5


def cmp_reg(rn: int, rm: int) -> int:
    """The flags of rn - rm."""
    return 0xEB00001F | rm << 16 | rn << 5


def ror(rd: int, rn: int, shift: int) -> int:
    """rd = rn, its low bits moved to the top."""
    return 0x93C00000 | rn << 16 | shift << 10 | rn << 5 | rd


def load(rt: int, rn: int, *, offset: int = 0) -> int:
    """LDR: rt = the 64 bits at rn + offset, a multiple of 8 bytes."""
    return 0xF9400000 | offset // 8 << 10 | rn << 5 | rt


def load_byte(rt: int, rn: int) -> int:
    """LDRB, post-indexed: rt = the byte at rn, and rn moves on by one."""
    return 0x38401400 | rn << 5 | rt


def store_word(rt: int, rn: int) -> int:
    """STR: the low 32 bits of rt to rn."""
    return 0xB9000000 | rn << 5 | rt


def movi(rd: int, value: int) -> list[int]:
    """rd = a constant of up to 64 bits."""
    out = [0xD2800000 | (value & 0xFFFF) << 5 | rd]
    for shift in (16, 32, 48):
        if part := value >> shift & 0xFFFF:
            out.append(0xF2800000 | shift // 16 << 21 | part << 5 | rd)
    return out
