# SPDX-License-Identifier: Apache-2.0
"""Tables of descriptors, of which tasks can share one: each is read once, in bounded time."""

import time
from collections.abc import Iterable, Mapping

from pmuctl.host.kvm.fds import KVM_LINK
from pmuctl.host.procfs import Procfs

CLOCK_STEPS = 256
"""Descriptors that are read between two looks at the clock."""
KVM_MAX = 1 << 14
"""Descriptors of KVM in a table at most: a VM has some hundred."""

Links = Mapping[int, str]
"""Descriptors and their targets in /proc/PID/fd."""


class OutOfTimeError(Exception):
    """A table was not read to its end: that would have taken too long."""


class DescriptorTables:
    """KVM's descriptors in the tables of tasks.

    Tables that have been read are sorted as the kernel orders them (kcmp(2)), so a task with one
    of them costs a few comparisons.
    """

    def __init__(self, procs: Procfs) -> None:
        self._procs = procs
        self._tids: list[int] = []
        """A task of each table."""
        self._links: list[Links | None] = []
        """What each table has of KVM; None if it was not read to its end."""

    def read(self, pid: int, tid: int, until: float) -> Links:
        """Return KVM's descriptors of a task.

        Raise OSError, and OutOfTimeError if it is `until` (time.monotonic()) before that.
        """
        if time.monotonic() >= until:
            raise OutOfTimeError
        index, is_read = self._find(tid)
        if not is_read:
            path = f"{pid}/fd" if tid == pid else f"{pid}/task/{tid}/fd"
            links = _select_kvm(self._procs.iter_links(path), until)
            self._tids.insert(index, tid)
            self._links.insert(index, links)
        found = self._links[index]
        if found is None:
            raise OutOfTimeError
        return found

    def _find(self, tid: int) -> tuple[int, bool]:
        """Return the place of a task's table in the order, and whether it has been read."""
        low, high = 0, len(self._tids)
        while low < high:
            middle = (low + high) // 2
            order = self._procs.order_tables(tid, self._tids[middle])
            if order == 0:
                return middle, True
            if order == 1:
                high = middle
            else:
                low = middle + 1
        return low, False


def _select_kvm(links: Iterable[tuple[int, str]], until: float) -> Links | None:
    """Return KVM's descriptors among these; None if there are too many, or not read in time."""
    found: dict[int, str] = {}
    for count, (fd, link) in enumerate(links):
        if count % CLOCK_STEPS == 0 and time.monotonic() >= until:
            return None
        if link.startswith(KVM_LINK):
            found[fd] = link
            if len(found) > KVM_MAX:
                return None
    return found
