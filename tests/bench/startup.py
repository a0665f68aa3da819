# SPDX-License-Identifier: Apache-2.0
"""How long pmuctl takes from start to end, as ratios to a bare Python start in the same run.

Every command runs once in each round, so that a machine whose speed drifts hits all alike; the
figure is the median over the rounds. `virsh`, where it is installed, is a yardstick.
"""

import argparse
import os
import pty
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import DUMPS, unpack

BIN = Path(sys.executable).parent
PMUCTL = str(BIN / "pmuctl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One command; `goal` is the largest ratio to a bare start that is aimed at."""

    name: str
    command: Sequence[str]
    goal: float | None = None
    is_on_terminal: bool = False


def cases(sysroot: Path) -> list[Case]:
    """What is measured: the bare start first."""
    listing = [PMUCTL, "pmu", "list", "--sysroot", str(sysroot)]
    tab = [PMUCTL, "__complete", "events", "--socket=", "web1"]
    found = [
        Case(name="python3 -I -c pass", command=[str(BIN / "python"), "-I", "-c", "pass"]),
        Case(name="pmuctl --version", command=[PMUCTL, "--version"], goal=1.8),
        Case(name="pmuctl pmu list, piped", command=listing, goal=7),
        Case(name="pmuctl pmu list, terminal", command=listing, goal=10, is_on_terminal=True),
        Case(name="TAB that asks the program", command=tab, goal=1.8),
    ]
    if virsh := shutil.which("virsh"):
        driver = [virsh, "-c", "test:///default"]
        found += [
            Case(name="virsh --version", command=[virsh, "--version"]),
            Case(name="virsh list", command=[*driver, "list"]),
            Case(name="virsh complete", command=[*driver, "complete", "--", "dominfo", ""]),
        ]
    else:
        print("no virsh to compare with: install libvirt-clients", file=sys.stderr)
    return found


def run_piped(command: Sequence[str]) -> float:
    """Seconds for one run whose output nobody looks at."""
    begin = time.perf_counter()
    subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return time.perf_counter() - begin


def run_on_terminal(command: Sequence[str]) -> float:
    """Seconds for one run on a terminal of 100 columns."""
    parent, child = pty.openpty()
    begin = time.perf_counter()
    environ = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    with subprocess.Popen(
        command, stdin=child, stdout=child, stderr=subprocess.DEVNULL, env=environ
    ) as process:
        os.close(child)
        process.wait()
        taken = time.perf_counter() - begin
    os.close(parent)
    return taken


def measure(its: Sequence[Case], rounds: int) -> dict[str, float]:
    """The median seconds of each case over so many rounds, after one that does not count."""
    taken: dict[str, list[float]] = {case.name: [] for case in its}
    for number in range(rounds + 1):
        for case in its:
            run: Callable[[Sequence[str]], float] = (
                run_on_terminal if case.is_on_terminal else run_piped
            )
            seconds = run(case.command)
            if number:
                taken[case.name].append(seconds)
    return {name: statistics.median(times) for name, times in taken.items()}


def main(argv: Sequence[str]) -> int:
    """Measure, print a table, and return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="tests/bench/run startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="(%(default)s)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        unpack(DUMPS / "rk3588-like.txt", root)
        its = cases(root)
        medians = measure(its, options.rounds)
    bare = medians[its[0].name]
    missed = 0
    for case in its:
        ratio = medians[case.name] / bare
        verdict = ""
        if case.goal is not None:
            verdict = f"goal {case.goal:g}" + (": missed" if ratio > case.goal else "")
            missed += ratio > case.goal
        line = f"{case.name:27}  {medians[case.name] * 1000:6.1f} ms  {ratio:5.2f}  {verdict}"
        print(line.rstrip())
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
