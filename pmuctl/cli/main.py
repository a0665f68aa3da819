# SPDX-License-Identifier: Apache-2.0
"""From argv to the exit status: the one place where errors become words and numbers."""

import gc
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn

from pmuctl.errors import ExitStatus, PmuctlError, Stopped, UsageError

if TYPE_CHECKING:
    from pmuctl.cli.context import Context


ENDING = {
    signal.SIGINT: ExitStatus.INTERRUPTED,
    signal.SIGTERM: ExitStatus.TERMINATED,
    signal.SIGHUP: ExitStatus.TERMINATED,
}

RUN_VALUES = ("--name", "--pmu", "--filter", "--affinity", "--timeout")
"""The options of `pmuctl run` whose value is the next word, which is no VMM."""


def run() -> NoReturn:
    """The console script: run pmuctl and end the process."""
    # Nothing here lives long enough to be collected, and ending at once saves the interpreter's
    # own tidying up: together a quarter of the time of a short command.
    gc.disable()
    try:
        for number, status in ENDING.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) has it
                signal.signal(number, partial(_stop, status))
        context = _live_context()
        ended = main(sys.argv[1:], context)
        with suppress(OSError):
            context.stderr.flush()
    except Stopped as stop:
        ended = stop.status
    os._exit(ended)


def _live_context() -> "Context":
    from pmuctl.cli.context import live_context
    from pmuctl.cli.streams import standard_streams

    return live_context(*standard_streams())


def _stop(status: ExitStatus, *_: object) -> NoReturn:
    raise Stopped(status)


def main(argv: Sequence[str], context: "Context") -> int:
    """Carry out one command line and return its exit status; nothing is raised."""
    from pmuctl.cli.streams import PipeClosed

    try:
        return _dispatch(argv, context)
    except PipeClosed:
        return ExitStatus.PIPE
    except Stopped as stop:
        if stop.lost:
            _report(stop.lost, argv, context)
        return stop.status
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except PmuctlError as error:
        return _report(error, argv, context)
    except Exception as bug:
        behind = _stop_behind(bug)
        if behind is not None:
            return behind.status
        return _report_bug(bug, argv, context)


def _stop_behind(bug: BaseException | None) -> Stopped | None:
    """The signal whose exception another one took the place of, as a lock's that it cut in two."""
    while bug is not None and not isinstance(bug, Stopped):
        bug = bug.__cause__ or bug.__context__
    return bug


def _dispatch(argv: Sequence[str], context: "Context") -> int:
    import typer

    from pmuctl.cli.app import root

    # the vendored click has no public name for the errors of its parser
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
        raise _usage_error(error) from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    return int(status or 0)


def _usage_error(error: Any) -> PmuctlError:
    typer_context = getattr(error, "ctx", None)
    command = typer_context.command_path if typer_context else "pmuctl"
    fix = f"{command} --help"
    is_group = typer_context is not None and hasattr(typer_context.command, "commands")
    if type(error).__name__ == "NoSuchOption" and is_group:
        fix = f"options go after the command: pmuctl NOUN VERB {error.option_name}"
    message = " ".join(error.format_message().split())
    return UsageError(message.rstrip("."), fix=fix)


def _report(error: PmuctlError, argv: Sequence[str], context: "Context") -> int:
    from pmuctl.render.error import write_error

    with suppress(OSError):  # there is nowhere left to say it; the status still does
        write_error(error, context.stderr, as_json=_wants_json(argv))
        context.stderr.flush()
    return error.status


def _report_bug(bug: Exception, argv: Sequence[str], context: "Context") -> int:
    if sum(word.count("v") for word in _flags(argv)) > 1:
        import traceback

        with suppress(OSError):
            traceback.print_exception(bug, file=context.stderr)
    error = PmuctlError(
        f"a bug in pmuctl: {type(bug).__name__}: {bug}",
        fix="please report it with the output of the same command and -vv",
    )
    error.status = ExitStatus.BUG
    return _report(error, argv, context)


def _flags(argv: Sequence[str]) -> list[str]:
    """The letters of the short options, long ones as theirs: errors can come up before, or
    because, the options are not parsed."""
    long = {"--json": "J", "--verbose": "v"}
    return [
        long.get(word, "") if word.startswith("--") else word[1:]
        for word in own_words(argv)
        if word.startswith("-")
    ]


def own_words(argv: Sequence[str]) -> Sequence[str]:
    """The words that can hold options of pmuctl: what follows `--`, or is a VMM's, cannot."""
    words = argv[: argv.index("--")] if "--" in argv else argv
    if not words or words[0] != "run":
        return words
    end = 1
    while end < len(words) and words[end].startswith("-"):
        end += 2 if words[end] in RUN_VALUES else 1
    return words[:end]


def _wants_json(argv: Sequence[str]) -> bool:
    if any("J" in flags for flags in _flags(argv)):
        return True
    words = [*own_words(argv), ""]
    return any(
        f"{word}={after}".startswith(("--format=json", "--format=json="))
        for word, after in pairwise(words)
    )
