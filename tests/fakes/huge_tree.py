# SPDX-License-Identifier: Apache-2.0
"""Captured trees that are small as an archive, by hard links and links, and huge when read."""

import json
import os
from pathlib import Path

from pmuctl.host.runtime_dirs import PATH_REPLIES
from pmuctl.host.sysfs import PATH_CPU, PATH_EVENT_SOURCE, TEXT_LIMIT
from tests.fakes.tree import write_file

PAGE = 4096


def make_huge_tree(root: Path, kind: str) -> Path:
    """A tree of one of KINDS."""
    write_file(root, f"{PATH_CPU}/online", "0-3\n")
    KINDS[kind](root)
    return root


def _make_texts(root: Path) -> None:
    """Each of 60 PMUs has 1200 formats and caps of one page."""
    write_file(root, "text", "config:0-63".ljust(PAGE - 1, "x"))
    shared = root / "shared"
    shared.mkdir()
    for number in range(1200):
        os.link(root / "text", shared / f"f{number}")
    for number in range(60):
        pmu = f"{PATH_EVENT_SOURCE}/p{number}"
        write_file(root, f"{pmu}/cpus", "0-3\n")
        for folder in ("format", "caps"):
            (root / pmu / folder).symlink_to("/shared")


def _make_links(root: Path) -> None:
    """400 names of one PMU with 64 formats of one page."""
    pmu = f"{PATH_EVENT_SOURCE}/p0"
    write_file(root, f"{pmu}/cpus", "0-3\n")
    write_file(root, f"{pmu}/format/f0", "config:0-63".ljust(PAGE - 1, "x"))
    for number in range(1, 64):
        os.link(root / pmu / "format/f0", root / pmu / f"format/f{number}")
    for number in range(1, 400):
        (root / PATH_EVENT_SOURCE / f"p{number}").symlink_to("p0")


def _make_names(root: Path) -> None:
    """A PMU with 300 more files."""
    pmu = f"{PATH_EVENT_SOURCE}/p0"
    write_file(root, f"{pmu}/cpus", "0-3\n")
    for number in range(300):
        (root / pmu / f"{number:0>200}").symlink_to("none")


def _make_cpus(root: Path) -> None:
    """100 PMUs that have every other CPU."""
    cpus = ",".join(str(cpu) for cpu in range(0, 20000, 2))
    assert len(cpus) < TEXT_LIMIT
    write_file(root, "text", cpus)
    for number in range(100):
        (root / PATH_EVENT_SOURCE / f"p{number}").mkdir(parents=True)
        os.link(root / "text", root / PATH_EVENT_SOURCE / f"p{number}/cpus")


def _make_words(root: Path) -> None:
    """60 VMs with command lines of 300,000 words."""
    write_file(root, "text", "qemu-system-aarch64\0" + "-x\0" * 300_000)
    write_file(root, "stat", f"1 (x) S {'0 ' * 18}100\n")
    for pid in range(1, 61):
        process = root / f"proc/{pid}"
        (process / "fd").mkdir(parents=True)
        (process / "fd/9").symlink_to("anon_inode:kvm-vm")
        os.link(root / "text", process / "cmdline")
        os.link(root / "stat", process / "stat")


def _make_masks(root: Path) -> None:
    """A VM with 256 vCPU threads that may run on CPUs that no machine has."""
    process = root / "proc/1"
    (process / "fd").mkdir(parents=True)
    (process / "fd/9").symlink_to("anon_inode:kvm-vm")
    write_file(root, "proc/1/cmdline", "qemu-system-aarch64\0")
    for number in range(256):
        stat = f"1 (x) S {'0 ' * 18}100\n"
        (process / f"fd/{number + 10}").symlink_to(f"anon_inode:kvm-vcpu:{number}")
        thread = f"proc/1/task/{number + 1}"
        write_file(root, f"{thread}/stat", stat)
        write_file(root, f"{thread}/comm", f"CPU {number}/KVM\n")
        write_file(root, f"{thread}/status", f"Cpus_allowed_list:\t{number % 9}-65535\n")
    write_file(root, "proc/1/stat", stat)


def _write_replies(root: Path, count: int, **members: object) -> None:
    """So many replies of VMs that have nothing but these members."""
    nothing: dict[str, object] = dict.fromkeys(
        ("uuid", "since", "by", "pmu", "counters", "filter")
    )
    answer = {**nothing, "vmm": "x", "pid": 1, "window": "open", "attributes": [], "vcpus": []}
    vmm = {"pid": 1, "uid": 0, "start": 100, "has-vm": True, "supervised": False}
    for number in range(count):
        name = f"h{number}"
        reply = {
            **{"format": 1, "name": name, "path": f"/run/pmuctl/{name}.sock", "owner": None},
            **{"vmm": vmm, "answer": {**answer, "name": name, **members}},
        }
        text = json.dumps(reply, separators=(",", ":"))
        write_file(root, f"{PATH_REPLIES}/{number}.json", text)


def _make_answers(root: Path) -> None:
    """40 replies with members that are not known."""
    _write_replies(root, 40, unknown=[{"": 0}] * 40_000)


def _make_known(root: Path) -> None:
    """14 replies of 1 MB with all that VMs may have: events in a filter, and vCPUs."""
    ranges = [[2 * n % 0x10000, 1] for n in range(1 << 15)]
    vcpu = {"initialised": True, "has-run": True}
    vcpus = [vcpu | {"index": 1000 + n, "tid": 1000 + n} for n in range(4096)]
    rules = {"default": "deny", "except": ranges, "origin": "applied"}
    _write_replies(root, 14, vcpus=vcpus, filter=rules)


def _make_values(root: Path) -> None:
    """A reply of 4 MB that is a million values."""
    write_file(root, f"{PATH_REPLIES}/0.json", json.dumps([{"": 0}] * 400_000))


KINDS = {
    "texts": _make_texts,
    "links": _make_links,
    "names": _make_names,
    "cpus": _make_cpus,
    "words": _make_words,
    "masks": _make_masks,
    "answers": _make_answers,
    "known": _make_known,
    "values": _make_values,
}
