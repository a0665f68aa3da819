# SPDX-License-Identifier: Apache-2.0
"""How long pmuctl takes from start to end, as ratios to a bare Python start in the same run.

Every command runs once in each round, so that a machine whose speed drifts hits all alike; the
figure is the median over the rounds. `virsh`, where it is installed, is a yardstick. Byte code is
kept, as where pmuctl is installed, even if PYTHONDONTWRITEBYTECODE is set here.
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
from tests.fakes.vmm import fake_vmm

BIN = Path(sys.executable).parent
PMUCTL = str(BIN / "pmuctl")
VMS = ("web1", "web2", "db1")

DRY_RUN = """
import gc, os, sys
gc.disable()
from pathlib import Path
from pmuctl.cli.main import main
from pmuctl.cli.context import Context
from pmuctl.render.streams import standard_streams
from pmuctl.host.host import Host
from pmuctl.host.kvm.access import Kvm
from pmuctl.host.kvm.access import KvmAccess
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.kvm_caps import ATTR_NAMES
from pmuctl.model.kvm_caps import KvmCaps
caps = KvmCaps(has_vpmu=True, attributes=frozenset(ATTR_NAMES), event_bits=16,
               counters={8: 6, 9: 6, 10: 6, 11: 6})
host = Host(environ=os.environ, uid=os.geteuid(), sysfs=Sysfs(Path(sys.argv[1])),
            kvm=Kvm(access=lambda: KvmAccess.USABLE, probe=lambda _: caps))
stdout, stderr = standard_streams()
context = Context(stdout=stdout, stderr=stderr, host=host)
settings = ["--pmu", "*a55", "--filter", "default deny allow cpu_cycles"]
os._exit(main(["run", "--dry-run", *settings, "--", "true"], context))
"""
"""The dry run on another host, of whose KVM is known what probes would find; as `run` does, it
collects no garbage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One command; `goal` is the largest ratio to a bare start that is aimed at."""

    name: str
    command: Sequence[str]
    goal: float | None = None
    is_on_terminal: bool = False


def cases(sysroot: Path) -> list[Case]:
    """What is measured: the bare start first."""
    captured = ("--sysroot", str(sysroot))
    listing = [PMUCTL, "pmu", "list", *captured]
    dry_run = [str(BIN / "python"), "-P", "-c", DRY_RUN, str(sysroot)]
    tab = [PMUCTL, "__complete", "events", "--socket=", "web1"]
    found = [
        Case(name="python3 -I -c pass", command=[str(BIN / "python"), "-I", "-c", "pass"]),
        Case(name="pmuctl --version", command=[PMUCTL, "--version"], goal=1.8),
        Case(name="pmuctl pmu list, piped", command=listing, goal=6.5),
        Case(name="pmuctl pmu list, terminal", command=listing, goal=8.5, is_on_terminal=True),
        Case(name="pmuctl vm list, piped", command=[PMUCTL, "vm", "list", *captured], goal=9),
        Case(
            name="pmuctl vm show, piped", command=[PMUCTL, "vm", "show", "web1", *captured], goal=9
        ),
        Case(name="pmuctl run --dry-run", command=dry_run, goal=9),
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


def check(its: Sequence[Case]) -> None:
    """Run each once: what is quick and fails is no figure. TAB has nobody to ask, and says so."""
    for case in its:
        ran = subprocess.run(case.command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0 or "__complete" in case.command, (case.name, ran)


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
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        unpack(DUMPS / "rk3588-like.txt", root)
        for number, name in enumerate(VMS, 1):
            words = ("qemu-system-aarch64", "-name", f"guest={name},debug-threads=on")
            fake_vmm(root / "proc", 5120 * number, words)
        its = cases(root)
        check(its)
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
