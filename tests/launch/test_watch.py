# SPDX-License-Identifier: Apache-2.0
"""When the supervisor's loop ends; whom it watches is scripted."""

import os
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pmuctl.launch.gate import Listener
from pmuctl.launch.supervisor import Supervisor
from pmuctl.launch.watch import Watch
from tests.fakes.peers import PATIENCE


@pytest.fixture
def watch() -> Iterator[Watch]:
    before = signal.getsignal(signal.SIGCHLD)
    yield Watch()
    os.close(signal.set_wakeup_fd(-1))
    signal.signal(signal.SIGCHLD, before)


class Behind:
    """One traced thread, whose end is heard of in the second turn, and a gate nobody is behind."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.tracer = SimpleNamespace(threads={1: None})
        self.is_busy = False
        self.turns = 0
        self.fd, self._write = os.pipe()
        os.close(self._write)  # POLLHUP

    def turn(self) -> float | None:
        self.turns += 1
        if self.turns == 2:
            self.tracer.threads.clear()
        return None

    def take(self) -> None:
        raise EOFError

    def rest(self) -> None:
        pass


def test_it_ends_where_the_gate_is_gone_before_the_last_thread(watch: Watch) -> None:
    its: Any = Behind()
    slept: list[bool] = []

    def wake() -> None:
        slept.append(True)
        watch.wake()

    late = threading.Timer(PATIENCE, wake)
    late.start()
    watch.over(cast(Supervisor, its), cast(Listener, its), its)
    late.cancel()
    assert (its.turns, slept) == (2, [])
    os.close(its.fd)
