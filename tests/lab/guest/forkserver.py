# SPDX-License-Identifier: Apache-2.0
"""Starts Python programs whose imports are done already: forks for each, executes nothing.

Under TCG nine tenths of a short command are the imports of Python and pmuctl. The agent starts
this once, with a socket, and sends it one message a program, with the three standard streams
beside it. A program has its own words and environment (which /proc tells, too), directory,
streams, session and exit status; umask, limits and all else are the agent's, as they are of what
that executes. All of one lab's have the same hash seed. Not for tests of start-up itself, of other
users' rights or of limits.
"""

import ctypes
import gc
import importlib.util
import io
import json
import os
import pkgutil
import runpy
import selectors
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

MESSAGE_MAX = 1 << 17
INTERPRETER, PMUCTL = "/usr/bin/python3", "/usr/bin/pmuctl"

# What is read at an interpreter's start, or when typer is imported.
START_UP_PREFIXES = ("PYTHON", "LC_", "LANG", "TYPER", "_TYPER")

# What pmuctl loads late, besides its own modules.
LATE_IMPORTS = (
    *("concurrent.futures.thread", "csv", "ctypes.util", "datetime", "pyudev", "traceback"),
    *("rich.box", "rich.console", "rich.table", "rich.text", "typer", "typer.core"),
)

PR_SET_NAME = 15
PR_SET_MM = 35
PR_SET_MM_ARG_START = 8
PR_SET_MM_ARG_END = 9
PR_SET_MM_ENV_START = 10
PR_SET_MM_ENV_END = 11


@dataclass(frozen=True, slots=True)
class Program:
    """A program to be, as the agent was asked for it."""

    number: int
    args: Sequence[str]
    environ: Mapping[str, str]
    cwd: str | None

    @classmethod
    def parse(cls, data: bytes) -> "Program":
        """From a message of the agent."""
        message = json.loads(data)
        return cls(message["id"], message["args"], message["env"], message["cwd"])

    @property
    def kind(self) -> str:
        """What it is whatever else its words are: "pmuctl", or the name of a module."""
        return "pmuctl" if self.args[0] == "pmuctl" else self.args[2]

    @property
    def main_module(self) -> str:
        """The module that `python3 -m` executes: of a package, the one in it."""
        spec = importlib.util.find_spec(self.kind)
        is_package = spec is not None and spec.submodule_search_locations is not None
        return f"{self.kind}.__main__" if is_package else self.kind

    @property
    def cmdline(self) -> list[str]:
        """As /proc tells it of one that was executed."""
        if self.args[0] == "pmuctl":
            return [INTERPRETER, PMUCTL, *self.args[1:]]
        return list(self.args)


def check_may_be_preloaded(
    args: Sequence[str], environ: Mapping[str, str], user: str | None
) -> None:
    """Raise ValueError for what only an interpreter that starts anew can be."""
    if user is not None:
        raise ValueError("a preloaded program has the agent's rights: start it anew")
    if not is_program(args):
        raise ValueError(f"not preloaded: {' '.join(args)}")
    if found := [name for name in environ if name.startswith(START_UP_PREFIXES)]:
        raise ValueError(f"an interpreter reads {', '.join(found)} as it starts: start it anew")


def is_program(args: Sequence[str]) -> bool:
    """Whether these are the words of pmuctl or of a module here."""
    if args[0] == "pmuctl":
        return True
    return list(args[:2]) == ["python3", "-m"] and "".join(args[2:3]).startswith("tests.lab.")


def modules_of(program: Program) -> Iterator[str]:
    """What a program of this kind may load; a module of the lab's must do nothing on import."""
    if program.kind != "pmuctl":
        yield program.main_module
        return
    yield from LATE_IMPORTS
    package = importlib.import_module("pmuctl")
    for module in pkgutil.walk_packages(package.__path__, "pmuctl."):
        if not module.name.endswith(".__main__"):
            yield module.name


