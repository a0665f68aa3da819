# SPDX-License-Identifier: Apache-2.0
"""Errors as text and as JSON, and the exit status of each."""

import inspect
import io
import json

import pytest

from pmuctl import errors
from pmuctl.errors import ExitStatus, PmuctlError, WrongWordError
from pmuctl.render.error import write_error

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, PmuctlError) and cls not in (PmuctlError, WrongWordError)
]
"""All but WrongWordError, which makes its own fix and has a test of its own."""
STATUS = {
    "UsageError": 2,
    "UnreachableError": 3,
    "NotFoundError": 4,
    "SealedError": 5,
    "DeniedError": 6,
    "UnsupportedError": 7,
    "RefusedError": 9,
    "PinnedError": 9,
    "UnknownOutcomeError": 10,
    "OutputError": 74,
}


def test_each_error_has_the_status_that_is_documented() -> None:
    known = {cls.__name__: int(cls.status) for cls in CLASSES if cls.__name__ in STATUS}
    assert known == STATUS
    assert {int(its) for its in ExitStatus} >= {0, 1, 70, 130, 141, 143}
    assert len({its.value for its in ExitStatus}) == len(ExitStatus.__members__)


def test_a_wrong_word_is_a_usage_error_with_the_right_one_as_its_fix() -> None:
    error = WrongWordError("no", words=("r11",), right=("allow", "0x11"), why=None)
    assert int(error.status) == STATUS["UsageError"]
    shown: dict[bool, str] = {}
    for as_json in (False, True):
        out = io.StringIO()
        write_error(error, out, as_json=as_json)
        shown[as_json] = out.getvalue()
    assert shown[False] == "error: no\n  fix: write allow 0x11\n"
    document = json.loads(shown[True])["error"]
    assert (document["code"], document["exit"]) == ("usage", 2)
    assert (document["why"], document["fix"]) == (None, "write allow 0x11")


@pytest.mark.parametrize("cls", CLASSES)
def test_each_error_as_json_is_one_object_with_every_key(cls: type[PmuctlError]) -> None:
    error = cls("it\x1b failed", subject="web1", why="be\ncause", fix="do", errno="EBUSY")
    error.now = "so"
    out = io.StringIO()
    write_error(error, out, as_json=True)
    assert out.getvalue().count("\n") == 1
    assert "\x1b" not in out.getvalue()
    assert json.loads(out.getvalue()) == {
        "error": {
            "code": cls.status.name.lower(),
            "exit": int(cls.status),
            "object": "web1",
            "errno": "EBUSY",
            "message": "it\x1b failed",
            "why": "be\ncause",
            "now": "so",
            "fix": "do",
        }
    }


def test_an_error_as_text_is_a_line_for_each_thing_it_says() -> None:
    out = io.StringIO()
    error = PmuctlError("it\x1b failed", subject="we\nb", why="be\ncause", now="so", fix="do")
    write_error(error, out)
    write_error(PmuctlError("alone"), out, word="warning")
    assert out.getvalue().splitlines() == [
        "error: we\\nb: it\\x1b failed",
        "  why: be\\ncause",
        "  now: so",
        "  fix: do",
        "warning: alone",
    ]
