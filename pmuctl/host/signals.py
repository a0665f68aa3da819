# SPDX-License-Identifier: Apache-2.0
"""Signals that end pmuctl, and what they are not to cut in two."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from pmuctl.errors import PmuctlError, Stopped

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def defer_signals() -> Iterator[Sequence[int]]:
    """Let signals that end pmuctl wait until the body has ended: so it is done, or not begun.

    Only what takes no time belongs in it, or what looks at the signals that came, which it gets.
    Where the body fails, the signal tells of that, too (Stopped.lost).
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came  # no other thread runs what handles signals
        return

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)

    # what ends the process by itself, or is ignored, stays so
    handlers = {its: old for its in ENDS if callable(old := signal.getsignal(its))}
    problem: PmuctlError | None = None
    try:
        for number in handlers:
            signal.signal(number, note)
        try:
            yield came
        except PmuctlError as error:
            problem = error
    finally:
        for number, old in handlers.items():
            signal.signal(number, old)
    if came:
        try:
            handlers[signal.Signals(came[0])](came[0], None)
        except Stopped as stop:
            stop.lost = problem
            raise
    if problem is not None:
        raise problem
