# SPDX-License-Identifier: Apache-2.0
"""The end of a VMM whose threads are traced: each of them has to be heard before it is dead."""

import os
import time
from collections.abc import Callable
from contextlib import suppress

from pmuctl.launch.trace.process_end import (
    END_SECONDS,
    has_process_ended,
    has_stopped,
    has_thread_ended,
    kill_process,
    open_pidfd,
)
from pmuctl.launch.trace.tracee import Tracee
from pmuctl.launch.trace.tracer import LONGEST_PAUSE, SHORTEST_PAUSE, Tracer


def end_process(tracer: Tracer, thread: Tracee, status: int) -> None:
    """Have a thread that is stopped at a call's exit end its process; return once it is dead.

    A process that is not dead after END_SECONDS is killed, and waited for as long again. Its
    parent learns of its end afterwards: the main thread is traced then, and not reaped here.
    """
    with suppress(OSError):
        if thread.tgid not in tracer.threads:
            tracer.seize(thread.tgid, thread.tgid)
    with open_pidfd(thread.tgid) as pidfd:
        thread.exit_group(status)
        now = time.monotonic()
        for until in (now + END_SECONDS, now + 2 * END_SECONDS):
            if _wait_dead(tracer, thread.tgid, thread.tid, pidfd, until):
                return
            kill_process(thread.tgid)


def kill_meant_process(tracer: Tracer, pid: int, is_meant: Callable[[], bool]) -> None:
    """Kill a process, traced or not; return once it is dead, after END_SECONDS at most.

    Leave it alone if it is another process by now: `is_meant` tells that once it is held.
    """
    with open_pidfd(pid) as pidfd:
        if is_meant():
            kill_process(pid)
            _wait_dead(tracer, pid, pid, pidfd, time.monotonic() + END_SECONDS)


def _wait_dead(tracer: Tracer, tgid: int, tid: int, pidfd: int | None, until: float) -> bool:
    """Return whether a process is dead by then; let its threads end meanwhile.

    Without a pidfd, the end of thread `tid` counts. `until` is of time.monotonic().
    """
    pause = SHORTEST_PAUSE
    while not _has_died(tracer, tid, pidfd):
        if time.monotonic() > until:
            return False
        for other in tracer.threads_of(tgid):
            if other.tid != tgid or has_stopped(other.tid):
                tracer.take_stop(other.tid, os.WNOHANG)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    return True


def _has_died(tracer: Tracer, tid: int, pidfd: int | None) -> bool:
    """Return whether a process has ended; without a pidfd, whether this thread has."""
    if pidfd is not None:
        return has_process_ended(pidfd)
    return tid not in tracer.threads or has_thread_ended(tid)
