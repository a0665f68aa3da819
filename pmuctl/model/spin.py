# SPDX-License-Identifier: Apache-2.0
"""Whether a thread takes a CPU for itself: what its times at two moments say."""

from pmuctl.value import value

TICKS = 100
"""Clock ticks a second in /proc: USER_HZ (include/uapi/asm-generic/param.h)."""


@value
class ThreadTimes:
    """The clock ticks that a thread has had of a CPU, and those of them in a guest.

    `start` is when it began, in clock ticks since boot: with its id that names it for good.
    """

    start: int
    busy: int
    guest: int


def spin_share(then: ThreadTimes, now: ThreadTimes, seconds: float) -> float | None:
    """The share of a CPU that a thread took meanwhile, 0 where it ran its guest.

    None where it is another thread by now.
    """
    if then.start != now.start:
        return None
    if now.guest > then.guest:
        return 0.0
    return min((now.busy - then.busy) / TICKS / seconds, 1.0)
