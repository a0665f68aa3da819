# SPDX-License-Identifier: Apache-2.0
"""From argv to the exit status: the one place where errors become messages and statuses."""

import errno
import gc
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from pmuctl.cli.command_line import (
    correct_line,
    find_path,
    find_sysroot,
    keep_sysroot,
    read_flags,
    select_own_words,
    wants_json,
)
from pmuctl.errors import ExitStatus, PmuctlError, Stopped, UsageError, WrongWordError

if TYPE_CHECKING:
    from pmuctl.cli.context import Context


ENDING = {
    signal.SIGINT: ExitStatus.INTERRUPTED,
    signal.SIGTERM: ExitStatus.TERMINATED,
    signal.SIGHUP: ExitStatus.TERMINATED,
}


def run() -> NoReturn:
    """Run pmuctl on sys.argv and end the process with its exit status."""
    # Nothing here lives long enough to be collected, and os._exit() saves the interpreter's own
    # cleanup: together a quarter of the time of a short command.
    gc.disable()
    try:
        handle_signals()
        context = _live_context()
        ended = main(sys.argv[1:], context)
        with suppress(OSError):
            context.stderr.flush()
    except Stopped as stop:
        ended = stop.status
    except OSError as error:  # not even what reports errors could be loaded
        with suppress(OSError, AttributeError):
            sys.stderr.write(f"error: pmuctl cannot be started\n  why: {error}\n")
            sys.stderr.flush()
        ended = ExitStatus.REFUSED
    os._exit(ended)


def handle_signals() -> None:
    """Have SIGINT, SIGTERM and SIGHUP raise Stopped, unless they are ignored."""
    for number, status in ENDING.items():
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) sets it
            signal.signal(number, partial(_raise_stopped, status))


def _live_context() -> "Context":
    from pmuctl.cli.context import live_context
    from pmuctl.render.streams import standard_streams

    return live_context(*standard_streams())


def _raise_stopped(status: ExitStatus, *_: object) -> NoReturn:
    raise Stopped(status)


def main(argv: Sequence[str], context: "Context") -> int:
    """Run one command line and return its exit status; nothing is raised."""
    from pmuctl.render.streams import PipeClosed

    try:
        return _run_command(argv, context)
    except PipeClosed:
        return ExitStatus.PIPE
    except Stopped as stop:
        return _report_stop(stop, argv, context)
    except PmuctlError as error:
        return _report_error(error, argv, context)
    except Exception as bug:
        if (hidden := _find_stop_behind(bug)) is not None:
            return _report_stop(hidden, argv, context)
        if (shortage := _find_shortage_behind(bug)) is not None:
            return _report_error(shortage, argv, context)
        return _report_bug(bug, argv, context)


def _find_stop_behind(bug: BaseException | None) -> Stopped | None:
    """Return the Stopped that an exception has replaced, None if there is none.

    A signal that interrupts the release of a lock, for example, raises both.
    """
    while bug is not None and not isinstance(bug, Stopped):
        bug = bug.__cause__ or bug.__context__
    return bug


def _find_shortage_behind(bug: BaseException | None) -> PmuctlError | None:
    """Return the error for descriptors or memory that ran out anywhere, such as in an import.

    Return None if an exception has another cause.
    """
    from pmuctl.host.resource_errors import find_exhaustion

    while bug is not None:
        if isinstance(bug, MemoryError):
            bug = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        if isinstance(bug, OSError) and (shortage := find_exhaustion(bug)) is not None:
            return shortage
        bug = bug.__cause__ or bug.__context__
    return None


def _run_command(argv: Sequence[str], context: "Context") -> int:
    import typer

    from pmuctl.cli.app import root

    # the click that typer vendors has no public name for its parser errors
    parser_error: Any = typer.BadParameter.__mro__[2]
    try:
        with redirect_stdout(context.stdout):
            status = root().main(
                args=list(argv),
                prog_name="pmuctl",
                standalone_mode=False,
                obj=context,
                complete_var="",
            )
            context.stdout.flush()
    except parser_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            with suppress(OSError):
                context.stderr.write(error.format_message() + "\n")
            return ExitStatus.USAGE
        raise _make_usage_error(error, argv) from None
    except typer.Abort:
        raise Stopped(ExitStatus.INTERRUPTED) from None
    if status == ExitStatus.INTERRUPTED:  # what typer makes of a KeyboardInterrupt
        raise Stopped(ExitStatus.INTERRUPTED)
    return int(status or 0)


def _make_usage_error(error: Any, argv: Sequence[str]) -> PmuctlError:
    """Return the error of the parser as one of pmuctl's; raise WrongWordError if one is near."""
    from pmuctl.cli.app import root

    typer_context = getattr(error, "ctx", None)
    path = find_path(root(), argv)
    fix = f"{f'pmuctl {path}'.strip()} --help"
    is_group = typer_context is not None and hasattr(typer_context.command, "commands")
    if type(error).__name__ == "NoSuchOption" and is_group:
        fix = f"options go after the command: pmuctl NOUN VERB {error.option_name}"
    message = " ".join(error.format_message().split())
    if typer_context is not None and not is_group:
        from pmuctl.cli.near_misses.commands import (
            check_extra,
            check_missing,
            check_option,
        )

        words = select_own_words(argv)
        if type(error).__name__ == "NoSuchOption":
            check_option(root(), path, error.option_name, words, argv[len(words) :])
        elif match := re.fullmatch(
            r"Got unexpected extra arguments?(?:\(s\))? \((.+)\)\.?", message
        ):
            check_extra(root(), path, match[1].split(), words)
        else:
            check_missing(root(), path, words)
    return UsageError(message.rstrip("."), fix=fix)


def _report_stop(stop: Stopped, argv: Sequence[str], context: "Context") -> int:
    """Report what a signal left unanswered or untold, if anything."""
    if (error := context.host.changes.complete(stop.lost)) is not None:
        if stop.lost is None:
            error.status = stop.status
        _report_error(error, argv, context)
    return stop.status


def _report_error(error: PmuctlError, argv: Sequence[str], context: "Context") -> int:
    from pmuctl.render.error import write_error

    if isinstance(error, WrongWordError):
        words = select_own_words(argv)
        line = correct_line(words, error)
        more = argv[len(words) :]
        if line is None:  # a filter in several words, where the command line of a VMM begins
            line, more = correct_line(argv, error), ()
        error.fix = error.fix if line is None else f"{line} {shlex.join(more)}".rstrip()
    if error.fix is not None and (tree := find_sysroot(argv)) is not None:
        from pmuctl.cli.app import root

        error.fix = keep_sysroot(root(), error.fix, tree)
    context.host.changes.complete(error)
    with suppress(OSError):  # the exit status still reports it
        as_json, width = wants_json(argv), context.stderr_width
        write_error(error, context.stderr, as_json=as_json, width=width)
        context.stderr.flush()
    return error.status


def _report_bug(bug: Exception, argv: Sequence[str], context: "Context") -> int:
    if sum(word.count("v") for word in read_flags(argv)) > 1:
        import traceback

        with suppress(OSError):
            traceback.print_exception(bug, file=context.stderr)
    error = PmuctlError(
        f"a bug in pmuctl: {type(bug).__name__}: {bug}",
        fix="please report it with the output of the same command with -vv",
    )
    error.status = ExitStatus.BUG
    return _report_error(error, argv, context)
