# SPDX-License-Identifier: Apache-2.0
"""How long `vm list` takes on a host of very many processes, and that this grows in proportion.

A made-up /proc of 10,000 processes, 1,000 of them VMMs of 8 vCPUs, beside smaller ones of the same
mix; and the true one with 2,000 processes more. Times are of whole runs of pmuctl, `lsfd` and
`virsh list` are yardsticks in the same rounds.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.startup import PMUCTL, run_piped
from tests.conftest import DUMPS, unpack

SIZES = (2_500, 5_000, 10_000)
VMS_IN, VCPUS = 10, 8
"""One process in so many is a VMM, of so many vCPUs."""
REAL = 2_000
GOAL_SECONDS = 1.0
GOAL_GROWTH = 1.3
"""How much longer four times as many processes may take than four times as long."""

LIVE = """
import os, sys
from pathlib import Path
from pmuctl.cli.context import Context
from pmuctl.cli.main import main
from pmuctl.host.host import Host
from pmuctl.host.procfs import Procfs
from pmuctl.host.sysfs import Sysfs
root = Path(sys.argv[1])
host = Host(environ=os.environ, uid=os.geteuid(), sysfs=Sysfs(root), procs=Procfs(root / "proc"))
status = main(["vm", "list"], Context(stdout=sys.stdout, stderr=sys.stderr, host=host))
sys.stdout.flush()
sys.exit(status)
"""
"""pmuctl on another /proc, read as its own: masks are asked of the kernel."""

LSFD_GOAL = 1.0
"""How long `vm list` may take where lsfd takes 1 on the same /proc."""
ON_PROC = ("unshare", "-m", "sh", "-c", 'mount --bind "$0" /proc && exec "$@"')
"""Runs what follows the path of a /proc on that one, in a mount namespace of its own."""


def grow(root: Path, count: int) -> None:
    """A /proc of so many processes below `root`, as far as pmuctl reads it."""
    proc = root / "proc"
    for pid in range(1, count + 1):
        folder = proc / str(pid)
        fds = folder / "fd"
        fds.mkdir(parents=True)
        for fd in range(3):
            os.symlink("/dev/null", fds / str(fd))
        if pid % VMS_IN == 0:
            grow_vm(folder, pid)
        else:
            for fd in range(3, 12):
                os.symlink(f"socket:[{pid}{fd}]", fds / str(fd))


def grow_vm(folder: Path, pid: int) -> None:
    """The files of one VMM."""
    os.symlink("anon_inode:kvm-vm", folder / "fd/9")
    words = ("qemu-system-aarch64", "-name", f"guest=vm{pid},debug-threads=on", "-cpu", "host")
    (folder / "cmdline").write_text("\0".join(words) + "\0")
    for number in range(VCPUS + 2):
        # thread ids that no thread has: the leader's is the process's
        tid = pid if number == 0 else 5_000_000 + pid * 16 + number
        vcpu = number - 1 if 0 < number <= VCPUS else None
        if vcpu is not None:
            os.symlink(f"anon_inode:kvm-vcpu:{vcpu}", folder / f"fd/{10 + vcpu}")
        name = "qemu-system-aar" if vcpu is None else f"CPU {vcpu}/KVM"
        task = folder / "task" / str(tid)
        task.mkdir(parents=True)
        fields = ["S", *["0"] * 18, "100", *["0"] * 16, "1", *["0"] * 3, "7", "0"]
        files = {
            "stat": f"{tid} ({name}) {' '.join(fields)}\n",
            "comm": f"{name}\n",
            "status": f"Name:\t{name}\nPPid:\t1\nUid:\t0\t0\t0\t0\nCpus_allowed_list:\t0-7\n",
        }
        for file, text in files.items():
            (task / file).write_text(text)
            if number == 0:
                (folder / file).write_text(text)


@contextlib.contextmanager
def many_processes(count: int) -> Iterator[None]:
    """So many processes that sleep."""
    running = []
    try:
        for _ in range(count):
            running.append(subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL))
        yield
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def yardsticks() -> dict[str, Sequence[str]]:
    """Programs that look at the same: what is not installed is told."""
    found: dict[str, Sequence[str]] = {}
    for name, argv in (("lsfd", ["lsfd"]), ("virsh", ["virsh", "-c", "test:///default", "list"])):
        if shutil.which(name):
            found[" ".join(argv[:1] + argv[3:])] = argv
        else:
            print(f"no {name} to compare with", file=sys.stderr)
    return found


def medians(cases: dict[str, Sequence[str]], rounds: int) -> dict[str, float]:
    """The median seconds of each, after a run that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, argv in cases.items():
            seconds = run_piped(argv)
            if number:
                taken[name].append(seconds)
    return {name: statistics.median(its) for name, its in taken.items()}


