# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, each declared once."""

from pathlib import Path
from typing import Annotated

import typer


def _positive(value: float) -> float:
    if not 0 < value < MAX_SECONDS:
        raise typer.BadParameter(f"{value:g}: not a number of seconds above 0")
    return value


MAX_SECONDS = 1e6
Json = Annotated[bool, typer.Option("--json", "-J", help="Print one JSON object.")]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        show_default=False,
        help="Say more on stderr; -vv: tracebacks of bugs, too.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Sysroot = Annotated[
    Path | None,
    typer.Option(
        "--sysroot", metavar="DIR", help="Read another machine's captured tree instead of /."
    ),
]
Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket", metavar="PATH", help="A control socket outside the runtime directory."
    ),
]
Deadline = Annotated[
    float,
    typer.Option(
        "--deadline",
        metavar="SEC",
        callback=_positive,
        show_default="5",
        help="Seconds for a whole exchange with a VMM.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the steps in kernel words, change nothing.")
]

DEADLINE = 5.0
