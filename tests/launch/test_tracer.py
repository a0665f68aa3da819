# SPDX-License-Identifier: Apache-2.0
"""A tracer meets more threads than it can take: it neither waits for ever nor forgets one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pmuctl.host.procfs import Procfs
from pmuctl.launch.failures import not_stopped
from pmuctl.launch.trace.arch import native_arch
from pmuctl.launch.trace.tracer import STOPS_AT_ONCE, Tracer
from pmuctl.value import field, value
from tests.fakes.peers import PATIENCE
from tests.launch.native import end_sleeper, need, no_gate, start_sleeper, wait_for
from tests.launch.scripted import NoEvents


@value
class Endless(Procfs):
    """A process that has one more thread whenever one looks: here they are processes."""

    made: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def list_threads(self, pid: int) -> tuple[frozenset[int], bool]:
        self.made.append(start_sleeper(6 * PATIENCE))
        return frozenset(its.pid for its in self.made), True


def test_threads_without_end_are_not_followed_for_ever() -> None:
    need(no_gate())
    procs = Endless()
    began = time.monotonic()
    try:
        with pytest.raises(TimeoutError) as raised:
            Tracer(native_arch(), procs, patience=0.1).follow_all(1)
    finally:
        for its in procs.made:
            end_sleeper(its)
    assert time.monotonic() - began < PATIENCE
    error = not_stopped(raised.value)
    assert error.message == "the VMM's threads cannot be followed"
    assert error.why == "they make others without end"


@value
class LookedAt(Procfs):
    """A process whose first listings are as they were while its threads came and went."""

    listings: list[tuple[frozenset[int], bool]] = field(default_factory=list)

    def list_threads(self, pid: int) -> tuple[frozenset[int], bool]:
        return self.listings.pop(0) if self.listings else super().list_threads(pid)


@pytest.fixture
def two_threads() -> Iterator[tuple[int, int]]:
    """A process with two threads: its leader and the other."""
    script = "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()"
    with subprocess.Popen((sys.executable, "-c", script)) as process:
        wait_for(lambda: len(Procfs().threads(process.pid)) == 2, "its second thread")
        [other] = Procfs().threads(process.pid) - {process.pid}
        yield process.pid, other
        process.kill()


@pytest.mark.parametrize("what", ["one ended and had made another", "the listing ended early"])
def test_no_thread_is_missed_though_others_end_while_they_are_listed(
    two_threads: tuple[int, int], what: str
) -> None:
    need(no_gate())
    leader, other = two_threads
    with subprocess.Popen("true") as ended:
        pass
    first = (frozenset({leader}), False)
    if what.startswith("one ended"):
        first = (frozenset({leader, ended.pid}), True)
    tracer = Tracer(native_arch(), LookedAt(listings=[first]))
    tracer.syscall_events = NoEvents()
    try:
        tracer.follow(leader, leader, lambda: True)
        tracer.follow_all(leader)
        assert tracer.threads.keys() == {leader, other}
    finally:
        os.kill(leader, signal.SIGKILL)
        while tracer.threads:
            tracer.take_stop()


class Youngest(Tracer):
    """To whom the kernel tells only of the youngest, which stops again and again."""

    def take_stop(self, which: int = -1, flags: int = 0) -> bool:
        self.asked.append(which)
        return which in (-1, max(self.threads))

    asked: list[int]


def test_the_oldest_have_their_turns_where_the_youngest_never_end() -> None:
    its = Youngest(native_arch(), Procfs())
    its.asked = []
    its.threads = dict.fromkeys(range(1, 1000), None)  # type: ignore[assignment]
    assert its.take_stops()
    assert its.asked == [*[-1] * STOPS_AT_ONCE, *range(1, STOPS_AT_ONCE + 1)]
