# SPDX-License-Identifier: Apache-2.0
"""What a check of a host or of a VM has found."""

from dataclasses import dataclass
from enum import StrEnum


class Result(StrEnum):
    """How a check ended."""

    PASS = "PASS"
    WARN = "WARN"
    """it can go wrong, or cannot be told"""
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check of one thing: `id` never changes its meaning, `subject` is what was looked at.

    `why` is the reason, `fix` one command that mends it, or shows more where none does.
    """

    id: str
    subject: str
    result: Result
    why: str
    fix: str | None = None
