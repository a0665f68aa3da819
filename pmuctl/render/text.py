# SPDX-License-Identifier: Apache-2.0
"""Text from outside made safe to print: names and files must not steer a terminal."""


def printable(text: str) -> str:
    """The text with every character that is not printable written as an escape.

    Control bytes, line ends, lone surrogates and direction marks become backslash escapes
    ("\\x1b", "\\u202e"), so a value is always one piece of one line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
