# SPDX-License-Identifier: Apache-2.0
"""What is asked side by side comes in order, and a signal does not wait for who is silent."""

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from pmuctl.errors import ExitStatus, RefusedError, Stopped
from pmuctl.host.parallel import AT_ONCE, run_parallel


@pytest.fixture
def stopping() -> Iterator[None]:
    """SIGTERM ends as it ends pmuctl."""

    def stop(*_: object) -> None:
        raise Stopped(ExitStatus.TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def test_answers_come_in_order_however_many() -> None:
    assert run_parallel([]) == []
    jobs = [partial(int, n) for n in range(3 * AT_ONCE)]
    assert run_parallel(jobs) == list(range(3 * AT_ONCE))


def test_what_a_job_raises_is_raised() -> None:
    def fail() -> None:
        raise RefusedError("no")

    with pytest.raises(RefusedError, match="no"):
        run_parallel([fail])


@pytest.mark.usefixtures("stopping")
def test_a_signal_waits_for_nobody() -> None:
    """Nor is anybody begun after it."""
    is_over = threading.Event()
    begun: list[int] = []

    def wait(number: int) -> None:
        begun.append(number)
        if len(begun) == AT_ONCE:
            os.kill(os.getpid(), signal.SIGTERM)
        is_over.wait(60)

    try:
        with pytest.raises(Stopped) as caught:
            run_parallel([partial(wait, n) for n in range(2 * AT_ONCE)])
        assert caught.value.status is ExitStatus.TERMINATED
        assert len(begun) == AT_ONCE
    finally:
        is_over.set()
