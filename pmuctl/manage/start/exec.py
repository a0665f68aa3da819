# SPDX-License-Identifier: Apache-2.0
"""Execution of a VMM in place of this process: its file, its environment, and exec errors."""

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
"""The directories that execvp(3) searches if there is no PATH."""

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT})
"""The errors of execve(2) after which execvp(3) goes on to the next directory of PATH."""

Warn = Callable[[PmuctlError], None]


class Executor:
    """Replaces this process with a VMM that has a supervisor beside it, or with the VMM alone."""

    def launch(
        self,
        spec: LaunchSpec,
        executable: str,
        argv: Sequence[str],
        environ: Mapping[bytes, bytes],
    ) -> NoReturn:
        """Start the supervisor and execute the VMM.

        Raise DeniedError, UnsupportedError and RefusedError if the supervisor cannot do its work,
        OSError if the VMM cannot be executed.
        """
        from pmuctl.launch.launcher import launch

        launch(spec, executable, argv, environ)

    def execute(
        self, executable: str, argv: Sequence[str], environ: Mapping[bytes, bytes]
    ) -> NoReturn:
        """Execute the VMM and nothing else; raise OSError."""
        from pmuctl.launch.launcher import execute

        execute(executable, argv, environ)


def start(
    executor: Executor,
    spec: LaunchSpec,
    executable: str,
    environ: Mapping[bytes, bytes],
    *,
    gated: bool,
    warn: Warn,
) -> NoReturn:
    """Become the VMM: if `gated`, with a supervisor that applies `spec`, else without one.

    If the supervisor cannot do its work, a best-effort VMM is executed without one and `warn` is
    called. Raise NoCommandError, NotExecutableError, and what `Executor.launch` raises.
    """
    argv = spec.command
    try:
        if gated:
            try:
                executor.launch(spec, executable, argv, environ)
            except (DeniedError, UnsupportedError, RefusedError) as error:
                if not spec.best_effort:
                    raise
                warn(as_warning(error))
        executor.execute(executable, argv, environ)
    except OSError as error:
        raise make_exec_error(argv[0], executable, error.errno or errno.EACCES) from error


def as_warning(error: PmuctlError) -> PmuctlError:
    """Return the error as the warning of a VMM that is started without its settings."""
    error.now = "the VMM is started without its settings (--best-effort)"
    return error


def read_own_environ(path: str = PATH_OWN_ENVIRON) -> dict[bytes, bytes]:
    """Return the environment that this process was executed with.

    os.environ differs from it: in the C locale the interpreter changes LC_CTYPE (PEP 538). If a
    variable is there twice, the first one is kept, as getenv(3) finds it. Return os.environb if
    the file cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError:
        return dict(os.environb)
    environ: dict[bytes, bytes] = {}
    for entry in data.split(b"\0"):
        name, equals, text = entry.partition(b"=")
        if name and equals:
            environ.setdefault(name, text)
    return environ


def find_program(command: str, environ: Mapping[str, str]) -> str:
    """Return the file of a command, found as execvp(3) does.

    Raise NoCommandError (127) and NotExecutableError (126), told apart as env(1) does.
    """
    if not command or "\0" in command:
        raise make_exec_error(command, command, errno.ENOENT)
    if "/" in command:
        if error := _check_executable(command):
            raise make_exec_error(command, command, error)
        return command
    denied = None
    for path in _iter_candidates(command, environ):
        error = _check_executable(path)
        if not error:
            return path
        if error == errno.EACCES:
            denied = denied or path
        elif error not in _ABSENT:
            raise make_exec_error(command, path, error)
    if denied is not None:
        raise make_exec_error(command, denied, errno.EACCES)
    raise make_exec_error(command, command, errno.ENOENT)


def _iter_candidates(command: str, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the paths of a command in the directories of PATH."""
    for directory in environ.get("PATH", DEFAULT_PATH).split(":"):
        # the slash keeps find_program() and execve(2) from a second search
        yield f"{directory or '.'}/{command}"


def _check_executable(path: str) -> int:
    """Return the errno that execve(2) would give for this file, 0 if none is known."""
    try:
        is_file = stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        return error.errno or errno.ENOENT
    effective = os.access in os.supports_effective_ids
    is_executable = is_file and os.access(path, os.X_OK, effective_ids=effective)
    return 0 if is_executable else errno.EACCES


def make_exec_error(command: str, path: str, number: int) -> PmuctlError:
    """Return the error for an errno of execve(2), with the exit status that env(1) has for it."""
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
