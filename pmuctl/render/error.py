# SPDX-License-Identifier: Apache-2.0
"""Errors as users read them: what failed, why, the state left behind, and what to type next."""

from typing import TextIO

from pmuctl.errors import PmuctlError
from pmuctl.render.table import wrap
from pmuctl.render.text import printable, to_json


def write_error(
    error: PmuctlError,
    out: TextIO,
    *,
    as_json: bool = False,
    word: str = "error",
    width: int | None = None,
) -> None:
    """Write an error as text, one line for each part, or as one JSON object on one line.

    `word` is the key of the object, and what the first line of the text begins with. On a
    terminal of `width` characters the parts are wrapped, but for commands.
    """
    if as_json:
        body = {
            "code": error.status.name.lower(),
            "exit": int(error.status),
            "object": error.subject,
            "errno": error.errno,
            "message": error.message,
            "why": error.why,
            "now": error.now,
            "fix": error.fix,
        }
        out.write(to_json({word: body}) + "\n")
        return
    head = f"{error.subject}: {error.message}" if error.subject else error.message
    parts = [("  why: ", error.why), ("  now: ", error.now), ("  fix: ", error.fix)]
    for name, text in ((f"{word}: ", head), *parts):
        if text:
            out.write(wrap(printable(text), name, width) + "\n")
