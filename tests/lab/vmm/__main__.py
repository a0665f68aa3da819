# SPDX-License-Identifier: Apache-2.0
"""The reference VMM's command line and course: make the VM, wait at the window, run the guest.

Prints a line of JSON for each event and for each vCPU's part of a round. Exit status 0 when it
ended as asked, 1 when KVM refused something, which is then told on stderr.
"""

import argparse
import ctypes
import itertools
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from pmuctl.control.server.server import Server
from pmuctl.errors import PmuctlError
from pmuctl.host.kvm.probes import probe_event_bits
from pmuctl.model.cpuset import CpuSet
from tests.lab.vmm.door import MachineDoor
from tests.lab.vmm.guest import Guest, Report, program
from tests.lab.vmm.machine import Machine
from tests.lab.vmm.vcpu import FailEntry

ENDING = (signal.SIGTERM, signal.SIGINT)
PAUSE = 0.2
"""Seconds between two rounds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Be the VMM that these words ask for; returns the exit status."""
    options = _parse(argv)
    # Blocked before there are threads, and looked for between rounds: KVM_RUN is not interrupted,
    # and the end is the same as after the last round.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        with Machine(
            vcpus=options.vcpus,
            vpmu=not options.no_vpmu,
            create_cpus=options.create_cpus,
        ) as machine:
            _live(machine, options)
    except (OSError, PmuctlError) as error:
        print(f"reference-vmm: {error}", file=sys.stderr)
        return 1
    _say(event="ended")
    return 0


def _live(machine: Machine, options: argparse.Namespace) -> None:
    with ExitStack() as stack:
        tids = [vcpu.tid for vcpu in machine.vcpus]
        if options.no_socket:
            _say(event="window", state="none", pid=os.getpid(), tids=tids)
        else:
            bits = probe_event_bits(cpus=options.create_cpus) if machine.has_vpmu else None
            door = MachineDoor(machine, name=options.name, uuid=options.uuid, event_bits=bits)
            server = stack.enter_context(Server(door, options.socket))
            state = "none" if options.no_wait else "open"
            _say(event="window", state=state, pid=os.getpid(), tids=tids)
            if options.no_wait:
                server.seal("it did not wait")
            elif _released(server):
                _say(event="released")
            else:
                return
        machine.init_pmu()
        machine.load(program())
        if options.run_cpus is not None:
            for vcpu in machine.vcpus:
                vcpu.pin(options.run_cpus)
        _run(machine, options)


class _Ended(Exception):  # noqa: N818 - no error, but the way out of a wait
    pass


def _released(server: Server) -> bool:
    """Wait for pmu-release; False if asked to end instead.

    This wait, which may be long, is the one place where a signal interrupts the main thread.
    """

    def end(*_: object) -> NoReturn:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # once is enough
        raise _Ended

    for number in ENDING:
        signal.signal(number, end)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        server.wait_for_release()
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    except _Ended:
        return False
    return True


def _run(machine: Machine, options: argparse.Namespace) -> None:
    guests = [Guest(vcpu) for vcpu in machine.vcpus]
    rounds = max(options.rounds, options.move_after + 1 if options.move_vcpu else 1)
    for number in itertools.count(1):
        # all vCPUs at once, each in its thread
        running = [guest.vcpu.submit(_round, guest) for guest in guests]
        for line in running:
            _say(**line.result())
        if number == rounds and not options.forever:
            return
        if number == options.move_after:
            for index, cpus in options.move_vcpu:
                machine.vcpus[index].pin(cpus)
        if _asked_to_end(after=PAUSE):
            return


def _round(guest: Guest) -> dict[str, object]:
    """In the vCPU's thread: run a round and say what came of it.

    A vCPU that could not enter is left alone until the next round: someone may have put its
    thread on a CPU of its PMU by then.
    """
    outcome = guest.round()
    line: dict[str, object] = {"vcpu": guest.vcpu.index, **_place()}
    match outcome:
        case Report():
            return line | outcome.as_json()
        case FailEntry(reason, cpu):
            return line | {"exit": "KVM_EXIT_FAIL_ENTRY", "reason": reason, "fail_cpu": cpu}
        case _:
            return line | {"exit": repr(outcome)}


def _place() -> dict[str, object]:
    """Where the calling thread is, and where it may be."""
    cpu = ctypes.CDLL(None).sched_getcpu()  # Python's os lacks it
    return {"cpu": cpu, "affinity": sorted(os.sched_getaffinity(0))}


def _asked_to_end(*, after: float = 0) -> bool:
    """Whether SIGTERM or SIGINT came; waits that many seconds for it."""
    return signal.sigtimedwait(ENDING, after) is not None


def _say(**line: object) -> None:
    print(json.dumps(line), flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab.vmm", description=__doc__)
    add = parser.add_argument
    add("--name", required=True, help="the VM's name, and so the name of its socket")
    add("--uuid", help="the VM's UUID")
    add("--vcpus", type=_count, default=2, metavar="N", help="vCPUs (default: %(default)s)")
    add("--no-vpmu", action="store_true", help="vCPUs without the PMUv3 feature")
    add(
        "--create-cpus",
        type=_cpus,
        metavar="CPUS",
        help="where vCPUs are created, so whose PMU is the default; their affinity is as before "
        "afterwards",
    )
    add("--run-cpus", type=_cpus, metavar="CPUS", help="put the vCPU threads there to run")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--socket", type=Path, metavar="PATH", help="the control socket (default: by name)"
    )
    where.add_argument(
        "--no-socket", action="store_true", help="no control server, so nothing to wait for"
    )
    add("--no-wait", action="store_true", help="go on without waiting for pmu-release")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--rounds", type=_count, default=1, metavar="N", help="rounds to run (default: 1)"
    )
    length.add_argument("--forever", action="store_true", help="run until SIGTERM or SIGINT")
    add(
        "--move-vcpu",
        type=_move,
        action="append",
        default=[],
        metavar="V=CPUS",
        help="put the thread of vCPU V on these CPUs once --move-after rounds are done; there "
        "will be one more round at least",
    )
    add("--move-after", type=_count, default=1, metavar="N", help="(default: %(default)s)")
    options = parser.parse_args(argv)
    for vcpu, _ in options.move_vcpu:
        if vcpu >= options.vcpus:
            parser.error(f"argument --move-vcpu: there is no vCPU {vcpu}")
    return options


def _cpus(text: str) -> CpuSet:
    try:
        return CpuSet.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a number above 0: {text!r}")
    return int(text)


def _move(text: str) -> tuple[int, CpuSet]:
    vcpu, found, cpus = text.partition("=")
    if not found or not vcpu.isdecimal():
        raise argparse.ArgumentTypeError(f"not V=CPUS: {text!r}")
    return int(vcpu), _cpus(cpus)


if __name__ == "__main__":
    sys.exit(main())
