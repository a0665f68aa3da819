# SPDX-License-Identifier: Apache-2.0
"""Skipping a test, aloud: why, and what would make it run.

The one place that calls pytest for it (tests/lab/selftest/unit/test_skips.py), so that no test
is skipped without both.
"""

import os
from typing import NoReturn

import pytest

RUNS = "; runs "
"""Stands between the two in every reason."""


def skip(why: str, *, runs: str) -> NoReturn:
    """Skip the test that calls this; `runs` continues "it runs …": "as root", "with zsh"."""
    __tracebackhide__ = True  # the place that is told is the caller's
    pytest.skip(f"{why}{RUNS}{runs}")


def skip_if(condition: bool, why: str, *, runs: str) -> pytest.MarkDecorator:  # noqa: FBT001 - as skipif
    """Mark tests that are skipped if this is so."""
    return pytest.mark.skipif(condition, reason=f"{why}{RUNS}{runs}")


def only_root(why: str) -> pytest.MarkDecorator:
    """Mark tests of what an ordinary user cannot do."""
    return skip_if(os.geteuid() != 0, why, runs="as root")


def only_users(why: str) -> pytest.MarkDecorator:
    """Mark tests of what stops nobody who is root."""
    return skip_if(os.geteuid() == 0, why, runs="as an ordinary user, after root ran tests/setup")
