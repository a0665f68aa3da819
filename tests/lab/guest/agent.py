# SPDX-License-Identifier: Apache-2.0
"""Serves the lab's serial console: runs processes, reads and writes files, as frames ask.

Each request has a number, which all answers to it carry. Every line that comes in is
acknowledged once it has been read, so that the other side never sends more than the tty holds.
"""

import grp
import os
import pwd
import selectors
import signal
import subprocess
import sys
import termios
import tty
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Any

from tests.lab import frames

CONSOLE = "/dev/ttyAMA0"
PIPE_SIZE = 65536

Handler = Callable[[], None]


class Agent:
    """The console and all that has been started through it."""

    def __init__(self, console: int) -> None:
        self.selector = selectors.DefaultSelector()
        self._console = console
        self._open = True
        self._splitter = frames.Splitter()
        self._jobs: dict[int, Job] = {}
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
                case "start":
                    job = Job(self, message)
                    self._jobs[number] = job
                    self.tell(tell="started", id=number, pid=job.process.pid)
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


class Job:
    """A process with the pipes to it, in a process group of its own."""

    def __init__(self, agent: Agent, message: frames.Message) -> None:
        self._agent = agent
        self._number: int = message["id"]
        self._input = b""
        self._input_ends = False
        self.process = start_process(message)
        assert self.process.stdin is not None
        self._stdin = self.process.stdin
        pipes = {"stdout": self.process.stdout, "stderr": self.process.stderr}
        self._outputs = {name: pipe for name, pipe in pipes.items() if pipe is not None}
        self._pidfd = os.pidfd_open(self.process.pid)
        os.set_blocking(self._stdin.fileno(), False)
        agent.watch(self._pidfd, self._reap)
        for name, pipe in self._outputs.items():
            os.set_blocking(pipe.fileno(), False)
            agent.watch(pipe.fileno(), partial(self._read, name))

    def feed(self, data: bytes) -> None:
        """More for its standard input."""
        if self._stdin.closed:
            return
        if not self._input:
            self._agent.watch(self._stdin.fileno(), self._write, selectors.EVENT_WRITE)
        self._input += data

    def end_input(self) -> None:
        """No more standard input after what it was given."""
        self._input_ends = True
        if not self._input:
            self._stdin.close()

    def kill(self, number: int) -> None:
        """Signal it and the processes of its group."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass  # it ended in the meantime, which is told by itself

    def close(self) -> None:
        """Let go of its pipes."""
        for pipe in (self._stdin, *self._outputs.values()):
            pipe.close()
        if self.process.returncode is None:
            os.close(self._pidfd)

    def _write(self) -> None:
        if self._stdin.closed:  # its command ended in the same round
            return
        try:
            self._input = self._input[os.write(self._stdin.fileno(), self._input) :]
        except BrokenPipeError:
            self._input, self._input_ends = b"", True
        if not self._input:
            self._agent.selector.unregister(self._stdin)
            if self._input_ends:
                self._stdin.close()

    def _read(self, name: str) -> None:
        """Pass on what there is now, if it has not ended."""
        if name not in self._outputs:
            return
        pipe = self._outputs[name]
        try:
            data = os.read(pipe.fileno(), PIPE_SIZE)
        except BlockingIOError:
            return
        if data:
            self._agent.tell_data(name, self._number, data)
        else:
            self._agent.selector.unregister(pipe)
            pipe.close()
            del self._outputs[name]
            self._forget_if_over()

    def _reap(self) -> None:
        status = self.process.wait()
        self._agent.selector.unregister(self._pidfd)
        os.close(self._pidfd)
        # What it wrote itself is in the pipes by now; its descendants may go on writing.
        for name in ("stdout", "stderr"):
            self._read(name)
        if self._input:
            self._agent.selector.unregister(self._stdin)
        self._stdin.close()
        self._agent.tell(tell="exit", id=self._number, status=status)
        self._forget_if_over()

    def _forget_if_over(self) -> None:
        if self.process.returncode is not None and not self._outputs:
            self._agent.forget(self._number)


def start_process(message: frames.Message) -> subprocess.Popen[bytes]:
    """The process a request describes."""
    environ = dict(os.environ)
    who = identity(message["user"], environ)
    environ.update(message["env"])
    return subprocess.Popen(
        message["args"],
        cwd=message["cwd"],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
        restore_signals=True,
        **who,
    )


def identity(user: str | None, environ: dict[str, str]) -> Mapping[str, Any]:
    """Who to run as: a user's name, or UID:GID; sets what the environment says of them."""
    if user is None:
        return {}
    uid_text, _, gid_text = user.partition(":")
    if not gid_text:
        entry = pwd.getpwnam(user)
        uid, gid = entry.pw_uid, entry.pw_gid
    else:
        uid, gid = int(uid_text), int(gid_text)
    groups: list[int] = []
    for entry in pwd.getpwall():
        if entry.pw_uid == uid:
            environ.update(HOME=entry.pw_dir, USER=entry.pw_name, LOGNAME=entry.pw_name)
            groups = [g.gr_gid for g in grp.getgrall() if entry.pw_name in g.gr_mem]
    return {"user": uid, "group": gid, "extra_groups": groups}


def write_file(message: frames.Message) -> None:
    """One piece of a file: the first one makes it anew."""
    mode = "ab" if message["more"] else "wb"
    with open(message["path"], mode) as file:
        file.write(frames.unpack(message["data"]))
    os.chmod(message["path"], message["mode"])


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
