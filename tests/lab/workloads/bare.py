# SPDX-License-Identifier: Apache-2.0
"""A program for the VMs of real VMMs, without an operating system: counts, tells, and ends.

It is for QEMU's `virt` machine (`-kernel FILE`): UART at 0x09000000, RAM at 0x40000000, PSCI by
HVC, and to sleep a GICv3. `python3 -m tests.lab.workloads.bare END >FILE` makes one in the lab.
"""

import re
import sys
from enum import StrEnum

from tests.lab.vmm import a64
from tests.lab.workloads import asm
from tests.lab.workloads.asm import MPIDR_EL1, Program

UART = 0x09000000
GICD_CTLR = 0x08000000
GICR_ISENABLER0 = 0x080B0100
"""Of vCPU 0."""
TIMER_PPI = 27
# Zero at the start, kept over a reset, and used by nobody else.
SCRATCH = 0x42000000

PSCI_SYSTEM_OFF = 0x84000008
PSCI_SYSTEM_RESET = 0x84000009
PSCI_CPU_ON = 0xC4000003

CPU_CYCLES = 0x11
START = 5
"""What the event counter is set to: a counter of a denied event is seen to stay there."""
LOOPS = 20000
PAUSES = 2
"""A second has so many of the pauses between two reports, a power of two."""

_PMCR_E_P_C_LC = 0x47
_CYCLE_COUNTER = 0x80000000

_ENABLE_GROUP_1 = 1 << 1
ICC_PMR_EL1 = a64.SysReg(3, 0, 4, 6, 0)
CNTFRQ_EL0 = a64.SysReg(3, 3, 14, 0, 0)
CNTV_TVAL_EL0 = a64.SysReg(3, 3, 14, 3, 0)
CNTV_CTL_EL0 = a64.SysReg(3, 3, 14, 3, 1)

# flags in SCRATCH, by offset
_RESET, _SECOND = 0, 8

# registers that live through a report
_CPU, _DFR, _PMCR, _CEID0, _CEID1, _CYCLES, _EVENT = range(20, 27)


class End(StrEnum):
    """What the program does once each vCPU has told its line."""

    OFF = "off"
    """Power off: the VMM ends."""
    RESET = "reset"
    """Reset once, tell again, and power off."""
    SPIN = "spin"
    """Keep every vCPU busy for ever."""
    WFI = "wfi"
    """Keep every vCPU asleep for ever."""
    REPEAT = "repeat"
    """vCPU 0 counts and tells again and again, and sleeps in between; the others sleep."""


def bare_metal(end: End | str = End.OFF, *, second_cpu: bool = True) -> bytes:
    """The image. With `second_cpu` vCPU 1 is switched on (PSCI CPU_ON) and tells its line, too.

    Each line is as parse_reports() reads it. vCPU 0 waits for vCPU 1's.
    """
    end = End(end)
    p = Program()
    p.bl("report")
    if second_cpu:
        p(*asm.movi(0, PSCI_CPU_ON), *asm.movi(1, 1))
        p.adr(2, "second")
        p(*asm.movi(3, 0), asm.HVC)
        p(*asm.movi(1, SCRATCH))
        p.place("wait")
        p(asm.load(2, 1, offset=_SECOND))
        p.cbz(2, "wait")
        p(a64.store(a64.XZR, 1, offset=_SECOND))
    _end(p, end)
    p.place("second")
    p.bl("report")
    p(*asm.movi(1, SCRATCH), *asm.movi(2, 1), a64.store(2, 1, offset=_SECOND))
    p.b("busy" if end is End.SPIN else "asleep")
    p.place("off")
    p(*asm.movi(0, PSCI_SYSTEM_OFF), asm.HVC)
    p.place("asleep")
    p(asm.WFI)
    p.b("asleep")
    p.place("busy")
    p.b("busy")
    _report(p)
    _print(p)
    return p.code()


def _end(p: Program, end: End) -> None:
    match end:
        case End.OFF:
            p.b("off")
        case End.RESET:
            p(*asm.movi(1, SCRATCH), asm.load(2, 1, offset=_RESET))
            p.cbnz(2, "off")
            p(*asm.movi(2, 1), a64.store(2, 1, offset=_RESET))
            p(*asm.movi(0, PSCI_SYSTEM_RESET), asm.HVC)
        case End.SPIN:
            p.b("busy")
        case End.WFI:
            p.b("asleep")
        case End.REPEAT:
            p.place("again")
            _sleep(p)
            p.bl("report")
            p.b("again")


def _sleep(p: Program) -> None:
    """A part of a second, until the timer is due: KVM ends WFI for an interrupt that is enabled.

    It is never taken, as PSTATE masks it from the start.
    """
    p(*asm.movi(1, GICD_CTLR), *asm.movi(2, _ENABLE_GROUP_1), asm.store_word(2, 1))
    p(*asm.movi(1, GICR_ISENABLER0), *asm.movi(2, 1 << TIMER_PPI), asm.store_word(2, 1))
    p(*asm.movi(1, 0xFF), a64.msr(ICC_PMR_EL1, 1))
    p(a64.mrs(1, CNTFRQ_EL0), asm.lsr(1, 1, PAUSES.bit_length() - 1))
    p(a64.msr(CNTV_TVAL_EL0, 1), *asm.movi(1, 1), a64.msr(CNTV_CTL_EL0, 1), a64.isb())
    p(asm.WFI, a64.msr(CNTV_CTL_EL0, a64.XZR), a64.isb())


