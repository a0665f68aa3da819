# SPDX-License-Identifier: Apache-2.0
"""Errors written to the standard error of a supervised VMM."""

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pmuctl.errors import PmuctlError
from pmuctl.uapi.pidfd import pidfd_getfd

WRITE_TIMEOUT_SECONDS = 0.5
"""How long a write waits for a reader (seconds)."""


class VmmStderr:
    """The standard error of a VMM, which the supervisor writes to as the VMM itself would.

    `fd` is the VMM's standard error at the start. It is not kept open for long: the reader of a
    pipe would wait for its end as long as the supervisor holds it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_taken = self._is_to_close = False
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close the descriptor; from here on the VMM's own is borrowed for each write."""
        with self._lock:
            if self._is_taken:
                self._is_to_close = True
            elif self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    @contextmanager
    def taken(self, pid: int | None) -> Iterator[int | None]:
        """Yield a descriptor of the stderr of VMM `pid`, which outlives the VMM; None if none.

        Without a `pid`, of a VMM that has ended, only the one from the start can be had.
        """
        with self._lock:
            if self._fd < 0 and pid is not None:
                with suppress(OSError):
                    self._fd = _borrow_stderr(pid)
                self._is_to_close = True
            self._is_taken = True
            try:
                yield self._fd if self._fd >= 0 else None
            finally:
                self._is_taken = False
                if self._is_to_close:
                    self._is_to_close = False
                    self.close()

    def write_error(self, error: PmuctlError, pid: int | None, word: str = "error") -> None:
        """Write an error as pmuctl does to the stderr of VMM `pid`; write failures are ignored."""
        with self.taken(pid) as fd:
            write_error(error, fd, word)


def write_error(error: PmuctlError, fd: int | None, word: str = "error") -> None:
    """Write an error as pmuctl does to a VMM's stderr; write failures are ignored."""
    head = f"{error.subject}: {error.message}" if error.subject else error.message
    lines = [f"{word}: {head}"]
    for name, text in (("why", error.why), ("now", error.now), ("fix", error.fix)):
        if text:
            lines.append(f"  {name}: {text}")
    text = "\n".join(lines) + "\n"
    if fd is None:
        return
    with suppress(OSError):
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        # a reader that does not read must not delay what comes after
        if poll.poll(WRITE_TIMEOUT_SECONDS * 1000):
            os.write(fd, text.encode(errors="backslashreplace")[: select.PIPE_BUF])


def _borrow_stderr(pid: int) -> int:
    """Return a duplicate of a process's descriptor 2; raise OSError."""
    pidfd = os.pidfd_open(pid)
    try:
        return pidfd_getfd(pidfd, 2)
    finally:
        os.close(pidfd)
