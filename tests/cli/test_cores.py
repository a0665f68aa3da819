# SPDX-License-Identifier: Apache-2.0
"""Core models as the commands show and take them, on machines of many vendors."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Machine
from tests.fakes.tree import make_tree

KIRIN = {"0-3": 0x411FD461, "4-6": 0x480FD420, "7": 0x480FDDD0}
"""A Kirin 9000S but for its largest core: CPUs 4-6 and 7 are of two models without a name."""


def read_json(machine: Machine, *words: str) -> Any:
    ran = machine.run(*words, "-J")
    assert (ran.status, ran.stderr) == (0, "")
    return json.loads(ran.stdout)


@pytest.fixture
def kirin(machine: Machine, tmp_path: Path) -> Machine:
    """A host with a PMU for each of its core models."""
    pmus = {"armv9_cortex_a510": "0-3", "armv8_pmuv3_1": "4-6", "armv8_pmuv3_2": "7"}
    machine.root = make_tree(tmp_path / "kirin", KIRIN, pmus)
    return machine


@pytest.mark.parametrize(
    ("cores", "names"),
    [
        ({"0-4,10-14": 0x410FD871, "5-9,15-19": 0x410FD851}, ["Cortex-A725", "Cortex-X925"]),
        ({"0-3": 0x611F0340, "4-11": 0x611F0350}, ["Blizzard-M2-Pro", "Avalanche-M2-Pro"]),
        ({"0-191": 0xC00FAC30}, ["Ampere-1"]),
        ({"0-3": 0x512F0011, "4-11": 0x511F0011}, ["Oryon", "Oryon"]),
        ({"0-11": 0x410FD421}, ["Cortex-A78AE"]),
        ({"0-7": 0x701F8620}, ["FTC862"]),
        ({"0-3": 0x410FD811, "4-6": 0x410FD821, "7": 0x410FD851}, ["A720", "X4", "X925"]),
        ({"0-95": 0x481FD010}, ["Kunpeng-920"]),
        ({"0-47": 0x461F0010}, ["A64FX"]),
        ({"0-127": 0x6D0FD490}, ["Azure-Cobalt-100"]),
    ],
)
def test_the_cores_of_every_vendor_have_their_name(
    machine: Machine, tmp_path: Path, cores: dict[str, int], names: list[str]
) -> None:
    pmus = {f"armv8_pmuv3_{number}": cpus for number, cpus in enumerate(cores)}
    machine.root = make_tree(tmp_path / "tree", cores, pmus)
    found = [pmu["core"] for pmu in read_json(machine, "pmu", "list")["pmus"]]
    assert [core.removeprefix("Cortex-") for (core,) in found] == [
        name.removeprefix("Cortex-") for name in names
    ]


def test_an_unknown_core_shows_its_midr_wherever_core_is_shown(kirin: Machine) -> None:
    assert kirin.run("pmu", "list", "-n", "-o", "core").lines == [
        *("Cortex-A510", "0x48:0xd42", "0x48:0xddd"),
    ]
    assert kirin.run("pmu", "list", "--format", "csv", "-n", "-o", "core,midr").lines[1:] == [
        *("0x48:0xd42,0x48:0xd42", "0x48:0xddd,0x48:0xddd"),
    ]
    assert "CORE        0x48:0xd42" in kirin.run("pmu", "show", "armv8_pmuv3_1").stdout
    cpus = kirin.run("pmu", "cpus", "3-4,7", "-n", "-o", "cpu,core").lines
    assert [line.split() for line in cpus] == [
        *(["3", "Cortex-A510"], ["4", "0x48:0xd42"], ["7", "0x48:0xddd"]),
    ]
    shown = kirin.run("host", "info").stdout
    assert shown.endswith(
        "CORE-LIST\n"
        "  CORE         MIDR        CPUS\n"
        "  Cortex-A510  0x41:0xd46  0-3\n"
        "  0x48:0xd42   0x48:0xd42  4-6\n"
        "  0x48:0xddd   0x48:0xddd  7\n"
    )
    refused = kirin.run("pmu", "show", "core/a76").stderr
    assert "Cortex-A510 (0x41:0xd46), 0x48:0xd42, 0x48:0xddd" in refused


def test_json_has_no_name_for_an_unknown_core_but_its_midr(kirin: Machine) -> None:
    """As before CORE is a name or null; what tells models apart is MIDR beside it."""
    pmus = read_json(kirin, "pmu", "list")["pmus"]
    assert [(pmu["core"], pmu["midr"]) for pmu in pmus] == [
        (["Cortex-A510"], ["0x41:0xd46"]),
        ([None], ["0x48:0xd42"]),
        ([None], ["0x48:0xddd"]),
    ]
    cpus = read_json(kirin, "pmu", "cpus", "6-7")["cpus"]
    assert [(cpu["core"], cpu["midr"]) for cpu in cpus] == [
        *((None, "0x48:0xd42"), (None, "0x48:0xddd")),
    ]
    assert read_json(kirin, "host", "info")["host"]["core_list"] == [
        {"core": "Cortex-A510", "midr": "0x41:0xd46", "cpus": [0, 1, 2, 3]},
        {"core": None, "midr": "0x48:0xd42", "cpus": [4, 5, 6]},
        {"core": None, "midr": "0x48:0xddd", "cpus": [7]},
    ]


def test_an_unknown_core_is_not_one_whose_midr_cannot_be_read(
    machine: Machine, tmp_path: Path
) -> None:
    machine.root = make_tree(tmp_path / "tree", {"0": 0x480FD420}, {"armv8_pmuv3": "0-1"})
    (machine.root / "sys/devices/system/cpu/cpu1").mkdir()
    assert read_json(machine, "host", "info")["host"]["core_list"] == [
        {"core": None, "midr": "0x48:0xd42", "cpus": [0]},
        {"core": None, "midr": None, "cpus": [1]},
    ]
    assert machine.run("pmu", "cpus", "-n", "-o", "core").lines == ["0x48:0xd42", "?"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("core/0x48:0xd42", "armv8_pmuv3_1"),
        ("core/0X48:0XDDD", "armv8_pmuv3_2"),
        ("core/a510", "armv9_cortex_a510"),
        ("core/CORTEX-A5*", "armv9_cortex_a510"),
    ],
)
def test_a_pmu_is_named_by_its_core(kirin: Machine, text: str, name: str) -> None:
    assert kirin.run("pmu", "show", text, "-o", "name", "-n").stdout.split() == ["NAME", name]
    assert kirin.run("pmu", "list", text, "--format", "name").lines == [name]


def test_a_glob_of_a_core_is_taken(machine: Machine, tmp_path: Path) -> None:
    pmus = {"apple_blizzard_pmu": "0-3", "apple_avalanche_pmu": "4-11"}
    cores = {"0-3": 0x611F0340, "4-11": 0x611F0350}
    machine.root = make_tree(tmp_path / "tree", cores, pmus)
    ran = machine.run("pmu", "list", "core/avalanche*", "--format", "name")
    assert ran.lines == ["apple_avalanche_pmu"]
