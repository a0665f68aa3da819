# SPDX-License-Identifier: Apache-2.0
"""Text from outside, made printable, and JSON that strict parsers take."""

import json

import pytest

from pmuctl.render.text import printable, to_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 漢 🦀", "plain ü 漢 🦀"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("a\r\nb\tc\0", "a\\r\\nb\\tc\\x00"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("a\udcff\udc80", "a\\xff\\x80"),
        ("\ud800\udc00\udfff", "\\ud800\\udc00\\udfff"),
        ("web\u3164\u2800\ufe0f", "web\\u3164\\u2800\\ufe0f"),
        ("\u200b\ufeff", "\\u200b\\ufeff"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_not_printable_is_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_json_has_no_half_of_a_surrogate_pair() -> None:
    """Strict parsers refuse a document that has one anywhere."""
    value = {"a\udcff": ["\udc80", ("\ud800", {"b": "\udfff"})], "n": [1, None, True, "ü🦀"]}
    found = json.loads(to_json(value))
    json.dumps(found, ensure_ascii=False).encode()
    assert found == {
        "a\\xff": ["\\x80", ["\\ud800", {"b": "\\udfff"}]],
        "n": [1, None, True, "ü🦀"],
    }
