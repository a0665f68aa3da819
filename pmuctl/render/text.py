# SPDX-License-Identifier: Apache-2.0
"""Text from outside made safe to print: names and files must not steer a terminal."""

import re
from collections.abc import Mapping

_LONE = re.compile("[\ud800-\udfff]")
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
"""What str.isprintable() takes for printable, and nobody sees: Default_Ignorable_Code_Point of
Unicode, and the empty Braille pattern."""


def printable(text: str) -> str:
    """The text with every character that is not printable written as an escape.

    Control bytes, line ends, direction marks and what is invisible become backslash escapes
    ("\\x1b", "\\u202e"), so a value is always one piece of one line; a byte that is not UTF-8
    becomes "\\xff".
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_seen, _whole(text)))


def to_json(value: object) -> str:
    """A value as JSON on one line, in ASCII.

    Strict parsers refuse half a surrogate pair, which bytes that are not UTF-8 are here: those
    become text, as in `printable`.
    """
    import json

    return json.dumps(_all_whole(value))


def _seen(char: str) -> str:
    is_seen = char.isprintable() and not _UNSEEN.match(char)
    return char if is_seen else char.encode("unicode_escape").decode()


def _whole(text: str) -> str:
    return text if text.isascii() else _LONE.sub(_escape, text)


def _escape(lone: re.Match[str]) -> str:
    code = ord(lone[0])
    # os.fsdecode() puts the bytes 0x80-0xff there
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _all_whole(value: object) -> object:
    if isinstance(value, str):
        return _whole(value)
    if isinstance(value, Mapping):
        return {_all_whole(key): _all_whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_all_whole(item) for item in value]
    return value
