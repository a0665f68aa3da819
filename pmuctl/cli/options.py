# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, each declared once; commands accept them by group."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pmuctl.render.formats import Format
from pmuctl.value import value

MIN_SECONDS, MAX_SECONDS = 0.001, 86400.0


class When(StrEnum):
    """When to print colours and bold headings."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def _check_timeout(value: float | None) -> float | None:
    if value is not None and not 0 <= value <= MAX_SECONDS:
        raise typer.BadParameter(f"{value:g}: must be 0-{MAX_SECONDS:g} seconds")
    return value


def timeout_option(help: str) -> Any:
    """Return the declaration of --timeout with this help."""
    return typer.Option("--timeout", metavar="SEC", callback=_check_timeout, help=help)


Timeout = Annotated[float | None, timeout_option("Time limit in seconds (default: none).")]
"""How long a command waits at most, in seconds."""


def _check_deadline(value: float) -> float:
    if not MIN_SECONDS <= value <= MAX_SECONDS:
        raise typer.BadParameter(f"{value:g}: must be {MIN_SECONDS:g}-{MAX_SECONDS:g} seconds")
    return value


@value(kw_only=True)
class Options:
    """The shared options of one command line; the annotations declare them."""

    columns: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="COLS",
            help="Columns to print; +COL adds to the default ones.",
        ),
    ] = None
    every_column: Annotated[
        bool, typer.Option("--output-all", "-O", help="Print all columns.")
    ] = False
    json: Annotated[
        bool, typer.Option("--json", "-J", help="Print one JSON object, as --format json does.")
    ] = False
    format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help=f"Output format: {', '.join(Format)}.",
            show_default=False,
        ),
    ] = None
    no_headings: Annotated[
        bool, typer.Option("--noheadings", "-n", help="Do not print the header line.")
    ] = False
    no_truncate: Annotated[
        bool, typer.Option("--no-truncate", help="Do not shorten values on a terminal.")
    ] = False
    colour: Annotated[
        When,
        typer.Option(
            "--color",
            metavar="WHEN",
            help="Print colours and bold headings: auto, always or never.",
        ),
    ] = When.AUTO
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="Suppress notes, warnings, tables of changes and dry-run steps.",
        ),
    ] = False
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            show_default=False,
            help="Print requests and kernel calls on stderr; -vv: also tracebacks of bugs.",
        ),
    ] = 0
    sysroot: Annotated[
        Path | None,
        typer.Option(
            "--sysroot",
            metavar="DIR",
            readable=False,
            help="Read a captured host from this directory instead of /.",
        ),
    ] = None
    socket: Annotated[
        Path | None,
        typer.Option(
            "--socket",
            metavar="PATH",
            readable=False,
            help="Use only this control socket, which may be in any directory.",
        ),
    ] = None
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline",
            metavar="SEC",
            callback=_check_deadline,
            show_default=False,
            help="Time limit in seconds for the exchange with each VMM (default 5).",
        ),
    ] = 5.0
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the kernel calls that would be made, and change nothing."
        ),
    ] = False
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going",
            "-k",
            help="Continue with the next VM if one fails; exit status 64 if only some fail.",
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

KEYS = ("pmu", "counters", "affinity", "filter")
"""The settings of `vm set`; `filter` is the last on a line."""

SETTINGS = (
    "pmu PMU | counters N | affinity auto|none|CPUSET | "
    "filter default allow|deny [allow|deny EVENTS]..."
)
"""The syntax of the settings of `vm set`."""

CPUSET_HELP = "CPU list such as 0-3,8; also ^5 (not 5), all, pmu/NAME."
