# SPDX-License-Identifier: Apache-2.0
"""What `pmuctl run` costs a VMM: from its execve to its first KVM_RUN, with and without.

In the lab, with a real QEMU and (`lkvm`, on the newest kernel) with the stand-in of kvmtool, which
starts in a fraction of QEMU's time; and natively where there is a /dev/kvm. All starts of a place
are in one boot, warm, turn about; the figure is the ratio of the medians.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from tests.bench.native import can_be_native, native_seconds
from tests.lab.errors import LabError
from tests.lab.machine import Lab, boot
from tests.lab.runs import RESIDENT_MAX, resident
from tests.lab.tracing import trace
from tests.lab.vmms import put_bare_metal, qemu, standin

ROUNDS = 9
PMU = "armv8_cortex_a53"
GOALS = {"6.1": 1.4, "newest": 1.2, "lkvm": None, "native": 1.1}
"""Place → the ratio that is promised; of a VMM that starts in no time it is only told."""


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
    with boot(kernel, "two", "3G", layers=("qemu-7.2",)) as lab:
        without, gated = measure_starts(lab, qemu("7.2", *put_bare_metal(lab)), rounds)
        stops, resident = supervisor(lab)
    return Cost(place=kernel, without=without, gated=gated, stops=stops, resident=resident)


def of_a_fast_vmm(rounds: int) -> Cost:
    """The stand-in of kvmtool with two vCPUs, which run once."""
    with boot("newest", "two", "3G") as lab:
        without, gated = measure_starts(lab, standin("kvmtool"), rounds)
    return Cost(place="lkvm", without=without, gated=gated)


def measure_starts(
    lab: Lab, vmm: Sequence[str], rounds: int
) -> tuple[Sequence[float], Sequence[float]]:
    """Return the seconds of starts on the CPUs of one PMU, without and with the gate."""
    pinned = ["taskset", "-c", "0-1", *vmm]
    supervised = ["pmuctl", "run", "--name", "bench", "--pmu", PMU, "--", *vmm]
    pairs = [(seconds(lab, pinned), seconds(lab, supervised)) for _ in range(rounds + 1)]
    without, gated = zip(*pairs[1:], strict=True)  # the first ones read the programs in
    return without, gated


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
    missed = "  missed" if goal is not None and cost.ratio >= goal else ""
    yield (
        f"{cost.place:8} without {statistics.median(cost.without):.3f} s, "
        f"with {statistics.median(cost.gated):.3f} s: ratio {cost.ratio:.2f} "
        f"(goal {goal or 'none'}){missed}"
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
    parser.add_argument("places", nargs="*", default=list(GOALS))
    options = parser.parse_args(argv)
    told: list[str] = []
    for place in options.places:
        if place == "native" and (why := can_be_native()):
            print(f"native   not measured: {why}")
            continue
        others: dict[str, Callable[[int], Cost]] = {"native": natively, "lkvm": of_a_fast_vmm}
        measure = others.get(place, partial(in_lab, place))
        cost = measure(options.rounds)
        for line in lines(cost):
            print(line, flush=True)
            told.append(line)
    return int(any(line.endswith("missed") for line in told))


if __name__ == "__main__":
    sys.exit(main())
