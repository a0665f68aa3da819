# SPDX-License-Identifier: Apache-2.0
"""The labs of a test session: each is booted when first asked for, and shared by all tests."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.conftest import ALL_KERNELS, KERNELS
from tests.lab.errors import NoKernelError
from tests.lab.machine import Lab, boot

# A lab takes half a gigabyte of memory; with a QEMU inside, up to two.
ALIVE_MAX = 3

# With a QEMU inside, and what its guests take.
MEMORY_WITH_LAYERS = "3G"

# kernel, host, layers
Key = tuple[str, str, tuple[str, ...]]


class GetLab(Protocol):
    """How a test asks for a lab: by kernel, host and, if need be, more layers."""

    def __call__(self, kernel: str, host: str, layers: tuple[str, ...] = ()) -> Lab:
        """The lab; it may have more layers than those."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for a `lab` or `kernel` once for each kernel, unless it names its own.

    What is marked `one_kernel` runs on the newest alone, unless all kernels are asked for.
    """
    marks = metafunc.definition.iter_markers("parametrize")
    named = {name for mark in marks for name in str(mark.args[0]).split(",")}
    if named & {"lab", "qemu_lab", "kernel"}:
        return
    kernels = ALL_KERNELS if metafunc.config.getoption("--all-kernels") else KERNELS
    if kernels is KERNELS and metafunc.definition.get_closest_marker("one_kernel"):
        kernels = KERNELS[-1:]
    for name in ("lab", "qemu_lab"):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, kernels, indirect=True)
            return
    if "kernel" in metafunc.fixturenames:
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
    labs: OrderedDict[Key, tuple[Lab, ExitStack]] = OrderedDict()
    missing: dict[str, str] = {}

    def get(kernel: str, host: str, layers: tuple[str, ...] = ()) -> Lab:
        if kernel in missing:
            pytest.skip(missing[kernel])
        key = find_key(labs, (kernel, host, layers))
        lab, stack = labs.pop(key, (None, ExitStack()))
        if lab is None or not lab.alive:
            stack.close()
            while len(labs) >= ALIVE_MAX:
                labs.popitem(last=False)[1][1].close()
            stack = ExitStack()
            try:
                memory = MEMORY_WITH_LAYERS if key[2] else "2G"
                lab = stack.enter_context(boot(kernel, host, memory, layers=key[2]))
            except NoKernelError as error:
                missing[kernel] = f"not tested: {error}"
                pytest.skip(missing[kernel])
        labs[key] = lab, stack
        return lab

    try:
        yield get
    finally:
        for _, stack in labs.values():
            stack.close()


def find_key(keys: Iterable[Key], wanted: Key) -> Key:
    """Of the labs there are, the one that will do; what is wanted, if none will."""
    kernel, host, layers = wanted
    for key in keys:
        if key[:2] == (kernel, host) and set(layers) <= set(key[2]):
            return key
    return wanted


@pytest.fixture
def lab(request: pytest.FixtureRequest, get_lab: GetLab) -> Lab:
    """A host with two PMUs; once for each kernel, or as an indirect parameter says."""
    return get_lab(request.param, "two")


@pytest.fixture
def qemu_lab(request: pytest.FixtureRequest, get_lab: GetLab) -> Lab:
    """The same with QEMU 7.2 inside (tests/lab/layers.py): `qemu-7.2` is its command."""
    return get_lab(request.param, "two", ("qemu-7.2",))


@pytest.fixture
def lab_newest(get_lab: GetLab) -> Lab:
    """A host with two PMUs and the newest kernel."""
    return get_lab("newest", "two")


@pytest.fixture
def lab_one(get_lab: GetLab) -> Lab:
    """A host with one PMU."""
    return get_lab("newest", "one")
