# SPDX-License-Identifier: Apache-2.0
"""The context of a command: its streams, its options and the host it examines."""

import contextlib
import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO, TypeVar

from pmuctl.cli.options import Options, When
from pmuctl.errors import PmuctlError, UsageError
from pmuctl.host.host import Host
from pmuctl.render.columns import Column, as_object, choose
from pmuctl.render.error import write_error
from pmuctl.render.formats import (
    Format,
    Layout,
    write_document,
    write_list_document,
    write_one,
    write_rows,
)
from pmuctl.render.streams import guarded
from pmuctl.render.table import fits, wrap, write_records
from pmuctl.render.text import printable
from pmuctl.value import field, replace, value

if TYPE_CHECKING:
    from pmuctl.host.udev import NoUevents
    from pmuctl.manage.start.exec import Executor

Row = TypeVar("Row")

PROGRESS_SECONDS = 1.0
USUAL_WIDTH = 80
"""The width in columns that is assumed of a terminal that does not report one."""


@value(kw_only=True)
class Context:
    """Everything outside of pmuctl that one run of it may touch.

    `executor` and `uevents` replace those of this machine.
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

        Raise UsageError if --sysroot names no captured tree.
        """
        sysroot = options.sysroot
        if sysroot is None:
            return replace(self, command=command, options=options)
        if not os.path.isdir(sysroot / "sys"):
            raise UsageError(
                f"{sysroot}: not a captured tree",
                why="it has no sys directory" if os.path.isdir(sysroot) else "no such directory",
                fix="give --sysroot the directory that contains sys",
            )
        host = self.host.captured(sysroot)
        return replace(self, host=host, command=command, options=options)

    def get_executor(self) -> "Executor":
        """Return the object that executes a VMM in place of this process."""
        from pmuctl.manage.start.exec import Executor

        return self.executor or Executor()

    def open_uevents(self) -> "NoUevents":
        """Return the source of kernel events about VMs and CPUs; a captured host has none."""
        from pmuctl.host.udev import NoUevents, open_uevents

        return self.uevents or (open_uevents() if self.host.sysfs.is_live else NoUevents())

    @property
    def format(self) -> Format:
        """The requested output format."""
        return Format.JSON if self.options.json else self.options.format or Format.TABLE

    @property
    def layout(self) -> Layout:
        """The layout of tables on stdout: header line, width and colour."""
        is_terminal = self.stdout.isatty()
        plain = self.host.environ.get("NO_COLOR") or self.host.environ.get("TERM") == "dumb"
        colour = {
            When.ALWAYS: True,
            When.NEVER: False,
            When.AUTO: is_terminal and not plain,
        }[self.options.colour]
        is_fitted = is_terminal and not self.options.no_truncate
        return Layout(
            headings=not self.options.no_headings,
            width=self._find_width(self.stdout) if is_fitted else None,
            colour=colour,
        )

    @property
    def stderr_width(self) -> int | None:
        """The width in columns of the terminal that stderr is, None if it is none."""
        return self._find_width(self.stderr) if self.stderr.isatty() else None

    def _find_width(self, stream: TextIO) -> int:
        """Return the width of the terminal in columns; COLUMNS takes precedence."""
        columns = self.host.environ.get("COLUMNS", "")
        if columns.isascii() and columns.isdigit() and 0 < int(columns[:9]):
            return int(columns[:9])
        with contextlib.suppress(OSError):
            return os.get_terminal_size(stream.fileno()).columns or USUAL_WIDTH
        return USUAL_WIDTH

    def check_columns(self, columns: Sequence[Column[Row]]) -> Sequence[Column[Row]]:
        """Return the columns to show; raise UsageError if `-o` is wrong."""
        return choose(
            columns,
            self.options.columns,
            every=self.options.every_column,
            as_json=self.format.is_json,
        )

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
        """Write a list in the requested format; print the note `empty` if it has no rows.

        If `headings` is false, a table has no header line, whatever the options say. An empty
        list has a header line in csv and tsv, because programs read these. `more` has further
        members of the JSON object.
        """
        chosen = self.check_columns(columns)
        if self.format is Format.JSON:
            objects = (as_object(chosen, row) for row in rows)
            write_list_document(self.command, key, objects, more or {}, self.stdout)
            self.stdout.flush()
            return
        if rows or self.format in (Format.CSV, Format.TSV):
            layout = self.layout
            if self.format is Format.TABLE and not headings:
                layout = replace(layout, headings=False)
            if self._shows_records(chosen, rows, layout.width):
                write_records(chosen, rows, self.stdout, width=layout.width, colour=layout.colour)
                self.stdout.flush()
                return
            write_rows(chosen, rows, self.stdout, format=self.format, layout=layout)
        if not rows:
            self.note(empty)
        self.stdout.flush()

    def _shows_records(
        self, columns: Sequence[Column[Row]], rows: Sequence[Row], width: int | None
    ) -> bool:
        """Return whether `-O` has more columns than a line of the terminal."""
        is_table = self.format is Format.TABLE and width is not None
        return is_table and self.options.every_column and not fits(columns, rows, width or 0)

    def write_one(self, key: str, columns: Sequence[Column[Row]], row: Row) -> None:
        """Write one object: all of its columns, or the requested ones.

        On a terminal details and what has no value are left out, unless they are requested: what
        matters has to fit its first screen.
        """
        every = self.options.every_column or self.options.columns is None
        chosen = choose(columns, self.options.columns, every=every)
        is_brief = self.format is Format.TABLE and self.layout.width is not None
        if is_brief and not self.options.every_column and self.options.columns is None:
            chosen = [
                column
                for column in chosen
                if column.shown or not (column.is_detail or column.text(row) == "-")
            ]
        if self.format is Format.JSON:
            self.write_document({key: as_object(chosen, row)})
            return
        write_one(chosen, row, self.stdout, format=self.format, layout=self.layout)
        self.stdout.flush()

    def write_document(self, body: Mapping[str, object]) -> None:
        """Write the JSON object of the command."""
        write_document(self.command, body, self.stdout)
        self.stdout.flush()

    def write_lines(self, lines: Sequence[str]) -> None:
        """Write lines of text, with unprintable characters escaped; nothing with `--quiet`."""
        if not self.options.quiet:
            self.stdout.write("".join(printable(line) + "\n" for line in lines))
        self.stdout.flush()

    def write_prose(self, first: str, text: str) -> None:
        """Write a text after `first`, wrapped to fit the terminal; nothing with `--quiet`."""
        if not self.options.quiet:
            self.stdout.write(wrap(printable(text), first, self.layout.width) + "\n")
            self.stdout.flush()

    def note(self, text: str) -> None:
        """Print a note on stderr; nothing with `--quiet`."""
        if not self.options.quiet:
            self._write_note(text)

    def trace(self, text: str) -> None:
        """Print a step on stderr if `--verbose` was given."""
        if self.options.verbose:
            self._write_note(text)

    def _write_note(self, text: str) -> None:
        indented = printable(text)
        prose = indented.lstrip(" ")
        indent = indented.removesuffix(prose)
        with contextlib.suppress(OSError):  # a lost note does not change the result
            self.stderr.write(wrap(prose, indent, self.stderr_width) + "\n")

    def warn(self, problem: PmuctlError) -> None:
        """Print a warning on stderr; nothing with `--quiet`. The command goes on."""
        if not self.options.quiet:
            self._write_problem(problem, "warning")

    def fail(self, problem: PmuctlError) -> None:
        """Print the error of one of several targets on stderr. The command goes on."""
        self._write_problem(problem, "error")

    def _write_problem(self, problem: PmuctlError, word: str) -> None:
        as_json, width = self.format.is_json, self.stderr_width
        with contextlib.suppress(OSError):
            write_error(problem, self.stderr, as_json=as_json, word=word, width=width)

    def enable_gc(self) -> None:
        """Enable garbage collection, for a long-running command."""
        gc.enable()  # main.run() disables it, because most commands end at once

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Show on a terminal what is waited for if the body takes over PROGRESS_SECONDS."""
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
