# SPDX-License-Identifier: Apache-2.0
"""When the supervisor's loop ends; whom it watches is scripted."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pmuctl.launch.event_loop import EventLoop
from pmuctl.launch.supervisor import Supervisor
from pmuctl.launch.trace.seccomp_gate import Listener
from tests.fakes.peers import PATIENCE
from tests.fakes.shortage import no_descriptors


@pytest.fixture
def watch() -> Iterator[EventLoop]:
    before = signal.getsignal(signal.SIGCHLD)
    yield EventLoop()
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

    def receive(self) -> None:
        raise EOFError

    def on_gate_closed(self) -> None:
        pass

    def flush(self) -> None:
        pass


def test_it_ends_where_the_gate_is_gone_before_the_last_thread(watch: EventLoop) -> None:
    its: Any = Behind()
    slept: list[bool] = []

    def wake() -> None:
        slept.append(True)
        watch.wake()

    late = threading.Timer(PATIENCE, wake)
    late.start()
    watch.run(cast(Supervisor, its), cast(Listener, its), its)
    late.cancel()
    assert (its.turns, slept) == (2, [])
    os.close(its.fd)


class Starved:
    """A VMM that makes VMs while nothing can be opened, and ends once that has passed."""

    def __init__(self, vmm: subprocess.Popen[bytes], shortage: ExitStack) -> None:
        self.pid = vmm.pid
        self.tracer = SimpleNamespace(threads={})
        self.is_busy = False
        self.ends = 0
        self.fd, self._write = os.pipe()
        self._vmm = vmm
        self._turns = 0
        self._shortage = shortage

    def turn(self) -> float | None:
        self._turns += 1
        if self._turns == 1:
            self._shortage.enter_context(no_descriptors())
            return 0.0
        if self._turns == 2:
            self._shortage.close()
            self._vmm.kill()
        return None

    def receive(self) -> None:
        raise EOFError

    def on_vmm_exit(self) -> None:
        self.ends += 1
        self.leave()

    def leave(self) -> None:
        """Nobody stands behind the gate any more."""
        os.close(self._write)

    def on_process_exit(self) -> None:
        pass

    def on_gate_closed(self) -> None:
        pass

    def flush(self) -> None:
        pass


def test_an_end_is_heard_of_though_it_could_not_be_watched_for_at_first(watch: EventLoop) -> None:
    with subprocess.Popen(("sleep", str(6 * PATIENCE))) as vmm, ExitStack() as stack:
        stack.callback(vmm.kill)
        its: Any = Starved(vmm, stack.enter_context(ExitStack()))
        late = threading.Timer(PATIENCE, its.leave)
        stack.callback(late.cancel)
        late.start()
        watch.run(cast(Supervisor, its), cast(Listener, its), its)
    assert its.ends == 1
    os.close(its.fd)


class Reaped(Behind):
    """A VMM that has ended, and whose parent knows that already; nobody is behind the gate."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.pid = pid
        self.told: list[str] = []

    def on_process_exit(self) -> None:
        self.told.append("supervisor")

    def on_vmm_exit(self) -> None:
        self.told.append("observer")


def test_an_end_before_the_first_look_is_told_to_both(watch: EventLoop) -> None:
    with subprocess.Popen(("true",)) as vmm:
        pass
    its: Any = Reaped(vmm.pid)
    watch.run(cast(Supervisor, its), cast(Listener, its), its)
    assert its.told == ["supervisor", "observer"]
    os.close(its.fd)
