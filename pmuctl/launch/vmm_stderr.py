# SPDX-License-Identifier: Apache-2.0
"""Telling the user of a VMM what became of it: on the VMM's own standard error."""

import os
import select
from contextlib import suppress

from pmuctl.errors import PmuctlError
from pmuctl.uapi.pidfd import pidfd_getfd

WRITE_TIMEOUT_SECONDS = 0.5


class VmmStderr:
    """Says errors where the VMM would say its own.

    `fd` is its standard error as it was at the start. It is not kept for long: a pipe that the
    supervisor holds open has a reader waiting for its end.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        """Let go of the descriptor; from here on the VMM's own is borrowed each time."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def write_error(self, error: PmuctlError, pid: int, word: str = "error") -> None:
        """Write an error as pmuctl does, `pid` being the VMM; where it cannot be, nobody hears."""
        head = f"{error.subject}: {error.message}" if error.subject else error.message
        lines = [f"{word}: {head}"]
        for name, text in (("why", error.why), ("now", error.now), ("fix", error.fix)):
            if text:
                lines.append(f"  {name}: {text}")
        text = "\n".join(lines) + "\n"
        with suppress(OSError):
            fd = self._fd if self._fd >= 0 else _borrow_stderr(pid)
            try:
                poll = select.poll()
                poll.register(fd, select.POLLOUT)
                # whoever does not read it must not hold up the VMM's end
                if poll.poll(WRITE_TIMEOUT_SECONDS * 1000):
                    os.write(fd, text.encode(errors="backslashreplace")[: select.PIPE_BUF])
            finally:
                if fd != self._fd:
                    os.close(fd)


def _borrow_stderr(pid: int) -> int:
    pidfd = os.pidfd_open(pid)
    try:
        return pidfd_getfd(pidfd, 2)
    finally:
        os.close(pidfd)
