# SPDX-License-Identifier: Apache-2.0
"""Text from outside made safe to print: names and files must not control a terminal."""

from collections.abc import Mapping

_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
) | frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
"""Invisible characters that str.isprintable() takes for printable: Default_Ignorable_Code_Point of
Unicode, and the empty Braille pattern."""


_COMMANDS = frozenset(
    ("pmuctl", "sudo", "taskset", "echo", "mount", "rm", "chmod", "chown", "usermod", "setfacl")
)
"""The first words of the commands that fix lines tell to type."""


def printable(text: str) -> str:
    """Return the text with every character that is not printable written as an escape.

    Control bytes, line ends, direction marks and invisible characters become backslash escapes
    ("\\x1b", "\\u202e"), so a value always stays on one line. A byte that is not UTF-8 becomes an
    escape such as "\\xff".
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escape_invisible, _escape_surrogates(text)))


def format_time(seconds: float) -> str:
    """Return a time (seconds since the epoch) in the local time zone, as ISO 8601 has it."""
    import time

    try:
        text = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):
        return str(seconds)  # a peer can tell any number
    return f"{text[:-2]}:{text[-2:]}"


def is_command(text: str) -> bool:
    """Return whether a text is a command line to be copied, or several, and no sentence."""
    return all(part.partition(" ")[0] in _COMMANDS for part in text.split("; "))


def to_json(value: object) -> str:
    """Return a value as JSON on one line, in ASCII.

    Bytes that are not UTF-8 are lone surrogates in a str, which strict JSON parsers refuse: they
    are escaped as in `printable`.
    """
    import json

    return json.dumps(_escape_nested(value))


def _escape_invisible(char: str) -> str:
    is_visible = char.isprintable() and char not in _INVISIBLE
    return char if is_visible else char.encode("unicode_escape").decode()


def _escape_surrogates(text: str) -> str:
    try:
        text.encode()  # much faster than a look at each character
    except UnicodeEncodeError:
        return "".join(map(_escape_surrogate, text))
    return text


def _escape_surrogate(char: str) -> str:
    code = ord(char)
    if not 0xD800 <= code <= 0xDFFF:
        return char
    # os.fsdecode() maps the bytes 0x80-0xff to U+DC80-U+DCFF
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _escape_nested(value: object) -> object:
    if isinstance(value, str):
        return _escape_surrogates(value)
    if isinstance(value, Mapping):
        return {_escape_nested(key): _escape_nested(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escape_nested(item) for item in value]
    return value
