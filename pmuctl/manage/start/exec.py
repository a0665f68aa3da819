# SPDX-License-Identifier: Apache-2.0
"""A VMM executed in place of this process: its file, its environment, and why it cannot be."""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from pmuctl.errors import (
    DeniedError,
    NoCommandError,
    NotExecutableError,
    PmuctlError,
    RefusedError,
    UnsupportedError,
)
from pmuctl.launch.spec import LaunchSpec

PATH_OWN_ENVIRON = "/proc/self/environ"
DEFAULT_PATH = "/bin:/usr/bin"
"""Where execvp(3) looks if there is no PATH."""

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT})
"""What execvp(3) passes over on its way through PATH."""

Warn = Callable[[PmuctlError], None]


class Executor:
    """What becomes of this process: a VMM with a supervisor beside it, or the VMM alone."""

    def launch(
        self,
        orders: LaunchSpec,
        executable: str,
        argv: Sequence[str],
        environ: Mapping[bytes, bytes],
    ) -> NoReturn:
        """Start the supervisor and execute the VMM.

        Raises DeniedError, UnsupportedError and RefusedError for what is in the way, OSError
        where the VMM cannot be executed.
        """
        from pmuctl.launch.launcher import launch

        launch(orders, executable, argv, environ)

    def execute(
        self, executable: str, argv: Sequence[str], environ: Mapping[bytes, bytes]
    ) -> NoReturn:
        """Execute the VMM and nothing else; raises OSError."""
        from pmuctl.launch.launcher import execute

        execute(executable, argv, environ)


def start(
    starter: Executor,
    orders: LaunchSpec,
    executable: str,
    environ: Mapping[bytes, bytes],
    *,
    gated: bool,
    warn: Warn,
) -> NoReturn:
    """Become the VMM: `gated`, with a supervisor that applies the orders, else by itself.

    With the best effort the VMM is executed by itself where the supervisor cannot do its work.
    Raises NoCommandError, NotExecutableError, and what `Executor.launch` does.
    """
    argv = orders.command
    try:
        if gated:
            try:
                starter.launch(orders, executable, argv, environ)
            except (DeniedError, UnsupportedError, RefusedError) as error:
                if not orders.best_effort:
                    raise
                warn(without_settings(error))
        starter.execute(executable, argv, environ)
    except OSError as error:
        raise exec_problem(argv[0], executable, error.errno or errno.EACCES) from error


def without_settings(error: PmuctlError) -> PmuctlError:
    """An obstacle as a warning: what the best effort comes to."""
    error.now = "the VMM is started without its settings (--best-effort)"
    return error


def own_environ(path: str = PATH_OWN_ENVIRON) -> dict[bytes, bytes]:
    """The environment that this process was executed with.

    os.environ is not that: in the C locale the interpreter changes LC_CTYPE (PEP 538). Of a
    variable that is there twice the first is kept, as getenv(3) finds it.
    """
    try:
        data = Path(path).read_bytes()
    except OSError:
        return dict(os.environb)
    environ: dict[bytes, bytes] = {}
    for entry in data.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if name and equals:
            environ.setdefault(name, value)
    return environ


def find_program(command: str, environ: Mapping[str, str]) -> str:
    """The file that a command stands for, found as execvp(3) does.

    Raises NoCommandError and NotExecutableError, as env(1) tells 127 from 126.
    """
    if not command or "\0" in command:
        raise exec_problem(command, command, errno.ENOENT)
    if "/" in command:
        if error := _refusal(command):
            raise exec_problem(command, command, error)
        return command
    denied = None
    for path in _candidates(command, environ):
        error = _refusal(path)
        if not error:
            return path
        if error == errno.EACCES:
            denied = denied or path
        elif error not in _ABSENT:
            raise exec_problem(command, path, error)
    if denied is not None:
        raise exec_problem(command, denied, errno.EACCES)
    raise exec_problem(command, command, errno.ENOENT)


def _candidates(command: str, environ: Mapping[str, str]) -> Iterator[str]:
    for directory in environ.get("PATH", DEFAULT_PATH).split(":"):
        # a path with a slash is not searched for once more
        yield f"{directory or '.'}/{command}"


def _refusal(path: str) -> int:
    """The errno that execve(2) would give for this file, 0 where nothing is known against it."""
    try:
        is_file = stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        return error.errno or errno.ENOENT
    effective = os.access in os.supports_effective_ids
    may = is_file and os.access(path, os.X_OK, effective_ids=effective)
    return 0 if may else errno.EACCES


def exec_problem(command: str, path: str, number: int) -> PmuctlError:
    """Why a command cannot be executed: execve's errno in words, with env's exit status."""
    name = errno.errorcode.get(number, str(number))
    shown = command or repr(command)
    if number == errno.ENOENT:
        why = "there is no such file" if "/" in command else "no directory of PATH has it"
        if os.path.exists(path):
            why = f"the interpreter that {path} asks for does not exist"
        return NoCommandError(
            f"{shown}: no such command", why=why, fix="give the path of the VMM", errno=name
        )
    why = os.strerror(number)
    if number == errno.EACCES and os.path.isdir(path):
        why = f"{path} is a directory"
    elif number == errno.EACCES and os.path.exists(path):
        why = f"{path} may not be executed by this user"
    elif number == errno.ENOEXEC:
        why = f"{path} is no program, and no script that begins with #!"
    return NotExecutableError(
        f"{shown}: cannot be executed", why=why, fix="give the path of the VMM", errno=name
    )
