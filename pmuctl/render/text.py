# SPDX-License-Identifier: Apache-2.0
"""Text from outside made safe to print: names and files must not steer a terminal."""

import time


def printable(text: str) -> str:
    """The text with every character that is not printable written as an escape.

    Control bytes, line ends, lone surrogates and direction marks become backslash escapes
    ("\\x1b", "\\u202e"), so a value is always one piece of one line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def ago(since: int, *, now: float | None = None) -> str:
    """How long ago a moment (seconds since the epoch) was, "2 h 10 min"."""
    seconds = max(0, int((time.time() if now is None else now) - since))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"
