# SPDX-License-Identifier: Apache-2.0
"""The machine as a whole: its kernel, whether KVM can be used, and a capture of it for later."""

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path

from pmuctl.host.debugfs import PATH_KVM
from pmuctl.host.kvm import PATH_DEV_KVM
from pmuctl.host.sysfs import PATH_CPU, PATH_EVENT_SOURCE, Sysfs
from pmuctl.host.tree import new_tree
from pmuctl.value import value

PATH_OSRELEASE = "proc/sys/kernel/osrelease"
PATH_KMSG = "/dev/kmsg"
KMSG_LIMIT = 20_000
"""Records: more than any ring buffer holds."""

_MODE = re.compile(r"kvm \[\d+\]: (?:Hyp \()?([A-Za-z ]*?)\)? mode initialized")


class KvmAccess(StrEnum):
    """Whether this user can use KVM here."""

    USABLE = "usable"
    DENIED = "denied"
    MISSING = "missing"


def read_kvm_access(path: str = PATH_DEV_KVM) -> KvmAccess:
    """Whether /dev/kvm is there and may be opened; it is not opened for that."""
    if not os.path.exists(path):
        return KvmAccess.MISSING
    return KvmAccess.USABLE if os.access(path, os.R_OK | os.W_OK) else KvmAccess.DENIED


def read_kvm_group(path: str = PATH_DEV_KVM) -> str | None:
    """The name of the group whose members may open /dev/kvm.

    None where there is none: there is no such file, or its group has no access, no name, or is
    root's own, which would give more than that away.
    """
    import grp

    both = stat.S_IRGRP | stat.S_IWGRP
    try:
        its = os.stat(path)
        if its.st_gid == 0 or its.st_mode & both != both:
            return None
        return grp.getgrgid(its.st_gid).gr_name
    except (OSError, KeyError):
        return None


def read_kvm_mode(path: str = PATH_KMSG) -> str | None:
    """How KVM runs, "VHE" or "nVHE" or "Protected nVHE", as the kernel said at boot.

    No file tells it (kvm_arm_init(), arch/arm64/kvm/arm.c, prints it): None where the message is
    gone from the ring buffer, or this user may not read that.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        for record in _records(fd):
            if match := _MODE.search(record):
                return match[1]
    finally:
        os.close(fd)
    return None


def _records(fd: int) -> Iterator[str]:
    for _ in range(KMSG_LIMIT):
        try:
            record = os.read(fd, 8192)
        except OSError as error:
            if error.errno == errno.EPIPE:  # overwritten while we read: go on with the next
                continue
            return
        if not record:
            return
        yield record.decode(errors="replace")


@value(kw_only=True)
class Captured:
    """A file of a capture: its path below the root, and its text or, of a link, its target."""

    path: str
    text: str
    is_link: bool = False


def scan_captured(sysfs: Sysfs) -> Iterator[Captured]:
    """What pmuctl reads of a machine; files that cannot be read are left out."""
    for name in sysfs.entries(PATH_EVENT_SOURCE):
        link = f"{PATH_EVENT_SOURCE}/{name}"
        real = sysfs.resolve(link)
        if real is None:
            continue
        if real != f"/{link}":
            target = os.path.relpath(real, f"/{PATH_EVENT_SOURCE}")
            yield Captured(path=link, text=target, is_link=True)
        for file in ("type", "cpus", "cpumask"):
            yield from _file(sysfs, f"{real}/{file}")
        for folder in ("events", "format", "caps"):
            for file in sysfs.entries(f"{real}/{folder}"):
                yield from _file(sysfs, f"{real}/{folder}/{file}")
    for file in ("online", "present", "possible", "isolated"):
        yield from _file(sysfs, f"{PATH_CPU}/{file}")
    for cpu in sysfs.entries(PATH_CPU):
        if re.fullmatch(r"cpu[0-9]{1,5}", cpu):
            for file in ("online", "cpu_capacity", "regs/identification/midr_el1"):
                yield from _file(sysfs, f"{PATH_CPU}/{cpu}/{file}")
    yield from _file(sysfs, PATH_OSRELEASE)
    for vm in sysfs.entries(PATH_KVM):
        yield from _file(sysfs, f"{PATH_KVM}/{vm}/exits")
        for vcpu in sysfs.entries(f"{PATH_KVM}/{vm}"):
            yield from _file(sysfs, f"{PATH_KVM}/{vm}/{vcpu}/pid")


def _file(sysfs: Sysfs, path: str) -> Iterator[Captured]:
    text = sysfs.read_text(path)
    if text is not None:
        # relative even where a hostile link makes the root itself an event source
        yield Captured(path=path.lstrip("/"), text=text)


def write_capture(files: Iterable[Captured], root: Path) -> int:
    """Lay out a capture below a new or empty directory, as --sysroot reads it; returns its size.

    It is for this user alone, as much of it is in /proc. Raises OSError, as `new_tree` does.
    """
    written: set[str] = set()
    with new_tree(root) as tree:
        for file in files:
            if file.path in written:  # a hostile tree has several names for it
                continue
            written.add(file.path)
            if file.is_link:
                tree.link(file.path, file.text)
            else:
                tree.write(file.path, file.text.encode(errors="surrogateescape"))
    return len(written)
