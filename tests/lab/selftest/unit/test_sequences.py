# SPDX-License-Identifier: Apache-2.0
"""The table of calls repeats all that was measured, and the comparison finds what differs."""

import dataclasses
import re

import pytest

from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import ATTR_NAMES, DefaultPmu, KvmCaps
from pmuctl.value import replace
from tests.lab import randoms
from tests.lab.oracle import Host, first_difference, foretell, tell
from tests.lab.sequences import (
    TABLE,
    Filter,
    Place,
    Script,
    Vm,
    from_json,
    pack,
    parse_value,
    read_measured,
    read_table,
    to_json,
)

MEASURED = TABLE.parent / "measured"
PLACES = {"A": Place(cpu=0, pmu=10), "B": Place(cpu=2, pmu=11), "-": Place(cpu=4, pmu=None)}
HOST = Host(
    kernel=KvmCaps(
        has_vpmu=True,
        attributes=frozenset(ATTR_NAMES),
        counters={10: 6, 11: 6},
        default=DefaultPmu.AT_VCPU_INIT,
        cpus={10: CpuSet.parse("0-1"), 11: CpuSet.parse("2-3")},
        has_strict=True,
    ),
    places=PLACES,
    pmceid=(0x40020001, 0x10000018),
)

NO_CALL = {
    "kernel": "names the kernel",
    "pmus": "names the PMUs",
    "seconds": "is how long it took",
    "VCPU_INIT with PMU_V3 feature": "is how every VM of the table is made",
}
"""Cases of kvm-pmu-errno.tsv that are no step of the table, and what each is."""

NOT_AS_MEASURED = {
    ("guest: SET_PMU A, SET_NR_COUNTERS 2", "6.1"): "was not run without the attribute",
    ("guest: SET_PMU A, SET_NR_COUNTERS 2", "6.12"): "was not run without the attribute",
    ("... vCPU1 then", "6.12"): "both vCPUs ran in one thread: there the second counts nothing",
}
"""(case, kernel) whose result in the table is another, and why."""


def words(results: list[str]) -> list[str]:
    """What several steps gave, as kvm-pmu-default.tsv has it in one field."""
    return [{"stands-still": "zero"}.get(text.split()[0], text.split()[0]) for text in results]


def agrees(measured: str, results: list[str]) -> bool:
    """Whether the steps of one case gave what was measured, in whichever words."""
    said = results[0]
    if len(results) > 1 or measured.startswith("cpu"):
        return re.findall(r"FAIL_ENTRY|OK|E[A-Z]+|counts|zero", measured) == words(results)
    if measured.startswith("PMCEID"):
        then = dict(re.findall(r"(\S+)=(\w+)", measured))
        now = dict(re.findall(r"(\S+)=(\w+)", said))
        return (int(then["PMCR.N"], 16), then["PMCEID0"], then["PMCEID1"]) == (
            int(now["N"]),
            now["PMCEID0"],
            now["PMCEID1"],
        )
    if measured == "runs":
        return said.split()[0] in ("counts", "stands-still")
    if measured.isdecimal():
        return said.split()[0] == ("counts" if int(measured) else "stands-still")
    if match := re.fullmatch(r"\('OK', 9, \((\d+), (\d+)\)\)", measured):
        return said == f"FAIL_ENTRY {match[1]} {match[2]}"
    return said == measured.replace(" value", "").replace("('EINVAL', None, None)", "EINVAL")


@pytest.mark.parametrize("name", ["kvm-pmu-errno.tsv", "kvm-pmu-default.tsv"])
def test_every_measured_case_is_in_the_table_with_its_results(name: str) -> None:
    rows = [row for group in read_table() for row in group.rows]
    missing, wrong = [], []
    for case, measured in read_measured(MEASURED / name).items():
        its = [row for row in rows if row.case == case]
        if not its and case not in NO_CALL:
            missing.append(case)
        for kernel, result in measured.items() if its else ():
            results = [row.expected[kernel] for row in its]
            if not agrees(result, results) and (case, kernel) not in NOT_AS_MEASURED:
                wrong.append((case, kernel, result, results))
    assert (missing, wrong) == ([], [])


