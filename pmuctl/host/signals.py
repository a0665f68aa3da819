# SPDX-License-Identifier: Apache-2.0
"""Deferral of SIGINT, SIGTERM and SIGHUP until a critical section has finished."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from pmuctl.errors import PmuctlError, Stopped

TERMINATING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_deferred: list[int] | None = None
"""The signals received inside the outermost `defer_signals`; None outside."""


@contextmanager
def defer_signals() -> Iterator[Sequence[int]]:
    """Defer SIGINT, SIGTERM and SIGHUP until the body has ended, so it runs whole or not at all.

    The body must take no time, or look at the signals received so far, which the context gives
    it. If the body fails, the Stopped that the signal raises carries its error (Stopped.lost).
    Inside another body, signals wait for the end of that.
    """
    global _deferred
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python runs signal handlers in the main thread only
        return
    if _deferred is not None:
        yield _deferred
        return

    def record_signal(number: int, _: FrameType | None) -> None:
        received.append(number)

    # a signal that ends the process by default, or is ignored, stays so
    handlers = {
        number: handler
        for number in TERMINATING_SIGNALS
        if callable(handler := signal.getsignal(number))
    }
    problem: PmuctlError | None = None
    try:
        _deferred = received
        for number in handlers:
            signal.signal(number, record_signal)
        try:
            yield received
        except PmuctlError as error:
            problem = error
    finally:
        _deferred = None
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        try:
            handlers[signal.Signals(received[0])](received[0], None)
        except Stopped as stop:
            stop.lost = problem
            raise
    if problem is not None:
        raise problem
