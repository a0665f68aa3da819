# SPDX-License-Identifier: Apache-2.0
"""pmuctl's main job on a real kernel, shown as a terminal session.

A VM is made on CPUs 0-1 and runs on CPUs 2-3: what its guest sees of its PMU without pmuctl, and
what with a PMU and a filter chosen while its window is open.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence

from tests.lab.errors import CommandTimeoutError, LabError
from tests.lab.machine import Lab, boot, say
from tests.lab.vms import pmuctl, reference_vm

MADE = ("--create-cpus", "0-1")
SET = "vm set web1 pmu armv8_cortex_a72 filter default deny allow cpu_cycles"


def show(lab: Lab, tell: Callable[[str], None]) -> None:
    """Go through the session in a lab with two PMUs; each piece of it goes to `tell`."""

    def command(words: str) -> None:
        ran = pmuctl(lab, *shlex.split(words), preloaded=False)
        tell(f"$ pmuctl {words}\n{ran.stdout}{ran.stderr}")
        if ran.status:
            tell(f"(exit status {ran.status})\n")

    def guest(reports: Sequence[dict[str, object]]) -> None:
        tell("  the guest's report:\n")
        for its in reports:
            tell(f"  vCPU {its['vcpu']} on CPU {its['cpu']}: {_line(its)}\n")
        tell("\n")

    command("pmu list")
    tell("\n# A VM that is made on CPUs 0-1 and runs on CPUs 2-3, without pmuctl:\n")
    without = (*MADE, "--run-cpus", "2-3", "--no-socket")
    with reference_vm(lab, *without, name="web1", preloaded=False) as vm:
        guest(vm.reports())
    tell("# The same VM again. Its window is open, and it waits:\n")
    with reference_vm(lab, *MADE, "--forever", name="web1", preloaded=False) as vm:
        command("vm list")
        tell("\n")
        command(f"{SET} --dry-run")
        tell("\n")
        command(SET)
        command("vm release web1")
        tell("\n")
        vm.job.wait_for(r'"vcpu": 1, "cpu": [0-9]+, .*\n')
        guest(vm.lines()[:2])
        command("vm list")
        tell("\n")
        command("vm set web1 pmu armv8_cortex_a53")


def _line(report: dict[str, object]) -> str:
    event = report["event_0x11"]
    assert isinstance(event, dict)
    return (
        f"cycle counter {report['cycles']}, "
        f"event 0x11 from {event['start']} to {event['end']}, PMCEID0 {report['pmceid0']}"
    )


def main(argv: Sequence[str]) -> int:
    """Boot the lab and show the session; the exit status."""
    parser = argparse.ArgumentParser(prog="tests/demo", description=__doc__)
    parser.add_argument("--kernel", default="newest", help="a series such as 6.12 (%(default)s)")
    options = parser.parse_args(argv)
    say(f"demo: booting an arm64 KVM host with two PMUs (kernel {options.kernel})")
    try:
        with boot(options.kernel, "two") as lab:
            say(f"demo: {lab.run(['uname', '-srm']).stdout.strip()}\n")
            show(lab, lambda text: print(text, end="", flush=True))
    except (LabError, CommandTimeoutError) as error:
        say(f"demo: {error}")
        return 125
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
