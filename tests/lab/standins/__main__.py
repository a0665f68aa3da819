# SPDX-License-Identifier: Apache-2.0
"""The stand-ins' command line.

Says a line of JSON for each call to KVM ("call"), each vCPU's round ("event": "run") and the
state of its threads at the end ("event": "status"). Exit status 0 when it ended as asked, 1 when
KVM refused something, 2 for wrong words, which is then told on stderr; or as the real VMM's.

Neither argparse nor dataclasses here, nor in what this imports: under emulation they are two
thirds of a stand-in's life.
"""

import getopt
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tests.lab.cpulist import parse_cpus
from tests.lab.standins.kinds import KINDS, Course
from tests.lab.standins.talk import PR_SET_DUMPABLE, Waits, fork_helper, prctl, say, say_status
from tests.lab.standins.vm import Plan, StandinVm


class Options(NamedTuple):
    """The words of the command line: KIND, and options of these names.

    `move` (V=CPUS) has vCPU V's thread put itself on these CPUs after its first round; with
    `vcpu_affinity` all put themselves there. `wait_at` start, init or round: wait for a byte of
    input before the VM, after its first vCPU, or its first round.
    """

    vmm: str
    wait_at: Sequence[str]
    move: Sequence[tuple[int, frozenset[int]]]
    name: str | None = None
    """For who reads the command line, as `pmu`."""
    pmu: bool = False
    helper: bool = False
    """Fork a process that has its descriptors."""
    vcpus: int = 2
    no_pmu: bool = False
    """Make vCPUs without the PMUv3 feature."""
    never: bool = False
    """Make no VM, and end after a second."""
    nodump: bool = False
    """PR_SET_DUMPABLE 0 before the VM is made."""
    fork: bool = False
    """Become a daemon before the VM is made."""
    signal_ms: float | None = None
    """Have a SIGALRM that often."""
    vms: int = 1
    """VMs to make, each once the one before has run."""
    reboot: bool = False
    """Close each VM once it has run: as a reboot, if there are more."""
    after: float = 0
    """Seconds to stay at the end."""
    rounds: int = 1
    """Rounds that each vCPU runs."""
    pause: float = 0.2
    """Seconds between two rounds."""
    vcpu_affinity: frozenset[int] | None = None
    pmu_type: int | None = None
    """kvmtool: insist on this PMU."""


def main(argv: Sequence[str] | None = None) -> int:
    """Be the VMM that these words ask for; returns the exit status."""
    try:
        options = _parse(sys.argv[1:] if argv is None else argv)
    except (getopt.GetoptError, ValueError) as error:
        print(f"stand-in: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as in a program that is not Python's
    ready = _daemonize() if options.fork else None
    if options.nodump:
        prctl(PR_SET_DUMPABLE, 0)
    if options.signal_ms:
        _send_signals(options.signal_ms / 1000)
    waits = Waits(options.wait_at)
    say(event="started", pid=os.getpid())
    waits.at("start")
    if options.never:
        time.sleep(1)
        return 0
    plan = Plan(
        vcpus=options.vcpus,
        vpmu=not options.no_pmu,
        rounds=options.rounds,
        pause=options.pause,
        affinity=options.vcpu_affinity,
        move=dict(options.move),
        waits=waits,
    )
    course = Course(pmu_type=options.pmu_type, reboot=options.reboot, vms=options.vms)

    def started(vm: StandinVm) -> None:
        if ready is not None and not vm.number:
            os.write(ready, b"1")
            os.close(ready)
        if options.helper and not vm.number:
            fork_helper()

    try:
        KINDS[options.vmm](plan, course, started)
    except OSError as error:
        print(f"{options.vmm}: {error}", file=sys.stderr)
        return 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # Python takes its handlers back at its end
    _stay(options.after)
    say_status()
    return 0


def _daemonize() -> int:
    """Go on as a daemon, as QEMU's -daemonize: a file to write to when ready.

    The first process waits for that and exits 0; or 1, if the daemon ends before.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os._exit(0 if os.read(reader, 1) else 1)
    os.close(reader)
    os.setsid()
    if os.fork():
        os._exit(0)
    return writer


def _send_signals(interval: float) -> None:
    """SIGALRM again and again, whose handler wants interrupted calls to be restarted."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, False)  # noqa: FBT003 - takes no keyword
    signal.setitimer(signal.ITIMER_REAL, interval, interval)


def _stay(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(left)


def _parse(argv: Sequence[str]) -> Options:
    found: dict[str, Any] = {"wait_at": [], "move": []}
    pairs, words = getopt.gnu_getopt(argv, "", [*FLAGS, *(f"{name}=" for name in VALUES)])
    for option, text in pairs:
        name = option.removeprefix("--")
        key = name.replace("-", "_")
        value = VALUES[name](text) if name in VALUES else True
        if key in ("wait_at", "move"):
            found[key].append(value)
        else:
            found[key] = value
    (vmm,) = words
    if vmm not in KINDS:
        raise ValueError(f"{vmm}: no such VMM; there are {', '.join(KINDS)}")
    return Options(vmm, **found)


def _point(text: str) -> str:
    if text not in POINTS:
        raise ValueError(f"{text}: no such point; there are {', '.join(POINTS)}")
    return text


def _cpus(text: str) -> frozenset[int]:
    return frozenset(parse_cpus(text))


def _move(text: str) -> tuple[int, frozenset[int]]:
    vcpu, _, cpus = text.partition("=")
    return int(vcpu), _cpus(cpus)


POINTS = ("start", "init", "round")
FLAGS = ("fork", "helper", "never", "no-pmu", "nodump", "pmu", "reboot")
VALUES: Mapping[str, Callable[[str], Any]] = {
    "after": float,
    "move": _move,
    "name": str,
    "pause": float,
    "pmu-type": int,
    "rounds": int,
    "signal-ms": float,
    "vcpu-affinity": _cpus,
    "vcpus": int,
    "vms": int,
    "wait-at": _point,
}


if __name__ == "__main__":
    sys.exit(main())
