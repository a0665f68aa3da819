# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests: captured machines as roots to read from."""

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]

from tests.scheduling import LabScheduling, scope_of
from tests.seconds import Stopwatch, read_seconds

MEMORY = "/dev/shm"
MEMORY_BYTES = 2 << 30
"""What has to be free there: a whole run leaves a tenth of it."""

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


def pytest_configure(config: pytest.Config) -> None:
    """Time the files of tests, in the process that tells of them; keep their files in memory."""
    if not hasattr(config, "workerinput"):
        if has_memory_for_files():
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)
        is_update = "UPDATE_SECONDS" in os.environ
        config.pluginmanager.register(Stopwatch(scope_of, is_update=is_update))


def has_memory_for_files() -> bool:
    """Whether there is room in memory for the trees that tests make, and run programs from.

    Thousands of them have hundreds of files each: half the time of such a test goes to a disk.
    """
    try:
        free = os.statvfs(MEMORY)
    except OSError:
        return False
    has_room = free.f_bavail * free.f_frsize >= MEMORY_BYTES
    return has_room and os.access(MEMORY, os.W_OK) and not free.f_flag & os.ST_NOEXEC


def pytest_collection_finish() -> None:
    """Keep the collector from looking again and again through what stays to the end."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Have more workers than CPUs where no emulated host keeps one busy: half of it is waiting."""
    if config.option.markexpr != "not lab":
        return None
    cpus = len(os.sched_getaffinity(0))
    return cpus + (cpus + 1) // 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LabScheduling:
    """Say which worker runs which tests."""
    return LabScheduling(config, log, read_seconds())


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
