# SPDX-License-Identifier: Apache-2.0
"""The files of a machine snapshot that --sysroot reads: their capture and their layout on disk."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pmuctl.host.debugfs import PATH_KVM
from pmuctl.host.new_tree import new_tree
from pmuctl.host.pmus import SOURCES_MAX
from pmuctl.host.resource_errors import Allowance
from pmuctl.host.sysfs import PATH_CPU, PATH_EVENT_SOURCE, Sysfs
from pmuctl.value import value

SOURCE_FILES_MAX = 1 << 16
"""Events, formats and caps of all event sources: an uncore PMU has up to a thousand."""

SOURCE_TEXT_MAX = 8 << 20
"""Characters of all these: they have about 20 each."""

PATH_OSRELEASE = "proc/sys/kernel/osrelease"


@value(kw_only=True)
class Captured:
    """A file of a capture: its path below the root, and its text or, for a link, its target."""

    path: str
    text: str
    is_link: bool = False


def scan_captured(sysfs: Sysfs) -> Iterator[Captured]:
    """Yield the /sys and kernel files that pmuctl reads; leave out those that cannot be read."""
    files = Allowance(SOURCE_FILES_MAX, "events, formats and caps")
    text = Allowance(SOURCE_TEXT_MAX, "characters of events, formats and caps")
    attributes: dict[str, list[str]] = {}
    for name in sysfs.entries(PATH_EVENT_SOURCE, most=SOURCES_MAX):
        link = f"{PATH_EVENT_SOURCE}/{name}"
        real = sysfs.resolve(link)
        if real is None:
            continue
        if real != f"/{link}":
            target = os.path.relpath(real, f"/{PATH_EVENT_SOURCE}")
            yield Captured(path=link, text=target, is_link=True)
        for file in ("type", "cpus", "cpumask"):
            yield from _capture_file(sysfs, f"{real}/{file}")
        for folder in ("events", "format", "caps"):
            path = f"{real}/{folder}"
            if path not in attributes:  # a hostile tree has several names for one source
                attributes[path] = sysfs.entries(path, most=SOURCE_FILES_MAX)
                files.take(len(attributes[path]), path)
    for folder, names in attributes.items():
        for name in names:
            for captured in _capture_file(sysfs, f"{folder}/{name}"):
                text.take(len(captured.text), captured.path)
                yield captured
    for file in ("online", "present", "possible", "isolated"):
        yield from _capture_file(sysfs, f"{PATH_CPU}/{file}")
    for cpu in sysfs.entries(PATH_CPU):
        if re.fullmatch(r"cpu[0-9]{1,5}", cpu):
            for file in ("online", "cpu_capacity", "regs/identification/midr_el1"):
                yield from _capture_file(sysfs, f"{PATH_CPU}/{cpu}/{file}")
    yield from _capture_file(sysfs, PATH_OSRELEASE)
    for vm in sysfs.entries(PATH_KVM):
        yield from _capture_file(sysfs, f"{PATH_KVM}/{vm}/exits")
        for vcpu in sysfs.entries(f"{PATH_KVM}/{vm}"):
            yield from _capture_file(sysfs, f"{PATH_KVM}/{vm}/{vcpu}/pid")


def _capture_file(sysfs: Sysfs, path: str) -> Iterator[Captured]:
    text = sysfs.read_text(path)
    if text is not None:
        # the path must be relative even if a hostile link makes the root itself an event source
        yield Captured(path=path.lstrip("/"), text=text)


def write_capture(files: Iterable[Captured], root: Path) -> int:
    """Write a capture below a new or empty directory, as --sysroot reads it; return their number.

    It is private to this user, as much of it is in /proc. Raise OSError, as `new_tree` does.
    """
    written: set[str] = set()
    with new_tree(root) as tree:
        for file in files:
            if file.path in written:  # a hostile tree has several names for one file
                continue
            written.add(file.path)
            if file.is_link:
                tree.link(file.path, file.text)
            else:
                tree.write(file.path, file.text.encode(errors="surrogateescape"))
    return len(written)
