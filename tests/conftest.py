# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests: captured machines as roots to read from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

# The oldest and the newest kernel, and with --all-kernels long-term ones between them.
KERNELS: tuple[str, ...] = ("6.1", "newest")
ALL_KERNELS: tuple[str, ...] = ("6.1", "6.12", "6.18", "newest")

LINE = "line"
"""record_property("line", …) puts a line into the summary at the end of the run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/run; here, where they are known from the project's root too."""
    group = parser.getgroup("the lab")
    group.addoption(
        "--all-kernels", action="store_true", help="not only the oldest and the newest kernel"
    )
    group.addoption(
        "--kvm-seed",
        type=int,
        default=1,
        metavar="N",
        help="the seed of the random calls made on the model and the kernels (%(default)s)",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """The tests of a file that share a lab, and what was found out in it, stay with one worker.

    Not by xdist's own groups: with pytest 9.2 xdist 3.8 loses them on the way, and says nothing.
    """
    return LabScheduling(config, log)


class LabScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Deals out single tests, and those of the lab by their kernel and file."""

    def _split_scope(self, nodeid: str) -> str:
        return lab_group(nodeid)


def lab_group(nodeid: str) -> str:
    """What is to be run by one worker: a test that needs no lab, or a file's tests of a kernel.

    They share their labs. A group for a kernel's tests of all files would save some boots of a few
    seconds each, and have one worker wait for many minutes in the end.
    """
    path, _, test = nodeid.partition("::")
    if not path.startswith("tests/lab/"):
        return nodeid
    parameters = test.partition("[")[2].removesuffix("]").split("-")
    kernel = next((its for its in parameters if its in ALL_KERNELS), "newest")
    return f"{path} on {kernel}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What passing tests have counted."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    lines = [text for report in reports for key, text in report.user_properties if key == LINE]
    if lines:
        seed = terminalreporter.config.getoption("--kvm-seed")
        terminalreporter.section(f"the model and the kernels (--kvm-seed {seed})")
        for line in sorted(map(str, lines)):
            terminalreporter.line(line)


DUMPS = Path(__file__).parent / "dumps"


def unpack(dump: Path, root: Path) -> None:
    """Lay out a dump below `root`: lines of path, kind (dir, file, link) and a JSON string."""
    for line in dump.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        path, kind, value = line.split("\t")
        content = json.loads(value)
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        match kind:
            case "dir":
                target.mkdir(exist_ok=True)
            case "file":
                target.write_text(content, encoding="utf-8", newline="")
            case "link":
                target.symlink_to(content)
            case _:
                raise ValueError(f"{dump}: kind {kind!r} of {path}")


@pytest.fixture
def dump(tmp_path: Path) -> Callable[[str], Path]:
    """Unpacks tests/dumps/NAME.txt and gives the root to pass to `Sysfs` or --sysroot."""

    def unpacked(name: str) -> Path:
        root = tmp_path / name
        unpack(DUMPS / f"{name}.txt", root)
        return root

    return unpacked
