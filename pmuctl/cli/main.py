# SPDX-License-Identifier: Apache-2.0
"""From argv to the exit status: the one place where errors become words and numbers."""

import errno
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pmuctl.errors import ExitStatus, OutputError, PmuctlError, UsageError

if TYPE_CHECKING:
    from pmuctl.cli.env import Env


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What only typer's printing of help lets through: all else that is written goes through Env."""


def run() -> NoReturn:
    """The console script: run pmuctl and end the process."""
    if sys.argv[1:] == ["--version"]:
        from pmuctl import __version__

        print(f"pmuctl {__version__}")
        sys.exit(0)

    from pmuctl.cli.env import live_env

    for stream in (sys.stdout, sys.stderr):
        # a byte that cannot be encoded is shown, never a reason to fail
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    status = main(sys.argv[1:], live_env(sys.stdout, sys.stderr))
    if status in (ExitStatus.PIPE, ExitStatus.OUTPUT):
        # what is still buffered cannot be written either; the interpreter must not try
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def main(argv: Sequence[str], env: "Env") -> int:
    """Carry out one command line and return its exit status; nothing is raised."""
    from pmuctl.cli.env import PipeClosed

    as_json = _wants_json(argv)
    try:
        return _dispatch(argv, env)
    except PipeClosed:
        return ExitStatus.PIPE
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except PmuctlError as error:
        return _report(error, env, as_json=as_json)
    except Exception as bug:
        return _report_bug(bug, argv, env, as_json=as_json)


def _dispatch(argv: Sequence[str], env: "Env") -> int:
    import typer

    from pmuctl.cli.app import root

    # the vendored click has no public name for the errors of its parser
    parser_error: Any = typer.BadParameter.__mro__[2]
    try:
        status = root().main(args=list(argv), prog_name="pmuctl", standalone_mode=False, obj=env)
    except parser_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            env.stderr.write(error.format_message() + "\n")
            return ExitStatus.USAGE
        raise _usage_error(error) from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise OutputError(
            "the result could not be written", why=error.strerror or str(error)
        ) from error
    except SystemExit as end:
        # typer's own way out of a closed pipe, while it prints help
        from pmuctl.cli.env import PipeClosed

        raise PipeClosed from end
    return int(status or 0)


def _usage_error(error: Any) -> PmuctlError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "pmuctl"
    return UsageError(error.format_message().rstrip("."), fix=f"{command} --help")


def _wants_json(argv: Sequence[str]) -> bool:
    """Whether errors are to be JSON: they can come up before the options are parsed."""
    words = argv[: argv.index("--")] if "--" in argv else argv
    return any(
        word == "--json" or (word[:1] == "-" and word[1:2] != "-" and "J" in word)
        for word in words
    )


def _report(error: PmuctlError, env: "Env", *, as_json: bool) -> int:
    from pmuctl.render.problem import write_problem

    try:
        write_problem(error, env.stderr, as_json=as_json)
        env.stderr.flush()
    except OSError:
        pass  # there is nowhere left to say it; the status still does
    return error.status


def _report_bug(bug: Exception, argv: Sequence[str], env: "Env", *, as_json: bool) -> int:
    if any(word.startswith("-vv") for word in argv) or list(argv).count("-v") > 1:
        import traceback

        traceback.print_exception(bug, file=env.stderr)
    error = PmuctlError(
        f"a bug in pmuctl: {type(bug).__name__}: {bug}",
        fix="please report it with the output of the same command and -vv",
    )
    error.status = ExitStatus.BUG
    return _report(error, env, as_json=as_json)
