# SPDX-License-Identifier: Apache-2.0
"""Command lines of the VMMs in the lab, real ones and stand-ins, and what they have said."""

import json
from typing import Any

from tests.lab.layers import GUEST_LINUX, PROGRAM
from tests.lab.machine import Lab
from tests.lab.workloads.bare import End, bare_metal
from tests.lab.workloads.linux import APPEND

# As options of Python: a stand-in starts in less than half the time.
FAST = ("-P", "-S", "/lab/tests/lab/standins/start.py")


def qemu(version: str, *options: str, vcpus: int = 2, memory: str = "128M") -> list[str]:
    """QEMU of a layer `qemu-VERSION`, its console on standard output; `options` add the guest.

    That of the lab's own release is called by its own name, as pmuctl looks for it.
    """
    return [
        PROGRAM if version == "7.2" else f"qemu-{version}",
        *("-accel", "kvm", "-cpu", "host", "-machine", "virt,gic-version=3"),
        *("-smp", str(vcpus), "-m", memory, "-nic", "none"),
        *("-display", "none", "-monitor", "none", "-serial", "stdio"),
        *options,
    ]


def put_bare_metal(lab: Lab, end: End | str = End.OFF, *, second_cpu: bool = True) -> list[str]:
    """Put a bare-metal guest into the lab; QEMU's options for it."""
    path = f"/tmp/bare-{end}{'' if second_cpu else '-one'}"
    lab.write_file(path, bare_metal(end, second_cpu=second_cpu))
    return ["-kernel", path]


def linux(*words: str) -> list[str]:
    """QEMU's options for the guest of the layer `guest-linux`; `words` for its command line."""
    return [
        *("-kernel", f"{GUEST_LINUX}/Image", "-initrd", f"{GUEST_LINUX}/initrd"),
        *("-append", " ".join((APPEND, *words))),
    ]


def standin(kind: str, *options: str) -> list[str]:
    """A stand-in: kvmtool, crosvm or cloud-hypervisor."""
    return ["python3", *FAST, kind, *options]


def lkvm(*options: str) -> list[str]:
    """The stand-in of kvmtool, under its name and with its words."""
    be = "import os, sys; os.execv(sys.executable, ['lkvm', *sys.argv[1:]])"
    return ["python3", "-S", "-c", be, *FAST, "kvmtool", "--pmu", *options]


def lines(output: str) -> list[dict[str, Any]]:
    """The whole lines of JSON a stand-in has said so far."""
    whole = output.rpartition("\n")[0].splitlines()
    return [json.loads(line) for line in whole if line.startswith("{")]


def calls(output: str) -> list[tuple[str, str]]:
    """The calls to KVM that a stand-in has made, each with OK or its errno, in order."""
    return [(line["call"], line["result"]) for line in lines(output) if "call" in line]


def runs(output: str) -> list[dict[str, Any]]:
    """Each round of each vCPU of a stand-in: how it came back, and what its guest saw."""
    return [line for line in lines(output) if line.get("event") == "run"]