def test_every_case_of_the_table_was_measured() -> None:
    known = {case for path in MEASURED.glob("*.tsv") for case in read_measured(path)}
    assert {row.case for group in read_table() for row in group.rows} - known == {""}


def test_the_exceptions_are_needed() -> None:
    rows = [row for group in read_table() for row in group.rows]
    measured = {k: v for path in MEASURED.glob("*.tsv") for k, v in read_measured(path).items()}
    for case, kernel in NOT_AS_MEASURED:
        results = [row.expected[kernel] for row in rows if row.case == case]
        assert not agrees(measured[case][kernel], results)
    assert not {row.case for row in rows} & set(NO_CALL)


def test_every_line_of_the_table_is_a_call() -> None:
    """Of the words that the model knows; the kernels are asked in the lab."""
    for group in read_table():
        assert str(Vm.parse(group.vm)) == group.vm
        assert len(foretell(HOST, group.script())) == len(group.rows) + 1


def test_values_are_read() -> None:
    assert parse_value([], PLACES) == 0
    assert parse_value(["null"], PLACES) is None
    assert parse_value(["B"], PLACES) == 11
    assert parse_value(["-1"], PLACES) == -1
    deny = Filter(base=0x11, nevents=2, action=1)
    assert parse_value(["0x11+2", "deny"], PLACES) == deny
    assert pack(deny) == b"\x11\0\2\0\1\0\0\0"
    assert pack(dataclasses.replace(deny, pad=b"abc")) == b"\x11\0\2\0\1abc"
    assert pack(-1) == b"\xff\xff\xff\xff"
    with pytest.raises(ValueError, match="what"):
        parse_value(["what"], PLACES)
    with pytest.raises(ValueError, match="2 pmu later A"):
        Vm.parse("2 pmu later A")


def test_random_sequences_are_the_same_for_the_same_seed() -> None:
    first = randoms.make(7, 50, places="AB-")
    assert first == randoms.make(7, 50, places="AB-")
    assert first[:20] == randoms.make(7, 20, places="AB-")
    assert first != randoms.make(8, 50, places="AB-")
    assert from_json(to_json(first)) == first


def test_random_sequences_have_everything() -> None:
    some = randoms.make(1, 600, places="AB-")
    vms = {field for script in some for field in script.vm.split()}
    assert vms == {"1", "2", "3", "pmu", "none", "strict", "created", "ready", "A", "B", "-"}
    verbs = {step.split()[0] for script in some for step in script.steps}
    assert verbs == {"set", "get", "has", "run", "counters", "gic", "at", "child"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"default": DefaultPmu.ONE, "default_pmu": 10},
        {"default": DefaultPmu.AT_ATTRIBUTE},
        {"event_bits": 10},
        {"counters": {10: 6, 11: 4}},
        {"counters": {10: 6}},
        {"attributes": frozenset({0, 1, 2, 3})},
        {"has_strict": False},
        {"cpus": {10: CpuSet.parse("0-3")}},
    ],
    ids=str,
)
def test_any_wrong_belief_about_a_kernel_is_found(wrong: dict[str, object]) -> None:
    """A comparison that cannot fail would be none: another kernel stands for the real one."""
    other = replace(HOST, kernel=replace(HOST.kernel, **wrong))  # type: ignore[arg-type]
    scripts = randoms.make(1, 600, places="AB-")
    found = [
        script
        for script in scripts
        if first_difference(foretell(HOST, script), foretell(other, script)) is not None
    ]
    assert found


def test_a_difference_is_told_up_to_where_it_shows() -> None:
    script = Script(vm="1 pmu ready A", steps=("set 0 IRQ 23", "set 0 INIT", "run 0"))
    kernel, model = ["OK", "OK", "ENXIO", "EINVAL"], ["OK", "OK", "OK", "OK"]
    index = first_difference(kernel, model)
    assert index == 2
    assert tell(script, kernel, model, index).split("\n") == [
        "  vm 1 pmu ready A                         OK",
        "  set 0 IRQ 23                             OK",
        "  set 0 INIT                               ENXIO   <- the model says OK",
    ]
    assert first_difference(["ENODEV"], ["OK", "OK"]) == 0
    assert first_difference(["OK"], ["OK", "OK"]) == 1
    assert first_difference(["OK", "OK 6"], ["OK", "OK None"]) is None
