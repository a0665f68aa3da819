# SPDX-License-Identifier: Apache-2.0
"""Serves the lab's serial console: runs processes, reads and writes files, as frames ask.

Each request has a number, which all answers to it carry. Every line that comes in is
acknowledged once it has been read, so that the other side never sends more than the tty holds.
"""

import glob
import json
import os
import selectors
import signal
import stat
import subprocess
import sys
import termios
import tty
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

from tests.lab import frames
from tests.lab.guest.jobs import PIPE_SIZE, ForkserverClient, Job, PreloadedJob, StartedJob

CONSOLE = "/dev/ttyAMA0"

Handler = Callable[[], None]


class Agent:
    """The console and all that has been started through it."""

    def __init__(self, console: int) -> None:
        self.selector = selectors.DefaultSelector()
        self._console = console
        self._open = True
        self._splitter = frames.Splitter()
        self._jobs: dict[int, Job] = {}
        self._forkserver: ForkserverClient | None = None
        self._acknowledged = 0

    def serve(self) -> None:
        """Until the console goes away."""
        self.watch(self._console, self._read_console)
        self.tell(tell="ready")
        while self._open:
            for key, _ in self.selector.select():
                key.data()

    def close(self) -> None:
        """Let go of all that was started, without ending it."""
        for job in self._jobs.values():
            job.close()
        if self._forkserver:
            self._forkserver.close()
        self.selector.close()

    def watch(self, fd: int, handler: Handler, events: int = selectors.EVENT_READ) -> None:
        """Call the handler whenever the file is ready."""
        self.selector.register(fd, events, handler)

    def tell(self, **message: Any) -> None:
        """Send one message."""
        data = frames.encode(message)
        while data:
            data = data[os.write(self._console, data) :]

    def tell_data(self, tell: str, number: int, data: bytes) -> None:
        """Send data in as many messages as it needs."""
        for chunk in frames.chunks(data):
            self.tell(tell=tell, id=number, data=frames.pack(chunk))

    def forget(self, number: int) -> None:
        """A job has ended, and nobody can write its output any more."""
        self._jobs.pop(number, None)

    def _get_forkserver(self) -> ForkserverClient:
        """The process that preloaded programs are forked from, started at first use."""
        if self._forkserver is None:
            self._forkserver = ForkserverClient()
            fd = self._forkserver.socket.fileno()
            self.watch(fd, partial(self._read_forkserver, self._forkserver))
        return self._forkserver

    def _wait_gone(self, number: int, pid: int) -> None:
        """Tell when the process has ended, of whomever it is a child."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.tell(tell="done", id=number)
            return

        def gone() -> None:
            self.selector.unregister(pidfd)
            os.close(pidfd)
            self.tell(tell="done", id=number)

        self.watch(pidfd, gone)

    def _read_forkserver(self, server: ForkserverClient) -> None:
        message = server.receive()
        job = self._jobs[message["id"]]
        assert isinstance(job, PreloadedJob)
        job.take(message)

    def _read_console(self) -> None:
        data = os.read(self._console, PIPE_SIZE)
        self._open = bool(data)
        for line in self._splitter.feed(data):
            _, message = frames.decode(line)
            if message is None:
                continue
            self._acknowledged += 1
            self.tell(tell="acknowledged", count=self._acknowledged)
            self._do(message)

    def _do(self, message: frames.Message) -> None:
        number = message["id"]
        try:
            match message["do"]:
                case "start" if message["preloaded"]:
                    self._jobs[number] = PreloadedJob(self, message, self._get_forkserver())
                case "start":
                    self._jobs[number] = StartedJob(self, message)
                case "stdin" if number in self._jobs:
                    self._jobs[number].feed(frames.unpack(message["data"]))
                case "end-stdin" if number in self._jobs:
                    self._jobs[number].end_input()
                case "kill" if number in self._jobs:
                    self._jobs[number].kill(message["signal"])
                case "read":
                    with open(message["path"], "rb") as file:
                        self.tell_data("data", number, file.read())
                    self.tell(tell="done", id=number)
                case "write":
                    write_file(message)
                    self.tell(tell="done", id=number)
                case "exists":
                    self.tell_data("data", number, b"1" * os.path.lexists(message["path"]))
                    self.tell(tell="done", id=number)
                case "read-all":
                    files = read_files(message["pattern"])
                    self.tell_data("data", number, json.dumps(files).encode())
                    self.tell(tell="done", id=number)
                case "signal":
                    os.kill(message["pid"], message["signal"])
                    self.tell(tell="done", id=number)
                case "wait-gone":
                    self._wait_gone(number, message["pid"])
        except OSError as error:
            self.tell(
                tell="failed",
                id=number,
                errno=error.errno,
                why=error.strerror or str(error),
                subject=error.filename,
            )
        except (KeyError, ValueError, subprocess.SubprocessError) as error:
            self.tell(tell="failed", id=number, errno=None, why=str(error), subject=None)


def write_file(message: frames.Message) -> None:
    """One piece of a file: the first one makes it anew."""
    mode = "ab" if message["more"] else "wb"
    with open(message["path"], mode) as file:
        file.write(frames.unpack(message["data"]))
    os.chmod(message["path"], message["mode"])


def read_files(pattern: str) -> dict[str, str]:
    """By path, what is in the files of a glob pattern; those that go away meanwhile are left out.

    What is no regular file, or may not be read, has nothing in it.
    """
    found = {}
    for path in glob.glob(pattern):
        try:
            found[path] = ""
            if stat.S_ISREG(os.stat(path).st_mode):
                with open(path, "rb") as file:
                    found[path] = file.read().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            del found[path]
        except OSError:
            continue
    return found


def open_console() -> int:
    """The serial console as a line that changes nothing of what passes."""
    console = os.open(CONSOLE, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(console, termios.TCSANOW)
    termios.tcflush(console, termios.TCIFLUSH)
    return console


def main() -> int:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with closing(Agent(open_console())) as agent:
        agent.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
