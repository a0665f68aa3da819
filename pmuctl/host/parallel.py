# SPDX-License-Identifier: Apache-2.0
"""Jobs run side by side in threads, none of which can keep a signal waiting."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from pmuctl.host.signals import defer_signals

AT_ONCE = 32
"""Threads that run jobs at the same time, at most."""
SIGNAL_SECONDS = 0.05
"""Seconds a signal waits at most."""

T = TypeVar("T")


def run_parallel(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Run the jobs in threads, at most AT_ONCE at a time; return their results in order.

    A terminating signal is handled between two looks at the threads, and then no thread is waited
    for: raised while the main thread holds a lock of the pool, it would leave that locked, or be
    lost. Raise what a job raises, and Stopped.
    """
    if not jobs:
        return []
    # it loads logging and string, and many a command has nothing to run side by side
    from concurrent.futures import ThreadPoolExecutor, wait

    with defer_signals() as received:
        pool = ThreadPoolExecutor(max_workers=AT_ONCE)
        try:
            futures = [pool.submit(job) for job in jobs]
            while not received and wait(futures, timeout=SIGNAL_SECONDS).not_done:
                pass
            return [] if received else [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
