# SPDX-License-Identifier: Apache-2.0
"""What a command works with: its streams, its environment, the machine it looks at."""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO, TypeVar

from pmuctl.errors import OutputError, PmuctlError, UsageError
from pmuctl.host.procs import Procfs
from pmuctl.host.sysfs import Sysfs
from pmuctl.manage.vms import Reach
from pmuctl.render.columns import Column
from pmuctl.render.document import rows_as_json, write_document
from pmuctl.render.problem import write_problem
from pmuctl.render.table import write_table

Row = TypeVar("Row")

PROGRESS_SECONDS = 1.0


class PipeClosed(Exception):  # noqa: N818 - nothing went wrong: the reader has seen enough
    """Whoever reads the output has closed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Env:
    """The outside of one run of pmuctl; commands touch nothing but through it."""

    stdout: TextIO
    stderr: TextIO
    environ: Mapping[str, str]
    uid: int
    procs: Procfs
    live: Sysfs = field(default_factory=Sysfs)
    command: str = ""
    as_json: bool = False
    verbose: int = 0
    is_quiet: bool = False
    sysroot: Path | None = None

    def asked(
        self,
        command: str,
        *,
        as_json: bool = False,
        verbose: int = 0,
        is_quiet: bool = False,
        sysroot: Path | None = None,
    ) -> "Env":
        """This environment with the options a command was given."""
        if sysroot is not None and not sysroot.is_dir():
            raise UsageError(f"{sysroot}: not a directory", fix="--sysroot takes a captured tree")
        return replace(
            self,
            command=command,
            as_json=as_json,
            verbose=verbose,
            is_quiet=is_quiet,
            sysroot=sysroot,
        )

    @property
    def sysfs(self) -> Sysfs:
        """The machine to look at: this one, or the captured tree of another."""
        return self.live if self.sysroot is None else Sysfs(self.sysroot)

    def reach(self, *, deadline: float, socket: Path | None) -> Reach:
        """How VMs are reached; raises UsageError with `--sysroot`, whose VMs are elsewhere."""
        if self.sysroot is not None:
            raise UsageError(
                "--sysroot shows another machine's tree",
                why="its VMs do not run here",
                fix="leave --sysroot out",
            )
        return Reach(
            environ=self.environ,
            uid=self.uid,
            deadline=deadline,
            socket=socket,
            procs=self.procs,
        )

    def write_rows(
        self, key: str, columns: Sequence[Column[Row]], rows: Sequence[Row], *, empty: str
    ) -> None:
        """A list of things as a table or as JSON; `empty` is said where there are none."""
        with self.output() as out:
            if self.as_json:
                write_document(self.command, {key: rows_as_json(columns, rows)}, out)
            elif rows:
                write_table(columns, rows, out)
        if not rows and not self.as_json:
            self.say(empty)

    @contextlib.contextmanager
    def output(self) -> Iterator[TextIO]:
        """stdout, flushed at the end; raises PipeClosed or OutputError where it fails."""
        try:
            yield self.stdout
            self.stdout.flush()
        except BrokenPipeError:
            raise PipeClosed from None
        except OSError as error:
            # what is left in the buffer must not fail again when the interpreter ends
            raise OutputError(
                "the result could not be written", why=error.strerror or str(error)
            ) from error

    def say(self, text: str) -> None:
        """A remark for a person, on stderr; nothing with `--quiet`."""
        if not self.is_quiet:
            self.stderr.write(text + "\n")

    def warn(self, problem: PmuctlError) -> None:
        """A problem that does not stop the command, on stderr."""
        write_problem(problem, self.stderr, as_json=self.as_json)

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """While the body takes over a second, a terminal shows what is waited for."""
        if not self.stderr.isatty():
            yield
            return
        text = f"waiting for {what} …"
        shown = threading.Event()

        def show() -> None:
            shown.set()
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
                self.stderr.write("\r" + " " * len(text) + "\r")


def live_env(stdout: TextIO, stderr: TextIO) -> Env:
    """The environment of this process on this machine."""
    return Env(stdout=stdout, stderr=stderr, environ=os.environ, uid=os.geteuid(), procs=Procfs())
