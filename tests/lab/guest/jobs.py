# SPDX-License-Identifier: Apache-2.0
"""The processes that the lab's agent starts or has forked, with the pipes to them."""

import grp
import json
import os
import pwd
import selectors
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from tests.lab import frames
from tests.lab.guest import forkserver

PIPE_SIZE = 65536


class Owner(Protocol):
    """What a job needs of the agent: it tells, and is called when a file is ready."""

    @property
    def selector(self) -> selectors.BaseSelector:
        """Where files are unregistered again."""

    def watch(self, fd: int, handler: Callable[[], None], events: int = ...) -> None:
        """Call the handler whenever the file is ready."""

    def tell(self, **message: Any) -> None:
        """Send one message."""

    def tell_data(self, tell: str, number: int, data: bytes) -> None:
        """Send data in as many messages as it needs."""

    def forget(self, number: int) -> None:
        """Drop a job that is over."""


class Job:
    """A process with the pipes to it, in a process group of its own.

    Without a `pid` it has not been started yet, with a `status` it has ended.
    """

    def __init__(self, agent: Owner, number: int, pipes: Sequence[int]) -> None:
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

    def __init__(self, agent: Owner, message: frames.Message) -> None:
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

    def __init__(self, agent: Owner, message: frames.Message, server: "ForkserverClient") -> None:
        self._has_failed = False
        forkserver.check_may_be_preloaded(message["args"], message["env"], message["user"])
        (stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr) = (
            os.pipe(),
            os.pipe(),
            os.pipe(),
        )
        program = {
            "id": message["id"],
            "args": message["args"],
            "env": dict(os.environ) | message["env"],
            "cwd": message["cwd"],
        }
        try:
            server.send(program, (stdin, stdout, stderr))
        finally:
            for fd in (stdin, stdout, stderr):
                os.close(fd)
        super().__init__(agent, message["id"], (to_stdin, from_stdout, from_stderr))

    def take(self, told: Mapping[str, Any]) -> None:
        """What the forkserver tells of it."""
        match told:
            case {"pid": pid}:
                self.begin(pid)
            case {"errno": number, "why": why, "subject": subject}:
                self._fail(errno=number, why=why, subject=subject)
            case {"status": status} if self.pid is None and not self._has_failed:
                self._fail(errno=None, why=f"it ended with {status} before it began", subject=None)
                self.end(status)
            case {"status": status}:
                self.end(status)

    def _fail(self, **failure: Any) -> None:
        self._has_failed = True
        self._agent.tell(tell="failed", id=self._number, **failure)


class ForkserverClient:
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
