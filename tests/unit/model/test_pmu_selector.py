# SPDX-License-Identifier: Apache-2.0
"""How a PMU is named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pmuctl.errors import NotFoundError, UsageError
from pmuctl.host.pmus import scan_other, scan_pmus
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.pmu_selector import select_pmu

A55, A76 = "armv8_cortex_a55", "armv8_cortex_a76"
Select = Callable[[str], str]


@pytest.fixture
def select(dump: Callable[[str], Path]) -> Select:
    sysfs = Sysfs(dump("rk3588-like"))
    return lambda text: select_pmu(text, scan_pmus(sysfs), scan_other(sysfs)).name


@pytest.mark.parametrize("text", [A76, "*a76", "core/cortex-a76", "core/Cortex-A76", "cpus/4-7"])
def test_name_glob_core_and_cpus(select: Select, text: str) -> None:
    assert select(text) == A76


def test_cpus_are_covered_by_one_pmu(select: Select) -> None:
    assert select("cpus/1") == A55
    with pytest.raises(NotFoundError):
        select("cpus/3-4")
    with pytest.raises(UsageError):
        select("cpus/x")


def test_what_stands_for_two_is_refused_with_both(select: Select) -> None:
    with pytest.raises(UsageError) as error:
        select("armv8_*")
    assert error.value.why == f"{A55}, {A76}"


@pytest.mark.parametrize("text", ["12", "armv8_cortex_a7", "/", "core/cortex"])
def test_no_other_text_names_a_pmu(select: Select, text: str) -> None:
    with pytest.raises(NotFoundError):
        select(text)


@pytest.mark.parametrize("text", ["", "core/", "cpus/"])
def test_half_a_name_is_a_usage_error(select: Select, text: str) -> None:
    with pytest.raises(UsageError, match="is missing"):
        select(text)


def test_an_uncore_pmu_is_no_cpu_pmu(select: Select) -> None:
    with pytest.raises(NotFoundError, match="not a CPU PMU"):
        select("arm_cmn_0")
