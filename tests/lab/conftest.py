# SPDX-License-Identifier: Apache-2.0
"""The labs of a test session: each is booted when first asked for, and shared by all tests."""

from collections.abc import Generator
from pathlib import Path
from typing import Protocol

import pytest

from tests.lab.errors import NoKernelError
from tests.lab.hosts import ALL_KERNELS, KERNELS
from tests.lab.machine import Lab
from tests.lab.pool import Pool
from tests.scheduling import is_of_lab
from tests.skips import skip

POOL = pytest.StashKey[Pool]()


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
    """Mark every test that needs a host; in each file, let those of one host follow each other."""
    places = [place for place, item in enumerate(items) if is_of_lab(item.nodeid)]
    of_lab = [items[place] for place in places]
    for item in of_lab:
        item.add_marker(pytest.mark.lab)
    files = {path: number for number, path in enumerate(dict.fromkeys(i.path for i in of_lab))}
    of_lab.sort(key=lambda item: (files[item.path], host_of(item)))
    for place, item in zip(places, of_lab, strict=True):
        items[place] = item


def host_of(item: pytest.Item) -> str:
    """The host that a test names as its parameter; "" if it names none."""
    call = getattr(item, "callspec", None)
    return str(call.params.get("host", "")) if call else ""


def pytest_configure(config: pytest.Config) -> None:
    """Have labs for as long as the session runs."""
    config.stash[POOL] = pool = Pool()
    config.add_cleanup(pool.close)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin the labs' journals anew."""
    for lab in item.config.stash[POOL]:
        lab.journal.begin()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a test that failed what it asked of its labs, and what they said."""
    report = yield
    if report.failed:
        for lab in item.config.stash[POOL]:
            if lab.journal.is_used:
                report.sections.append((f"lab: {lab.kernel}, {lab.host}", lab.journal.text()))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Pause the labs after each test, and end them after the last one of this folder."""
    try:
        return (yield)
    finally:
        pool = item.config.stash[POOL]
        if nextitem is None or not nextitem.path.is_relative_to(Path(__file__).parent):
            pool.close()
        else:
            pool.pause()


@pytest.fixture(scope="session")
def get_lab(request: pytest.FixtureRequest) -> GetLab:
    """Get the lab with this kernel and this host; one that died is replaced.

    Skips the test where the archive has no such kernel (any more).
    """
    pool = request.config.stash[POOL]

    def get(kernel: str, host: str, layers: tuple[str, ...] = ()) -> Lab:
        try:
            return pool.get(kernel, host, layers)
        except NoKernelError as error:
            skip(f"not tested: {error}", runs="where the archive has that kernel")

    return get


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