def main(argv: Sequence[str]) -> int:
    """Measure, print, and return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="tests/bench/run listing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    rounds = parser.parse_args(argv).rounds
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        cases: dict[str, Sequence[str]] = {}
        for size in SIZES:
            root = Path(folder) / str(size)
            root.mkdir()
            unpack(DUMPS / "rk3588-like.txt", root)
            grow(root, size)
            cases[f"{size} processes"] = [sys.executable, "-P", "-c", LIVE, str(root)]
            cases[f"{size} processes, --sysroot"] = [
                *(PMUCTL, "vm", "list", "--sysroot", str(root))
            ]
        check(cases)
        taken = medians(cases, rounds)
        missed = compare_with_lsfd(Path(folder) / str(SIZES[-1]) / "proc", rounds)
        live = [PMUCTL, "vm", "list"]
        taken["this host"] = medians({"": live}, rounds)[""]
        with many_processes(REAL):
            beside = {f"this host and {REAL} more": live, **yardsticks()}
            taken |= medians(beside, rounds)
    missed += report(taken)
    return 1 if missed else 0


def compare_with_lsfd(proc: Path, rounds: int) -> int:
    """Print how `vm list` and lsfd do on one /proc, as tables and in JSON; the goals missed."""
    if not shutil.which("lsfd") or os.geteuid() != 0:
        print("lsfd is not compared with: that takes root and util-linux 2.38", file=sys.stderr)
        return 0
    missed = 0
    for form, options in (("a table", ()), ("JSON", ("-J",))):
        ours = [*ON_PROC, str(proc), PMUCTL, "vm", "list", *options]
        theirs = [*ON_PROC, str(proc), "lsfd", *options]
        ran = subprocess.run(ours, capture_output=True, text=True, check=False)
        assert ran.stdout.count('"running"' if options else "running") == SIZES[-1] // VMS_IN, ran
        taken = medians({"ours": ours, "theirs": theirs}, rounds)
        ratio = taken["ours"] / taken["theirs"]
        missed += ratio > LSFD_GOAL
        verdict = ": missed" if ratio > LSFD_GOAL else ""
        print(
            f"{form + ', times lsfd':28}  {taken['ours'] * 1000:7.1f} ms  {ratio:.2f}  "
            f"goal {LSFD_GOAL:g}{verdict}"
        )
    return missed


def check(cases: dict[str, Sequence[str]]) -> None:
    """That all VMs are listed: what is quick and wrong is no figure."""
    for (name, argv), size in zip(
        cases.items(), [its for its in SIZES for _ in "ab"], strict=True
    ):
        ran = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert ran.stdout.count("running") == size // VMS_IN, (name, ran.stderr[:2000])


def report(taken: dict[str, float]) -> int:
    """Print the figures; how many goals are missed."""
    missed = 0
    for name, seconds in taken.items():
        verdict = ""
        if name.startswith(str(SIZES[-1])):
            small = taken[name.replace(str(SIZES[-1]), str(SIZES[0]), 1)]
            growth = seconds / small / (SIZES[-1] / SIZES[0])
            is_late, is_steep = seconds > GOAL_SECONDS, growth > GOAL_GROWTH
            verdict = f"goal {GOAL_SECONDS:g} s" + (": missed" if is_late else "")
            verdict += f", growth {growth:.2f}, goal {GOAL_GROWTH:g}"
            verdict += ": missed" if is_steep else ""
            missed += is_late + is_steep
        print(f"{name:28}  {seconds * 1000:7.1f} ms  {verdict}".rstrip())
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