class Forkserver:
    """Forks one process for each message."""

    def __init__(self, agent: socket.socket) -> None:
        self._agent = agent
        self._selector = selectors.DefaultSelector()
        self._kinds: set[str] = set()
        self._children: dict[int, int] = {}  # by pidfd, the number of the program

    def serve(self) -> Program | None:
        """Return in each child, with what it is to be; in the parent once the agent is gone."""
        self._selector.register(self._agent, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fd in self._children:
                    self._reap(key.fd)
                    continue
                data, streams, _, _ = socket.recv_fds(self._agent, MESSAGE_MAX, 3)
                if not data:
                    return None
                program = Program.parse(data)
                self._preload(program)
                if self._fork(program, streams):
                    return program

    def _preload(self, program: Program) -> None:
        if program.kind in self._kinds:
            return
        self._kinds.add(program.kind)
        with suppress(Exception):  # the program will tell of it itself
            for name in modules_of(program):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()

    def _fork(self, program: Program, streams: Sequence[int]) -> bool:
        """Whether this is the child."""
        try:
            pid = os.fork()
        except OSError as error:
            self._tell(program.number, errno=error.errno, why=error.strerror, subject="fork")
            pid = -1
        if pid:
            for fd in streams:
                os.close(fd)
            if pid < 0:
                return False
            pidfd = os.pidfd_open(pid)
            self._children[pidfd] = program.number
            self._selector.register(pidfd, selectors.EVENT_READ)
            return False
        os.setsid()
        for target, fd in enumerate(streams):
            os.dup2(fd, target)
            os.close(fd)
        try:
            if program.cwd is not None:
                os.chdir(program.cwd)
        except OSError as error:
            self._tell(program.number, errno=error.errno, why=error.strerror, subject=program.cwd)
            os._exit(0)
        set_proc_names(program)
        self._tell(program.number, pid=os.getpid())
        self._selector.close()
        for pidfd in self._children:
            os.close(pidfd)
        self._agent.close()
        return True

    def _reap(self, pidfd: int) -> None:
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        assert ended is not None
        self._selector.unregister(pidfd)
        os.close(pidfd)
        has_exited = ended.si_code == os.CLD_EXITED
        status = ended.si_status if has_exited else -ended.si_status
        self._tell(self._children.pop(pidfd), status=status)

    def _tell(self, number: int, **what: Any) -> None:
        self._agent.send(json.dumps({"id": number, **what}).encode())


def run_program(program: Program) -> NoReturn:
    """Be the program, as if the interpreter had just started."""
    os.environ.clear()
    os.environ.update(program.environ)
    time.tzset()
    # what is buffered in them is nobody's
    sys.stdin = open_stream(0, "r")
    sys.stdout = open_stream(1, "w")
    sys.stderr = open_stream(2, "w")
    if program.args[0] == "pmuctl":
        from pmuctl.cli.entry import run

        sys.argv = [PMUCTL, *program.args[1:]]
        run()
        sys.exit()
    sys.argv = list(program.args[2:])
    sys.modules.pop(program.main_module, None)  # or runpy warns
    runpy.run_module(program.kind, run_name="__main__", alter_sys=True)
    sys.exit()


def open_stream(fd: int, mode: str) -> io.TextIOWrapper:
    """A standard stream, as an interpreter opens it that runs in the C.UTF-8 locale."""
    errors = "backslashreplace" if fd == 2 else "surrogateescape"
    stream = open(fd, mode, encoding="utf-8", errors=errors, newline="\n", closefd=False)
    assert isinstance(stream, io.TextIOWrapper)
    if fd == 2 or stream.isatty():
        stream.reconfigure(line_buffering=True)
    return stream


def set_proc_names(program: Program) -> None:
    """Set what /proc/PID/comm, cmdline and environ say of this process: prctl(2)."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    name = ctypes.create_string_buffer(os.path.basename(program.args[0]).encode()[:15])
    words = b"".join(os.fsencode(word) + b"\0" for word in program.cmdline)
    environ = b"".join(
        os.fsencode(f"{name}={value}") + b"\0" for name, value in program.environ.items()
    )
    whole = words + environ
    # lives as long as the process: the kernel reads it whenever somebody asks
    set_proc_names.kept = buffer = ctypes.create_string_buffer(whole, len(whole))  # type: ignore[attr-defined]
    start = ctypes.addressof(buffer)
    middle, end = start + len(words), start + len(whole)
    for option, what, value in (
        (PR_SET_NAME, ctypes.addressof(name), 0),
        # below the old ones, so first the starts
        (PR_SET_MM, PR_SET_MM_ARG_START, start),
        (PR_SET_MM, PR_SET_MM_ARG_END, middle),
        (PR_SET_MM, PR_SET_MM_ENV_START, middle),
        (PR_SET_MM, PR_SET_MM_ENV_END, end),
    ):
        if prctl(option, what, value, 0, 0):
            raise OSError(ctypes.get_errno(), f"prctl({option}, {what})")


def main() -> None:
    """Serve the agent, and in each child become what it asked for."""
    agent = socket.socket(fileno=int(sys.argv[1]))
    program = Forkserver(agent).serve()
    if program is not None:
        run_program(program)


if __name__ == "__main__":
    main()
