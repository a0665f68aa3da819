# SPDX-License-Identifier: Apache-2.0
"""What `pmuctl run` costs a VMM: from its execve to its first KVM_RUN, with and without.

In the lab, with a real QEMU, and natively where there is a /dev/kvm. All starts of a kernel are in
one boot, warm, turn about; the figure is the ratio of the medians.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.bench.native import can_be_native, native_seconds
from tests.lab.errors import LabError
from tests.lab.machine import Lab, boot
from tests.lab.runs import RESIDENT_MAX, resident
from tests.lab.tracing import trace
from tests.lab.vmms import put_bare_metal, qemu

ROUNDS = 9
PMU = "armv8_cortex_a53"
GOALS = {"6.1": 1.4, "newest": 1.2, "native": 1.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The seconds of each start, and of the supervisor: its stops and its resident memory (kB)."""

    place: str
    without: Sequence[float]
    gated: Sequence[float]
    stops: int | None = None
    resident: int | None = None

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return statistics.median(self.gated) / statistics.median(self.without)


def in_lab(kernel: str, rounds: int) -> Cost:
    """QEMU 7.2 with two vCPUs and a guest that powers off; one PMU's CPUs in both cases."""
    without: list[float] = []
    gated: list[float] = []
    with boot(kernel, "two", "3G", layers=("qemu-7.2",)) as lab:
        guest = qemu("7.2", *put_bare_metal(lab))
        pinned = ["taskset", "-c", "0-1", *guest]
        supervised = ["pmuctl", "run", "--name", "bench", "--pmu", PMU, "--", *guest]
        for turn in range(rounds + 1):
            first = seconds(lab, pinned), seconds(lab, supervised)
            if turn:  # the first ones read the programs in
                without.append(first[0])
                gated.append(first[1])
        stops, resident = supervisor(lab)
    return Cost(place=kernel, without=without, gated=gated, stops=stops, resident=resident)


def seconds(lab: Lab, command: Sequence[str]) -> float:
    """From the exec of a VMM to its first KVM_RUN."""
    with trace(lab) as seen:
        job = lab.start(list(command))
        if (ended := job.wait()).status:
            raise LabError(f"{command}: {ended}")
        first = seen.start_of(job.pid).first_run
    if first is None:
        raise LabError(f"{command}: it never ran its guest")
    return first


def supervisor(lab: Lab) -> tuple[int, int]:
    """Stops and resident memory of a supervisor whose VM runs, after a client has asked it."""
    guest = qemu("7.2", *put_bare_metal(lab, "spin"))
    job = lab.start(["pmuctl", "run", "--name", "rss", "--pmu", PMU, "--", *guest])
    try:
        job.wait_for(r"(?s)(GUEST.*\n){2}")
        waited = ["pmuctl", "vm", "wait", "rss", "--for", "running", "--timeout", "20"]
        lab.run(waited, check=True)
        record = json.loads(lab.read_file("/run/pmuctl/rss.sock.json"))
        kept = resident(lab, record["supervisor"])
    finally:
        job.kill()
        job.wait()
    return record["stops"], kept


def natively(rounds: int) -> Cost:
    """A small VMM on this machine's own KVM."""
    pairs = [(native_seconds(gated=False), native_seconds(gated=True)) for _ in range(rounds + 1)]
    without, gated = zip(*pairs[1:], strict=True)
    return Cost(place="native", without=without, gated=gated)


def lines(cost: Cost) -> Iterator[str]:
    """A cost in words, with what was missed."""
    goal = GOALS[cost.place]
    missed = "  missed" if cost.ratio >= goal else ""
    yield (
        f"{cost.place:8} without {statistics.median(cost.without):.3f} s, "
        f"with {statistics.median(cost.gated):.3f} s: ratio {cost.ratio:.2f} (goal {goal}){missed}"
    )
    spread = [f"{min(its):.3f}-{max(its):.3f}" for its in (cost.without, cost.gated)]
    yield f"{'':8} lowest and highest: without {spread[0]}, with {spread[1]}"
    if cost.stops is not None and cost.resident is not None:
        missed = "  missed" if cost.resident >= RESIDENT_MAX else ""
        yield f"{'':8} {cost.stops} stops; supervisor {cost.resident} kB resident{missed}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and tell; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="tests/bench/run launch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("places", nargs="*", default=["6.1", "newest", "native"])
    options = parser.parse_args(argv)
    told: list[str] = []
    for place in options.places:
        if place == "native" and (why := can_be_native()):
            print(f"native   not measured: {why}")
            continue
        measure: Callable[[int], Cost] = natively
        cost = measure(options.rounds) if place == "native" else in_lab(place, options.rounds)
        for line in lines(cost):
            print(line, flush=True)
            told.append(line)
    return int(any(line.endswith("missed") for line in told))


if __name__ == "__main__":
    sys.exit(main())
