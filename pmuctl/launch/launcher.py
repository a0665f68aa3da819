# SPDX-License-Identifier: Apache-2.0
"""A VMM executed in place, behind the gate and with a supervisor beside it."""

import fcntl
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from pmuctl.errors import RefusedError, UnreachableError
from pmuctl.launch import handshake
from pmuctl.launch.failures import no_gate, no_supervisor
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.trace.arch import Arch, native_arch
from pmuctl.launch.trace.seccomp_gate import install
from pmuctl.uapi.pidfd import close_fds_from
from pmuctl.uapi.ptrace import PR_SET_PTRACER, PR_SET_THP_DISABLE, prctl

SUPERVISOR = Path(__file__).with_name("__main__.py")
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
CAUGHT_HERE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def launch(
    spec: LaunchSpec,
    executable: str,
    argv: Sequence[str],
    environ: Mapping[bytes, bytes],
    *,
    supervisor: Path = SUPERVISOR,
) -> NoReturn:
    """Become the VMM: this process keeps its id, its terminal and its parent.

    Raise DeniedError, RefusedError or UnreachableError if the gate or the supervisor cannot be
    set up, what the supervisor raises before the start, and OSError if the executable cannot be
    executed; then nothing was started.
    """
    arch = native_arch()
    try:
        ours, theirs = map(_move_above_stdio, socket.socketpair())
        with ours:
            with theirs:
                _start_supervisor(spec.name, theirs, supervisor)
            try:
                _hand_over_spec(ours, spec)
            except (EOFError, ConnectionError):
                message, why = _describe_supervisor_exit(supervisor)
                raise RefusedError(message, why=why) from None
            _install_gate(arch, ours, supervisor)
    except OSError as error:
        raise no_supervisor(error) from error
    execute(executable, argv, environ)


def _install_gate(arch: Arch, ours: socket.socket, supervisor: Path) -> None:
    """Install the gate and hand its listener to the supervisor.

    Raise UnreachableError, or the error that the supervisor answers with, if it does not take it:
    the gate is installed then, and no vCPU can be made behind it any more.
    """
    try:
        listener = install(arch)
    except OSError as error:
        raise no_gate(error) from None
    try:
        handshake.send_message(ours, b"", listener)
        os.close(listener)
        answer, _ = handshake.recv_message(ours)
    except (EOFError, OSError):
        message, why = _describe_supervisor_exit(supervisor)
        raise UnreachableError(message, why=why) from None
    if answer:
        raise handshake.decode_error(answer)


def _describe_supervisor_exit(supervisor: Path) -> tuple[str, str]:
    """Return message and reason for a supervisor that ended before the start."""
    return (
        "the supervisor ended before the VMM was started",
        f"{sys.executable} {supervisor} did not stay: check that this user can run it",
    )


def _move_above_stdio(sock: socket.socket) -> socket.socket:
    """Return the socket on a descriptor above 3.

    The first three may be closed standard streams, and 3 is the socket in the supervisor.
    """
    with sock:
        return socket.socket(fileno=fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 4))


def _hand_over_spec(ours: socket.socket, spec: LaunchSpec) -> None:
    """Let the supervisor trace this process, and send it the launch spec and stderr.

    Raise the error that the supervisor answers with.
    """
    pid, _ = handshake.recv_message(ours)
    with suppress(OSError):  # EINVAL without Yama
        prctl(PR_SET_PTRACER, int(pid))
    text = str(os.getpid()).encode() + b"\n" + spec.encode()
    try:
        os.fstat(2)
        handshake.send_message(ours, text, 2)
    except OSError:
        handshake.send_message(ours, text)
    answer, _ = handshake.recv_message(ours)
    if answer:
        raise handshake.decode_error(answer)


def _start_supervisor(name: str, theirs: socket.socket, supervisor: Path) -> None:
    """Start the supervisor so that it is no child of this process.

    The VMM must find no process that it did not make.
    """
    child = os.fork()
    if child:
        with suppress(ChildProcessError):  # with SIGCHLD ignored there is no child to wait for
            os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            os.chdir("/")
            null = os.open(os.devnull, os.O_RDWR)
            for fd in range(3):
                os.dup2(null, fd)
                os.set_inheritable(fd, True)  # noqa: FBT003 (positional only)
            os.dup2(theirs.fileno(), 3)
            close_fds_from(4)
            # it is small and stays: of a huge page it would need only a part
            with suppress(OSError):
                prctl(PR_SET_THP_DISABLE, 1)
            argv = [sys.executable, "-I", "-S", str(supervisor), name, "3"]
            os.execve(sys.executable, argv, {"LC_ALL": "C.UTF-8"})
    finally:
        os._exit(0)


def execute(executable: str, argv: Sequence[str], environ: Mapping[bytes, bytes]) -> NoReturn:
    """Execute a program in place, with signals as it would find them without pmuctl.

    Signals that Python ignores get their default action. Whether one was ignored before Python
    started, as systemd does with SIGPIPE, is no longer known. Raise OSError.
    """
    for signum in (*IGNORED_BY_PYTHON, *CAUGHT_HERE):
        if signum in IGNORED_BY_PYTHON or callable(signal.getsignal(signum)):
            signal.signal(signum, signal.SIG_DFL)
    os.execve(executable, list(argv), dict(environ))
