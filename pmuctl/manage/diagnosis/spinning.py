# SPDX-License-Identifier: Apache-2.0
"""Threads that spin: looked at twice, with a rest between, all at once."""

import time
from collections.abc import Callable, Collection
from typing import NamedTuple

from pmuctl.host.procfs import TICKS, Procfs, ThreadTimes

SAMPLE_SECONDS = 0.3
"""How long threads that may spin are looked at: 30 clock ticks."""


class ThreadId(NamedTuple):
    """A thread, of a process."""

    pid: int
    tid: int


def rest() -> float:
    """Let SAMPLE_SECONDS pass; the seconds that it took in truth."""
    began = time.monotonic()
    time.sleep(SAMPLE_SECONDS)
    return time.monotonic() - began


def spins(
    threads: Collection[ThreadId], procs: Procfs, *, rest: Callable[[], float] = rest
) -> dict[ThreadId, float]:
    """The share of a CPU that each thread takes without running its guest.

    Those that are gone, or are others by now, are left out.
    """
    if not threads:
        return {}
    first = {its: times for its in threads if (times := procs.thread_times(*its))}
    seconds = rest()
    found: dict[ThreadId, float] = {}
    for its, then in first.items():
        now = procs.thread_times(*its)
        share = None if now is None else spin_share(then, now, seconds)
        if share is not None:
            found[its] = share
    return found


def spin_share(then: ThreadTimes, now: ThreadTimes, seconds: float) -> float | None:
    """The share of a CPU that a thread took meanwhile, 0 where it ran its guest.

    None where it is another thread by now.
    """
    if then.start != now.start:
        return None
    if now.guest > then.guest:
        return 0.0
    return min((now.busy - then.busy) / TICKS / seconds, 1.0)
