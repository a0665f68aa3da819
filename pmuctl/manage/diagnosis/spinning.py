# SPDX-License-Identifier: Apache-2.0
"""Detection of threads that spin: their CPU times are read twice, some time apart."""

import time
from collections.abc import Callable, Collection
from typing import NamedTuple

from pmuctl.host.procfs import TICKS, Procfs, ThreadTimes

SAMPLE_SECONDS = 0.3
"""Seconds for which threads that may spin are sampled: 30 clock ticks."""


class ThreadId(NamedTuple):
    """A thread, and the process it is of."""

    pid: int
    tid: int


def sleep_sample() -> float:
    """Sleep for SAMPLE_SECONDS; return the seconds that this really took."""
    began = time.monotonic()
    time.sleep(SAMPLE_SECONDS)
    return time.monotonic() - began


def measure_spin_shares(
    threads: Collection[ThreadId], procs: Procfs, *, sleep: Callable[[], float] = sleep_sample
) -> dict[ThreadId, float]:
    """Return the share of a CPU that each thread takes without running its guest.

    All are sampled at once, while `sleep` passes and returns some seconds. Threads that are gone,
    or whose ids are other threads' by then, are left out.
    """
    if not threads:
        return {}
    first = {thread: times for thread in threads if (times := procs.thread_times(*thread))}
    seconds = sleep()
    shares: dict[ThreadId, float] = {}
    for thread, then in first.items():
        now = procs.thread_times(*thread)
        share = None if now is None else spin_share(then, now, seconds)
        if share is not None:
            shares[thread] = share
    return shares


def spin_share(then: ThreadTimes, now: ThreadTimes, seconds: float) -> float | None:
    """Return the share of a CPU that a thread took in these seconds, 0 if it ran its guest.

    Return None if the id is another thread's by now.
    """
    if then.start != now.start:
        return None
    if now.guest > then.guest:
        return 0.0
    return min((now.busy - then.busy) / TICKS / seconds, 1.0)
