# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share: each declared once, taken by whole groups."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pmuctl.render.formats import Format
from pmuctl.value import value

MIN_SECONDS, MAX_SECONDS = 0.001, 86400.0


class When(StrEnum):
    """When to use colour."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def _checked_seconds(value: float | None) -> float | None:
    if value is not None and not 0 <= value <= MAX_SECONDS:
        raise typer.BadParameter(f"{value:g}: must be 0-{MAX_SECONDS:g} seconds")
    return value


Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="SEC",
        callback=_checked_seconds,
        help="How long to wait at most; by default for ever.",
    ),
]
"""How long a command that waits goes on, in seconds."""


def _positive(value: float) -> float:
    if not MIN_SECONDS <= value <= MAX_SECONDS:
        raise typer.BadParameter(f"{value:g}: must be {MIN_SECONDS:g}-{MAX_SECONDS:g} seconds")
    return value


@value(kw_only=True)
class Options:
    """The shared options as they were given; the annotations declare them."""

    columns: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="COLS", help="Columns to show; +COL adds to the usual ones."
        ),
    ] = None
    every_column: Annotated[
        bool, typer.Option("--output-all", "-O", help="Show every column.")
    ] = False
    json: Annotated[
        bool, typer.Option("--json", "-J", help="One JSON object; short for --format json.")
    ] = False
    format: Annotated[
        Format | None,
        typer.Option(
            "--format", metavar="FORMAT", help=f"One of {', '.join(Format)}.", show_default=False
        ),
    ] = None
    no_headings: Annotated[
        bool, typer.Option("--noheadings", "-n", help="No line of headings.")
    ] = False
    no_truncate: Annotated[
        bool, typer.Option("--no-truncate", help="Cut nothing off on a terminal, either.")
    ] = False
    colour: Annotated[
        When, typer.Option("--color", metavar="WHEN", help="auto, always or never.")
    ] = When.AUTO
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No remarks, and no word of what was changed.")
    ] = False
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            show_default=False,
            help="Say more on stderr; -vv: tracebacks of bugs, too.",
        ),
    ] = 0
    sysroot: Annotated[
        Path | None,
        typer.Option(
            "--sysroot",
            metavar="DIR",
            readable=False,
            help="Read another machine's captured tree instead of /.",
        ),
    ] = None
    socket: Annotated[
        Path | None,
        typer.Option(
            "--socket",
            metavar="PATH",
            readable=False,
            help="A control socket outside the runtime directory.",
        ),
    ] = None
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline",
            metavar="SEC",
            callback=_positive,
            show_default=False,
            help="Seconds for a whole exchange with each VMM (default 5).",
        ),
    ] = 5.0
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the steps in kernel words, change nothing."),
    ] = False
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going", "-k", help="Go on after a VM that fails; exit status 64 if one did."
        ),
    ] = False


VERBOSITY = ("quiet", "verbose")
OUTPUT = (
    "columns",
    "every_column",
    "json",
    "format",
    "no_headings",
    "no_truncate",
    "colour",
    *VERBOSITY,
)
SYSROOT = ("sysroot",)
CONNECTION = ("socket", "deadline")
DRY_RUN = ("dry_run",)

SETTINGS = (
    "pmu PMU | counters N | affinity auto|none|CPUSET | "
    "filter default allow|deny [allow|deny EVENTS]..."
)
"""The form of what `vm set` is to set."""
