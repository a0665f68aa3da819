# SPDX-License-Identifier: Apache-2.0
"""CPU sets in cpulist notation."""

from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmuctl.model.cpuset import CPU_LIMIT, CpuSet

SETS = st.builds(CpuSet.of, st.sets(st.integers(0, CPU_LIMIT - 1), max_size=50))


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3\n", [0, 1, 2, 3]),
        ("0", [0]),
        ("", []),
        ("\n", []),
        ("8,0-1", [0, 1, 8]),
        ("0-3,2-5,1", [0, 1, 2, 3, 4, 5]),
        ("65535", [65535]),
    ],
)
def test_a_list_is_read(text: str, cpus: list[int]) -> None:
    assert list(CpuSet.parse(text)) == cpus


@pytest.mark.parametrize(
    "text",
    ["3-0", "-1", "0-", "a", "0,,1", "0-3,", "0 1", "65536", "99999999999", "0x3", "٣", "0\x1f"],
)
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        CpuSet.parse(text)


@given(SETS)
def test_text_and_set_are_inverse(cpus: CpuSet) -> None:
    assert CpuSet.parse(str(cpus)) == cpus


@given(SETS)
def test_text_is_the_shortest(cpus: CpuSet) -> None:
    ends = [end for run in str(cpus).split(",") if run for end in (run.split("-")[0], run)]
    firsts = [int(end.split("-")[0]) for end in ends]
    assert firsts == sorted(firsts)
    for run in filter(None, str(cpus).split(",")):
        assert int(run.split("-")[0]) - 1 not in cpus
        assert int(run.split("-")[-1]) + 1 not in cpus


@given(st.text(max_size=40) | st.from_regex(r"[-0-9,^ \n]*", fullmatch=True))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        cpus = CpuSet.parse(text)
    except ValueError:
        return
    assert all(0 <= cpu < CPU_LIMIT for cpu in cpus)


@given(SETS, SETS)
def test_operators_are_those_of_sets(a: CpuSet, b: CpuSet) -> None:
    assert set(a & b) == set(a) & set(b)
    assert set(a | b) == set(a) | set(b)
    assert set(a - b) == set(a) - set(b)
    assert (a <= b) == (set(a) <= set(b))
    assert len(a) == len(set(a))
    assert all((cpu in a) == (cpu in set(a)) for cpu in b)


def test_repeated_ranges_cost_no_more_than_others() -> None:
    def cost(*parts: str) -> float:
        text = ",".join(parts)
        start = process_time()
        CpuSet.parse(text)
        return process_time() - start

    others = max(cost(*map(str, range(0, CPU_LIMIT, 8))) for _ in range(5))
    assert cost(*["0-65535"] * 8192) < 20 * others
