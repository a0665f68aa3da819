# SPDX-License-Identifier: Apache-2.0
"""Captured trees of machines that are told in a few words: core models of CPUs, and PMUs."""

from collections.abc import Mapping
from pathlib import Path

from pmuctl.host.sysfs import PATH_CPU, PATH_EVENT_SOURCE
from pmuctl.model.cpuset import CpuSet


def write_file(root: Path, path: str, text: str) -> None:
    """One file of a tree."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def make_tree(
    root: Path, cores: Mapping[str, int], pmus: Mapping[str, str], *, online: bool = True
) -> Path:
    """A tree with CPUs of these MIDRs, by CPU list, and PMUs with these CPUs, by name."""
    (root / "sys").mkdir(parents=True, exist_ok=True)
    for cpus, midr in cores.items():
        for cpu in CpuSet.parse(cpus):
            path = f"{PATH_CPU}/cpu{cpu}/regs/identification/midr_el1"
            write_file(root, path, f"0x{midr:016x}\n")
    if online and cores:
        write_file(root, f"{PATH_CPU}/online", ",".join(cores) + "\n")
    for type, (name, cpus) in enumerate(pmus.items(), start=8):
        device = f"sys/devices/{name}"
        write_file(root, f"{device}/type", f"{type}\n")
        write_file(root, f"{device}/cpus", f"{cpus}\n")
        write_file(root, f"{device}/events/cpu_cycles", "event=0x0011\n")
        write_file(root, f"{device}/format/event", "config:0-15\n")
        (root / PATH_EVENT_SOURCE).mkdir(parents=True, exist_ok=True)
        (root / PATH_EVENT_SOURCE / name).symlink_to(f"../../../devices/{name}")
    return root
