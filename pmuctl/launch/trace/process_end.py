# SPDX-License-Identifier: Apache-2.0
"""The end of a process: to bring it about, and to see it."""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

WALL = 0x40000000
"""__WALL of wait(2): threads, too, and not only children made with SIGCHLD."""
END_SECONDS = 1.0
"""How long a process may take to end by itself (seconds)."""


@contextmanager
def open_pidfd(pid: int) -> Iterator[int | None]:
    """Yield a descriptor of a process; None if it is gone, or descriptors have run out."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def has_process_ended(pidfd: int, seconds: float = 0.0) -> bool:
    """Return whether all threads of a process have ended, after this many seconds at most."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def kill_process(pid: int) -> None:
    """Send SIGKILL to a process, which may be named by any of its threads."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_and_wait(pidfd: int) -> None:
    """Kill a process that is not traced; return once it is dead, after END_SECONDS at most."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    has_process_ended(pidfd, END_SECONDS)


def has_stopped(tid: int) -> bool:
    """Return whether a traced thread has stopped; its end is left to be reported later."""
    return _peek(tid, os.WSTOPPED) is not None


def wait_for_stop(tid: int, seconds: float) -> bool:
    """Return whether a traced thread stops or ends within this time; it is to be reported yet.

    For the main thread only: it uses SIGALRM, as waitid(2) knows no time limit.
    """
    is_waiting = True

    def expire(*_: object) -> None:
        if is_waiting:
            raise TimeoutError

    before = signal.signal(signal.SIGALRM, expire)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, tid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | WALL)
        is_waiting = False
    except TimeoutError:
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return True


def has_thread_ended(tid: int) -> bool:
    """Return whether a traced thread has ended; that is left to be reported later."""
    return _peek(tid, os.WEXITED) is not None


def _peek(tid: int, what: int) -> object:
    try:
        return os.waitid(os.P_PID, tid, what | os.WNOHANG | os.WNOWAIT | WALL)
    except ChildProcessError:
        return None
