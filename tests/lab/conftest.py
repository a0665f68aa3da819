# SPDX-License-Identifier: Apache-2.0
"""The labs of a test session: each is booted when first asked for, and shared by all tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.machine import Lab, boot

# A long-term series that distributions ship, and the newest there is.
KERNELS = ("6.12", "newest")

GetLab = Callable[[str, str], Lab]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, and keep those of one kernel with one worker's lab."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.lab)
            call = getattr(item, "callspec", None)
            kernel = call.params.get("lab", "newest") if call else "newest"
            item.add_marker(pytest.mark.xdist_group(f"lab-{kernel}"))


@pytest.fixture(scope="session")
def get_lab() -> Iterator[GetLab]:
    """The lab with this kernel and this host; one that died is replaced."""
    with ExitStack() as stack:
        labs: dict[tuple[str, str], Lab] = {}

        def get(kernel: str, host: str) -> Lab:
            lab = labs.get((kernel, host))
            if lab is None or not lab.alive:
                lab = labs[kernel, host] = stack.enter_context(boot(kernel, host))
            return lab

        yield get


@pytest.fixture(params=KERNELS)
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
