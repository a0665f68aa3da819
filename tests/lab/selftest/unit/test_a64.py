# SPDX-License-Identifier: Apache-2.0
"""The reference VMM's encodings, against what an assembler (llvm-mc, -triple=aarch64) makes."""

import pytest

from tests.lab.vmm import a64
from tests.lab.vmm.guest import DONE, program


@pytest.mark.parametrize(
    ("text", "code", "word"),
    [
        ("mrs x1, id_aa64dfr0_el1", a64.mrs(1, a64.ID_AA64DFR0_EL1), 0xD5380501),
        ("mrs x2, pmcr_el0", a64.mrs(2, a64.PMCR_EL0), 0xD53B9C02),
        ("mrs x3, pmceid0_el0", a64.mrs(3, a64.PMCEID0_EL0), 0xD53B9CC3),
        ("mrs x3, pmceid1_el0", a64.mrs(3, a64.PMCEID1_EL0), 0xD53B9CE3),
        ("mrs x4, pmccntr_el0", a64.mrs(4, a64.PMCCNTR_EL0), 0xD53B9D04),
        ("mrs x4, pmevcntr0_el0", a64.mrs(4, a64.PMEVCNTR0_EL0), 0xD53BE804),
        ("msr pmcr_el0, x3", a64.msr(a64.PMCR_EL0, 3), 0xD51B9C03),
        ("msr pmcntenset_el0, x3", a64.msr(a64.PMCNTENSET_EL0, 3), 0xD51B9C23),
        ("msr pmcntenclr_el0, x3", a64.msr(a64.PMCNTENCLR_EL0, 3), 0xD51B9C43),
        ("msr pmevtyper0_el0, x3", a64.msr(a64.PMEVTYPER0_EL0, 3), 0xD51BEC03),
        ("msr pmccfiltr_el0, xzr", a64.msr(a64.PMCCFILTR_EL0, a64.XZR), 0xD51BEFFF),
        ("isb", a64.isb(), 0xD5033FDF),
        ("movz x3, #0x47", a64.movz(3, 0x47), 0xD28008E3),
        ("movz x3, #0x8000, lsl #16", a64.movz(3, 0x8000, shift=16), 0xD2B00003),
        ("movk x3, #1", a64.movk(3, 1), 0xF2800023),
        ("subs x5, x5, #1", a64.subs(5, 5, 1), 0xF10004A5),
        ("ubfx x1, x1, #8, #4", a64.ubfx(1, 1, lsb=8, width=4), 0xD3482C21),
        ("ubfx x6, x2, #11, #5", a64.ubfx(6, 2, lsb=11, width=5), 0xD34B3C46),
        ("str x4, [x0, #40]", a64.store(4, 0, offset=40), 0xF9001404),
        ("b .-8", a64.b(-2), 0x17FFFFFE),
        ("b .+8", a64.b(2), 0x14000002),
        ("b.ne .-4", a64.b_ne(-1), 0x54FFFFE1),
        ("cbz x6, .+32", a64.cbz(6, 8), 0xB4000106),
    ],
)
def test_an_instruction_is_what_the_assembler_makes(text: str, code: int, word: int) -> None:
    assert f"{code:#010x}" == f"{word:#010x}", text


def test_the_guest_ends_each_round_with_a_report_and_begins_again() -> None:
    words = memoryview(program()).cast("I").tolist()
    *_, report, back = words
    assert report == a64.store(a64.XZR, 0, offset=DONE)
    assert back == a64.b(1 - len(words))
