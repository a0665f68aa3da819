# SPDX-License-Identifier: Apache-2.0
"""CPU lists as users write them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pmuctl.errors import UsageError
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpu_list import parse_cpus
from pmuctl.model.cpuset import CpuSet


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3,6", "0-3,6"),
        ("all", "0-7"),
        ("^5", "0-4,6-7"),
        ("all,^0-3", "4-7"),
        ("0-3,^1,1", "0-3"),
        ("pmu/armv8_cortex_a76,0", "0,4-7"),
        ("pmu/*a55,^3", "0-2"),
        ("9", "9"),
    ],
)
def test_a_cpu_list_of_a_user(dump: Callable[[str], Path], text: str, cpus: str) -> None:
    pmus = scan_pmus(Sysfs(dump("rk3588-like")))
    assert parse_cpus(text, pmus, CpuSet.parse("0-7")) == CpuSet.parse(cpus)


@pytest.mark.parametrize("text", ["", ",", "0-", "^", "x", "3-1", "all0", "0,,1", "^^1"])
def test_what_is_no_cpu_list_is_a_usage_error(dump: Callable[[str], Path], text: str) -> None:
    with pytest.raises(UsageError, match="not a list of CPUs"):
        parse_cpus(text, scan_pmus(Sysfs(dump("rk3588-like"))), CpuSet.parse("0-7"))
