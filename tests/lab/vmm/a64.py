# SPDX-License-Identifier: Apache-2.0
"""The few AArch64 instructions of the guest, each encoded by a function (Arm ARM, section C6.2).

Registers are numbers, 31 is XZR; branch offsets are in instructions, from the branch itself.
"""

from typing import NamedTuple

XZR = 31


class SysReg(NamedTuple):
    """How MRS and MSR name a system register (Arm ARM, section D24)."""

    op0: int
    op1: int
    crn: int
    crm: int
    op2: int


ID_AA64DFR0_EL1 = SysReg(3, 0, 0, 5, 0)
PMCR_EL0 = SysReg(3, 3, 9, 12, 0)
PMCNTENSET_EL0 = SysReg(3, 3, 9, 12, 1)
PMCNTENCLR_EL0 = SysReg(3, 3, 9, 12, 2)
PMCEID0_EL0 = SysReg(3, 3, 9, 12, 6)
PMCEID1_EL0 = SysReg(3, 3, 9, 12, 7)
PMCCNTR_EL0 = SysReg(3, 3, 9, 13, 0)
PMEVCNTR0_EL0 = SysReg(3, 3, 14, 8, 0)
PMEVTYPER0_EL0 = SysReg(3, 3, 14, 12, 0)
PMCCFILTR_EL0 = SysReg(3, 3, 14, 15, 7)


def mrs(rt: int, reg: SysReg) -> int:
    """rt = reg."""
    return 0xD5200000 | _sysreg(reg) | rt


def msr(reg: SysReg, rt: int) -> int:
    """reg = rt."""
    return 0xD5000000 | _sysreg(reg) | rt


def _sysreg(reg: SysReg) -> int:
    # op0 is 2 or 3 for these instructions and stands as bit 20 = 1 and its low bit
    return reg.op0 << 19 | reg.op1 << 16 | reg.crn << 12 | reg.crm << 8 | reg.op2 << 5


def isb() -> int:
    """What was written to system registers is in effect for what follows."""
    return 0xD5033FDF


def movz(rd: int, imm16: int, *, shift: int = 0) -> int:
    """rd = imm16 << shift; shift is 0, 16, 32 or 48."""
    return 0xD2800000 | shift // 16 << 21 | imm16 << 5 | rd


def movk(rd: int, imm16: int, *, shift: int = 0) -> int:
    """The 16 bits of rd from `shift` on = imm16; the others stay."""
    return 0xF2800000 | shift // 16 << 21 | imm16 << 5 | rd


def subs(rd: int, rn: int, imm12: int) -> int:
    """rd = rn - imm12, and the flags."""
    return 0xF1000000 | imm12 << 10 | rn << 5 | rd


def ubfx(rd: int, rn: int, *, lsb: int, width: int) -> int:
    """rd = the bits [lsb, lsb + width) of rn."""
    return 0xD3400000 | lsb << 16 | lsb + width - 1 << 10 | rn << 5 | rd


def store(rt: int, rn: int, *, offset: int) -> int:
    """STR: the 64 bits of rt to memory at rn + offset, a multiple of 8 bytes."""
    return 0xF9000000 | offset // 8 << 10 | rn << 5 | rt


def b(instructions: int) -> int:
    """Go this many instructions on; back if negative."""
    return 0x14000000 | instructions & 0x3FFFFFF


def b_ne(instructions: int) -> int:
    """The same, if the last comparison was not equal."""
    return 0x54000001 | (instructions & 0x7FFFF) << 5


def cbz(rt: int, instructions: int) -> int:
    """The same, if rt is zero."""
    return 0xB4000000 | (instructions & 0x7FFFF) << 5 | rt
