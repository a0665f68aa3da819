# SPDX-License-Identifier: Apache-2.0
"""Waiting for what the lab does not tell of by itself."""

import time
from collections.abc import Callable
from typing import TypeVar

from tests.lab.channel import PATIENCE

POLL_SECONDS = 0.1
"""To look costs the lab 10 to 20 ms of its CPUs, which it then lacks for what is awaited."""

T = TypeVar("T")


def until(
    found: Callable[[], T], why: str, seconds: float = PATIENCE, *, poll: float = POLL_SECONDS
) -> T:
    """The first true value, looked for every `poll` seconds; a failure after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"in vain for {seconds:g} s: {why}"
        time.sleep(poll)
    return value
