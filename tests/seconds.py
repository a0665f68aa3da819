# SPDX-License-Identifier: Apache-2.0
"""How long each file of tests takes, beside what it took when that was written down.

`UPDATE_SECONDS=1 tests/run` writes it down anew, on two CPUs that have nothing else to do.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

KEPT = Path(__file__).parent / "seconds.tsv"
GROWN = 4 / 3
NOISE = 15.0
"""Seconds by which a file must have grown to be named, too: more than the boot of a host takes,
which is counted with the first test that needs it."""
SHORT = 1.0
"""Seconds: what takes less is not told one by one."""

HEAD = "# seconds of each file of tests, the lab's by kernel; anew: UPDATE_SECONDS=1 tests/run"


def read_seconds(path: Path = KEPT) -> dict[str, float]:
    """Return the kept seconds by unit: a file, or "FILE on KERNEL" of the lab's."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = (line.split("\t") for line in lines if not line.startswith("#"))
    return {unit: float(seconds) for seconds, unit in rows}


def write_seconds(seconds: Mapping[str, float], path: Path = KEPT) -> None:
    """Write them down, the longest first."""
    rows = sorted(seconds.items(), key=lambda row: (-row[1], row[0]))
    lines = [HEAD, *(f"{value:.1f}\t{unit}" for unit, value in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def find_grown(now: Mapping[str, float], kept: Mapping[str, float]) -> list[str]:
    """Return the units that take over a third longer than they did, and over NOISE seconds."""
    return sorted(
        unit
        for unit, seconds in now.items()
        if unit in kept and seconds > max(kept[unit] * GROWN, kept[unit] + NOISE)
    )


def format_report(now: Mapping[str, float], kept: Mapping[str, float]) -> Iterator[str]:
    """Yield a line a unit, the longest last, and what has grown."""
    yield f"{'this run':>10} {KEPT.name:>11}"
    short = [unit for unit in now if max(now[unit], kept.get(unit, 0.0)) < SHORT]
    for unit, seconds in sorted(now.items(), key=lambda row: row[1]):
        before = f"{kept[unit]:11.1f}" if unit in kept else f"{'-':>11}"
        if unit not in short:
            yield f"{seconds:10.1f} {before} {unit}"
    yield f"{sum(now[unit] for unit in short):10.1f} {'':11} {len(short)} more files"
    both = now.keys() & kept.keys()
    whole, before_whole = sum(now[unit] for unit in both), sum(kept[unit] for unit in both)
    yield f"{whole:10.1f} {before_whole:11.1f} all that have a row there, workers side by side"
    for unit in find_grown(now, kept):
        yield (
            f"grown by more than a third: {unit} took {now[unit]:.1f} s, {KEPT.name} has "
            f"{kept[unit]:.1f} (on an idle machine, and meant: UPDATE_SECONDS=1 tests/run)"
        )


def is_chosen(config: pytest.Config) -> bool:
    """Whether the command line asks for some of the tests, or for more kernels."""
    option = config.option
    names = ("keyword", "markexpr", "all_kernels", "deselect", "lf", "ignore", "ignore_glob")
    return bool(any(getattr(option, name, None) for name in names) or option.file_or_dir)


class Stopwatch:
    """A plugin that adds up what each unit takes, and tells it at the end of the run."""

    def __init__(self, unit_of: Callable[[str], str], *, is_update: bool) -> None:
        """Of the tests by node id; with `is_update` what they take is written down."""
        self._unit_of = unit_of
        self._now: dict[str, float] = {}
        self._is_update = is_update

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a test's set-up, call or clean-up."""
        unit = self._unit_of(report.nodeid)
        self._now[unit] = self._now.get(unit, 0.0) + report.duration

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
    ) -> None:
        """Tell it."""
        if not self._now:
            return
        kept = read_seconds()
        terminalreporter.section("seconds by file, the lab's by kernel")
        for line in format_report(self._now, kept):
            terminalreporter.line(line)
        if self._is_update and (exitstatus or is_chosen(config)):
            terminalreporter.line("not written down: not all tests were to be run, or some failed")
        elif self._is_update:
            write_seconds(self._now)
            terminalreporter.line(f"written to {KEPT}")
