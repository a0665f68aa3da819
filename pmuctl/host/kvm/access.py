# SPDX-License-Identifier: Apache-2.0
"""Whether this user can use KVM here, who else could, and how it runs."""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

from pmuctl.host.kvm.device import PATH_DEV_KVM
from pmuctl.model.kvm_caps import KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.value import value


class KvmAccess(StrEnum):
    """Whether this user can use KVM here."""

    USABLE = "usable"
    DENIED = "denied"
    MISSING = "missing"


PATH_KMSG = "/dev/kmsg"


KMSG_LIMIT = 20_000
"""Records: more than any ring buffer holds."""


_MODE = re.compile(r"kvm \[\d+\]: (?:Hyp \()?([A-Za-z ]*?)\)? mode initialized")


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
class Kvm:
    """KVM on the machine: whether this user may use it, and which group may; and what probes it
    where nothing is cached."""

    access: Callable[[], KvmAccess] = read_kvm_access
    group: Callable[[], str | None] = read_kvm_group
    probe: Callable[[Sequence[Pmu]], KvmCaps] | None = None
