# SPDX-License-Identifier: Apache-2.0
"""Results as JSON: one object, always, with the version of its schema."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TextIO, TypeVar

from pmuctl.render.columns import Column, plain

SCHEMA = 1
"""Raised when a key is removed or changes its type; added keys keep it."""

Row = TypeVar("Row")


def rows_as_json(columns: Sequence[Column[Row]], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each row as an object whose keys are the column names in lower case."""
    return [{column.name.lower(): plain(column.value(row)) for column in columns} for row in rows]


def write_document(command: str, body: Mapping[str, object], out: TextIO) -> None:
    """Write the one JSON object of a command, `{"pmuctl": {...}, ...}`."""
    head = {"pmuctl": {"schema": SCHEMA, "command": command}}
    json.dump(head | dict(body), out)
    out.write("\n")