def _report(p: Program) -> None:
    """Count, and tell one line."""
    p.place("report")
    p(asm.mov(29, 30))
    p(a64.mrs(_CPU, a64.SysReg(*MPIDR_EL1)), a64.ubfx(_CPU, _CPU, lsb=0, width=8))
    p(a64.mrs(_DFR, a64.ID_AA64DFR0_EL1), a64.ubfx(_DFR, _DFR, lsb=8, width=4))
    told = [("GUEST cpu=", _CPU), (" pmuver=", _DFR)]
    counted = [
        (" pmcr_n=", _PMCR),
        (" pmceid0=", _CEID0),
        (" pmceid1=", _CEID1),
        (" cycles=", _CYCLES),
        (" event_0x11=", _EVENT),
    ]
    p.cbz(_DFR, "tell")
    _count(p)
    p.place("tell")
    _tell(p, told)
    p.cbz(_DFR, "told")
    _tell(p, counted)
    p.place("told")
    p.adr(0, "newline")
    p.bl("text")
    p(asm.mov(30, 29), asm.RET)
    for text, register in told + counted:
        p.place(f"text {register}")
        p.data(text.encode() + b"\0")
    p.place("newline")
    p.data(b"\r\n\0")


def _count(p: Program) -> None:
    p(
        a64.mrs(_PMCR, a64.PMCR_EL0),
        a64.ubfx(_PMCR, _PMCR, lsb=11, width=5),
        a64.mrs(_CEID0, a64.PMCEID0_EL0),
        a64.mrs(_CEID1, a64.PMCEID1_EL0),
        *asm.movi(0, _PMCR_E_P_C_LC),
        a64.msr(a64.PMCR_EL0, 0),
        a64.msr(a64.PMCCFILTR_EL0, a64.XZR),
        *asm.movi(0, CPU_CYCLES),
        a64.msr(a64.PMEVTYPER0_EL0, 0),
        *asm.movi(0, START),
        a64.msr(a64.PMEVCNTR0_EL0, 0),
        *asm.movi(1, _CYCLE_COUNTER | 1),
        a64.msr(a64.PMCNTENSET_EL0, 1),
        a64.isb(),
        *asm.movi(2, LOOPS),
    )
    p.place("count")
    p(a64.subs(2, 2, 1))
    p.b_cond(1, "count")
    p(
        a64.msr(a64.PMCNTENCLR_EL0, 1),
        a64.isb(),
        a64.mrs(_CYCLES, a64.PMCCNTR_EL0),
        a64.mrs(_EVENT, a64.PMEVCNTR0_EL0),
    )


def _tell(p: Program, values: list[tuple[str, int]]) -> None:
    for _, register in values:
        p.adr(0, f"text {register}")
        p.bl("text")
        p(asm.mov(0, register))
        p.bl("hex")


def _print(p: Program) -> None:
    """`text`: the bytes at X0 up to a zero; `hex`: X0 as 0x and its digits. They use X0-X3, X9."""
    p.place("text")
    p(*asm.movi(9, UART))
    p.place("next byte")
    p(asm.load_byte(1, 0))
    p.cbz(1, "text end")
    p(asm.store_word(1, 9))
    p.b("next byte")
    p.place("text end")
    p(asm.RET)
    p.place("hex")
    p(*asm.movi(9, UART), *asm.movi(2, 16))
    p(*asm.movi(1, ord("0")), asm.store_word(1, 9), *asm.movi(1, ord("x")), asm.store_word(1, 9))
    p.place("skip a zero")  # each character is an exit to the VMM
    p(asm.cmp(2, 1))
    p.b_cond(0, "next digit")
    p(asm.ror(1, 0, 60), a64.ubfx(3, 1, lsb=0, width=4))
    p.cbnz(3, "next digit")
    p(asm.mov(0, 1), a64.subs(2, 2, 1))
    p.b("skip a zero")
    p.place("next digit")
    p(asm.ror(0, 0, 60), a64.ubfx(1, 0, lsb=0, width=4))
    p(asm.add(3, 1, ord("0")), asm.cmp(1, 9))
    p.b_cond(9, "decimal")
    p(asm.add(3, 1, ord("a") - 10))
    p.place("decimal")
    p(asm.store_word(3, 9), a64.subs(2, 2, 1))
    p.b_cond(1, "next digit")
    p(asm.RET)


def parse_reports(console: str) -> list[dict[str, int]]:
    """The lines the program has told whole, in order: cpu, pmuver and, with a PMU, the rest.

    `cycles` starts from 0 and `event_0x11` from START; both span the same loop.
    """
    # a reset can cut a line off, and the next one begin in it
    lines = re.findall(r"^GUEST ((?:\w+=0x[0-9a-f]+ ?)+)\r?\n", console, re.MULTILINE)
    return [
        {key: int(value, 0) for key, value in (word.split("=") for word in line.split())}
        for line in lines
    ]


if __name__ == "__main__":
    sys.stdout.buffer.write(bare_metal(sys.argv[1] if len(sys.argv) > 1 else End.OFF))
