# SPDX-License-Identifier: Apache-2.0
"""What a command works with: its streams, its options, the host it looks at."""

import contextlib
import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO, TypeVar

from pmuctl.cli.options import Options, When
from pmuctl.cli.streams import guarded
from pmuctl.errors import PmuctlError, UsageError
from pmuctl.host.host import Host
from pmuctl.render.columns import Column, as_object, choose
from pmuctl.render.error import write_error
from pmuctl.render.formats import Format, Layout, write_document, write_one, write_rows
from pmuctl.render.text import printable
from pmuctl.value import field, replace, value

if TYPE_CHECKING:
    from pmuctl.host.udev import NoUevents
    from pmuctl.manage.start.exec import Executor

Row = TypeVar("Row")

PROGRESS_SECONDS = 1.0
USUAL_WIDTH = 80
"""Columns of a terminal that does not say how many it has."""


@value(kw_only=True)
class Context:
    """The outside of one run of pmuctl; commands touch nothing but through it.

    `executor` and `uevents` stand in for those of this machine.
    """

    stdout: TextIO
    stderr: TextIO
    host: Host
    executor: "Executor | None" = None
    uevents: "NoUevents | None" = None
    command: str = ""
    options: Options = field(default_factory=Options)

    def for_command(self, command: str, options: Options) -> "Context":
        """Return the context of one command, "pmu list", with its options.

        Raises UsageError if --sysroot names no captured tree.
        """
        sysroot = options.sysroot
        if sysroot is None:
            return replace(self, command=command, options=options)
        if not os.path.isdir(sysroot / "sys"):
            raise UsageError(
                f"{sysroot}: not a captured tree",
                why="it has no directory sys" if os.path.isdir(sysroot) else "no such directory",
                fix="--sysroot takes the directory above sys",
            )
        host = self.host.captured(sysroot)
        return replace(self, host=host, command=command, options=options)

    def get_executor(self) -> "Executor":
        """Return what executes a VMM in place of this process."""
        from pmuctl.manage.start.exec import Executor

        return self.executor or Executor()

    def open_uevents(self) -> "NoUevents":
        """Return what hears of this machine's VMs and CPUs; a captured one is silent."""
        from pmuctl.host.udev import NoUevents, open_uevents

        return self.uevents or (open_uevents() if self.host.sysfs.is_live else NoUevents())

    @property
    def format(self) -> Format:
        """The format that was asked for."""
        return Format.JSON if self.options.json else self.options.format or Format.TABLE

    @property
    def layout(self) -> Layout:
        """How tables are to be laid out where stdout goes."""
        is_terminal = self.stdout.isatty()
        plain = self.host.environ.get("NO_COLOR") or self.host.environ.get("TERM") == "dumb"
        colour = {
            When.ALWAYS: True,
            When.NEVER: False,
            When.AUTO: is_terminal and not plain,
        }[self.options.colour]
        return Layout(
            headings=not self.options.no_headings,
            width=self._width() if is_terminal and not self.options.no_truncate else None,
            colour=colour,
        )

    def _width(self) -> int:
        """The columns of the terminal that stdout is; COLUMNS says otherwise."""
        told = self.host.environ.get("COLUMNS", "")
        if told.isascii() and told.isdigit() and 0 < int(told[:9]):
            return int(told[:9])
        with contextlib.suppress(OSError):
            return os.get_terminal_size(self.stdout.fileno()).columns or USUAL_WIDTH
        return USUAL_WIDTH

    def check_columns(self, columns: Sequence[Column[Row]]) -> None:
        """Refuse a wrong `-o` before anything is done; raises UsageError."""
        choose(columns, self.options.columns, every=self.options.every_column)

    def write_rows(
        self,
        key: str,
        columns: Sequence[Column[Row]],
        rows: Sequence[Row],
        *,
        empty: str,
        headings: bool = True,
        more: Mapping[str, object] | None = None,
    ) -> None:
        """A list of things in the format that was asked for; `empty` is said where it is none.

        Without `headings` a table has none, whatever the options say. An empty list still has
        headings in csv and tsv, which programs read. `more` are further members in JSON.
        """
        chosen = choose(
            columns,
            self.options.columns,
            every=self.options.every_column,
            as_json=self.format.is_json,
        )
        if self.format is Format.JSON:
            self.write_document({key: [as_object(chosen, row) for row in rows], **(more or {})})
            return
        if rows or self.format in (Format.CSV, Format.TSV):
            layout = self.layout
            if self.format is Format.TABLE and not headings:
                layout = replace(layout, headings=False)
            write_rows(chosen, rows, self.stdout, format=self.format, layout=layout)
        if not rows:
            self.note(empty)
        self.stdout.flush()

    def write_one(self, key: str, columns: Sequence[Column[Row]], row: Row) -> None:
        """One thing in full, or the columns of it that were asked for."""
        every = self.options.every_column or self.options.columns is None
        chosen = choose(columns, self.options.columns, every=every)
        if self.format is Format.JSON:
            self.write_document({key: as_object(chosen, row)})
            return
        write_one(chosen, row, self.stdout, format=self.format, layout=self.layout)
        self.stdout.flush()

    def write_document(self, body: Mapping[str, object]) -> None:
        """The command's one JSON object."""
        write_document(self.command, body, self.stdout)
        self.stdout.flush()

    def write_lines(self, lines: Sequence[str]) -> None:
        """Lines of text for a person or `grep`, none with `--quiet`; what is not printable is
        escaped."""
        if not self.options.quiet:
            self.stdout.write("".join(printable(line) + "\n" for line in lines))
        self.stdout.flush()

    def note(self, text: str) -> None:
        """A remark for a person, on stderr; nothing with `--quiet`."""
        if not self.options.quiet:
            self._remark(text)

    def trace(self, text: str) -> None:
        """What is done on the way, on stderr with `--verbose`."""
        if self.options.verbose:
            self._remark(text)

    def _remark(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a remark that is lost changes no result
            self.stderr.write(printable(text) + "\n")

    def warn(self, problem: PmuctlError) -> None:
        """A problem that does not stop the command, on stderr; nothing with `--quiet`."""
        if self.options.quiet:
            return
        with contextlib.suppress(OSError):
            write_error(problem, self.stderr, as_json=self.format.is_json, word="warning")

    def fail(self, problem: PmuctlError) -> None:
        """The failure of one target of several, on stderr; the command goes on."""
        with contextlib.suppress(OSError):
            write_error(problem, self.stderr, as_json=self.format.is_json)

    def enable_gc(self) -> None:
        """Keep house from now on: a command that goes on and on would fill the memory."""
        gc.enable()  # main.run() leaves it off, for most commands end at once

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """While the body takes over a second, a terminal shows what is waited for."""
        if not self.stderr.isatty():
            yield
            return
        import threading

        text = printable(f"waiting for {what} ...")
        shown = threading.Event()

        def show() -> None:
            shown.set()
            with contextlib.suppress(OSError):
                self.stderr.write(text)
                self.stderr.flush()

        timer = threading.Timer(PROGRESS_SECONDS, show)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            if shown.is_set():
                with contextlib.suppress(OSError):
                    self.stderr.write("\r" + " " * len(text) + "\r")


def live_context(stdout: TextIO, stderr: TextIO) -> Context:
    """Return the context of this process on this machine."""
    return Context(
        stdout=guarded(stdout),
        stderr=stderr,
        host=Host(environ=os.environ, uid=os.geteuid()),
    )
