# SPDX-License-Identifier: Apache-2.0
"""Serves the lab's serial console: runs processes, reads and writes files, as frames ask.

Each request has a number, which all answers to it carry. Every line that comes in is
acknowledged once it has been read, so that the other side never sends more than the tty holds.
"""

import glob
import grp
import json
import os
import pwd
import selectors
import signal
import socket
import subprocess
import sys
import termios
import tty
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from tests.lab import frames
from tests.lab.guest import forkserver

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
        self._forkserver: Forkserver | None = None
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

    @property
    def forkserver(self) -> "Forkserver":
        """The process that preloaded programs are forked from, started at first use."""
        if self._forkserver is None:
            self._forkserver = Forkserver()
            self.watch(self._forkserver.socket.fileno(), self._read_forkserver)
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

    def _read_forkserver(self) -> None:
        message = self.forkserver.receive()
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
                    self._jobs[number] = PreloadedJob(self, message)
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


class Job:
    """A process with the pipes to it, in a process group of its own.

    Without a `pid` it has not been started yet, with a `status` it has ended.
    """

    def __init__(self, agent: Agent, number: int, pipes: Sequence[int]) -> None:
        """Of the agent's ends of the pipes to its standard input, output and error."""
        self.pid: int | None = None
        self.status: int | None = None
        self._agent = agent
        self._number = number
        self._input = b""
        self._input_ends = False
        stdin, stdout, stderr = pipes
        self._stdin = open(stdin, "wb", buffering=0)
        self._outputs = {"stdout": stdout, "stderr": stderr}
        for pipe in pipes:
            os.set_blocking(pipe, False)
        for name, pipe in self._outputs.items():
            agent.watch(pipe, partial(self._read, name))

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
        if self.pid is None:
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass  # it ended in the meantime, which is told by itself

    def close(self) -> None:
        """Let go of its pipes."""
        self._stdin.close()
        for pipe in self._outputs.values():
            os.close(pipe)

    def begin(self, pid: int) -> None:
        """It runs."""
        self.pid = pid
        self._agent.tell(tell="started", id=self._number, pid=pid)

    def end(self, status: int) -> None:
        """It has ended, and -N is the status when signal N did that."""
        self.status = status
        # What it wrote itself is in the pipes by now; its descendants may go on writing.
        for name in ("stdout", "stderr"):
            self._read(name)
        if self._input:
            self._agent.selector.unregister(self._stdin)
            self._input = b""
        self._stdin.close()
        self._agent.tell(tell="exit", id=self._number, status=status)
        self._forget_if_over()

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
            data = os.read(pipe, PIPE_SIZE)
        except BlockingIOError:
            return
        if data:
            self._agent.tell_data(name, self._number, data)
        else:
            self._agent.selector.unregister(pipe)
            os.close(pipe)
            del self._outputs[name]
            self._forget_if_over()

    def _forget_if_over(self) -> None:
        if self.status is not None and not self._outputs:
            self._agent.forget(self._number)


class StartedJob(Job):
    """A process that was executed."""

    def __init__(self, agent: Agent, message: frames.Message) -> None:
        self._process = start_process(message)
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        super().__init__(agent, message["id"], [detach(pipe) for pipe in pipes])
        self._pidfd = os.pidfd_open(self._process.pid)
        agent.watch(self._pidfd, self._reap)
        self.begin(self._process.pid)

    def close(self) -> None:
        """Let go of its pipes."""
        super().close()
        if self.status is None:
            os.close(self._pidfd)

    def _reap(self) -> None:
        self._agent.selector.unregister(self._pidfd)
        os.close(self._pidfd)
        self.end(self._process.wait())


class PreloadedJob(Job):
    """A process that the forkserver forks, which is told once it has done so."""

    def __init__(self, agent: Agent, message: frames.Message) -> None:
        forkserver.check(message["args"], message["env"], message["user"])
        inner, outer = zip(*(os.pipe(), os.pipe()[::-1], os.pipe()[::-1]), strict=True)
        program = {
            "id": message["id"],
            "args": message["args"],
            "env": dict(os.environ) | message["env"],
            "cwd": message["cwd"],
        }
        try:
            agent.forkserver.send(program, inner)
        finally:
            for fd in inner:
                os.close(fd)
        super().__init__(agent, message["id"], outer)

    def take(self, told: Mapping[str, Any]) -> None:
        """What the forkserver tells of it."""
        match told:
            case {"pid": pid}:
                self.begin(pid)
            case {"errno": number, "why": why, "subject": subject}:
                failure = {"errno": number, "why": why, "subject": subject}
                self._agent.tell(tell="failed", id=self._number, **failure)
            case {"status": status}:
                self.end(status)


class Forkserver:
    """The process that preloaded programs are forked from: see tests.lab.guest.forkserver."""

    def __init__(self) -> None:
        self.socket, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", forkserver.__name__, str(inner.fileno())]
        with inner:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[inner.fileno()]
            )

    def send(self, program: Mapping[str, Any], streams: Sequence[int]) -> None:
        """Ask for a process with these standard streams."""
        socket.send_fds(self.socket, [json.dumps(program).encode()], streams)

    def receive(self) -> dict[str, Any]:
        """What it tells of one of them; raises EOFError when it has ended."""
        data = self.socket.recv(forkserver.MESSAGE_MAX)
        if not data:
            raise EOFError(f"the forkserver ended with status {self._process.wait()}")
        told: dict[str, Any] = json.loads(data)
        return told

    def close(self) -> None:
        """End it; what was forked goes on."""
        self.socket.close()
        self._process.wait()


def detach(pipe: Any) -> int:
    """The descriptor of a file, which is left open."""
    fd = os.dup(pipe.fileno())
    pipe.close()
    return fd


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


def read_files(pattern: str) -> dict[str, str]:
    """By path, what is in the files of a glob pattern; those that go away meanwhile are left out.

    A directory, a socket and an empty file are there with nothing in them.
    """
    found = {}
    for path in glob.glob(pattern):
        try:
            with open(path, "rb") as file:
                found[path] = file.read().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:
            found[path] = ""
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
