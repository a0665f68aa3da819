# SPDX-License-Identifier: Apache-2.0
"""Core models of CPUs: read from the MIDR, and from the table of cores."""

import sys
from pathlib import Path

import pytest

from pmuctl.host.cpus import core_names, decode_midr, read_core, scan_cores
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.pmu import CoreModel
from tests.unit.host.cores import A55, A76, make_cpu


@pytest.mark.parametrize(
    ("midr", "core"),
    [
        (0x414FD0B1, A76),
        (0x411FD0B0, A76),
        (0x412FD050, A55),
        (0x3F0F4120, CoreModel(implementer=0x3F, part=0x412, name="Rainier")),
        (0x611F0221, CoreModel(implementer=0x61, part=0x22, name="Icestorm-M1")),
        (0x480FD420, CoreModel(implementer=0x48, part=0xD42, name=None)),
        (0x510FD0B0, CoreModel(implementer=0x51, part=0xD0B, name=None)),
    ],
)
def test_a_midr_names_the_core(midr: int, core: CoreModel) -> None:
    assert decode_midr(midr) == core


@pytest.mark.parametrize("text", ["", "\n", "x", "-1", "0x1414fd0b0", "0x" + "4" * 40, "\0"])
def test_what_is_no_midr_is_no_core(tmp_path: Path, text: str) -> None:
    make_cpu(tmp_path, 0, text)
    assert read_core(Sysfs(tmp_path), 0) is None
    assert scan_cores(Sysfs(tmp_path), CpuSet.of(range(65536))) == ()


def test_only_cpus_that_are_there_are_asked_for_their_core(tmp_path: Path) -> None:
    asked = []

    class Counting(Sysfs):
        def read_int(self, path: str) -> int | None:
            asked.append(path)
            return super().read_int(path)

    make_cpu(tmp_path, 3, "0x414fd0b0")
    assert scan_cores(Counting(tmp_path), CpuSet.of(range(65536))) == (A76,)
    assert asked == ["sys/devices/system/cpu/cpu3/regs/identification/midr_el1"]


def test_the_table_of_cores_is_sound() -> None:
    table = Path(sys.modules[read_core.__module__].__file__ or "").parents[1] / "data/cores.tsv"
    rows = [line for line in table.read_text().splitlines() if not line.startswith("#")]
    assert len(core_names()) == len(rows) - 1
    assert all(names and all(names) for names in core_names().values())
    assert all(i < 1 << 8 and p < 1 << 12 for i, p in core_names())
    assert core_names()[0x41, 0xD0C] == ("Neoverse-N1",)
    assert core_names()[0xC0, 0xAC3] == ("Ampere-1", "AmpereOne")
    assert core_names()[0xC0, 0xAC5] == ("Ampere-1b",)
    assert core_names()[0x61, 0x049] == ("Everest-M3-Max",)
