# SPDX-License-Identifier: Apache-2.0
"""Several peers asked at once, without any of them keeping a signal waiting."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from pmuctl.host.signals import defer_signals

AT_ONCE = 32
SIGNAL_SECONDS = 0.05
"""So long a signal waits at most."""

T = TypeVar("T")


def run_parallel(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """What each of these comes to, in their order; no more than AT_ONCE are begun at a time.

    A signal that ends pmuctl is heeded between two looks at the threads, and then none is waited
    for: raised in the midst of a lock of theirs it would leave that locked, or be lost. Raises
    what a job does, and Stopped.
    """
    if not jobs:
        return []
    with defer_signals() as came:
        pool = ThreadPoolExecutor(max_workers=AT_ONCE)
        try:
            answers = [pool.submit(job) for job in jobs]
            while not came and wait(answers, timeout=SIGNAL_SECONDS).not_done:
                pass
            return [] if came else [answer.result() for answer in answers]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
