# SPDX-License-Identifier: Apache-2.0
"""Run one command in the lab, or a shell: the command line of `tests/lab/run`."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab.errors import CommandFailedError, CommandTimeoutError, LabError
from tests.lab.hosts import HOSTS
from tests.lab.machine import boot, say, shell

LAB_FAILED = 125
OUT_OF_TIME = 124


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        prog="tests/lab/run",
        usage="%(prog)s [OPTION]… -- COMMAND…\n       %(prog)s [OPTION]… --shell",
        description="Boot a real arm64 KVM host under QEMU and run a command in it, as root.",
        epilog=f"The exit status is the command's, 128+N when signal N ended it, {OUT_OF_TIME} "
        f"when it ran out of time, {LAB_FAILED} when the lab itself failed.",
    )
    add = result.add_argument
    add("--kernel", default="newest", help="a series such as 6.12, or `newest` (%(default)s)")
    add("--host", default="two", choices=HOSTS, help="which PMUs there are (%(default)s)")
    add(
        "--layer",
        action="append",
        default=[],
        metavar="LAYER",
        help="more to put in: qemu-7.2, qemu-10.0, qemu-11, guest-linux; can be repeated",
    )
    add("--mem", default="2G", metavar="SIZE", help="the host's memory (%(default)s)")
    add("--out", type=Path, metavar="DIR", help="bring what is written to /out back to DIR")
    add("--timeout", type=float, default=300, metavar="SECONDS", help="for the command (300)")
    add("--verbose", action="store_true", help="the console and the timings on standard error")
    add("--shell", action="store_true", help="a shell on this terminal; Ctrl-a x ends the lab")
    add("command", nargs="*", metavar="COMMAND", help="after `--`")
    return result


def run_command(args: argparse.Namespace) -> int:
    """Boot, run the command with its output on ours, fetch its files."""
    started = time.monotonic()
    with boot(
        args.kernel,
        args.host,
        args.mem,
        layers=args.layer,
        echo=say if args.verbose else None,
    ) as lab:
        booted = time.monotonic()
        try:
            job = lab.start(args.command)
        except OSError as error:
            say(f"lab: {error}")
            return 127 if isinstance(error, FileNotFoundError) else 126
        for stream, data in job.stream(args.timeout):
            file = sys.stdout.buffer if stream == "stdout" else sys.stderr.buffer
            file.write(data)
            file.flush()
        ended = time.monotonic()
        if args.out:
            lab.fetch("/out", args.out)
    if args.verbose:
        say(f"boot {booted - started:.1f} s, command {ended - booted:.1f} s")
    status = job.result().status
    return status if status >= 0 else 128 - status


def terminate(number: int, _frame: object) -> None:
    """Turn a signal into an exception, so that the lab is closed on the way out."""
    raise SystemExit(128 + number)


def main(argv: Sequence[str]) -> int:
    """The exit status of the command line."""
    args = parser().parse_args(argv)
    if bool(args.command) == args.shell:
        parser().error("give a command after `--`, or --shell")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, terminate)
    try:
        if args.shell:
            return shell(args.kernel, args.host, args.mem, args.layer)
        return run_command(args)
    except CommandTimeoutError:
        say(f"lab: {args.command[0]}: still running after {args.timeout:g} s")
        return OUT_OF_TIME
    except BrokenPipeError:
        # nobody reads our output; what is left in the buffer must not complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (LabError, CommandFailedError, OSError) as error:
        say(f"lab: {error}")
        return LAB_FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
