# SPDX-License-Identifier: Apache-2.0
"""Access to /dev/kvm: whether this user has it, which group gives it, and KVM's mode."""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.value import value


class KvmAccess(StrEnum):
    """This user's access to KVM."""

    USABLE = "usable"
    DENIED = "denied"
    MISSING = "missing"


PATH_DEV_KVM = "/dev/kvm"
PATH_KMSG = "/dev/kmsg"


KMSG_LIMIT = 20_000
"""Records read at most: more than any ring buffer holds."""


_MODE = re.compile(r"kvm \[\d+\]: (?:Hyp \()?([A-Za-z ]*?)\)? mode initialized")


def read_kvm_access(path: str = PATH_DEV_KVM) -> KvmAccess:
    """Return whether /dev/kvm exists and this user may open it, without opening it."""
    if not os.path.exists(path):
        return KvmAccess.MISSING
    return KvmAccess.USABLE if os.access(path, os.R_OK | os.W_OK) else KvmAccess.DENIED


def read_kvm_group(path: str = PATH_DEV_KVM) -> str | None:
    """Return the name of the group whose members may open /dev/kvm.

    Return None if the file does not exist, its group has no access or no name, or is root's own,
    whose members would gain more than KVM.
    """
    import grp

    both = stat.S_IRGRP | stat.S_IWGRP
    try:
        status = os.stat(path)
        if status.st_gid == 0 or status.st_mode & both != both:
            return None
        return grp.getgrgid(status.st_gid).gr_name
    except (OSError, KeyError):
        return None


def read_kvm_mode(path: str = PATH_KMSG) -> str | None:
    """Return KVM's mode as the kernel logged it at boot: "VHE", "nVHE" or "Protected nVHE".

    No file has it; kvm_arm_init() (arch/arm64/kvm/arm.c) only prints it. Return None if the
    message is gone from the ring buffer, or this user may not read that.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        for record in _iter_records(fd):
            if match := _MODE.search(record):
                return match[1]
    finally:
        os.close(fd)
    return None


def _iter_records(fd: int) -> Iterator[str]:
    """Yield the records of an open /dev/kmsg up to the newest, each with one read(2)."""
    for _ in range(KMSG_LIMIT):
        try:
            record = os.read(fd, 8192)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the record was overwritten; the next is readable
                continue
            return
        if not record:
            return
        yield record.decode(errors="replace")


@value(kw_only=True)
class Kvm:
    """KVM on the machine: whether this user may use it, and which group may; and what probes it
    if nothing is cached."""

    access: Callable[[], KvmAccess] = read_kvm_access
    group: Callable[[], str | None] = read_kvm_group
    probe: Callable[[Sequence[Pmu]], KvmCaps] | None = None
