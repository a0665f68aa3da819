# SPDX-License-Identifier: Apache-2.0
"""Rows for the tests of columns, tables and formats."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from pmuctl.render.columns import Column
from pmuctl.render.formats import Format, Layout, write_rows


@dataclass(frozen=True)
class Thing:
    name: str
    size: int | None = 7
    text: str | None = "some words"
    parts: Sequence[str] = ()


PARTS: Sequence[Column[str]] = (Column(name="PART", help="a part", value=lambda its: its),)
COLUMNS: Sequence[Column[Thing]] = (
    Column(name="NAME", help="its name", value=lambda its: its.name),
    Column(name="SIZE", help="its size", value=lambda its: its.size, is_number=True),
    Column(name="LONG-TEXT", help="its text", value=lambda its: its.text),
    Column(name="PARTS", help="its parts", value=lambda its: its.parts, shown=False, nested=PARTS),
)
THINGS = [Thing("one"), Thing("two", None, None, ("a", "b")), Thing("three", 12345, "")]


def written(format: Format, things: Sequence[Thing] = THINGS, **layout: int | None) -> str:
    out = io.StringIO()
    write_rows(COLUMNS, things, out, format=format, layout=Layout(**layout))  # type: ignore[arg-type]
    return out.getvalue()
