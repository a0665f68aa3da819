# SPDX-License-Identifier: Apache-2.0
"""The stand-ins' command line.

Says a line of JSON for each call to KVM ("call"), each vCPU's round ("event": "run") and the
state of its threads at the end ("event": "status"). Exit status 0 when it ended as asked, 1 when
KVM refused something, which is then told on stderr; or as the real VMM's.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence

from pmuctl.model.cpuset import CpuSet
from tests.lab.standins.kinds import KINDS, Course
from tests.lab.standins.talk import PR_SET_DUMPABLE, Waits, fork_helper, prctl, say, say_status
from tests.lab.standins.vm import Plan, StandinVm


def main(argv: Sequence[str] | None = None) -> int:
    """Be the VMM that these words ask for; returns the exit status."""
    options = _parser().parse_args(argv)
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
    course = Course(pmu_type=options.pmu_type, reboot=options.reboot, second_vm=options.second_vm)

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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab.standins", description=__doc__)
    add = parser.add_argument
    add("vmm", choices=KINDS, help="whose ways")
    add("--name", help="nothing: for who reads the command line")
    add("--pmu", action="store_true", help="the same")
    add("--helper", action="store_true", help="fork a process that has its descriptors")
    add("--vcpus", type=int, default=2, metavar="N", help="(default: %(default)s)")
    add("--no-pmu", action="store_true", help="vCPUs without the PMUv3 feature")
    add("--never", action="store_true", help="make no VM, and end after a second")
    add("--nodump", action="store_true", help="PR_SET_DUMPABLE 0 before the VM is made")
    add("--fork", action="store_true", help="become a daemon before the VM is made")
    add("--signal-ms", type=float, metavar="MS", help="have a SIGALRM that often")
    add("--second-vm", action="store_true", help="make another VM once the first has run")
    add("--reboot", action="store_true", help="the same, and the first is closed before")
    add(
        "--wait-at",
        action="append",
        default=[],
        choices=("start", "init", "round"),
        help="wait for a byte of input: before the VM, after its first vCPU, or its first round",
    )
    add("--after", type=float, default=0, metavar="SEC", help="stay so long at the end")
    add("--rounds", type=int, default=1, metavar="N", help="rounds each vCPU runs (1)")
    add("--pause", type=float, default=0.2, metavar="SEC", help="between two rounds (0.2)")
    add(
        "--move",
        type=_move,
        action="append",
        default=[],
        metavar="V=CPUS",
        help="vCPU V's thread puts itself on these CPUs after its first round",
    )
    add("--vcpu-affinity", type=_cpus, metavar="CPUS", help="vCPU threads put themselves there")
    add("--pmu-type", type=int, metavar="N", help="kvmtool: insist on this PMU")
    return parser


def _cpus(text: str) -> frozenset[int]:
    try:
        return frozenset(CpuSet.parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _move(text: str) -> tuple[int, frozenset[int]]:
    vcpu, _, cpus = text.partition("=")
    return int(vcpu), _cpus(cpus)


if __name__ == "__main__":
    sys.exit(main())
