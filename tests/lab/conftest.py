# SPDX-License-Identifier: Apache-2.0
"""The labs of a test session: each is booted when first asked for, and shared by all tests."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import ALL_KERNELS, KERNELS
from tests.lab.errors import NoKernelError
from tests.lab.machine import Lab, boot

# A lab takes half a gigabyte of memory.
ALIVE_MAX = 3

GetLab = Callable[[str, str], Lab]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for `lab` or `kernel` once for each kernel, unless it names its own."""
    marks = metafunc.definition.iter_markers("parametrize")
    named = {name for mark in marks for name in str(mark.args[0]).split(",")}
    if named & {"lab", "kernel"}:
        return
    kernels = ALL_KERNELS if metafunc.config.getoption("--all-kernels") else KERNELS
    if "lab" in metafunc.fixturenames:
        metafunc.parametrize("lab", kernels, indirect=True)
    elif "kernel" in metafunc.fixturenames:
        metafunc.parametrize("kernel", kernels)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session")
def get_lab() -> Iterator[GetLab]:
    """The lab with this kernel and this host; one that died is replaced.

    Skips the test where the archive has no such kernel (any more).
    """
    labs: OrderedDict[tuple[str, str], tuple[Lab, ExitStack]] = OrderedDict()
    missing: dict[str, str] = {}

    def get(kernel: str, host: str) -> Lab:
        if kernel in missing:
            pytest.skip(missing[kernel])
        lab, stack = labs.pop((kernel, host), (None, ExitStack()))
        if lab is None or not lab.alive:
            stack.close()
            while len(labs) >= ALIVE_MAX:
                labs.popitem(last=False)[1][1].close()
            stack = ExitStack()
            try:
                lab = stack.enter_context(boot(kernel, host))
            except NoKernelError as error:
                missing[kernel] = f"not tested: {error}"
                pytest.skip(missing[kernel])
        labs[kernel, host] = lab, stack
        return lab

    try:
        yield get
    finally:
        for _, stack in labs.values():
            stack.close()


@pytest.fixture
def lab(request: pytest.FixtureRequest, get_lab: GetLab) -> Lab:
    """A host with two PMUs; once for each kernel, or as an indirect parameter says."""
    return get_lab(request.param, "two")


@pytest.fixture
def lab_newest(get_lab: GetLab) -> Lab:
    """A host with two PMUs and the newest kernel."""
    return get_lab("newest", "two")


@pytest.fixture
def lab_one(get_lab: GetLab) -> Lab:
    """A host with one PMU."""
    return get_lab("newest", "one")
