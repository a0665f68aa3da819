# SPDX-License-Identifier: Apache-2.0
"""The guest: a program that counts a small loop with its PMU, and how its reports are read.

It reports by stores to MMIO, one register a kind of value; the store to DONE ends a round and
the next KVM_RUN begins another. All its state is in registers, so any number of vCPUs may run
it at once.
"""

import struct
from typing import NamedTuple

from tests.lab.vmm import a64
from tests.lab.vmm.a64 import XZR
from tests.lab.vmm.machine import MMIO
from tests.lab.vmm.vcpu import Exit, Store, Vcpu

# what is stored where, offsets from MMIO
PMUVER = 0x00
PMCR = 0x08
PMCEID0 = 0x10
PMCEID1 = 0x18
CYCLES = 0x20
EVENT_START = 0x28
EVENT_END = 0x30
DONE = 0x38

CPU_CYCLES = 0x11
START = 5
"""What the event counter is set to: a counter of a denied event is seen to stay there."""
LOOPS = 20000

_PMCR_E_P_C_LC = 0x47  # count; event and cycle counters to zero; a 64-bit cycle counter


def program() -> bytes:
    """The machine code, to be started with X0 = MMIO at exception level 1, MMU off."""
    counter = [
        # X3 gets bit 0 too: counter 0 is set up to be enabled together with the cycle counter
        a64.movz(4, CPU_CYCLES),
        a64.msr(a64.PMEVTYPER0_EL0, 4),
        a64.movz(4, START),
        a64.msr(a64.PMEVCNTR0_EL0, 4),
        a64.mrs(4, a64.PMEVCNTR0_EL0),
        a64.store(4, 0, offset=EVENT_START),
        a64.movk(3, 1),
    ]
    counter_report = [
        a64.mrs(4, a64.PMEVCNTR0_EL0),
        a64.store(4, 0, offset=EVENT_END),
    ]
    pmu = [
        a64.mrs(2, a64.PMCR_EL0),
        a64.store(2, 0, offset=PMCR),
        a64.mrs(4, a64.PMCEID0_EL0),
        a64.store(4, 0, offset=PMCEID0),
        a64.mrs(4, a64.PMCEID1_EL0),
        a64.store(4, 0, offset=PMCEID1),
        a64.movz(4, _PMCR_E_P_C_LC),
        a64.msr(a64.PMCR_EL0, 4),
        a64.msr(a64.PMCCFILTR_EL0, XZR),
        a64.movz(3, 0x8000, shift=16),  # bit 31, the cycle counter
        a64.ubfx(2, 2, lsb=11, width=5),  # PMCR_EL0.N
        a64.cbz(2, 1 + len(counter)),
        *counter,
        a64.msr(a64.PMCNTENSET_EL0, 3),
        a64.isb(),
        a64.movz(5, LOOPS),
        a64.subs(5, 5, 1),
        a64.b_ne(-1),
        a64.msr(a64.PMCNTENCLR_EL0, 3),
        a64.isb(),
        a64.mrs(4, a64.PMCCNTR_EL0),
        a64.store(4, 0, offset=CYCLES),
        a64.cbz(2, 1 + len(counter_report)),
        *counter_report,
    ]
    code = [
        a64.mrs(1, a64.ID_AA64DFR0_EL1),
        a64.ubfx(1, 1, lsb=8, width=4),
        a64.store(1, 0, offset=PMUVER),
        a64.cbz(1, 1 + len(pmu)),
        *pmu,
        a64.store(XZR, 0, offset=DONE),
    ]
    code.append(a64.b(-len(code)))
    return struct.pack(f"<{len(code)}I", *code)


class Report(NamedTuple):
    """What the guest saw in one round; None for what it does not have.

    `pmuver` is ID_AA64DFR0_EL1.PMUVer, 0 without a PMU. `cycles` (PMCCNTR_EL0) and the event
    counter span the same loop: they say whether something counts, not how fast anything is.
    """

    pmuver: int
    pmcr_n: int | None
    pmceid0: int | None
    pmceid1: int | None
    cycles: int | None
    event_start: int | None
    event_end: int | None

    def as_json(self) -> dict[str, object]:
        """As it is printed: bit masks in hexadecimal, nothing that the guest does not have."""
        out: dict[str, object] = {"pmuver": self.pmuver}
        if self.pmcr_n is not None:
            out["pmcr_n"] = self.pmcr_n
        if self.pmceid0 is not None and self.pmceid1 is not None:
            out |= {"pmceid0": f"{self.pmceid0:#x}", "pmceid1": f"{self.pmceid1:#x}"}
        if self.cycles is not None:
            out["cycles"] = self.cycles
        if self.event_start is not None:
            counter = {"start": self.event_start, "end": self.event_end}
            out[f"event_{CPU_CYCLES:#x}"] = counter
        return out


class Guest:
    """The program on one vCPU. It must have been loaded (Machine.load)."""

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu
        self._seen: dict[int, int] = {}

    def round(self) -> Report | Exit:
        """Run to the end of a round, or to an exit that keeps the guest from getting there.

        After such an exit the next call goes on with the same round. Call it in the vCPU's
        thread (Vcpu.submit). Raises OSError as KVM_RUN does.
        """
        while isinstance(step := self.vcpu.run(), Store):
            if step.address == MMIO + DONE:
                seen, self._seen = self._seen, {}
                return _report(seen)
            self._seen[step.address - MMIO] = step.value
        return step


def _report(seen: dict[int, int]) -> Report:
    pmcr = seen.get(PMCR)
    return Report(
        pmuver=seen[PMUVER],
        pmcr_n=None if pmcr is None else pmcr >> 11 & 0x1F,
        pmceid0=seen.get(PMCEID0),
        pmceid1=seen.get(PMCEID1),
        cycles=seen.get(CYCLES),
        event_start=seen.get(EVENT_START),
        event_end=seen.get(EVENT_END),
    )
